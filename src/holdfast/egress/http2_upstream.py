"""The far side in HTTP/2: one connection, one stream at a time; used where the agent speaks HTTP/2 itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from holdfast.egress import http1, messages
from holdfast.egress.base import Headers, Limits, RequestHead, ResponseHead
from holdfast.egress.stream import HIGH_WATER, Lost, Stream
from holdfast.egress.upstream import KEEP_S

WINDOW: Final = 1_048_576
_NOT_SENT: Final = frozenset({b"accept-encoding", b"grpc-accept-encoding"})


class Http2Sender:
    """One connection that speaks HTTP/2. See :class:`holdfast.egress.upstream.Sender`."""

    def __init__(self, stream: Stream, limits: Limits, address: str) -> None:
        self.stream = stream
        self.address = address
        self.limits = limits
        self.reused = False
        self.done = False
        self.keep_s = KEEP_S
        self.trailers: Headers = ()
        self._link = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        values = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: WINDOW}
        self._link.local_settings = Settings(client=True, initial_values=values)
        self._link.initiate_connection()
        self._link.increment_flow_control_window(WINDOW * 4)
        self._number = 0
        self._out = bytearray()
        self._uploaded = True
        self._sent_end = False
        self._head: ResponseHead | None = None
        self._parts: deque[bytes] = deque()
        self._received_end = False
        self._going = False
        self._room = asyncio.Event()

    def send(self, head: RequestHead, data: bytes, *, complete: bool) -> None:
        self._number = self._next()
        self._head, self.trailers, self.done, self._received_end = None, (), False, False
        self._uploaded, self._sent_end = complete, False
        path = f"{head.path}?{head.query}" if head.query else head.path
        fields = [
            (b":method", head.method.encode()),
            (b":scheme", head.scheme.encode()),
            (b":authority", head.authority.encode()),
            (b":path", path.encode()),
            *[field for field in head.headers if field[0] not in _NOT_SENT],
            (b"accept-encoding", b"identity"),
        ]
        if (head.get(b"content-type") or b"").startswith(b"application/grpc"):
            fields += [(b"te", b"trailers"), (b"grpc-accept-encoding", b"identity")]
        if head.length:
            fields.append((b"content-length", b"%d" % head.length))
        try:
            self._link.send_headers(self._number, fields, end_stream=complete and not data)
        except H2Error:
            raise Lost("closed") from None
        self._sent_end = complete and not data
        self._out += data
        self._flush()

    def _next(self) -> int:
        try:
            return self._link.get_next_available_stream_id()
        except H2Error:
            raise Lost("closed") from None

    def upload(self, data: bytes) -> None:
        self._out += data
        self._flush()

    def finish(self) -> None:
        self._uploaded = True
        self._flush()

    async def drain(self) -> None:
        # The windows are opened by what the reader of the response receives meanwhile.
        while len(self._out) > HIGH_WATER:
            self._room.clear()
            await self._room.wait()
            if self.stream.lost:
                raise Lost(self.stream.lost)
        await self.stream.drain(self.limits.stream_s)

    async def response(self, method: str) -> ResponseHead:
        until = asyncio.get_running_loop().time() + self.limits.first_byte_s
        while self._head is None:
            await self._more(until - asyncio.get_running_loop().time())
        self.done = self._received_end and not self._parts
        return self._head

    async def read(self) -> bytes:
        while not self._parts and not self._received_end:
            await self._more(self.limits.stream_s)
        data = self._parts.popleft() if self._parts else b""
        self.done = self._received_end and not self._parts
        return data

    def abort(self, why: str) -> None:
        self._room.set()
        self.stream.abort(why)

    @property
    def reusable(self) -> bool:
        """Whether another exchange may use the connection."""
        return self.done and self._sent_end and not self._going and self.stream.usable

    async def _more(self, seconds: float) -> None:
        if seconds <= 0:
            self.abort("timeout")
            raise Lost("timeout")
        try:
            if not self.stream.buffer and not await self.stream.more(seconds):
                raise Lost("closed")
            for event in self._link.receive_data(self.stream.take()):
                self._handle(event)
            self._write()
        except H2Error:
            with contextlib.suppress(Lost):
                self._write()
            raise http1.malformed("HTTP/2 frames") from None
        finally:
            self._room.set()

    def _handle(self, event: Event) -> None:
        if isinstance(event, WindowUpdated):
            self._flush()
        elif isinstance(event, ConnectionTerminated):
            self._going = True
            if event.last_stream_id is not None and event.last_stream_id < self._number:
                raise Lost("closed")
        elif getattr(event, "stream_id", None) != self._number:
            return
        elif isinstance(event, ResponseReceived):
            self._head = _head(event.headers or [])
        elif isinstance(event, DataReceived):
            if event.data:
                self._parts.append(event.data)
            if event.flow_controlled_length:
                self._link.acknowledge_received_data(event.flow_controlled_length, self._number)
        elif isinstance(event, TrailersReceived):
            self.trailers = _checked([field for field in event.headers or [] if not field[0].startswith(b":")])
        elif isinstance(event, StreamEnded):
            self._received_end = True
        elif isinstance(event, StreamReset):
            # An answer that is complete may be followed by a reset: the rest of the request is not wanted.
            if event.error_code != ErrorCodes.NO_ERROR or not self._received_end:
                raise Lost("reset")
            self._sent_end = True

    def _flush(self) -> None:
        link = self._link
        try:
            while self._out and not self._sent_end:
                room = min(link.local_flow_control_window(self._number), link.max_outbound_frame_size, len(self._out))
                if room <= 0:
                    break
                link.send_data(self._number, bytes(self._out[:room]))
                del self._out[:room]
            if self._uploaded and not self._out and not self._sent_end:
                link.end_stream(self._number)
                self._sent_end = True
        except H2Error:
            # The upstream has closed the stream: its answer, if there is one, says why.
            self._out.clear()
        self._write()

    def _write(self) -> None:
        if data := self._link.data_to_send():
            self.stream.write(data)


def _head(fields: list[tuple[bytes, bytes]]) -> ResponseHead:
    """The head of a response, by the rules of HTTP/1.1."""
    status = dict(fields).get(b":status", b"")
    if len(status) != 3 or not status.isdigit():
        raise http1.malformed("the status")
    headers = _checked([field for field in fields if not field[0].startswith(b":")])
    return messages.response(int(status), "2", headers, "GET").head


def _checked(fields: list[tuple[bytes, bytes]]) -> Headers:
    """Fields, read as HTTP/1.1 would read them."""
    raw = b"HTTP/1.1 200 OK" + b"".join([b"\r\n%b: %b" % field for field in fields])
    _, _, read = http1.response_head(raw, 1000)
    if len(read) != len(fields):
        raise http1.malformed("a field that HTTP/2 does not have")
    return read
