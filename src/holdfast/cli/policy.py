"""``holdfast policy``: which policies are in force, whether files are good, and what they would say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast import config
from holdfast.cli import exits, opening, output

if TYPE_CHECKING:
    from holdfast.policy.categories.base import Rule

app = typer.Typer(help="List, check and explain policies.", no_args_is_help=True)

Files = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE...", help="Policy files; none: those that are configured.")
]


@app.command("list")
def list_(files: Files = None, json: opening.Json = False) -> None:
    """List the policies in force, with the digest of the bundle."""
    from holdfast.policy.bundle import load

    paths = files or config.load().policy.files
    bundle = load(paths)
    if json:
        found = [_object(rule) for rule in bundle.rules]
        output.emit({"bundle": bundle.digest, "files": [str(path) for path in paths], "policies": found})
        return
    rows = [
        (rule.id, rule.category.name, rule.mode, rule.on_breach.word, ",".join(sorted(rule.gates)), _whom(rule))
        for rule in bundle.rules
    ]
    output.say(f"bundle {bundle.digest[:12]} from {', '.join(map(str, paths)) or 'what is built in'}")
    output.table(("id", "category", "mode", "on breach", "gates", "whom and when"), rows, empty="No policies.")


@app.command()
def lint(files: Files = None, json: opening.Json = False) -> None:
    """Check policy files: every problem with its file, line, key and cure. Exit status 2 when there is one."""
    from holdfast.errors import PolicyFileError
    from holdfast.policy import model, source

    paths = files or list(config.load().policy.files)
    checked, problems = [], []
    for path in paths:
        try:
            good, wrong = model.examine(source.read(path))
        except PolicyFileError as error:
            good, wrong = [], [source.Problem(file=str(path), line=0, key="", message=_words(error, path))]
        checked += good
        problems += wrong
    problems += model.clashes(checked)
    if json:
        keys = ("file", "line", "key", "message")
        found = [{key: getattr(problem, key) for key in keys} for problem in problems]
        output.emit({"files": [str(path) for path in paths], "policies": len(checked), "problems": found})
    else:
        for problem in problems:
            output.say(str(problem), "red")
        output.say(f"{len(checked)} good policies in {len(paths)} files, {len(problems)} problems")
    if problems:
        raise typer.Exit(exits.USAGE)


def _words(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


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
