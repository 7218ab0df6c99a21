"""``holdfast runs``: what ran, and going on with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import opening, output
from holdfast.cli.run import describe, finish, follow, report
from holdfast.errors import UsageError

app = typer.Typer(help="List, show, follow, resume, fork and repair runs.", no_args_is_help=True)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    json: opening.Json = False,
) -> None:
    """List runs, newest first."""
    with opening.service() as service:
        rows = service.runs(limit=limit)
    if json:
        output.emit({"runs": [output.row_object(row) for row in rows]})
        return
    lines = [
        (row.run_id, row.status, row.agent, row.workflow, row.tenant, output.shown_when(row.created_at)) for row in rows
    ]
    columns = ("run", "status", "agent", "workflow", "tenant", "created")
    output.table(columns, lines, empty="No runs yet. Start one: holdfast run file.py:Class --input JSON")


@app.command()
def show(run: opening.RunId, json: opening.Json = False) -> None:
    """Show how a run stands. The exit status is 0 whatever its status is."""
    with opening.service() as service:
        report(service.run(run), json)


@app.command()
def files(
    run: opening.RunId,
    out: Annotated[Path | None, typer.Option(help="Write them below this folder; none is overwritten.")] = None,
    json: opening.Json = False,
) -> None:
    """List the files that a run keeps, and write them out."""
    with opening.service() as service:
        kept = service.run(run).files
        for file in kept if out is not None else ():
            assert out is not None
            export(out / file.name, service.file(run, file.name))
    if json:
        output.emit({"run_id": run, "files": [{"name": f.name, "size": f.size, "digest": f.digest} for f in kept]})
    else:
        rows = [(file.name, str(file.size), file.digest[:12]) for file in kept]
        output.table(("file", "bytes", "digest"), rows, empty="This run keeps no files.")


def export(path: Path, chunks: Iterator[bytes]) -> None:
    """Write a file that is not there yet; half of one is removed again.

    Raises:
        UsageError: it is there, or its folder cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            try:
                file.writelines(chunks)
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another folder with --out") from None


@app.command()
def tail(
    run: opening.RunId,
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the run ends or waits.")] = False,
    json: opening.Json = False,
) -> None:
    """Print a run's events, one a line (with --json one object a line)."""
    import time

    seen = 0
    with opening.service() as service:
        while True:
            status = service.run(run).status
            for event in service.events(run, start=seen + 1):
                seen = event.seq
                if json:
                    output.emit({"seq": event.seq, "at": output.when(event.at), "kind": event.kind, "data": event.data})
                else:
                    output.say(f"{event.seq:>5}  {output.shown_when(event.at)}  {describe(event)}")
            if not follow_ or status not in ("pending", "running"):
                return
            time.sleep(0.1)


@app.command()
def resume(run: opening.RunId, json: opening.Json = False) -> None:
    """Go on with a run that waits or whose node died. A finished run prints its result again."""
    with opening.service() as service:
        finish(follow(service, run, json), json)


@app.command()
def fork(
    run: opening.RunId,
    step: Annotated[str, typer.Option(help="Step id from which the copy runs anew; empty: from the end.")] = "",
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Start a copy of a run that shares its history up to a step, and drive it. What is shared is not done again."""
    with opening.service() as service:
        copy = service.fork(run, step, principal=opening.principal(as_))
        finish(follow(service, copy, json), json)


@app.command()
def signal(
    run: opening.RunId,
    name: Annotated[str, typer.Argument(help="Name that ctx.wait_signal waits for.")],
    data: Annotated[str, typer.Option("--data", metavar="JSON|@FILE", help="What the signal carries.")] = "null",
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Send a signal to a run."""
    payload = opening.json_argument(data, "--data")
    with opening.service() as service:
        service.signal(run, name, payload, principal=opening.principal(as_))
    if json:
        output.emit({"run_id": run, "signal": name})
    else:
        output.say(f"sent {name} to {run}; go on with: holdfast runs resume {run}")


@app.command()
def resolve(
    run: opening.RunId,
    done: Annotated[
        str | None, typer.Option("--done", metavar="JSON|@FILE", help="It happened; this came back.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="It did not happen: do it again.")] = False,
    fail: Annotated[bool, typer.Option("--fail", help="Let the step fail.")] = False,
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Say what happened to an effect that is in doubt, or how a diverged run goes on."""
    if (done is not None) + retry + fail != 1:
        raise UsageError("say what happened: exactly one of --done JSON, --retry and --fail")
    how = "done" if done is not None else "retry" if retry else "fail"
    data = opening.json_argument(done, "--done") if done is not None else b"null"
    with opening.service() as service:
        service.resolve(run, how, data, principal=opening.principal(as_))
    if json:
        output.emit({"run_id": run, "resolved": how})
    else:
        output.say(f"recorded for {run}: {how}; go on with: holdfast runs resume {run}")
