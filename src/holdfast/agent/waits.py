"""Waiting for people, signals and time: a run that only waits costs no process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from holdfast import wire
from holdfast.agent.definition import Seconds, seconds
from holdfast.agent.ops import Op, nothing, value
from holdfast.errors import DeniedError, UsageError
from holdfast.values import dump, load

MAX_WAIT_US = 366 * 86_400_000_000
"""The longest that a node waits, in microseconds."""
Expiry = Literal["deny", "approve", "escalate"]


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """How a request for approval ended."""

    approved: bool
    by: tuple[str, ...]
    """Who answered."""
    reason: str
    state: str
    """approved, denied or expired."""

    def __bool__(self) -> bool:
        return self.approved


def approve(
    what: Any,
    approvers: Sequence[str] | str,
    quorum: int,
    ttl: Seconds,
    on_expiry: Expiry,
    escalate_to: Sequence[str] | str,
    raise_on_deny: bool,
    verb: str = "approve",
) -> Op[Approval]:
    """See :meth:`holdfast.Context.approve`."""
    people, others = _people(approvers, "approvers"), _people(escalate_to, "escalate_to")
    if isinstance(quorum, bool) or not isinstance(quorum, int) or not 1 <= quorum <= 100:
        raise UsageError(f"quorum is {quorum!r}; give a whole number of people from 1 to 100")
    if on_expiry not in ("deny", "approve", "escalate"):
        raise UsageError(f"on_expiry is {on_expiry!r}; use deny, approve or escalate")
    if (on_expiry == "escalate") != bool(others):
        raise UsageError('on_expiry="escalate" and escalate_to=[…] go together: to whom is it escalated?')
    ttl_us = micro(ttl, "ttl")

    def read(data: bytes) -> Approval:
        reply = load(data)
        found = Approval(
            approved=reply["approved"] is True,
            by=tuple(reply.get("by", ())),
            reason=reply.get("reason", ""),
            state=reply.get("state", ""),
        )
        if raise_on_deny and not found.approved:
            who = f" by {', '.join(found.by)}" if found.by else ""
            raise DeniedError(
                f"approval was {found.state or 'denied'}{who}{': ' + found.reason if found.reason else ''}"
            )
        return found

    return Op(
        lambda number, scope, value: wire.Approve(
            number, scope, value, people, quorum, ttl_us, on_expiry, others, verb
        ),
        read,
        dump(what, "what ctx.approve asks for"),
    )


def ask(question: Any, ttl: Seconds | None) -> Op[Any]:
    """See :meth:`holdfast.Context.ask`."""
    ttl_us = 0 if ttl is None else micro(ttl, "ttl")
    return Op(lambda number, scope, v: wire.Ask(number, scope, v, ttl_us), value, dump(question, "the question"))


def signal(run: str, name: str, data: Any) -> Op[bool]:
    """See :meth:`holdfast.Context.signal`."""
    text(run, "the run of a signal")
    text(name, "the name of a signal")
    return Op(
        lambda number, scope, v: wire.Signal(number, scope, run, name, v),
        lambda data: load(data) is not False,
        dump(data, f"the data of the signal {name}"),
    )


def wait_signal(name: str, timeout: Seconds | None) -> Op[Any]:
    """See :meth:`holdfast.Context.wait_signal`."""
    text(name, "the name of a signal")
    timeout_us = 0 if timeout is None else micro(timeout, "timeout")
    return Op(lambda number, scope, _: wire.WaitSignal(number, scope, name, timeout_us), value)


def sleep(duration: Seconds) -> Op[None]:
    """See :meth:`holdfast.Context.sleep`."""
    duration_us = round(seconds(duration, "the time to sleep") * 1e6)
    _within_a_year(duration_us, "the time to sleep")
    return Op(lambda number, scope, _: wire.Sleep(number, scope, duration_us), nothing)


def micro(value: Seconds, what: str) -> int:
    """A time span of at least a microsecond, in microseconds.

    Raises:
        UsageError: it is not above 0.
    """
    found = round(seconds(value, what) * 1e6)
    if found <= 0:
        raise UsageError(f"{what} is {value!r}; give more than 0 seconds")
    _within_a_year(found, what)
    return found


def _within_a_year(span: int, what: str) -> None:
    if span > MAX_WAIT_US:
        raise UsageError(f"{what} is longer than a year; wait in a loop, with ctx.continue_as_new now and then")


def text(value: object, what: str) -> None:
    """Refuse what is no usable name.

    Raises:
        UsageError: it is no text of 1 to 512 characters.
    """
    if not isinstance(value, str) or not 0 < len(value) <= 512:
        raise UsageError(f"{what} is {value!r}; give text of 1 to 512 characters")


def _people(given: Sequence[str] | str, what: str) -> tuple[str, ...]:
    people = (given,) if isinstance(given, str) else tuple(given)
    for person in people:
        if not isinstance(person, str) or not person.startswith(("role:", "user:")) or len(person) < 6:
            raise UsageError(f'{what} holds {person!r}; write "role:NAME" or "user:NAME"')
    return people
