"""WebSocket (RFC 6455): an upgrade that is checked, and messages that are read whole, looked at and framed anew.

Extensions are not negotiated, so every message can be read. Fragments are put together before they are judged.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from typing import Final

import msgspec

from holdfast.egress import answers
from holdfast.egress.base import Body, Deny, Dressed, Go, Headers, Outcome, Refused, RequestHead, ResponseHead
from holdfast.egress.client import Http1Asker
from holdfast.egress.exchange import Exchange
from holdfast.egress.outlet import Outlet
from holdfast.egress.stream import Lost, Stream
from holdfast.egress.tunnel import both
from holdfast.egress.upstream import DialError, Http1Sender, lost_reason

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
MESSAGE: Final = 4_194_304
"""Bytes of a message."""
FRAMES: Final = 4096
"""Fragments of a message."""


def _bad(what: str) -> Refused:
    return Refused(f"malformed WebSocket: {what}", kind="websocket", status=400)


class Reader:
    """Takes whole messages off a buffer. Strict: masks as they must be, no reserved bits, valid closes and UTF-8."""

    def __init__(self, *, masked: bool, limit: int = MESSAGE) -> None:
        self._masked = masked
        self._limit = limit
        self._opcode = CONTINUATION
        self._parts: list[bytes] = []
        self._length = 0

    def message(self, buffer: bytearray) -> tuple[int, bytes] | None:
        """The next message (or control frame) as opcode and payload; None when more bytes are needed.

        Raises:
            Refused: the frames are malformed, or the message is too large.
        """
        while (frame := self._frame(buffer)) is not None:
            final, opcode, payload = frame
            if opcode >= CLOSE:
                if opcode == CLOSE:
                    _check_close(payload)
                return opcode, payload
            if (opcode == CONTINUATION) != bool(self._opcode):
                raise _bad("a fragment out of turn")
            self._opcode = self._opcode or opcode
            self._parts.append(payload)
            self._length += len(payload)
            if len(self._parts) > FRAMES:
                raise _bad(f"more than {FRAMES} fragments")
            if final:
                whole = self._opcode, b"".join(self._parts)
                self._opcode, self._parts, self._length = CONTINUATION, [], 0
                if whole[0] == TEXT:
                    _check_text(whole[1])
                return whole
        return None

    def _frame(self, buffer: bytearray) -> tuple[bool, int, bytes] | None:
        if len(buffer) < 2:
            return None
        final, opcode, masked, length = buffer[0] & 0x80, buffer[0] & 0x0F, bool(buffer[1] & 0x80), buffer[1] & 0x7F
        if buffer[0] & 0x70 or opcode not in _OPCODES:
            raise _bad("reserved bits or an opcode that is none")
        if masked != self._masked:
            raise _bad("a mask where there must be none, or none where there must be one")
        if opcode >= CLOSE and (length > 125 or not final):
            raise _bad("a control frame that is fragmented or too long")
        at = 2
        if length >= 126:
            size = 2 if length == 126 else 8
            if len(buffer) < at + size:
                return None
            length = int.from_bytes(buffer[at : at + size], "big")
            at += size
            if length < (126 if size == 2 else 65_536):
                raise _bad("a length that is not in its shortest form")
        if opcode < CLOSE and self._length + length > self._limit:
            raise _bad(f"a message of more than {self._limit} bytes")
        key = b""
        if masked:
            key = bytes(buffer[at : at + 4])
            at += 4
        if len(buffer) < at + length:
            return None
        payload = bytes(buffer[at : at + length])
        del buffer[: at + length]
        return bool(final), opcode, _mask(payload, key) if masked else payload


def frame(opcode: int, payload: bytes, *, masked: bool) -> bytes:
    """One message as one frame."""
    length = len(payload)
    bit = 0x80 if masked else 0
    if length < 126:
        head = bytes((0x80 | opcode, bit | length))
    elif length < 65_536:
        head = bytes((0x80 | opcode, bit | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, bit | 127)) + length.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + _mask(payload, key)


def _mask(payload: bytes, key: bytes) -> bytes:
    length = len(payload)
    if not length:
        return b""
    mask = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(length, "big")


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, 1005, 1006):
        raise _bad("a close code that is none")
    _check_text(payload[2:])


def _check_text(payload: bytes) -> None:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("text that is not UTF-8") from None


def accept_of(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` that proves that a server understood (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _valid_key(key: bytes | None) -> bool:
    try:
        return key is not None and len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


class Socket:
    """One WebSocket from its upgrade to its outcome."""

    def __init__(self, outlet: Outlet, asker: Http1Asker, head: RequestHead) -> None:
        self.outlet = outlet
        self.asker = asker
        self.head = _plain(head)
        self.exchange = Exchange(outlet, asker, self.head)
        self._up: Http1Sender | None = None
        self._answer: ResponseHead | None = None
        self._sent = 0
        self._got = 0
        self._digest = hashlib.sha256()
        self._ended = False

    async def run(self) -> None:
        """Decide, upgrade, relay, report."""
        if not _valid_key(self.head.get(b"sec-websocket-key")) or self.head.get(b"sec-websocket-version") != b"13":
            raise _bad("a handshake without a valid key or version 13")
        go = await self.exchange.decide(Body())
        if isinstance(go, Deny) or go.served is not None:
            self.asker.keep_alive = False
            self.exchange.deny(go if isinstance(go, Deny) else answers.failure("not_served"))
            return
        aborted = "stopped"
        try:
            aborted = await self._carry(go)
        finally:
            stream = self._up.stream if self._up is not None else None
            if stream is not None:
                self.outlet.upstreams.discard(stream)
                stream.abort(aborted or "closed") if aborted else stream.close()
            await self.outlet.door.outcome(go.ticket, self._outcome(aborted))

    async def _carry(self, go: Go) -> str:
        """Relay until either side ends it; gives why it broke off, or nothing."""
        try:
            dressed = await self.outlet.dress(go.ticket, go.head or self.head, Body())
            sender = await self.exchange.dial(go, dressed.head, dressed)
            if not isinstance(sender, Http1Sender):
                raise _bad("an upstream that speaks HTTP/2")
            self._up = sender
            sender.send(msgspec.structs.replace(dressed.head, upgrade="websocket"), b"", complete=True)
            answer = await sender.response("UPGRADE")
            if answer.status != 101:
                raise Refused(
                    f"the upstream answered {answer.status} instead of upgrading", kind="websocket", status=502
                )
            headers = self._checked(answer.headers)
            if dressed.scrub_headers is not None:
                headers = dressed.scrub_headers(headers)
            self._answer = ResponseHead(status=101, headers=headers)
            self.asker.switch(self._answer, b"connection: upgrade\r\nupgrade: websocket\r\n")
            client, up = self.asker.stream, sender.stream
            await both(
                self._relay(client, up, Reader(masked=True), lambda op, data: self._upwards(go, op, data)),
                self._relay(up, client, Reader(masked=False), lambda op, data: self._downwards(go, dressed, op, data)),
            )
        except DialError as error:
            self.exchange.deny(answers.failure(error.aborted, str(error)))
            return error.aborted
        except Refused as refused:
            if self._answer is None:
                self.asker.keep_alive = False
                self.exchange.deny(Deny.of(refused))
            else:
                self._bye(1008)
            return refused.kind
        except Lost as lost:
            if self._ended:
                return ""
            if self._answer is None and not self.asker.stream.lost:
                self.exchange.deny(answers.failure(lost_reason(lost)))
            return "client_gone" if self.asker.stream.lost or self.asker.stream.eof else lost_reason(lost)
        return ""

    def _checked(self, headers: Headers) -> Headers:
        """The fields of a 101 that may go on.

        Raises:
            Refused: the upstream did not understand the upgrade, or took an extension that was not offered.
        """
        fields = dict(headers)
        key = self.head.get(b"sec-websocket-key") or b""
        if (
            fields.get(b"sec-websocket-accept") != accept_of(key)
            or fields.get(b"upgrade", b"").lower() != b"websocket"
            or b"sec-websocket-extensions" in fields
        ):
            raise Refused("the upstream's WebSocket handshake is not valid", kind="websocket", status=502)
        drop = (b"connection", b"upgrade", b"content-length", b"transfer-encoding")
        return tuple([field for field in headers if field[0] not in drop])

    async def _relay(
        self, source: Stream, sink: Stream, reader: Reader, judged: Callable[[int, bytes], tuple[bytes, bool]]
    ) -> None:
        seconds = self.outlet.limits.stream_s
        masked = sink is not self.asker.stream
        while True:
            while (message := reader.message(source.buffer)) is not None:
                opcode, payload = message
                payload, go_on = judged(opcode, payload)
                if not go_on:
                    raise Refused("a message was refused", kind="frame_refused")
                sink.write(frame(opcode, payload, masked=masked))
                await sink.drain(seconds)
                if opcode == CLOSE:
                    self._ended = True
                    return
            if not await source.more(seconds):
                raise Lost("closed")

    def _upwards(self, go: Go, opcode: int, payload: bytes) -> tuple[bytes, bool]:
        if go.frames is not None and opcode in (TEXT, BINARY) and not go.frames(True, opcode, payload):
            return b"", False
        self._sent += len(payload)
        return payload, True

    def _downwards(self, go: Go, dressed: Dressed, opcode: int, payload: bytes) -> tuple[bytes, bool]:
        # Each message is judged for itself: a transform has nothing held back once it was told to finish.
        for step in (dressed.scrub, go.tap):
            if step is not None:
                payload = step.feed(payload) + step.finish()
        if go.frames is not None and opcode in (TEXT, BINARY) and not go.frames(False, opcode, payload):
            return b"", False
        self._got += len(payload)
        self._digest.update(payload)
        return payload, True

    def _bye(self, code: int) -> None:
        stream = self.asker.stream
        if not stream.lost:
            stream.write(frame(CLOSE, code.to_bytes(2, "big"), masked=False))

    def _outcome(self, aborted: str) -> Outcome:
        return Outcome(
            status=self._answer.status if self._answer is not None else 0,
            head=self._answer,
            length=self._got,
            digest=self._digest.hexdigest(),
            truncated=self._got > 0,
            sent_length=self._sent,
            dialled=self._up is not None,
            address=self._up.address if self._up is not None else "",
            aborted=aborted,
            took_s=self.outlet.loop.time() - self.exchange.began,
        )


def _plain(head: RequestHead) -> RequestHead:
    kept = tuple([field for field in head.headers if field[0] != b"sec-websocket-extensions"])
    return msgspec.structs.replace(head, headers=kept)


async def carry(outlet: Outlet, asker: Http1Asker, head: RequestHead) -> None:
    """Carry one WebSocket. The connection is at its end afterwards.

    Raises:
        Refused: the handshake is malformed.
    """
    if asker.stream.buffer:
        raise _bad("bytes that follow the handshake before its answer")
    socket = Socket(outlet, asker, head)
    try:
        await socket.run()
    except asyncio.CancelledError:
        asker.stream.abort("stopped")
        raise
