"""One request from its head to its outcome. Knows no version of HTTP: it talks to an asker and a sender."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

import msgspec

from holdfast.egress import answers
from holdfast.egress.base import (
    Body,
    Deny,
    Dressed,
    Go,
    Outcome,
    Refused,
    Request,
    RequestHead,
    ResponseHead,
    Transform,
)
from holdfast.egress.client import Asker
from holdfast.egress.coding import Decoder, decoded
from holdfast.egress.outlet import Outlet
from holdfast.egress.stream import Lost
from holdfast.egress.upstream import HELD, DialError, Sender, lost_reason
from holdfast.errors import HoldfastError
from holdfast.log import Log

_log = Log("egress")

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods whose request may be sent again when a kept connection turns out to be dead (RFC 9110, 9.2.2)."""
_STREAMED: Final = (b"application/grpc",)
"""Media types whose body may go on for as long as the response does: not waited for before the decision."""


class Aborted(Exception):
    """The exchange broke off; the reason is that of :attr:`Outcome.aborted`."""

    def __init__(self, reason: str, deny: Deny | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.deny = deny or answers.failure(reason)


class Resolution:
    """The addresses of one request's host, looked up once however often they are asked for."""

    __slots__ = ("_found", "_head", "_outlet")

    def __init__(self, outlet: Outlet, head: RequestHead) -> None:
        self._outlet = outlet
        self._head = head
        self._found: tuple[str, ...] | None = None

    async def __call__(self) -> tuple[str, ...]:
        if self._found is None:
            self._found = await self._outlet.guard.addresses(self._head.host, self._head.port)
        return self._found


class Exchange:
    """Carries one request. :meth:`run` never raises but for cancellation and for a client that is gone."""

    def __init__(self, outlet: Outlet, asker: Asker, head: RequestHead) -> None:
        self.outlet = outlet
        self.asker = asker
        self.head = head
        self.resolve = Resolution(outlet, head)
        self.began = outlet.loop.time()
        self.sender: Sender | None = None
        self._go: Go | None = None
        self._reported = False
        self._started = False
        self._dialled = False
        self._sent = 0
        self._gone = ""
        self._held = 0
        self._answer: ResponseHead | None = None
        self._length = 0
        self._digest = hashlib.sha256()
        self._kept: list[bytes] | None = []
        self._text: list[bytes] | None = []
        self._text_length = 0

    async def run(self) -> None:
        """Decide, send, relay, report."""
        try:
            await self._run()
        finally:
            self.outlet.pool.held -= self._held

    async def _run(self) -> None:
        try:
            body = await self._hold()
        except Refused as refused:
            self.outlet.door.rejected(Deny.of(refused))
            self.deny(Deny.of(refused))
            return
        answer = await self.decide(body)
        if isinstance(answer, Deny):
            self.deny(answer)
        elif answer.served is not None:
            self.asker.start(answer.served.head, body=True)
            self.asker.write(answer.served.body)
            self.asker.end()
        else:
            await self._carry(answer, body)

    async def decide(self, body: Body) -> Go | Deny:
        """Ask the door. What goes wrong there is a no."""
        try:
            return await self.outlet.door.decide(Request(head=self.head, body=body, resolve=self.resolve))
        except Refused as refused:
            return Deny.of(refused)
        except HoldfastError as error:
            return Deny(type=error.code, rule="gate", reason=str(error), status=503)
        except Exception:  # noqa: BLE001 - fail closed, whatever it is
            _log.exception("the gate failed")
            return Deny(type="gate", rule="gate", reason="the gate failed; the node's log says why", status=503)

    def deny(self, deny: Deny) -> None:
        """Answer with a denial."""
        head, body = answers.render(deny)
        self.asker.start(head, body=True)
        if self.head.method != "HEAD":
            self.asker.write(body)
        self.asker.end()

    async def _hold(self) -> Body:
        """Read the body, as far as it is wanted before the decision."""
        asker, head, limits = self.asker, self.head, self.outlet.limits
        if asker.done:
            return _NOTHING
        if head.length is not None and head.length > limits.body:
            raise Refused(f"a body of more than {limits.body} bytes", kind="body_too_large", status=413)
        asker.proceed()
        data = await asker.read()
        if not asker.done and not (head.get(b"content-type") or b"").startswith(_STREAMED):
            parts, length = [data], len(data)
            while not asker.done and length < limits.hold:
                parts.append(await asker.read())
                length += len(parts[-1])
                self._count_held(len(parts[-1]))
            data = b"".join(parts)
        coding = head.get(b"content-encoding")
        if coding is None or coding.lower() == b"identity" or not asker.done:
            return Body(data=data, decoded=data, complete=asker.done)
        plain = decoded(data, coding, limits.ratio, limits.hold * 4)
        self._count_held(len(plain))
        return Body(data=data, decoded=plain)

    def _count_held(self, length: int) -> None:
        """What is held in memory until the decision is bounded for a tenant, however many requests it makes at once."""
        pool = self.outlet.pool
        if pool.held + length > HELD:
            raise Refused("too much is being uploaded at once", kind="too_much_held", status=503)
        pool.held += length
        self._held += length

    async def _carry(self, go: Go, body: Body) -> None:
        self._go = go
        problem: Aborted | None = None
        upload: asyncio.Task[None] | None = None
        try:
            head, data = self._replaced(go, body)
            dressed = await self.outlet.dress(go.ticket, head, msgspec.structs.replace(body, data=data))
            head, data = dressed.head, data if dressed.body is None else dressed.body
            if body.complete and head.length != len(data):
                head = msgspec.structs.replace(head, length=len(data))
            sender, answer = await self._send(go, head, data, body.complete, dressed)
            if not body.complete:
                upload = self.outlet.loop.create_task(self._upload(sender))
            await self._relay(sender, answer or await sender.response(head.method), dressed)
        except Aborted as aborted:
            problem = aborted
        except DialError as error:
            problem = Aborted(error.aborted, answers.failure(error.aborted, str(error)))
        except Refused as refused:
            if self._dialled:
                reason = "undecodable" if refused.kind == "undecodable" else "upstream_framing"
                problem = Aborted(reason, answers.failure(reason, str(refused)))
            else:
                problem = Aborted(refused.kind, Deny.of(refused))
        except Lost as lost:
            problem = Aborted(self._gone or lost_reason(lost))
        else:
            return
        finally:
            self.asker.watch(None)
            if upload is not None:
                upload.cancel()
            if not self._reported:
                await self._break_off(problem or Aborted("stopped"))

    def _replaced(self, go: Go, body: Body) -> tuple[RequestHead, bytes]:
        head = go.head or self.head
        if go.body is not None and not body.complete:
            raise Refused("a body that is still coming cannot be replaced", kind="body_too_large", status=413)
        if go.idempotency_key and head.get(b"idempotency-key") is None:
            field = (b"idempotency-key", go.idempotency_key.encode())
            head = msgspec.structs.replace(head, headers=(*head.headers, field))
        return head, body.data if go.body is None else go.body

    async def _send(
        self, go: Go, head: RequestHead, data: bytes, complete: bool, dressed: Dressed
    ) -> tuple[Sender, ResponseHead | None]:
        """Send on a kept connection, or on a new one. Also gives the response where it had to be waited for."""
        sender = self.outlet.kept(self.head)
        if sender is None:
            sender = await self.dial(go, head, dressed)
        else:
            # From here on it is ours to end, whatever refuses the request.
            self.sender = sender
            self.outlet.check_secret(head, dressed, (sender.address,))
            await self.outlet.door.before_dial(go.ticket)
        self._begin(sender, head, data, complete)
        if not sender.reused or head.method not in _SAFE or not complete:
            return sender, None
        try:
            return sender, await sender.response(head.method)
        except Lost as lost:
            # The upstream closed it while it was idle: the request was not looked at, and may be sent again anyway.
            if self._gone or str(lost) == "timeout":
                raise
        self.asker.watch(None)
        self.outlet.drop(sender, "closed")
        sender = await self.dial(go, head, dressed)
        self._begin(sender, head, data, complete)
        return sender, None

    async def dial(self, go: Go, head: RequestHead, dressed: Dressed) -> Sender:
        """A new connection to a checked address."""
        addresses = await self.resolve()
        self.outlet.check_secret(head, dressed, addresses)
        await self.outlet.door.before_dial(go.ticket)
        return await self.outlet.dial(head, addresses, go.deadline_s)

    def _begin(self, sender: Sender, head: RequestHead, data: bytes, complete: bool) -> None:
        self.sender = sender
        self.asker.watch(self._client_gone)
        if self._gone:
            raise Lost(self._gone)
        self._dialled = True
        sender.send(head, data, complete=complete)
        self._sent = len(data)

    def _client_gone(self, why: str) -> None:
        self._gone = "stopped" if why == "stopped" else "client_gone"
        if self.sender is not None:
            self.sender.abort(self._gone)

    async def _upload(self, sender: Sender) -> None:
        """Send the rest of a body that was decided by its beginning, while the response may already come."""
        limit = self.outlet.limits.body
        try:
            while not self.asker.done:
                data = await self.asker.read()
                self._sent += len(data)
                if self._sent > limit:
                    sender.abort("body_too_large")
                    return
                if data:
                    sender.upload(data)
                    await sender.drain()
            sender.finish()
        except (Lost, Refused) as error:
            sender.abort("client_gone" if isinstance(error, Lost) else "client_framing")

    async def _relay(self, sender: Sender, answer: ResponseHead, dressed: Dressed) -> None:
        go, asker, limits = self._go, self.asker, self.outlet.limits
        assert go is not None
        if dressed.scrub_headers is not None:
            answer = msgspec.structs.replace(answer, headers=dressed.scrub_headers(answer.headers))
        transforms: tuple[Transform, ...] = tuple([step for step in (dressed.scrub, go.tap) if step is not None])
        coding = answer.get(b"content-encoding")
        decoder = None
        if coding is not None and coding.lower() != b"identity" and not sender.done:
            decoder = Decoder(coding, limits.ratio, limits.response)
            if transforms:
                answer = _without_coding(answer)
        if transforms and not sender.done:
            answer = msgspec.structs.replace(answer, length=None)
        self._answer = answer
        if go.meter is not None:
            go.meter.response(answer)
        body = not sender.done
        if not body:
            await self._conclude(answer, b"", dressed, body=False)
            return
        while True:
            data = await sender.read()
            last = sender.done
            if len(data) + self._length > limits.response:
                raise Aborted("response_too_large")
            if decoder is None and not transforms:
                out = data
                if go.meter is not None and data:
                    go.meter.feed(data)
            else:
                out = await self._changed(data, last, decoder, transforms, answer)
            if last:
                await self._conclude(answer, out, dressed, body=True)
                return
            self._count(out)
            if not self._started:
                self._started = True
                asker.start(answer, body=True)
            asker.write(out)
            await asker.drain()

    async def _changed(
        self,
        data: bytes,
        last: bool,
        decoder: Decoder | None,
        transforms: tuple[Transform, ...],
        answer: ResponseHead,
    ) -> bytes:
        """Decode for the meter and the detectors; where something is to be changed, also for the agent."""
        assert self._go is not None
        meter = self._go.meter
        out = b""
        for piece in decoder.feed(data) if decoder is not None else (data,):
            if meter is not None:
                meter.feed(piece)
            if not transforms:
                self._keep_text(piece)
                continue
            for step in transforms:
                piece = step.feed(piece)
            if out:
                # More than one piece is more than was received: it goes out as it is decoded, not in one heap.
                self._count(out)
                if not self._started:
                    self._started = True
                    self.asker.start(answer, body=True)
                self.asker.write(out)
                await self.asker.drain()
            out = piece
        if last:
            if decoder is not None:
                decoder.finish()
            tail = b""
            for step in transforms:
                tail = step.feed(tail) + step.finish() if tail else step.finish()
            out += tail
        return out if transforms else data

    def _keep_text(self, piece: bytes) -> None:
        if self._text is not None:
            self._text.append(piece)
            self._text_length += len(piece)
            if self._text_length > self.outlet.limits.keep:
                self._text = None

    def _count(self, out: bytes) -> None:
        self._length += len(out)
        self._digest.update(out)
        if self._kept is not None and out:
            if self._length > self.outlet.limits.keep:
                self._kept = None
            else:
                self._kept.append(out)

    async def _conclude(self, answer: ResponseHead, out: bytes, dressed: Dressed, *, body: bool) -> None:
        """The response is complete: report, then hand its end to the agent."""
        self._count(out)
        sender = self.sender
        assert sender is not None
        self.asker.watch(None)
        self.outlet.keep(self.head, sender)
        await self._report("")
        if not self._started:
            if body and answer.length is None and not sender.trailers:
                answer = msgspec.structs.replace(answer, length=self._length)
            self._started = True
            self.asker.start(answer, body=body)
        self.asker.write(out)
        trailers = sender.trailers
        if trailers and dressed.scrub_headers is not None:
            trailers = dressed.scrub_headers(trailers)
        self.asker.end(trailers)
        await self.asker.drain()

    async def _break_off(self, problem: Aborted) -> None:
        """The exchange failed: report, then tell the agent as far as it can still be told."""
        if self.sender is not None:
            self.outlet.drop(self.sender, problem.reason)
        await self._report(problem.reason)
        if self._started or problem.reason == "client_gone":
            self.asker.cut()
        else:
            self._started = True
            self.deny(problem.deny)

    async def _report(self, aborted: str) -> None:
        go = self._go
        if go is None or self._reported:
            return
        self._reported = True
        kept = b"".join(self._kept) if self._kept is not None else b""
        text = kept
        if self._answer is not None and self._answer.get(b"content-encoding") is not None:
            text = b"".join(self._text or ())
        outcome = Outcome(
            status=self._answer.status if self._answer is not None else 0,
            head=self._answer,
            length=self._length,
            digest=self._digest.hexdigest(),
            body=kept,
            text=text,
            truncated=self._kept is None,
            sent_length=self._sent,
            usage=go.meter.finish(aborted) if go.meter is not None else None,
            dialled=self._dialled,
            address=self.sender.address if self.sender is not None else "",
            aborted=aborted,
            took_s=self.outlet.loop.time() - self.began,
        )
        await self.outlet.door.outcome(go.ticket, outcome)


_NOTHING: Final = Body()


def _without_coding(answer: ResponseHead) -> ResponseHead:
    return msgspec.structs.replace(
        answer, headers=tuple([field for field in answer.headers if field[0] != b"content-encoding"]), length=None
    )
