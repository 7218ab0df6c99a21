"""The agent's side of an exchange in HTTP/1.1: requests read one after the other, answers written anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from holdfast.egress import http1, messages
from holdfast.egress.base import Headers, Limits, RequestHead, ResponseHead
from holdfast.egress.stream import Lost, Stream


class Asker(Protocol):
    """Who asked: what an exchange needs of a connection (HTTP/1.1) or a stream (HTTP/2)."""

    @property
    def done(self) -> bool:
        """The request's body has been read to its end."""
        ...

    async def read(self) -> bytes:
        """The next bytes of the request's body; empty at its end."""
        ...

    def proceed(self) -> None:
        """Tell a client that waits for ``100 Continue`` to send its body."""
        ...

    def start(self, head: ResponseHead, *, body: bool) -> None:
        """Begin the answer. Where ``head.length`` is None, the body ends with :meth:`end`."""
        ...

    def write(self, data: bytes) -> None:
        """Send bytes of the answer's body."""
        ...

    async def drain(self) -> None:
        """Wait for a slow reader."""
        ...

    def end(self, trailers: Headers = ()) -> None:
        """The answer is complete. HTTP/1.1 has no use for trailers, and drops them."""
        ...

    def cut(self) -> None:
        """Break the answer off, so that it cannot be taken for complete."""
        ...

    def watch(self, gone: Callable[[str], None] | None) -> None:
        """Have ``gone(reason)`` called when the client goes away; None: no longer."""
        ...


class Http1Asker:
    """One client connection. An exchange at a time; what is pipelined waits its turn."""

    def __init__(
        self,
        stream: Stream,
        limits: Limits,
        *,
        inside: messages.Inside | None = None,
        bases: Mapping[str, str] | None = None,
        encoded_slashes: bool = False,
    ) -> None:
        self.stream = stream
        self._limits = limits
        self._inside = inside
        self._bases = bases
        self._encoded_slashes = encoded_slashes
        self._raw: bytes | None = None
        self._incoming: messages.Incoming | None = None
        self._places: dict[tuple[str, str, bytes | None], messages.Place] = {}
        self.done = True
        self.keep_alive = True
        self._left = 0
        self._chunks: http1.Chunked | None = None
        self._expects = False
        self._version = "1.1"
        self._pending = b""
        self._chunked = False

    async def request(self) -> RequestHead | None:
        """The next request; None when the client has no more.

        Raises:
            Refused: it is malformed.
            Lost: the client is gone.
        """
        stream, limits = self.stream, self._limits
        until = 0.0
        while not stream.buffer or (end := http1.find_head(stream.buffer, limits.head)) < 0:
            began = bool(stream.buffer)
            if began and not until:
                until = stream.time() + limits.head_s
            # From its first byte on, a head has its time in all, however it trickles.
            if not await stream.more(max(until - stream.time(), 0.001) if began else limits.idle_s):
                if began:
                    raise Lost("closed")
                return None
        raw = bytes(stream.buffer[:end])
        del stream.buffer[: end + 4]
        # Clients repeat themselves: the head of the request before is known already.
        if raw != self._raw:
            self._incoming, self._raw = self._understood(raw), raw
        incoming = self._incoming
        assert incoming is not None
        head = incoming.head
        self.keep_alive = incoming.keep_alive
        self._expects = incoming.expects
        self._version = head.version
        self._left = head.length or 0
        self._chunks = http1.Chunked(extensions=False) if head.length is None else None
        self.done = head.length == 0
        return head

    def _understood(self, raw: bytes) -> messages.Incoming:
        method, where, version, headers = http1.request_head(raw, self._limits.headers)
        return messages.request(
            method,
            where,
            version,
            headers,
            inside=self._inside,
            bases=self._bases,
            encoded_slashes=self._encoded_slashes,
            places=self._places,
        )

    async def read(self) -> bytes:
        stream = self.stream
        while not self.done:
            if self._chunks is not None:
                data = self._chunks.feed(stream.buffer)
                self.done = self._chunks.done
            else:
                data = stream.take(min(self._left, 262_144))
                self._left -= len(data)
                self.done = self._left == 0
            if data:
                return data
            if not self.done and not await stream.more(self._limits.body_s):
                raise Lost("closed")
        return b""

    def proceed(self) -> None:
        if self._expects and not self.stream.buffer:
            self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects = False

    def start(self, head: ResponseHead, *, body: bool) -> None:
        self._chunked = body and head.length is None and self._version == "1.1"
        if body and head.length is None and not self._chunked:
            self.keep_alive = False
        # What is left of a request that nobody reads would be taken for the next one.
        if not self.done:
            self.keep_alive = False
        self._pending = messages.response_bytes(head, chunked=self._chunked, keep_alive=self.keep_alive)
        if self._version == "1.0" and self.keep_alive:
            self._pending = self._pending[:-2] + b"connection: keep-alive\r\n\r\n"

    def write(self, data: bytes) -> None:
        if data:
            pending, self._pending = self._pending, b""
            self.stream.write(pending + (http1.write_chunk(data) if self._chunked else data))

    async def drain(self) -> None:
        if self.stream.paused:
            await self.stream.drain(self._limits.stream_s)

    def end(self, trailers: Headers = ()) -> None:
        pending, self._pending = self._pending, b""
        if self._chunked:
            pending += http1.LAST_CHUNK
        if pending:
            self.stream.write(pending)

    def cut(self) -> None:
        self.keep_alive = False
        self.stream.abort("cut")

    def watch(self, gone: Callable[[str], None] | None) -> None:
        stream = self.stream
        stream.on_lost = gone
        if gone is not None and (stream.lost or stream.eof):
            gone(stream.lost or "closed")

    def switch(self, head: ResponseHead, connection: bytes) -> None:
        """Leave HTTP: the answer to CONNECT or to an upgrade. What follows are bytes."""
        self.keep_alive = False
        self.stream.write(
            b"HTTP/1.1 %d %b\r\n%b\r\n"
            % (
                head.status,
                b"Connection Established" if head.status == 200 else b"Switching Protocols",
                connection + b"".join([b"%b: %b\r\n" % field for field in head.headers]),
            )
        )
