"""``holdfast policy glass``: lift rules for a while in an emergency, with two people, a reason, a time and a review."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import opening, output
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.policy.glass import Shown

app = typer.Typer(help="Break the glass: lift rules for a while, on the record.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Tenant whose rules are lifted.")]
Id = Annotated[str, typer.Argument(metavar="GLASS", help="Id of the glass, as glass list shows it.")]


@app.command("open")
def open_(
    id_: Annotated[str, typer.Argument(metavar="[GLASS]", help="A glass that somebody else asked for: join.")] = "",
    reason: Annotated[str, typer.Option(help="What happened; 20 characters or more.")] = "",
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long it stays open.")] = "30m",
    review_within: Annotated[str, typer.Option(metavar="DURATION", help="When its review is due, from its end.")] = (
        "72h"
    ),
    people: Annotated[int, typer.Option(min=2, help="How many people it takes.")] = 2,
    tenant: Tenant = "default",
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Ask for a glass to be broken, or join somebody who did. With enough people it is open."""
    from holdfast.policy.units import parse_duration

    if bool(id_) == bool(reason):
        raise UsageError("say why with --reason to ask for a glass, or name one that somebody else asked for")
    try:
        times = parse_duration(for_), parse_duration(review_within)
    except ValueError as error:
        raise UsageError(f"--for and --review-within: {error}") from None
    asker = opening.principal(as_)
    with opening.service() as service:
        if id_:
            glass = service.glass_join(tenant, id_, principal=asker)
        else:
            glass = service.glass_ask(tenant, reason, *times, people, principal=asker)
    _tell(glass, json)


@app.command()
def close(id_: Id, tenant: Tenant = "default", as_: opening.As = "", json: opening.Json = False) -> None:
    """End a glass before its time."""
    asker = opening.principal(as_)
    with opening.service() as service:
        glass = service.glass_close(tenant, id_, principal=asker)
    _tell(glass, json)


@app.command()
def review(
    id_: Id,
    note: Annotated[str, typer.Option(help="What was found.")],
    tenant: Tenant = "default",
    as_: opening.As = "",
    json: opening.Json = False,
) -> None:
    """Record the review of a glass that is closed or has lapsed. Not by somebody who opened it."""
    asker = opening.principal(as_)
    with opening.service() as service:
        glass = service.glass_review(tenant, id_, note, principal=asker)
    _tell(glass, json)


@app.command("list")
def list_(tenant: Tenant = "default", json: opening.Json = False) -> None:
    """List the glasses of a tenant, newest first."""
    with opening.service() as service:
        found = service.glasses(tenant)
    now = _now()
    if json:
        output.emit({"glasses": [_object(glass, now) for glass in found]})
        return
    rows = [
        (
            glass.id,
            glass.state(now),
            ", ".join(one.principal for one in glass.by),
            output.shown_when(glass.until) if glass.opened_at else "-",
            output.shown_when(glass.review_by) if glass.opened_at else "-",
            glass.reason,
        )
        for glass in found
    ]
    output.table(("id", "state", "by", "until", "review due", "reason"), rows, empty="No glass was ever broken.")


def _tell(glass: Shown, json: bool) -> None:
    now = _now()
    if json:
        output.emit(_object(glass, now))
        return
    state = glass.state(now)
    output.say(f"{glass.id} is {state}", "bold")
    if state == "asked":
        output.say(f"{glass.people - len(glass.by)} more must join: holdfast policy glass open {glass.id} --as NAME")
    if state == "open":
        output.say(f"it ends at {output.shown_when(glass.until)}, or with: holdfast policy glass close {glass.id}")
    if state == "unreviewed":
        output.say(f"its review is due at {output.shown_when(glass.review_by)}, by somebody who did not open it")


def _object(glass: Shown, now: int) -> dict[str, Any]:
    return {
        "id": glass.id,
        "state": glass.state(now),
        "reason": glass.reason,
        "by": [one.principal for one in glass.by],
        "people": glass.people,
        "opened_at": output.when(glass.opened_at or None),
        "until": output.when(glass.until or None),
        "review_by": output.when(glass.review_by or None),
        "reviewed_by": glass.reviewed_by or None,
        "note": glass.note or None,
    }


def _now() -> int:
    return time.time_ns() // 1000
