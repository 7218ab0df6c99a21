"""``holdfast policy apply``, ``key`` and ``sign``: put policies in force on purpose, and say who wrote them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from holdfast import config
from holdfast.cli import opening, output
from holdfast.errors import UsageError

Key = Annotated[Path, typer.Option(metavar="FILE", help="Private key, as policy key made it.")]


def apply(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="With --dry-run: the organisation's files, instead of the configured."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which live runs it affects.")] = False,
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Put the configured policies in force, and show what they change for live runs."""
    from holdfast.node.bundles import Bundles, affected

    settings = config.load()
    if files:
        if not dry_run:
            raise UsageError(f"apply puts the configured files in force; name them in [policy] files of {config.FILE}")
        policy = msgspec.structs.replace(settings.policy, files=tuple(path.absolute() for path in files))
        settings = msgspec.structs.replace(settings, policy=policy)
    asker = opening.principal(as_)
    with opening.service() as service:
        bundles = Bundles(settings)
        runs = affected(service.store, bundles)
        standing = [] if dry_run else service.apply(bundles, principal=asker)
    if json:
        found: dict[str, Any] = {
            "applied": not dry_run,
            "bundles": [{"tenant": tenant, "bundle": digest} for tenant, digest in standing],
            "runs": [
                {
                    "run_id": run.run,
                    "tenant": run.tenant,
                    "agent": run.agent,
                    "status": run.status,
                    "bundle": run.pinned,
                    "effect": run.effect,
                    "rules": list(run.rules),
                }
                for run in runs
            ],
        }
        output.emit(found)
        return
    rows = [(run.run, run.tenant, run.agent, run.status, run.effect, ", ".join(run.rules) or "-") for run in runs]
    output.table(("run", "tenant", "agent", "status", "effect", "rules"), rows, empty="No run is live.")
    counts = Counter(run.effect for run in runs)
    said = ", ".join(f"{count} {effect}" for effect, count in sorted(counts.items())) or "no live runs"
    output.say(f"{'would be' if dry_run else 'in force'}: {said}", "bold")


def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes; FILE.pub gets the other.")],
    json: opening.Json = False,
) -> None:
    """Make a key for signing policy files."""
    from holdfast.audit import keys

    made = keys.create(path)
    if json:
        output.emit({"key": str(path), "public": f"{path}.pub", "name": made.public.name})
    else:
        output.say(f"{made.public.name}: keep {path} secret; name {path}.pub in [policy] trusted_keys")


def sign(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policy files.")],
    key: Key,
    json: opening.Json = False,
) -> None:
    """Sign policy files: FILE.sig beside each. A file that is wrong is not signed."""
    from holdfast.audit import keys
    from holdfast.policy.model import examine
    from holdfast.policy.signing import SUFFIX, signature
    from holdfast.policy.source import parse, read_bytes, refuse

    signing = keys.load_private(key)
    made = []
    for path in files:
        data = read_bytes(path)
        _, problems = examine(parse(data, str(path)))
        if problems:
            raise refuse(problems)
        beside = path.with_name(path.name + SUFFIX)
        beside.write_text(signature(data, signing.public.name, signing.sign))
        made.append(str(beside))
    if json:
        output.emit({"signed": made, "key": signing.public.name})
    else:
        output.say(f"signed by {signing.public.name}: {', '.join(made)}")
