"""Connectors: effects on the node's side. An irreversible one is never repeated on a guess."""

from __future__ import annotations

import msgspec

from holdfast import wire
from holdfast.action import Action, Effect, Ended, Settlement, Verdict
from holdfast.config import ConnectorSettings
from holdfast.errors import PayloadError, ProtocolError, StepError, StepTimeout
from holdfast.journal.event import Kind, Witness
from holdfast.journal.fold import Record
from holdfast.node.connector_process import ConnectorFailure
from holdfast.node.content import Judged, look_after, read_ahead
from holdfast.node.incarnation import Incarnation, call_digest, handles
from holdfast.node.labels import sources
from holdfast.node.run import Place, Run, doubt, idempotency_key
from holdfast.node.steps import backoff_us
from holdfast.policy import flow, redact
from holdfast.policy.decide import settlements
from holdfast.policy.flow import HANDLE
from holdfast.values import dump, load


@handles(wire.Tool)
def on_tool(inc: Incarnation, message: wire.Tool) -> None:
    """A connector's call."""
    data = inc.value(message.args)
    sha = call_digest("tool", message.name, data)
    place, record = inc.place(message.id, message.scope, "tool", message.name, sha)
    if record is not None and record.finished:
        inc.start(message.id, _replay(inc, message.id, record))
        return
    try:
        args = load(data)
    except PayloadError as error:
        raise ProtocolError(str(error)) from None
    if not isinstance(args, dict):
        raise ProtocolError("a tool's arguments must be an object")
    inc.start(message.id, _call(inc, message, place, record, data, args))


async def _replay(inc: Incarnation, number: int, record: Record) -> None:
    inc.serve(number, record)


async def _call(
    inc: Incarnation, message: wire.Tool, place: Place, record: Record | None, data: bytes, args: dict[str, object]
) -> None:
    run = inc.run
    connector = run.services.connectors.settings(run.header.tenant, message.name)
    if connector is None:
        raise StepError(
            f"there is no connector {message.name} for tenant {run.header.tenant}; name it in holdfast.toml"
        )
    attempt = (record.attempt if record else 0) + 1
    action = Action(
        kind="tool",
        name=message.name,
        id=place.id,
        args=args,
        digest=call_digest("tool", message.name, data),
        effect=Effect(connector.effect),
        attempt=attempt,
        region=connector.region,
    )
    if HANDLE.encode() in data:
        action = await _opened(run, action)
        data = dump(action.args)
    await perform(inc, message, place, connector, action, data)


async def _opened(run: Run, action: Action) -> Action:
    """The call with its handles opened, and the labels of what they stand for.

    Raises:
        StepError: a handle stands for nothing in this run.
    """
    held: dict[str, object] = {}
    labels: set[str] = set()
    await run.recorder.flush()
    for name in flow.handles(action.args):
        record = run.state.records.get(name)
        value = None
        if record is not None and record.kept is not None:
            value = await run.services.payload(run.header.tenant, record.received)
        if record is None or record.kept is None or value is None:
            raise StepError(f"{action.id}: the handle {name[:80]} stands for nothing in this run; get it anew")
        held[name] = load(value)
        labels.update(record.kept)
    args = flow.opened(action.args, held)
    return msgspec.structs.replace(action, args=args, labels=tuple(sorted(labels)))


async def perform(
    inc: Incarnation, message: wire.Tool, place: Place, connector: ConnectorSettings, action: Action, data: bytes
) -> None:
    """Make attempts until one succeeds or none is left."""
    run = inc.run
    key = idempotency_key(run.state.run, place.id)
    retry = _retry(message, connector)
    last = action.attempt + retry.attempts - 1
    asked, own = message.timeout_us, connector.timeout
    timeout = min(asked, own) if asked and own else asked or own
    await read_ahead(run, "tool", action.args, len(data))
    while True:
        passage = await run.gate(action, place, data, key=key, undo=connector.undo, streams=inc.prefix(), redacts=True)
        if passage.written is None:
            inc.denied(message.id, passage)
            return
        sent = redact.apply(load(data), passage.verdict)
        try:
            value = await run.services.connectors.call(
                run.header.tenant, message.name, sent, key, timeout, run.services.before_dial
            )
        except ConnectorFailure as failure:
            if await _failed(inc, message, place, connector, action, passage.verdict, failure, retry, last):
                action = msgspec.structs.replace(action, attempt=action.attempt + 1)
                continue
            return
        outcome: dict[str, object] = {"id": place.id, "status": "ok"}
        # What came of the values behind handles may hold them.
        ended = Ended(value=load(value), labels=action.labels)
        await read_ahead(run, "tool", ended.value, len(value))
        outcome |= run.beyond.read(action, ended.value)
        judged = look_after(run, action, ended)
        left = None
        if connector.opaque:
            outcome["kept"] = run.beyond.labels.of(action, ended, sources(message.name, connector))
            left = dump(flow.handle(place.id))
            if judged is not None and judged.changed and not judged.refused:
                value = dump(judged.value)
        else:
            outcome |= run.beyond.labels.take(action, ended, sources(message.name, connector))
        if action.effect == Effect.COMPENSABLE:
            outcome["effect"] = {"compensable": True}
        answer(inc, message.id, outcome, value, judged, settlements(passage.verdict.reservations, sent=True), left)
        return


def answer(
    inc: Incarnation,
    number: int,
    outcome: dict[str, object],
    value: bytes,
    judged: Judged | None,
    settle: tuple[Settlement, ...],
    left: bytes | None = None,
) -> None:
    """Record a call's end, and answer it with what the rules leave of ``value`` (``left`` where that is at hand).

    Raises:
        Stop: what came back ends the run.
    """
    run = inc.run
    payloads = {"result": value}
    if judged is not None:
        outcome |= judged.data()
        if judged.refused:
            payloads = {"received": value}
        elif judged.changed:
            payloads = {"received": value, "result": dump(judged.value) if left is None else left}
        elif left is not None:
            payloads = {"received": value, "result": left}
    elif left is not None:
        payloads = {"received": value, "result": left}
    run.recorder.note(run.recorder.draft(Kind.OUTCOME, outcome, payloads), settle)
    run.recorder.push()
    if judged is not None and judged.refused:
        if (stop := judged.stop()) is not None:
            raise stop
        inc.fault(number, judged.code, judged.verdict.reason, judged.verdict.rule)
        return
    inc.reply(number, payloads["result"])


def _retry(message: wire.Tool, connector: ConnectorSettings) -> wire.Retry:
    """The author's wish where there is one, otherwise the operator's."""
    if message.retry.attempts > 1:
        return message.retry
    return wire.Retry(attempts=connector.retries + 1, backoff_us=connector.backoff)


async def _failed(
    inc: Incarnation,
    message: wire.Tool,
    place: Place,
    connector: ConnectorSettings,
    action: Action,
    verdict: Verdict,
    failure: ConnectorFailure,
    retry: wire.Retry,
    last: int,
) -> bool:
    run = inc.run
    settle = settlements(verdict.reservations, sent=failure.sent)
    text = f"{place.id}: {failure}"
    unknown = failure.sent and not failure.answered
    if unknown and action.effect == Effect.IRREVERSIBLE:
        raise doubt(run, place.id, f"{text}; whether it happened is not known")
    code = StepTimeout.code if failure.timeout else StepError.code
    # What a connector says of its failure may hold what it read.
    said = Ended(ok=False, code=code, value=str(failure), labels=action.labels)
    taken = run.beyond.labels.take(action, said, sources(message.name, connector)) if failure.sent else {}
    # An irreversible call that left is not tried again, whatever the receiver said of it.
    final = failure.sent and action.effect == Effect.IRREVERSIBLE
    if action.attempt < last and failure.retryable and not final:
        at = run.services.clock.now() + backoff_us(retry, action.attempt)
        data = {"id": place.id, "attempt": action.attempt, "code": code, "message": text, "retry_at": at, **taken}
        run.recorder.note(run.recorder.draft(Kind.ATTEMPT_FAILED, data), settle)
        await run.recorder.flush()
        await run.services.until(at)
        return True
    data = {"id": place.id, "status": "fault", "code": code, "message": text, **taken}
    run.recorder.note(run.recorder.draft(Kind.OUTCOME, data), settle)
    run.recorder.push()
    inc.fault(message.id, code, text)
    return False


@handles(wire.Compensate)
def on_compensate(inc: Incarnation, message: wire.Compensate) -> None:
    """The run asks for its compensable effects to be undone: which calls undo them, latest first."""
    sha = call_digest("sample", "compensate", b"")
    place, record = inc.place(message.id, message.scope, "sample", "compensate", sha)
    if record is not None and record.finished:
        inc.start(message.id, _replay(inc, message.id, record))
        return
    inc.start(message.id, _compensate(inc, message.id, place, sha))


async def _compensate(inc: Incarnation, number: int, place: Place, sha: str) -> None:
    run = inc.run
    await run.recorder.flush()
    ids = list(reversed(run.state.compensable))
    undo = [await undoing(run, run.state.records[id_], handed_on=True) for id_ in ids]
    # The agent now sees what stood behind the handles of these calls.
    seen = [label for id_ in ids for label in run.state.records[id_].action.labels]
    value = dump([one for one in undo if one is not None], "the calls that undo")
    action = Action(kind="sample", name="compensate", id=place.id, digest=sha)
    sample = {"action": action, "parent": place.parent, "place": place.place}
    outcome = {"id": place.id, "status": "ok", "effect": {"undone": ids}, **run.beyond.labels.told(b"", seen)}
    await run.recorder.write(
        run.recorder.draft(Kind.SAMPLE, sample, {"result": value}),
        run.recorder.draft(Kind.OUTCOME, outcome, {"result": value}),
    )
    inc.reply(number, value)


async def undoing(run: Run, record: Record, *, handed_on: bool = False) -> dict[str, object] | None:
    """The call that undoes a compensable effect; None when its author named none. With what the effect gave; with
    ``handed_on`` only what the agent got of that."""
    if not record.undo:
        return None
    tenant = run.header.tenant
    args = await run.services.payload(tenant, record.args) if record.args else None
    whole = record.received if not handed_on else ""
    result = None if whole else record.value
    if result is None and (whole or record.result):
        result = await run.services.payload(tenant, whole or record.result)
    inside = record.action.witness == Witness.BOUNDARY
    return {
        "kind": "tool" if inside else "connector",
        "name": record.undo,
        "args": load(args) if args else {},
        "result": load(result) if result else None,
    }
