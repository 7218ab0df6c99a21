"""The far side of an exchange: connections to checked addresses, kept and used again within one tenant."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from holdfast.egress import http1, messages
from holdfast.egress.base import Headers, Limits, RequestHead, ResponseHead
from holdfast.egress.stream import Lost, Stream, Sweeper

Key = tuple[str, str, int, bool]
"""Scheme, host, port, and whether HTTP/2 was offered."""

KEEP_S: Final = 15.0
"""How long an idle connection is kept; less where the upstream's ``Keep-Alive`` says so."""
HELD: Final = 268_435_456
"""Bytes of requests that may be held for one tenant."""
_KEEP = re.compile(rb"timeout=([0-9]{1,5})")
_INTERIM: Final = 16
"""Interim answers (1xx) that are read over."""


class DialError(Exception):
    """No connection: ``connect_failed`` or ``tls_failed``, and why."""

    def __init__(self, aborted: str, detail: str) -> None:
        super().__init__(detail)
        self.aborted = aborted


class Sender(Protocol):
    """What an exchange needs of a connection (HTTP/1.1) or stream (HTTP/2) to the upstream."""

    stream: Stream
    address: str
    limits: Limits
    keep_s: float
    """How long it may be kept idle."""
    reused: bool
    done: bool
    """The response has been read to its end."""
    trailers: Headers
    """Fields after the body (HTTP/2 only: gRPC needs them)."""

    @property
    def reusable(self) -> bool:
        """Whether another exchange may use the connection: nothing is left over on either side."""
        ...

    def send(self, head: RequestHead, data: bytes, *, complete: bool) -> None:
        """Send the head and the first bytes of the body."""
        ...

    def upload(self, data: bytes) -> None:
        """Send more of the body."""
        ...

    def finish(self) -> None:
        """The body is complete."""
        ...

    async def drain(self) -> None:
        """Wait until the upstream has taken enough."""
        ...

    async def response(self, method: str) -> ResponseHead:
        """The head of the final response.

        Raises:
            Refused: it is malformed.
            Lost: the connection broke, or the time-out passed.
        """
        ...

    async def read(self) -> bytes:
        """The next bytes of the response's body; empty at its end."""
        ...

    def abort(self, why: str) -> None:
        """Give the exchange up."""
        ...


class Http1Sender:
    """One connection that speaks HTTP/1.1."""

    def __init__(self, stream: Stream, limits: Limits, address: str) -> None:
        self.stream = stream
        self.address = address
        self.limits = limits
        self.reused = False
        self.done = False
        self.keep_alive = False
        self.keep_s = KEEP_S
        self.trailers: Headers = ()
        self._left = 0
        self._chunks: http1.Chunked | None = None
        self._chunked = False
        self._uploaded = True
        self._known: tuple[bytes, str] | None = None
        self._answer = messages.Answer(ResponseHead(status=0), 0, False)

    def send(self, head: RequestHead, data: bytes, *, complete: bool) -> None:
        self._chunked = head.length is None
        self._uploaded = complete
        self.done = False
        raw = messages.request_bytes(head)
        if self._chunked:
            raw += http1.write_chunk(data)
            if complete:
                raw += http1.LAST_CHUNK
            self.stream.write(raw)
        else:
            self.stream.write(raw + data if data else raw)

    def upload(self, data: bytes) -> None:
        self.stream.write(http1.write_chunk(data) if self._chunked else data)

    def finish(self) -> None:
        if not self._uploaded and self._chunked:
            self.stream.write(http1.LAST_CHUNK)
        self._uploaded = True

    async def drain(self) -> None:
        if self.stream.paused:
            await self.stream.drain(self.limits.stream_s)

    async def response(self, method: str) -> ResponseHead:
        stream, limits = self.stream, self.limits
        for _ in range(_INTERIM):
            until = 0.0
            while not stream.buffer or (end := http1.find_head(stream.buffer, limits.head)) < 0:
                if stream.buffer and not until:
                    until = stream.time() + limits.head_s
                if not await stream.more(max(until - stream.time(), 0.001) if until else limits.first_byte_s):
                    raise Lost("closed")
            raw = bytes(stream.buffer[:end])
            del stream.buffer[: end + 4]
            if (raw, method) == self._known:
                # Servers repeat themselves, within a second even their date.
                return self._begun(self._answer)
            status, version, headers = http1.response_head(raw, limits.headers)
            if status >= 200 or status == 101:
                break
        else:
            raise http1.malformed(f"more than {_INTERIM} interim answers")
        if method == "UPGRADE" and status == 101:
            return ResponseHead(status=101, headers=headers)
        if status == 101:
            raise http1.malformed("a switch of protocols that nobody asked for")
        for name, value in headers:
            if name == b"keep-alive" and (match := _KEEP.search(value)):
                # A second less than the upstream says: it must not close while the next request is on its way.
                self.keep_s = min(KEEP_S, int(match[1]) - 1)
        answer = messages.response(status, version, headers, method)
        self._known, self._answer = (raw, method), answer
        return self._begun(answer)

    def _begun(self, answer: messages.Answer) -> ResponseHead:
        self.keep_alive = answer.keep_alive
        self._left = 0 if answer.length is None else answer.length
        self._chunks = http1.Chunked(extensions=True) if answer.length is None else None
        self.done = answer.length == 0
        return answer.head

    async def read(self) -> bytes:
        stream = self.stream
        while not self.done:
            if self._chunks is not None:
                data = self._chunks.feed(stream.buffer)
                self.done = self._chunks.done
            elif self._left >= 0:
                data = stream.take(min(self._left, 262_144))
                self._left -= len(data)
                self.done = self._left == 0
            else:
                data = stream.take(262_144)
            if data:
                return data
            if not self.done and not await stream.more(self.limits.stream_s):
                if self._chunks is not None or self._left >= 0:
                    raise Lost("closed")
                self.done = True
        return b""

    def abort(self, why: str) -> None:
        self.stream.abort(why)

    @property
    def reusable(self) -> bool:
        """Whether another exchange may use the connection: nothing is left over on either side."""
        return self.done and self._uploaded and self.keep_alive and self.stream.usable


class Pool:
    """The idle connections of one tenant, never shared with another. Bounded; the oldest go first."""

    def __init__(self, limit: int = 256) -> None:
        self._idle: dict[Key, list[tuple[float, Sender]]] = {}
        self._limit = limit
        self._count = 0
        self.held = 0
        """Bytes of the tenant's requests that are held in memory until they are decided."""

    def take(self, key: Key, now: float) -> Sender | None:
        """An idle connection that is still good."""
        idle = self._idle.get(key)
        while idle:
            until, sender = idle.pop()
            self._count -= 1
            if until > now and sender.stream.usable:
                sender.reused = True
                return sender
            sender.stream.close()
        return None

    def give(self, key: Key, sender: Sender, now: float) -> None:
        """Keep a connection for later, or close it."""
        if not sender.reusable:
            sender.stream.close()
            return
        if self._count >= self._limit:
            self._evict()
        self._idle.setdefault(key, []).append((now + sender.keep_s, sender))
        self._count += 1

    def _evict(self) -> None:
        oldest = min((idle[0][0], key) for key, idle in self._idle.items() if idle)[1]
        self._idle[oldest].pop(0)[1].stream.close()
        self._count -= 1
        if not self._idle[oldest]:
            del self._idle[oldest]

    def close(self) -> None:
        """Close all."""
        for idle in self._idle.values():
            for _, sender in idle:
                sender.stream.close()
        self._idle.clear()
        self._count = 0


async def connect(
    addresses: tuple[str, ...],
    port: int,
    *,
    seconds: float,
    loop: asyncio.AbstractEventLoop,
    sweeper: Sweeper,
    context: ssl.SSLContext | None = None,
    host: str = "",
    made: Callable[[Stream], None] = lambda _: None,
) -> tuple[Stream, str]:
    """Connect to the first address that answers; gives the stream and that address.

    Only addresses that the guard has checked come here, and they are dialled as numbers: no name is resolved again.

    Raises:
        DialError: none answered within ``seconds``, or the certificate does not hold for ``host``.
    """
    problem = DialError("connect_failed", "no address")
    deadline = loop.time() + seconds
    for address in addresses:
        stream = Stream(loop, sweeper)
        try:
            async with asyncio.timeout_at(deadline):
                await loop.create_connection(
                    lambda stream=stream: stream,
                    address,
                    port,
                    ssl=context,
                    server_hostname=host if context is not None else None,
                )
        except ssl.SSLError as error:
            # Another address of the name would hold the same certificate: no second try.
            raise DialError("tls_failed", error.reason or "handshake failed") from None
        except (TimeoutError, OSError) as error:
            problem = DialError("connect_failed", type(error).__name__)
            continue
        made(stream)
        return stream, address
    raise problem


def lost_reason(lost: Lost) -> str:
    """The reason of :attr:`Outcome.aborted` for how an upstream's connection ended."""
    why = str(lost)
    return {"timeout": "upstream_timeout", "reset": "upstream_reset", "closed": "upstream_closed"}.get(why, why)
