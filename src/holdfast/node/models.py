"""``ctx.llm``: each attempt is decided, its worst case reserved, recorded, made by the node, and settled."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec

from holdfast import wire
from holdfast.action import Action, Effect, Ended, Verdict
from holdfast.errors import LLMError, ProtocolError, StepTimeout
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record
from holdfast.llm.base import LLMFailure, LLMRequest, LLMResponse, Turn, Usage
from holdfast.llm.prices import estimate_request
from holdfast.llm.router import Route
from holdfast.node.content import Cut, Judged, Window, look_after, read_ahead
from holdfast.node.incarnation import Incarnation, call_digest, handles
from holdfast.node.run import Place, Run, idempotency_key
from holdfast.node.steps import backoff_us
from holdfast.node.tools import answer
from holdfast.policy import redact
from holdfast.policy.decide import settlements
from holdfast.policy.pseudonyms import Pseudonyms
from holdfast.values import dump, load

OPERATIONS = frozenset({"generate", "chat", "classify", "extract"})
_request: msgspec.json.Decoder[LLMRequest] = msgspec.json.Decoder(LLMRequest)


class Stream:
    """A streamed answer: what was delivered, and how much more the worker takes."""

    def __init__(self, inc: Incarnation, number: int, id_: str) -> None:
        self._inc = inc
        self._number = number
        self._id = id_
        self._sent = hashlib.sha256()
        self._bytes = 0
        self._credit = wire.WINDOW
        self._more = asyncio.Event()

    def delivered(self) -> dict[str, Any]:
        """Length and digest of the prefix that the worker has."""
        return {"id": self._id, "bytes": self._bytes, "sha256": self._sent.hexdigest()}

    def grant(self, count: int) -> None:
        """The worker took ``count`` chunks."""
        self._credit = min(wire.WINDOW, self._credit + count)
        self._more.set()

    async def send(self, text: str) -> None:
        """Send a piece on; waits while the worker has not taken what it got."""
        if not text:
            return
        while self._credit <= 0:
            self._more.clear()
            await self._more.wait()
        self._credit -= 1
        data = text.encode()
        self._sent.update(data)
        self._bytes += len(data)
        self._inc.send(wire.Chunk(self._number, text))


@handles(wire.Llm)
def on_llm(inc: Incarnation, message: wire.Llm) -> None:
    """A model call."""
    if message.operation not in OPERATIONS:
        raise ProtocolError(f"{message.operation!r} is no model operation")
    data = inc.value(message.request)
    name = f"llm.{message.operation}"
    place, record = inc.place(message.id, message.scope, "llm", name, call_digest("llm", name, data))
    if record is not None and record.finished:
        inc.start(message.id, _replay(inc, message, record))
        return
    inc.start(message.id, _call(inc, message, place, record, data))


@handles(wire.Credit)
def on_credit(inc: Incarnation, message: wire.Credit) -> None:
    """The worker can take more of a stream."""
    stream = inc.streams.get(message.id)
    if stream is not None and 0 < message.count <= wire.WINDOW:
        stream.grant(message.count)


async def _replay(inc: Incarnation, message: wire.Llm, record: Record) -> None:
    if message.stream and record.state == "done" and record.value is not None:
        await _send_whole(inc, message.id, record.id, load(record.value)["text"])
    inc.serve(message.id, record)


async def _send_whole(inc: Incarnation, number: int, id_: str, text: str) -> None:
    stream = Stream(inc, number, id_)
    inc.streams[number] = stream
    try:
        for at in range(0, len(text), 65536):
            await stream.send(text[at : at + 65536])
    finally:
        inc.streams.pop(number, None)


async def _call(inc: Incarnation, message: wire.Llm, place: Place, record: Record | None, data: bytes) -> None:
    run, llm = inc.run, inc.run.services.models
    try:
        request = _request.decode(data)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a model request does not decode: {error}") from None
    try:
        llm.check(message.operation, request)
    except LLMFailure as failure:
        raise LLMError(f"{place.id}: {failure}") from None
    route = llm.route(request.model)
    request = msgspec.structs.replace(request, model=route.model)
    key = idempotency_key(run.state.run, place.id)
    attempt = (record.attempt if record else 0) + 1
    last = attempt + max(1, message.retry.attempts) - 1
    price = llm.price(route, estimate_request(message.operation, request))
    while True:
        action = _action(message, place, request, route, data, attempt)
        await read_ahead(run, "llm", action.args, len(data))
        passage = await run.gate(action, place, data, key=key, price=price, streams=inc.prefix(), redacts=True)
        if passage.written is None:
            inc.denied(message.id, passage)
            return
        verdict = passage.verdict
        tokens = _pseudonyms(run, verdict)
        asked = msgspec.structs.replace(
            _redacted(request, action, verdict, tokens), max_tokens=verdict.max_tokens or request.max_tokens
        )
        window = Window.of(run, action, price, tokens) if message.stream else None
        try:
            response = await _attempt(inc, message, place, asked, key, window)
        except Cut as cut:
            _stopped(inc, message, place, verdict, cut)
            return
        except LLMFailure as failure:
            if await _failed(inc, message, place, verdict, failure, route, attempt, last):
                attempt += 1
                continue
            return
        outcome, usage = _figures(response.usage, route, llm.cost(route, response.usage))
        ended = Ended(value=_said(response), cost=usage.get("cost"), tokens=usage.get("tokens"))
        judged = look_after(run, action, ended, price)
        outcome |= {"id": place.id, "status": "ok", **run.beyond.labels.take(action, ended)}
        left = _left(response, judged, tokens, window)
        if window is not None and window.holds and not (judged is not None and judged.refused):
            await _send_whole(inc, message.id, place.id, left.text)
        value = dump(response, "the model's answer")
        settle = settlements(verdict.reservations, sent=True, **usage)
        answer(inc, message.id, outcome, value, judged, settle, None if left is response else dump(left))
        return


def _action(message: wire.Llm, place: Place, request: LLMRequest, route: Route, data: bytes, attempt: int) -> Action:
    name = f"llm.{message.operation}"
    return Action(
        kind="llm",
        name=message.operation,
        id=place.id,
        args={
            "system": request.system,
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
            "categories": list(request.categories),
        },
        digest=call_digest("llm", name, data),
        effect=Effect.IDEMPOTENT,
        attempt=attempt,
        model=route.model,
        provider=route.provider,
        max_tokens=request.max_tokens,
        input_tokens=estimate_request(message.operation, request),
    )


def _pseudonyms(run: Run, verdict: Verdict) -> Pseudonyms | None:
    """The tenant's tokens, where some rule puts them in place of what they stand for."""
    return run.beyond.pseudonyms if any(one.pseudonym for one in verdict.redactions) else None


def _said(response: LLMResponse) -> Any:
    """What a model answered, as rules look at it: the object or category that was asked for, otherwise the text."""
    return response.text if response.value is None else response.value


def _left(
    response: LLMResponse, judged: Judged | None, tokens: Pseudonyms | None, window: Window | None
) -> LLMResponse:
    """The answer that may be handed on: without what rules want taken out, and with tokens turned back."""
    if judged is not None and judged.refused:
        return response
    if window is not None and not window.holds:
        return msgspec.structs.replace(response, text=window.heard) if window.heard != response.text else response
    if window is not None:
        said = redact.apply(response.text, (*window.out, *(judged.verdict.redactions if judged is not None else ())))
    else:
        said = _said(response) if judged is None else judged.value
    if tokens is not None:
        said = tokens.restored(said)
    if said is _said(response) or said == _said(response):
        return response
    if response.value is None:
        return msgspec.structs.replace(response, text=said)
    # The text of a category or an object says the same once more, in the model's words.
    return msgspec.structs.replace(response, value=said, text=said if isinstance(said, str) else dump(said).decode())


def _stopped(inc: Incarnation, message: wire.Llm, place: Place, verdict: Verdict, cut: Cut) -> None:
    """A rule stopped the stream: what was handed on stays, nothing more comes, and the record says how far it got.

    Raises:
        Stop: it ends the run.
    """
    run, judged = inc.run, cut.judged
    data = {"id": place.id, **judged.data(), "status": "fault", "message": cut.message, "cut": cut.delivered}
    data |= {"code": judged.code, "rule": judged.verdict.rule, **run.beyond.labels.told(dump(cut.text))}
    draft = run.recorder.draft(Kind.OUTCOME, data, {"received": dump(cut.text)})
    # What the provider counted is not known any more: it is settled at what was reserved.
    run.recorder.note(draft, settlements(verdict.reservations, sent=True))
    run.recorder.push()
    if (stop := judged.stop()) is not None:
        raise stop
    inc.fault(message.id, judged.code, cut.message, judged.verdict.rule)


def _redacted(
    request: LLMRequest, action: Action, verdict: Verdict, pseudonyms: Pseudonyms | None = None
) -> LLMRequest:
    """The request without what the rules want taken out of it."""
    if not verdict.redactions:
        return request
    left = redact.apply(dict(action.args), verdict, pseudonyms)
    turns = tuple(Turn(role=turn["role"], content=turn["content"]) for turn in left["messages"])
    return msgspec.structs.replace(request, system=left["system"], messages=turns)


async def _attempt(
    inc: Incarnation, message: wire.Llm, place: Place, request: LLMRequest, key: str, window: Window | None
) -> LLMResponse:
    services = inc.run.services
    stream = Stream(inc, message.id, place.id) if message.stream else None

    async def look(piece: str) -> None:
        assert stream is not None
        await stream.send(piece if window is None else window.take(piece))

    if stream is not None:
        inc.streams[message.id] = stream
    try:
        response = await services.models.complete(
            message.operation,
            request,
            idempotency_key=key,
            timeout=(message.timeout_us or 600_000_000) / 1e6,
            before_dial=services.before_dial,
            on_delta=look if stream is not None else None,
        )
        if stream is not None and window is not None:
            await stream.send(window.rest())
        return response
    except Cut as cut:
        cut.delivered = stream.delivered() if stream is not None else {}
        raise
    finally:
        inc.streams.pop(message.id, None)


async def _failed(
    inc: Incarnation,
    message: wire.Llm,
    place: Place,
    verdict: Verdict,
    failure: LLMFailure,
    route: Route,
    attempt: int,
    last: int,
) -> bool:
    """Record a failed attempt; says whether another follows."""
    run = inc.run
    usage = failure.usage
    # A request that left and gave no figures may have been charged in full: it is settled at what was reserved.
    figures, settle = _figures(usage, route, run.services.models.cost(route, usage)) if usage else ({}, {})
    settled = settlements(verdict.reservations, sent=failure.sent, **settle)
    text = f"{place.id}: {failure}"
    code = StepTimeout.code if failure.timeout else LLMError.code
    again = failure.retryable and attempt < last and not message.stream
    if again:
        wait = max(backoff_us(message.retry, attempt), failure.retry_after_us)
        at = run.services.clock.now() + wait
        data = {"id": place.id, "attempt": attempt, "code": code, "message": text, "retry_at": at, **figures}
        run.recorder.note(run.recorder.draft(Kind.ATTEMPT_FAILED, data), settled)
        await run.recorder.flush()
        await run.services.until(at)
        return True
    data = {"id": place.id, "status": "fault", "code": code, "message": text, **figures}
    run.recorder.note(run.recorder.draft(Kind.OUTCOME, data), settled)
    run.recorder.push()
    inc.fault(message.id, code, text)
    return False


def _figures(usage: Usage, route: Route, cost: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the outcome says, and what is settled: the provider's figures, or the reservation where it gave none."""
    tokens = usage.input + usage.output + usage.cache_read + usage.cache_write
    said: dict[str, Any] = {"usage": usage, "model": route.model, "provider": route.provider}
    if not usage.reported:
        return said, {}
    said |= {"tokens": tokens, "cost": cost or 0}
    return said, {"tokens": tokens, "cost": cost}
