"""Calls that wait for a person, a signal, a timer or a child. While they do, the process may go."""

from __future__ import annotations

from typing import Any

from holdfast import wire
from holdfast.action import Action, ApprovalSpec, Outcome
from holdfast.errors import ProtocolError, UsageError
from holdfast.journal.base import InboxItem
from holdfast.journal.fold import FINAL, Record
from holdfast.node.incarnation import Incarnation, call_digest, handles
from holdfast.node.labels import named
from holdfast.node.run import Place, approval_id, idempotency_key
from holdfast.values import dump, load

MAX_TTL_US = 366 * 86_400_000_000
EXPIRIES = frozenset({"deny", "approve", "escalate"})
VERBS = frozenset({"approve", "declassify"})


@handles(wire.Approve)
def on_approve(inc: Incarnation, message: wire.Approve) -> None:
    """Wait for people's approval."""
    if message.on_expiry not in EXPIRIES or not 1 <= message.quorum <= 100 or not 0 < message.ttl_us <= MAX_TTL_US:
        raise ProtocolError("a request for approval is out of bounds")
    if message.verb not in VERBS:
        raise ProtocolError(f"{message.verb!r} is nothing to approve")
    what = inc.value(message.what)
    sha = call_digest("approval", message.verb, what)
    place, record = inc.place(message.id, message.scope, "approval", message.verb, sha)
    inc.start(message.id, _approve(inc, message, place, record, what, sha))


async def _approve(
    inc: Incarnation, message: wire.Approve, place: Place, record: Record | None, what: bytes, sha: str
) -> None:
    run = inc.run
    if record is None:
        action = Action(kind="approval", name=message.verb, id=place.id, args={"what": load(what)}, digest=sha)
        if message.verb == "declassify":
            named(action.args["what"])
        passage = await run.decide(action, place, what)
        verdict = passage.verdict
        if not verdict.allowed and verdict.outcome is not Outcome.REQUIRE_APPROVAL:
            run.note_verdict(action, place, passage, what)
            inc.denied(message.id, passage)
            return
        spec = _stricter(
            ApprovalSpec(
                approvers=message.approvers,
                quorum=message.quorum,
                ttl_us=message.ttl_us,
                on_expiry=message.on_expiry,
                escalate_to=message.escalate_to,
            ),
            verdict.approval,
        )
        await run.open_wait(action, place, "approval", what, wake_after_us=spec.ttl_us, spec=spec, passage=passage)
    await _answered(inc, message.id, place)


def _stricter(asked: ApprovalSpec, rule: ApprovalSpec | None) -> ApprovalSpec:
    """What the author asked for, tightened by what a policy asks for."""
    if rule is None:
        return asked
    return ApprovalSpec(
        approvers=rule.approvers or asked.approvers,
        quorum=max(asked.quorum, rule.quorum),
        ttl_us=min(asked.ttl_us, rule.ttl_us),
        on_expiry=asked.on_expiry if asked.on_expiry == rule.on_expiry else "deny",
        escalate_to=rule.escalate_to or asked.escalate_to,
        distinct_from_requester=asked.distinct_from_requester or rule.distinct_from_requester,
    )


async def _answered(inc: Incarnation, number: int, place: Place) -> None:
    """Wait for the outcome, then answer with it."""
    run = inc.run
    await run.inbox.feed()
    await run.waiting(place.id)
    record = run.state.records[place.id]
    if record.state == "done" and record.value is None:
        record.value = await run.services.payload(run.header.tenant, record.result)
    inc.serve(number, record)


@handles(wire.Ask)
def on_ask(inc: Incarnation, message: wire.Ask) -> None:
    """Wait for a person's answer."""
    question = inc.value(message.question)
    _wait(inc, message.id, message.scope, "ask", "ask", question, message.ttl_us)


@handles(wire.WaitSignal)
def on_wait_signal(inc: Incarnation, message: wire.WaitSignal) -> None:
    """Wait for a signal."""
    _wait(inc, message.id, message.scope, "signal", "wait_signal", dump(message.name), message.timeout_us, message.name)


@handles(wire.Sleep)
def on_sleep(inc: Incarnation, message: wire.Sleep) -> None:
    """Wait for a while."""
    after_us = message.duration_us or 1
    _wait(inc, message.id, message.scope, "timer", "sleep", dump(message.duration_us), after_us)


@handles(wire.Join)
def on_join(inc: Incarnation, message: wire.Join) -> None:
    """Wait for a child."""
    _wait(inc, message.id, message.scope, "join", "join", dump(message.run), 0, message.run)


def _wait(
    inc: Incarnation, number: int, scope: int, kind: str, verb: str, args: bytes, after_us: int, name: str = ""
) -> None:
    if not 0 <= after_us <= MAX_TTL_US:
        raise ProtocolError(f"{verb} waits for at most a year")
    sha = call_digest("wait", verb, args)
    place, record = inc.place(number, scope, "wait", verb, sha)
    inc.start(number, _until(inc, number, place, record, kind, verb, args, after_us, name, sha))


async def _until(
    inc: Incarnation,
    number: int,
    place: Place,
    record: Record | None,
    kind: str,
    verb: str,
    args: bytes,
    after_us: int,
    name: str,
    sha: str,
) -> None:
    if record is None:
        action = Action(kind="wait", name=verb, id=place.id, digest=sha)
        await inc.run.open_wait(action, place, kind, args, wake_after_us=after_us or None, name=name)
    await _answered(inc, number, place)


@handles(wire.Signal)
def on_signal(inc: Incarnation, message: wire.Signal) -> None:
    """Send a signal to another run of the tenant."""
    data = inc.value(message.data)
    args = dump({"run": message.run, "name": message.name, "data": load(data)})
    sha = call_digest("step", "signal", args)
    place, record = inc.place(message.id, message.scope, "step", "signal", sha)
    inc.start(message.id, _signal(inc, message, place, record, args, data, sha))


async def _signal(
    inc: Incarnation, message: wire.Signal, place: Place, record: Record | None, args: bytes, data: bytes, sha: str
) -> None:
    run = inc.run
    if record is not None and record.finished:
        inc.serve(message.id, record)
        return
    target = run.services.store.stream(message.run)
    if target is None or target.header.tenant != run.header.tenant:
        raise UsageError(f"there is no run {message.run} in tenant {run.header.tenant} to signal")
    action = Action(kind="step", name="signal", id=place.id, args=load(args), digest=sha)
    item: tuple[InboxItem, ...] = ()
    if target.status not in FINAL:
        item = (
            InboxItem(
                tenant=run.header.tenant,
                stream=message.run,
                kind="signal",
                data={
                    "name": message.name,
                    "from": run.state.run,
                    "labels": run.beyond.labels.leaving(run.header.tenant, run.header.region),
                },
                payload=data,
                principal=run.header.principal,
                auth=run.header.auth,
                at=run.services.clock.now(),
            ),
        )
    passage = await run.gate(
        action,
        place,
        args,
        key=idempotency_key(run.state.run, place.id),
        outcome=lambda _: ({}, {"result": dump(bool(item))}),
        deliver=item,
    )
    if passage.written is None:
        inc.denied(message.id, passage)
        return
    run.services.nudge(message.run)
    inc.reply(message.id, dump(bool(item)))


def pending(run: str, record: Record) -> dict[str, Any]:
    """A waiting record as ``pending`` shows it."""
    wait = record.wait
    assert wait is not None
    kinds = {"approval": "approval", "ask": "answer", "signal": "signal", "timer": "timer", "join": "child"}
    id_ = wait.approval or wait.name or approval_id(run, record.id)
    return {"kind": kinds[wait.kind], "id": id_, "step": record.id, "expires_at": wait.wake_at}
