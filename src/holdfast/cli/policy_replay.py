"""``holdfast policy replay``: what other policies would have made of the runs on record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast import config
from holdfast.cli import opening, output
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.policy.recorded import Delta

SHOWN = 50
"""Runs in the table; ``--json`` has them all."""


def replay(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Candidate policy files; none: those configured.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Run, with its children; may be given often; none: all.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Only runs of this tenant.")] = "",
    since: Annotated[str, typer.Option(metavar="DURATION", help="Only runs begun within it, such as 7d.")] = "",
    minutes: Annotated[float, typer.Option(min=0.0, help="What one person takes for one approval.")] = 5.0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    json: opening.Json = False,
) -> None:
    """Show what candidate policies would have decided on recorded runs, run by run. Nothing is done again."""
    from holdfast.node import replay as replaying
    from holdfast.policy.bundle import load
    from holdfast.policy.units import parse_duration

    home = config.home_folder()
    settings = config.load(home)
    candidate = load(files or settings.policy.files)
    try:
        begun = int(time.time() * 1e6) - parse_duration(since) if since else 0
    except ValueError as error:
        raise UsageError(f"--since {since}: {error}") from None
    with opening.service() as service, output.progress("reading runs", quiet=json) as shown:
        store: Any = service.store
        streams = replaying.recorded_runs(store, tenant=tenant, runs=run or (), since=begun)

        def told(done: int, of: int) -> None:
            shown.update(f"replayed {done} of {of}")

        found = replaying.replay(
            settings.store.url, home, store, candidate, streams, minutes=minutes, jobs=jobs, told=told
        )
    if json:
        output.emit(report(candidate.digest, found))
    else:
        _show(candidate.digest, found)


def report(bundle: str, found: Sequence[Delta]) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    from holdfast.policy.whatif import ASSUMED

    return {
        "bundle": bundle,
        "runs": len(found),
        "decisions": sum(delta.decisions for delta in found),
        **_figures(found),
        "same_bundle": {
            "decisions": sum(delta.pinned for delta in found),
            "differ": sum(delta.differ for delta in found),
        },
        "changed": [_run(delta) for delta in found if delta.changed],
        "unknown": [{"run_id": delta.run, "why": why} for delta in found for why in delta.unknown],
        "assumed": list(ASSUMED),
    }


def _figures(found: Sequence[Delta]) -> dict[str, Any]:
    return {
        "new_denials": sum(delta.denied for delta in found),
        "new_approvals": sum(delta.asked for delta in found),
        "dropped_denials": sum(delta.allowed for delta in found),
        "dropped_approvals": sum(delta.unasked for delta in found),
        "delays": sum(delta.delayed for delta in found),
        "redactions": sum(delta.redactions for delta in found),
        "shadow": sum(delta.shadow for delta in found),
        "reviewer_minutes": sum(delta.minutes for delta in found),
        "saved_usd": sum(delta.saved for delta in found) / 1e9,
        "spent_usd": sum(delta.spent for delta in found) / 1e9,
    }


def _run(delta: Delta) -> dict[str, Any]:
    return {
        "run_id": delta.run,
        "tenant": delta.tenant,
        "agent": delta.agent,
        "workflow": delta.workflow,
        "status": delta.status,
        **_figures([delta]),
        "stops_at": delta.stops_at or None,
        "not_reached": delta.not_reached,
        "changes": [{key: getattr(change, key) for key in change.__struct_fields__} for change in delta.changes],
    }


def _show(bundle: str, found: Sequence[Delta]) -> None:
    from holdfast.policy.whatif import ASSUMED

    changed = [delta for delta in found if delta.changed]
    columns = (
        "run",
        "agent",
        "denied",
        "asked",
        "no longer",
        "minutes",
        "redactions",
        "saved",
        "spent",
        "first change",
    )
    rows = [
        (
            delta.run,
            delta.agent,
            _number(delta.denied),
            _number(delta.asked),
            _number(delta.allowed + delta.unasked),
            f"{delta.minutes:+g}" if delta.minutes else "-",
            f"{delta.redactions:+d}" if delta.redactions else "-",
            output.dollars(delta.saved) if delta.saved else "-",
            output.dollars(delta.spent) if delta.spent else "-",
            f"{delta.changes[0].step}: {delta.changes[0].effect} by {delta.changes[0].rule}",
        )
        for delta in changed[:SHOWN]
    ]
    output.table(columns, rows, empty="The candidate decides every recorded action as it was decided.")
    if len(changed) > SHOWN:
        output.say(f"… and {len(changed) - SHOWN} more runs; --json lists all", "dim")
    total = _figures(found)
    output.say(
        f"bundle {bundle[:12]}: {len(changed)} of {len(found)} runs change; "
        f"{total['new_denials']} new denials, {total['new_approvals']} new approvals, "
        f"{total['dropped_denials']} denials and {total['dropped_approvals']} approvals fewer, "
        f"{total['redactions']:+d} redactions, {total['reviewer_minutes']:+g} reviewer minutes, "
        f"{output.dollars(sum(delta.saved for delta in found))} saved, "
        f"{output.dollars(sum(delta.spent for delta in found))} spent at most",
        "bold",
    )
    for delta in found:
        for why in delta.unknown[:1]:
            output.say(f"not replayed: {delta.run}: {why}", "yellow")
    if differ := sum(delta.differ for delta in found):
        output.say(f"{differ} verdicts of this very bundle come out otherwise: run `holdfast audit verify`", "red")
    if changed:
        output.say("assumed: " + "; ".join(ASSUMED), "dim")


def _number(count: int) -> str:
    return str(count) if count else "-"
