"""``holdfast policy``: which policies are in force, whether files are good, and what they would say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from holdfast import config
from holdfast.cli import exits, opening, output, policy_apply, policy_glass, policy_learn, policy_replay
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.policy.categories.base import Rule

BUILTIN = "built-in"
"""What a rule's layer is called when no file has it."""
app = typer.Typer(help="List, check and explain policies.", no_args_is_help=True)

Files = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE...", help="Policy files; none: those that are configured.")
]


@app.command("list")
def list_(
    files: Files = None,
    tenant: Annotated[str, typer.Option(help="As for runs of this tenant.")] = "default",
    agent: Annotated[str, typer.Option(help="As for runs of this agent.")] = "",
    json: opening.Json = False,
) -> None:
    """List the policies in force with the layer that each comes from, and the digest of the bundle."""
    from holdfast.node import bundles
    from holdfast.policy.layers import stack

    settings = config.load()
    if files:
        settings = msgspec.structs.replace(settings, policy=msgspec.structs.replace(settings.policy, files=files))
    layers = bundles.layers(settings, tenant, agent)
    bundle = bundles.read(settings, layers)
    paths = [path for layer in layers for path in layer.files]
    layer_of = {found.item.policy.id: found.layer for found in stack(layers)}
    if json:
        policies = [{**_object(rule), "layer": layer_of.get(rule.id, BUILTIN)} for rule in bundle.rules]
        output.emit({"bundle": bundle.digest, "files": [str(path) for path in paths], "policies": policies})
        return
    rows = [
        (
            rule.id,
            rule.category.name,
            rule.mode,
            rule.on_breach.word,
            ",".join(sorted(rule.gates)),
            _whom(rule),
            layer_of.get(rule.id, BUILTIN),
        )
        for rule in bundle.rules
    ]
    output.say(f"bundle {bundle.digest[:12]} from {', '.join(map(str, paths)) or 'what is built in'}")
    columns = ("id", "category", "mode", "on breach", "gates", "whom and when", "layer")
    output.table(columns, rows, empty="No policies.")


@app.command()
def lint(files: Files = None, json: opening.Json = False) -> None:
    """Check policy files: every problem with its file, line, key and cure. Exit status 2 when one is an error."""
    from holdfast.node import bundles
    from holdfast.policy import lint as linting

    settings = config.load()
    known = {"tool": settings.connectors.keys()} if settings.connectors else {}
    paths = files or bundles.configured(settings)
    if files:
        found = linting.lint(files, known=known)
    else:
        found = [one for part in bundles.parts(settings) for one in linting.lint(part, known=known)]
        found += [] if linting.broken(found) else [linting.layered(why) for why in bundles.misfits(settings)]
    errors = sum(item.severity is linting.Severity.ERROR for item in found)
    if json:
        keys = ("file", "line", "key", "severity", "message", "rule")
        problems = [{key: getattr(item, key) for key in keys} for item in found]
        output.emit({"files": [str(path) for path in paths], "ok": not errors, "problems": problems})
    else:
        for item in found:
            output.say(str(item), "red" if item.severity is linting.Severity.ERROR else "yellow")
        output.say(f"{len(paths)} files, {errors} errors, {len(found) - errors} remarks")
    if errors:
        raise typer.Exit(exits.USAGE)


@app.command("test")
def try_out(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of tests.")],
    policy: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Policy file for tests that name none; may be given often."),
    ] = None,
    json: opening.Json = False,
) -> None:
    """Decide the tests of files against policies. Exit status 1 when one gets another verdict than it expects."""
    from holdfast.policy import trial
    from holdfast.policy.bundle import load

    suites = [trial.suite(path) for path in files]
    report = trial.run(suites, load(policy or config.load().policy.files))
    failed = report.failed
    if json:
        tests = [
            {
                "name": result.test.name,
                "file": result.test.file,
                "line": result.test.line,
                "ok": not result.wrong,
                "outcome": result.verdict.outcome.word,
                "rule": result.verdict.rule,
                "reason": result.verdict.reason,
                "wrong": list(result.wrong),
            }
            for result in report.results
        ]
        output.emit({"ok": not failed, "failed": len(failed), "tests": tests, "silent": list(report.silent)})
    else:
        for result in failed:
            where = f"{result.test.file}:{result.test.line}"
            output.say(f"{where}: {result.test.name}: {'; '.join(result.wrong)}", "red")
        if report.silent:
            output.say(f"no test reaches {', '.join(report.silent)}", "yellow")
        output.say(f"{len(report.results)} tests, {len(failed)} failed")
    if failed:
        raise typer.Exit(exits.FAILED)


@app.command()
def coverage(
    run: Annotated[list[str] | None, typer.Option(metavar="RUN", help="Run; may be given often; none: all.")] = None,
    tenant: Annotated[str, typer.Option(help="Only runs of this tenant.")] = "",
    json: opening.Json = False,
) -> None:
    """Show which share of recorded actions passed a gate, what did not, and what no rule looked at."""
    from holdfast.journal.base import StreamKind
    from holdfast.policy.bundle import Bundle
    from holdfast.policy.coverage import coverage as fold

    bundles: dict[str, Bundle | None] = {}
    with opening.service() as service:
        store = service.store

        def bundle_of(digest: str) -> Bundle | None:
            if digest not in bundles:
                data = store.blob(digest)
                bundles[digest] = Bundle.from_bytes(data) if data is not None else None
            return bundles[digest]

        rows = store.streams(tenant=tenant or None, kind=StreamKind.RUN)
        names = run or [row.header.stream for row in rows]
        missing = [name for name in names if store.stream(name) is None]
        if missing:
            raise UsageError(f"there is no run {missing[0]}; `holdfast runs list` shows them")
        found = fold((store.events(name) for name in names), bundle_of)
    if json:
        kinds = {
            kind: {"actions": share.actions, "gated": share.gated, "ruled": share.ruled}
            for kind, share in sorted(found.kinds.items())
        }
        totals = {"runs": len(names), "actions": found.actions, "gated": found.gated}
        output.emit({**totals, "kinds": kinds, "bypasses": found.bypasses, "unruled": found.unruled})
        return
    table = [
        (kind, str(share.actions), _share(share.gated, share.actions), _share(share.ruled, share.actions))
        for kind, share in sorted(found.kinds.items())
    ]
    output.table(("kind", "actions", "passed a gate", "a rule applied"), table, empty="No actions are on record.")
    for name, count in sorted(found.bypasses.items()):
        output.say(f"bypass: {name}, {count} times", "red")
    for name, count in sorted(found.unruled.items()):
        output.say(f"no rule applied: {name}, {count} times", "yellow")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


app.command("replay")(policy_replay.replay)
app.command("learn")(policy_learn.learn)
app.command("apply")(policy_apply.apply)
app.command("key")(policy_apply.key)
app.command("sign")(policy_apply.sign)
app.add_typer(policy_glass.app, name="glass", rich_help_panel=None)


@app.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    from holdfast.policy.schema import schema as make

    output.say(msgspec.json.format(msgspec.json.encode(make()), indent=2).decode())


@app.command()
def explain(
    run: Annotated[str, typer.Option(metavar="RUN", help="Run whose recorded action is explained.")] = "",
    step: Annotated[str, typer.Option(metavar="ID", help="Step id within the run; empty: its latest verdict.")] = "",
    action: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help='An action instead, as {"kind": "tool", "name": …, "args": {…}}.')
    ] = "",
    facts: Annotated[str, typer.Option(metavar="JSON|@FILE", help="Facts about it; the rest is as at a start.")] = "{}",
    policy: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Policy file; may be given often.")] = None,
    json: opening.Json = False,
) -> None:
    """Tell what each rule says of an action, recorded or typed, and which verdict that gives."""
    from holdfast.cli import policy_cases
    from holdfast.policy.bundle import load
    from holdfast.policy.explain import explain as account

    if bool(run) == bool(action):
        raise UsageError("say what to explain: --run RUN with --step ID, or --action JSON")
    if run:
        with opening.service() as service:
            case = policy_cases.recorded(service.store, run, step)
    else:
        case = policy_cases.typed(
            opening.json_argument(action, "--action"), opening.json_argument(facts, "--facts"), load(())
        )
    bundle = load(policy or config.load().policy.files) if policy or not run else case.bundle
    found = account(case.action, case.facts, bundle, case.ended)
    if json:
        output.emit(found.to_json_value())
        return
    verdict = found.verdict
    what = "what came back of " if case.ended is not None else ""
    output.say(f"{what}{case.action.kind} {case.action.target}: {verdict.outcome.word}", "bold")
    if verdict.rule:
        output.say(f"because of {verdict.rule}: {verdict.reason}")
    rows = [
        (item.rule, item.category, item.outcome.word if item.applies else "-", item.why)
        for item in sorted(found.accounts, key=lambda item: (not item.applies, -item.outcome))
    ]
    output.table(("rule", "category", "says", "why"), rows, empty="There are no policies.")


@app.command()
def scan(json: opening.Json = True) -> None:
    """Look for personal data, secrets and injected instructions in stdin: a line of text, or of JSON {"text": …}, each.

    Answers with one line of JSON for each line, blank ones too: {"findings": [{"type", "start", "end", "confidence"}]}.
    Offsets count code points, the end is exclusive. What is encoded and cannot be read is listed as "opaque".
    """
    from holdfast.cli.policy_scan import lines, render, text_of
    from holdfast.policy.scan import scan as look

    for line in lines(sys.stdin.buffer):
        sys.stdout.write(render(look(text_of(line))) + "\n")
        sys.stdout.flush()


def _object(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "category": rule.category.name,
        "mode": rule.mode,
        "on_breach": rule.on_breach.word,
        "gates": sorted(rule.gates),
        "scope": dict(rule.scope),
        "when": rule.source or None,
        "description": rule.description,
    }


def _whom(rule: Rule) -> str:
    parts = [f"{key} {pattern}" for key, pattern in rule.scope.items()]
    if rule.source:
        parts.append(f"when {' '.join(rule.source.split())}")
    return ", ".join(parts) or "everyone, always"
