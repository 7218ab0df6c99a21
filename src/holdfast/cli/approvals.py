"""``holdfast approvals``: what waits for a person, and answering it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast import values
from holdfast.cli import opening, output
from holdfast.errors import UsageError
from holdfast.node.views import ApprovalView

app = typer.Typer(help="See and answer what waits for a person.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the approval, as approvals list shows it.")]


@app.command("list")
def list_(json: opening.Json = False) -> None:
    """List what waits for a person."""
    with opening.service() as service:
        found = service.approvals()
    if json:
        output.emit({"approvals": [approval_object(item) for item in found]})
        return
    rows = [
        (item.id, item.run_id, item.step, output.compact(item.what, 120), f"{item.given} of {item.quorum}",
         output.shown_when(item.expires_at))
        for item in found
    ]  # fmt: skip
    output.table(("id", "run", "step", "what", "given", "expires"), rows, empty="Nothing waits for a person.")


@app.command()
def approve(id_: Id, reason: opening.Reason = "", as_: opening.As = "", json: opening.Json = False) -> None:
    """Approve. It is recorded only; `runs resume` or a serving node goes on."""
    _answer(id_, True, reason, as_, json)


@app.command()
def deny(id_: Id, reason: opening.Reason = "", as_: opening.As = "", json: opening.Json = False) -> None:
    """Deny. It is recorded only; `runs resume` or a serving node goes on."""
    _answer(id_, False, reason, as_, json)


@app.command()
def answer(
    id_: Id,
    text: Annotated[str | None, typer.Argument(help="The answer, as text.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="JSON|@FILE", help="The answer, as JSON.")] = None,
    reason: opening.Reason = "",
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Answer a question that `ctx.ask` put."""
    if (text is None) == (data is None):
        raise UsageError("give the answer once: as TEXT, or as --data JSON")
    value = values.load(opening.json_argument(data, "--data")) if data is not None else text
    _answer(id_, value, reason, as_, json)


def approval_object(item: ApprovalView) -> dict[str, Any]:
    """An entry of ``approvals list --json``."""
    return {
        "id": item.id,
        "run_id": item.run_id,
        "step": item.step,
        "what": item.what,
        "digest": item.digest,
        "expires_at": output.when(item.expires_at),
        "quorum": item.quorum,
        "given": item.given,
    }


def _answer(id_: str, value: Any, reason: str, as_: str, json: bool) -> None:
    asker = opening.principal(as_)
    with opening.service() as service:
        service.answer(id_, value, reason=reason, principal=asker)
    word = {True: "approved", False: "denied"}.get(value, "answered") if isinstance(value, bool) else "answered"
    if json:
        output.emit({"id": id_, "answer": word, "by": asker.name})
    else:
        output.say(f"{word} {id_} as {asker.name}")
