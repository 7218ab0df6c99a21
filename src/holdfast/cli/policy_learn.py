"""``holdfast policy learn``: the least rules that recorded runs need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast import config
from holdfast.cli import opening, output
from holdfast.errors import UsageError


def learn(
    agent: Annotated[str, typer.Option(help="Only runs of this agent.")] = "",
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Run, with its children; may be given often; none: all.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Only runs of this tenant.")] = "default",
    since: Annotated[str, typer.Option(metavar="DURATION", help="Only runs begun within it, such as 7d.")] = "",
    margin: Annotated[float, typer.Option(min=1.0, help="By how much limits exceed what was needed.")] = 1.5,
    file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where the policy file goes; none: it is printed.")
    ] = None,
    json: opening.Json = False,
) -> None:
    """Propose the least tool, model, egress and budget rules under which recorded runs would have gone as they went."""
    from holdfast.node import replay as replaying
    from holdfast.policy.learn import propose, watch
    from holdfast.policy.units import parse_duration

    settings = config.load()
    if file is not None and file.exists():
        raise UsageError(f"{file} exists; name another file, or move it away first")
    try:
        begun = int(time.time() * 1e6) - parse_duration(since) if since else 0
    except ValueError as error:
        raise UsageError(f"--since {since}: {error}") from None
    with opening.service() as service, output.progress("reading runs", quiet=json):
        store: Any = service.store
        streams = replaying.recorded_runs(store, tenant=tenant, runs=run or (), since=begun)
        streams = [one for one in streams if agent in ("", one.header.agent)]
        if not streams:
            raise UsageError("no such run is on record; run the agent first, with open rules in mode: shadow")
        seen = watch(replaying.recorded(store, streams))
    made = propose(seen, margin=margin, known=settings.connectors_of(tenant))
    text = made.to_yaml()
    if file is not None:
        file.write_text(text, "utf-8")
    if json:
        output.emit(
            {
                "file": str(file) if file is not None else None,
                "runs": sum(one.runs for one in seen),
                "agents": [one.agent for one in seen],
                "policies": list(made.policies),
                "notes": list(made.notes),
            }
        )
    elif file is None:
        output.say(text.rstrip())
    else:
        for note in made.notes:
            output.say(note)
        output.say(f"{len(made.policies)} policies in {file}; try them: holdfast policy replay {file}", "bold")
