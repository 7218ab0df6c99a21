"""``holdfast run``: start a run and drive it until it ends or waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import exits, opening, output
from holdfast.errors import HoldfastError, UsageError
from holdfast.node.mandate import Mandate
from holdfast.node.views import RunView
from holdfast.sandbox.levels import NAMES as LEVELS

TIMER_US = 60_000_000
"""A run that waits for a timer below this is waited for."""


def run(
    target: Annotated[str, typer.Argument(help="path/to/file.py:Class or package.module:Class")],
    input_: Annotated[
        str, typer.Option("--input", metavar="JSON|@FILE", help="Input of the workflow; @- is stdin.")
    ] = "{}",
    workflow: Annotated[str, typer.Option(help="Workflow to run, when the class has several.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose work it is.")] = "default",
    policy: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Policy file; may be given often.")] = None,
    isolation: Annotated[str, typer.Option(metavar="LEVEL", help="Isolation level: " + ", ".join(LEVELS))] = "",
    tag: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="What its cost is booked under; may be given often.")
    ] = None,
    on_behalf_of: Annotated[str, typer.Option(metavar="NAME", help="The person for whom the agent acts.")] = "",
    may: Annotated[
        list[str] | None,
        typer.Option(metavar="GATE:NAME", help="What it may do at most, as policies see it; may be given often."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Only submit; a serving node drives it.")] = False,
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Run an agent: governed, isolated, recorded. Waits until it ends or suspends."""
    if isolation and isolation not in LEVELS:
        raise UsageError(f"{isolation} is not an isolation level; use one of {', '.join(LEVELS)}")
    data = opening.json_argument(input_, "--input")
    asker = opening.principal(as_)
    mandate = Mandate(tags=_tags(tag or ()), on_behalf_of=on_behalf_of, authority=tuple(may) if may else None)
    with opening.service() as service:
        run_id = service.submit(
            target,
            data,
            workflow=workflow,
            tenant=tenant,
            policy_files=tuple(policy or ()),
            isolation=isolation,
            principal=asker,
            mandate=mandate,
        )
        if detach:
            report(service.run(run_id), json)
            return
        finish(follow(service, run_id, json), json)


def _tags(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, mark, value in pairs if not (name and mark and value)]:
        raise UsageError(f"--tag {wrong[0]} is not KEY=VALUE; write --tag cost-centre=4711")
    return {name: value for name, _, value in pairs}


def follow(service: Any, run_id: str, quiet: bool) -> RunView:
    """Drive a run and show its progress. An interrupt leaves it resumable and says how."""
    with output.progress(f"{run_id} starting", quiet=quiet) as line:

        def on_event(event: Any) -> None:
            line.update(f"{run_id}  {describe(event)}")

        try:
            # Following the events costs the node time; where nobody looks, nobody follows.
            watcher = on_event if line.shown else None
            view: RunView = service.drive(run_id, on_event=watcher, wait_timers_us=TIMER_US)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; go on with: holdfast runs resume {run_id}") from None
    return view


class Interrupted(HoldfastError):
    """Control-C while a run was driven."""

    code = "interrupted"
    exit_status = exits.INTERRUPTED


def describe(event: Any) -> str:
    """An event in a few words: its kind and the step that it is about."""
    data = event.data
    action = data.get("action") or {}
    name = action.get("id") or data.get("id") or data.get("message") or data.get("reason") or data.get("agent") or ""
    return f"{event.kind} {name}".rstrip()


def report(run: RunView, as_json: bool) -> None:
    """Print a run, as JSON or for a person."""
    if as_json:
        output.emit(output.run_object(run))
    else:
        output.show_run(run)


def finish(run: RunView, as_json: bool) -> None:
    """Print a run that was driven and leave with its exit status."""
    report(run, as_json)
    status = exits.of(run)
    if status != exits.OK:
        raise typer.Exit(status)
