"""Steps, decisions and the author's tools: the body runs inside, the node decides, records and times it."""

from __future__ import annotations

import asyncio

import msgspec

from holdfast import wire
from holdfast.action import Action, Verdict
from holdfast.errors import PayloadError, ProtocolError, StoreError
from holdfast.gate import Fenced
from holdfast.journal.event import Kind, Witness
from holdfast.journal.fold import Record
from holdfast.node.incarnation import Incarnation, call_digest, handles
from holdfast.node.run import Place, Stop, doubt, effect_of, idempotency_key, never_again
from holdfast.policy.decide import settlements
from holdfast.values import MAX_VALUE, load

KINDS = frozenset({"step", "decision", "tool"})
FINAL_CODES = frozenset({"denied", "payload", "diverged", "in_doubt", "killed", "terminated"})
"""Errors that another attempt cannot mend."""


class Body:
    """A step whose body may run inside now."""

    __slots__ = ("action", "args", "key", "message", "place", "timer", "verdict")

    def __init__(self, message: wire.Call, place: Place, action: Action, args: bytes, key: str) -> None:
        self.message = message
        self.place = place
        self.action = action
        self.args = args
        self.key = key
        self.verdict: Verdict | None = None
        self.timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Stop its clock."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@handles(wire.Call)
def on_call(inc: Incarnation, message: wire.Call) -> None:
    """A step is about to run."""
    if message.kind not in KINDS:
        raise ProtocolError(f"{message.kind!r} is no kind of step")
    args = inc.value(message.args)
    sha = call_digest(message.kind, message.name, args)
    place, record = inc.place(message.id, message.scope, message.kind, message.name, sha)
    if record is not None and record.finished:
        inc.start(message.id, _serve(inc, message.id, record))
        return
    inc.scopes[message.id] = inc.scopes[message.scope].enter(place.id)
    attempt = (record.attempt if record else 0) + 1
    action = Action(
        kind=message.kind,
        name=message.name,
        id=place.id,
        args=_arguments(args),
        digest=sha,
        effect=effect_of(message.effect),
        attempt=attempt,
        witness=Witness.BOUNDARY,
    )
    body = Body(message, place, action, args, idempotency_key(inc.run.state.run, place.id))
    if record is not None and record.state == "retry" and record.retry_at > inc.run.services.clock.now():
        inc.start(message.id, _later(inc, body, record.retry_at))
    elif record is not None or inc.streams or not _enter_now(inc, body):
        inc.start(message.id, _enter(inc, body))


def _enter_now(inc: Incarnation, body: Body) -> bool:
    """The quick way of a fresh step: most are allowed at once, and a task for each would cost as much as its commit."""

    def then(verdict: Verdict, durable: bool) -> None:
        if inc.ended.done() or inc.run.stop.done():
            return
        if durable:
            _go(inc, body, verdict)
        else:
            inc.start(body.message.id, _enter(inc, body))

    try:
        return inc.run.gate_now(body.action, body.place, body.args, key=body.key, undo=body.message.undo, then=then)
    except (Fenced, StoreError) as error:
        inc.run.failed(error)
        return True


@handles(wire.Close)
def on_close(inc: Incarnation, message: wire.Close) -> None:
    """A body ended."""
    body: Body | None = inc.bodies.pop(message.id, None)
    if body is None:
        raise ProtocolError(f"call {message.id} was closed and is not open")
    body.stop()
    run = inc.run
    settle = settlements(body.verdict.reservations, sent=True) if body.verdict else ()
    if message.error:
        inc.start(message.id, _failed(inc, body, message.error, message.message, message.code, message.rule))
        return
    value = inc.value(message.value)
    if len(value) > MAX_VALUE:
        raise ProtocolError(f"the result of {body.place.id} is {len(value)} bytes; at most {MAX_VALUE} are recorded")
    data: dict[str, object] = {"id": body.place.id, "status": "ok"}
    if body.action.effect == "compensable" and body.message.undo:
        data["effect"] = {"compensable": True}
    inc.scopes.pop(message.id, None)
    inc.places.pop(message.id, None)
    draft = run.recorder.draft(Kind.OUTCOME, data, {"result": value}, witness=Witness.BOUNDARY)
    run.recorder.note(draft, settle)


async def _serve(inc: Incarnation, number: int, record: Record) -> None:
    inc.serve(number, record)


async def _enter(inc: Incarnation, body: Body) -> None:
    run = inc.run
    action = body.action
    passage = await run.gate(action, body.place, body.args, key=body.key, undo=body.message.undo, streams=inc.prefix())
    if passage.written is None:
        inc.scopes.pop(body.message.id, None)
        inc.denied(body.message.id, passage)
        return
    _go(inc, body, passage.verdict)


def _go(inc: Incarnation, body: Body, verdict: Verdict) -> None:
    """The intent is durable: the body may run."""
    body.verdict = verdict
    inc.bodies[body.message.id] = body
    if body.message.timeout_us:
        loop = asyncio.get_running_loop()
        body.timer = loop.call_later(body.message.timeout_us / 1e6, _overdue, inc, body)
    inc.send(wire.Go(body.message.id, body.action.attempt, body.key))


async def _later(inc: Incarnation, body: Body, at: int) -> None:
    await inc.run.services.until(at)
    await _enter(inc, body)


async def _failed(inc: Incarnation, body: Body, error: str, message: str, code: str, rule: str) -> None:
    run = inc.run
    settle = settlements(body.verdict.reservations, sent=True) if body.verdict else ()
    attempts = max(1, body.message.retry.attempts)
    text = f"{body.place.id}: {error}: {message}" if message else f"{body.place.id}: {error}"
    # Whatever the code says of it, an irreversible tool may have had its effect before it raised.
    if body.action.attempt < attempts and code not in FINAL_CODES and not never_again(body.action):
        at = run.services.clock.now() + backoff_us(body.message.retry, body.action.attempt)
        data = {
            "id": body.place.id,
            "attempt": body.action.attempt,
            "code": "step_failed",
            "message": text,
            "retry_at": at,
        }
        run.recorder.note(run.recorder.draft(Kind.ATTEMPT_FAILED, data, witness=Witness.BOUNDARY), settle)
        await run.recorder.flush()
        await run.services.until(at)
        again = msgspec.structs.replace(body.action, attempt=body.action.attempt + 1)
        inc.scopes[body.message.id] = inc.scopes[body.message.scope].enter(body.place.id)
        await _enter(inc, Body(body.message, body.place, again, body.args, body.key))
        return
    code = code or "step_failed"
    outcome = {"id": body.place.id, "status": "fault", "code": code, "message": text, "rule": rule}
    run.recorder.note(run.recorder.draft(Kind.OUTCOME, outcome, witness=Witness.BOUNDARY), settle)
    inc.scopes.pop(body.message.id, None)
    inc.fault(body.message.id, code, text, rule)


def _overdue(inc: Incarnation, body: Body) -> None:
    """A body takes too long. Only the end of its process surely stops it; the run goes on in another one."""
    if inc.bodies.pop(body.message.id, None) is None:
        return
    run = inc.run
    settle = settlements(body.verdict.reservations, sent=True) if body.verdict else ()
    seconds = body.message.timeout_us / 1e6
    text = f"{body.place.id} did not end within {seconds:g} s"
    if never_again(body.action):
        run.end(doubt(run, body.place.id, f"{text}, and what it did is not known"))
        return
    if body.action.attempt < body.message.retry.attempts:
        at = run.services.clock.now() + backoff_us(body.message.retry, body.action.attempt)
        data = {"id": body.place.id, "attempt": body.action.attempt, "code": "timeout", "message": text, "retry_at": at}
        run.recorder.note(run.recorder.draft(Kind.ATTEMPT_FAILED, data), settle)
    else:
        data = {"id": body.place.id, "status": "fault", "code": "timeout", "message": text}
        run.recorder.note(run.recorder.draft(Kind.OUTCOME, data), settle)
    run.end(Stop(Kind.WORKER_LOST, code="timeout", message=text))


def backoff_us(retry: wire.Retry, attempt: int) -> int:
    """Microseconds before the attempt after ``attempt``: exponential, bounded."""
    wait = retry.backoff_us * retry.factor ** min(attempt - 1, 60)
    return int(min(max(wait, 0), retry.max_backoff_us))


def _arguments(args: bytes) -> dict[str, object]:
    try:
        value = load(args) if args else {}
    except PayloadError as error:
        raise ProtocolError(str(error)) from None
    if not isinstance(value, dict):
        raise ProtocolError("a call's arguments must be an object")
    return value
