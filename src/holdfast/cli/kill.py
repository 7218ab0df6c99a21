"""``holdfast kill``: stop work now and refuse it until lifted."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli import opening, output
from holdfast.errors import UsageError

app = typer.Typer(help="Stop work now, and refuse it until lifted.", no_args_is_help=True)

Why = Annotated[str, typer.Option("--reason", help="Why; it is recorded and shown to whoever is refused.")]
Compensate = Annotated[bool, typer.Option("--compensate", help="Undo compensable effects, latest first.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command()
def fleet(reason: Why, compensate: Compensate = False, as_: opening.As = "", json: opening.Json = False) -> None:
    """Stop everything on every node."""
    _kill("fleet", "", reason, compensate, as_, json)


@app.command()
def tenant(
    name: Name, reason: Why, compensate: Compensate = False, as_: opening.As = "", json: opening.Json = False
) -> None:
    """Stop all work of a tenant."""
    _kill("tenant", name, reason, compensate, as_, json)


@app.command()
def agent(
    name: Name, reason: Why, compensate: Compensate = False, as_: opening.As = "", json: opening.Json = False
) -> None:
    """Stop all runs of an agent."""
    _kill("agent", name, reason, compensate, as_, json)


@app.command()
def workflow(
    name: Annotated[str, typer.Argument(metavar="AGENT.WORKFLOW")],
    reason: Why,
    compensate: Compensate = False,
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Stop all runs of one workflow of an agent."""
    if not all(name.rpartition(".")[::2]):
        raise UsageError(f"{name} is not a workflow's name; write agent.workflow")
    _kill("workflow", name, reason, compensate, as_, json)


@app.command()
def session(
    name: Name, reason: Why, compensate: Compensate = False, as_: opening.As = "", json: opening.Json = False
) -> None:
    """Stop a hosted session."""
    _kill("session", name, reason, compensate, as_, json)


@app.command()
def run(
    name: opening.RunId, reason: Why, compensate: Compensate = False, as_: opening.As = "", json: opening.Json = False
) -> None:
    """Stop one run."""
    _kill("run", name, reason, compensate, as_, json)


@app.command("list")
def list_(json: opening.Json = False) -> None:
    """List the kills in force."""
    with opening.service() as service:
        kills = service.kills()
    if json:
        keys = ("id", "scope", "name", "reason", "by")
        found = [{**{key: getattr(kill, key) for key in keys}, "at": output.when(kill.at)} for kill in kills]
        output.emit({"kills": found})
        return
    rows = [(kill.id, kill.scope, kill.name, kill.reason, kill.by, output.shown_when(kill.at)) for kill in kills]
    output.table(("id", "scope", "name", "reason", "by", "at"), rows, empty="No kill is in force.")


@app.command()
def lift(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Id of the kill, as kill list shows it.")],
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Lift a kill: new work is accepted again. What it ended stays ended."""
    with opening.service() as service:
        service.lift(id_, principal=opening.principal(as_))
    if json:
        output.emit({"id": id_, "lifted": True})
    else:
        output.say(f"lifted {id_}")


@app.command()
def drill(json: opening.Json = False) -> None:
    """Kill a canary run of its own and print the time to halt."""
    with opening.service() as service, output.progress("starting a canary run", quiet=json):
        result = service.drill()
    if json:
        output.emit({"id": result.kill_id, "run_id": result.run_id, "ms": round(result.ms, 3)})
    else:
        output.say(f"halted in {result.ms:.1f} ms: canary {result.run_id}, kill {result.kill_id} (lifted again)")


def _kill(scope: str, name: str, reason: str, compensate: bool, as_: str, json: bool) -> None:
    if not reason.strip():
        raise UsageError("a kill needs a reason; say why with --reason TEXT")
    asker = opening.principal(as_)
    with opening.service() as service:
        result = service.kill(scope, name, reason, principal=asker, compensate=compensate)
    if json:
        output.emit({"id": result.id, "ended": result.ended, "ms": round(result.ms, 3)})
    else:
        output.say(f"killed {scope} {name}".rstrip() + f": {result.ended} ended in {result.ms:.1f} ms")
        output.say(f"new work is refused until: holdfast kill lift {result.id}")
