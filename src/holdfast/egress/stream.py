"""A connection as bytes to take and to give: an asyncio protocol with bounds, and no task or future per read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

HIGH_WATER: Final = 262_144
"""Bytes that are held unread (and, by the transport, unsent) before the peer is made to wait."""
TICK_S: Final = 0.25
"""How often deadlines are looked at: one timer for all streams, instead of one for each wait."""


class Lost(Exception):
    """The connection is gone, or was given up. The reason is the message."""


class Sweeper:
    """Ends the waits that last too long, of all streams of one loop."""

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a stream until it is discarded."""
        self.streams.add(stream)
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for stream in list(self.streams):
            if 0.0 < stream.read_by < now or 0.0 < stream.write_by < now:
                stream.expire()
        self._timer = loop.call_later(TICK_S, self._sweep, loop) if self.streams else None


class Stream(asyncio.Protocol):
    """One side of a connection. A single reader, a single writer.

    Reading: :meth:`more` waits until :attr:`buffer` has grown or :attr:`eof` is set; the reader takes bytes off the
    buffer itself. Writing: :meth:`write` never waits, :meth:`drain` does.
    """

    __slots__ = (
        "_loop", "_paused", "_reader", "_sweeper", "_unread", "_writer", "buffer", "eof", "half_open", "lost",
        "on_lost", "read_by", "transport", "write_by",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, sweeper: Sweeper) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()
        self.eof = False
        self.lost = ""
        self.read_by = 0.0
        """Loop time at which the wait of the reader is given up; 0: none is under way."""
        self.write_by = 0.0
        self.half_open = False
        """Keep our side open when the peer ends its own: for tunnels."""
        self.on_lost: Callable[[str], None] | None = None
        """Called when the peer is gone (or has ended its side) while nobody reads."""
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._paused = False
        self._unread = False
        self._sweeper = sweeper

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._sweeper.add(self, self._loop)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > HIGH_WATER and not self._unread and self.transport is not None:
            self._unread = True
            self.transport.pause_reading()
        if self._reader is not None:
            self._wake()

    def eof_received(self) -> bool:
        self.eof = True
        self._wake()
        if self.on_lost is not None:
            self.on_lost("closed")
        return self.half_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._sweeper.streams.discard(self)
        self._give_up("reset" if isinstance(exc, OSError) else "closed")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # What the owner calls.

    def time(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    async def more(self, seconds: float) -> bool:
        """Wait for more bytes: True, or False when the peer sends no more.

        Raises:
            Lost: the connection broke, or ``seconds`` passed (``timeout``).
        """
        if self.eof:
            return False
        if self.lost:
            raise Lost(self.lost)
        if self._unread and self.transport is not None:
            self._unread = False
            self.transport.resume_reading()
        have = len(self.buffer)
        while len(self.buffer) == have and not self.eof:
            self._reader = self._loop.create_future()
            self.read_by = self._loop.time() + seconds
            try:
                await self._reader
            finally:
                self._reader = None
                self.read_by = 0.0
            if self.lost and len(self.buffer) == have and not self.eof:
                raise Lost(self.lost)
        return len(self.buffer) > have

    def take(self, most: int = HIGH_WATER * 4) -> bytes:
        """The buffered bytes, up to ``most``."""
        data = bytes(self.buffer[:most]) if len(self.buffer) > most else bytes(self.buffer)
        del self.buffer[: len(data)]
        return data

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport.

        Raises:
            Lost: the connection is gone.
        """
        if self.lost or self.transport is None:
            raise Lost(self.lost or "closed")
        self.transport.write(data)

    async def drain(self, seconds: float) -> None:
        """Wait until the peer has taken enough of what was written.

        Raises:
            Lost: the connection broke, or ``seconds`` passed.
        """
        while self._paused and not self.lost:
            self._writer = self._loop.create_future()
            self.write_by = self._loop.time() + seconds
            try:
                await self._writer
            finally:
                self._writer = None
                self.write_by = 0.0
        if self.lost:
            raise Lost(self.lost)

    @property
    def chosen_protocol(self) -> str | None:
        """What TLS agreed on (ALPN, RFC 7301); None without TLS or agreement."""
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        return tls.selected_alpn_protocol() if tls is not None else None

    @property
    def paused(self) -> bool:
        """Whether the peer takes what is written more slowly than it comes."""
        return self._paused

    @property
    def usable(self) -> bool:
        """Whether an idle connection can be used: open, and nothing came that nobody asked for."""
        return not (self.lost or self.eof or self.buffer) and self.transport is not None

    def expire(self) -> None:
        """End the wait under way, and the connection: it lasts too long."""
        self.abort("timeout")

    def abort(self, why: str) -> None:
        """End the connection at once; whoever waits on it gets :class:`Lost`."""
        transport = self.transport
        self._give_up(why)
        if transport is not None:
            transport.abort()

    def close(self) -> None:
        """End the connection once everything that was written is sent."""
        if self.transport is not None and not self.lost:
            self.on_lost = None
            self.transport.close()

    def _give_up(self, why: str) -> None:
        if not self.lost:
            self.lost = why
        self.read_by = self.write_by = 0.0
        self._wake()
        self.resume_writing()
        if self.on_lost is not None:
            called, self.on_lost = self.on_lost, None
            called(self.lost)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


async def relay(source: Stream, sink: Stream, seconds: float, seen: Callable[[bytes], None]) -> None:
    """Copy bytes until ``source`` ends, then end ``sink``'s sending side. ``seen`` is called before they are sent.

    Raises:
        Lost: either side broke, or nothing moved for ``seconds``.
    """
    while True:
        data = source.take()
        if data:
            seen(data)
            sink.write(data)
            await sink.drain(seconds)
        elif not await source.more(seconds):
            break
    if sink.transport is not None and not sink.lost and sink.transport.can_write_eof():
        sink.transport.write_eof()
