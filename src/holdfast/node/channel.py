"""The node's end of a worker's channel: frames to messages, values to blobs, back-pressure both ways."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from holdfast import wire
from holdfast.errors import ProtocolError

BLOB_BYTES = 64 << 20
"""Bytes of large values that a worker may have under way."""
HIGH_WATER = 4 << 20
"""Bytes waiting for the worker above which nothing more is read from it."""
_LONGEST = 4 + wire.MAX_FRAME


class Channel(asyncio.Protocol):
    """One worker's channel. ``on_message`` is called for each message, ``on_end`` once, with the fault if there was
    one."""

    def __init__(
        self, on_message: Callable[[wire.FromWorker], None], on_end: Callable[[ProtocolError | None], None]
    ) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._deframer = wire.Deframer()
        self._blobs = wire.BlobReader(BLOB_BYTES)
        self._numbers = 0
        self._transport: asyncio.Transport | None = None
        self._ended = False
        self._paused = False

    @classmethod
    async def open(
        cls,
        outer: socket.socket,
        on_message: Callable[[wire.FromWorker], None],
        on_end: Callable[[ProtocolError | None], None],
    ) -> Channel:
        """Take over a connected Unix socket."""
        outer.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_message, on_end), sock=outer)
        return channel

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports have the interface without being registered as its subclasses.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._ended:
            return
        try:
            if not self._deframer.pending:
                # Most of the time whole frames came: then there is nothing to keep.
                at, end = 0, len(data)
                while at + 4 < (stop := at + 4 + int.from_bytes(data[at : at + 4], "big")) <= min(end, at + _LONGEST):
                    self._take(data[at + 4 : stop])
                    if self._ended:
                        return
                    at = stop
                if at == end:
                    return
                data = data[at:]
            self._deframer.feed(data)
            for body in self._deframer:
                self._take(body)
                if self._ended:
                    return
        except ProtocolError as error:
            self._end(error)

    def _take(self, body: bytes) -> None:
        message = wire.decode(wire.worker_decoder, body)
        if type(message) is wire.Blob:
            self._blobs.add(message)
        else:
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._end(None)

    def pause_writing(self) -> None:
        """Called by the loop: the worker does not read, so it is not listened to either."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Called by the loop."""
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    # for the incarnation

    def value(self, value: wire.Value) -> bytes:
        """The bytes of a value that came with a message.

        Raises:
            ProtocolError: it names a blob that did not arrive.
        """
        return self._blobs.take(value)

    def send(self, message: wire.FromNode) -> None:
        """Send a message; after the end, nothing."""
        if not self._ended and self._transport is not None:
            self._transport.write(wire.frame(message))

    def pack(self, data: bytes) -> wire.Value:
        """A value to put into a message; a large one is sent ahead in parts."""
        if len(data) <= wire.INLINE_VALUE:
            return wire.Value(data)
        self._numbers += 1
        parts, value = wire.pack(data, self._numbers)
        for part in parts:
            self.send(part)
        return value

    def hold(self, paused: bool) -> None:
        """Stop or go on listening: too much of this worker is under way."""
        if paused == self._paused or self._transport is None or self._ended:
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """End the channel; ``on_end`` is not called any more."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def _end(self, fault: ProtocolError | None) -> None:
        if self._ended:
            return
        self._ended = True
        if self._transport is not None:
            self._transport.abort()
        self._on_end(fault)
