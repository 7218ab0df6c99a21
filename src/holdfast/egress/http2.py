"""The agent's side of HTTP/2 (RFC 9113) within an intercepted tunnel: each stream is an exchange of its own.

Frames, HPACK and flow control are h2's. What a request means is held against the same rules as in HTTP/1.1, so that
nothing that is written as HTTP/1.1 further on can mean something else there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from holdfast.egress import answers, http1, messages
from holdfast.egress.base import Deny, Headers, Limits, Refused, RequestHead, ResponseHead
from holdfast.egress.exchange import Exchange
from holdfast.egress.messages import Inside
from holdfast.egress.outlet import Outlet
from holdfast.egress.stream import HIGH_WATER, Lost, Stream
from holdfast.log import Log

_log = Log("egress")

STREAMS: Final = 100
"""Streams at once on one connection."""
RESETS: Final = 200
"""Streams that a client may open and reset before the connection is ended (rapid reset, CVE-2023-44487)."""
WINDOW: Final = 262_144
"""Bytes of a request's body that are held unread."""


class Http2Asker:
    """One stream of the agent's connection."""

    def __init__(self, owner: Http2Connection, number: int) -> None:
        self._owner = owner
        self._number = number
        self._parts: deque[bytes] = deque()
        self._ended = False
        self._out = bytearray()
        self._finish: tuple[tuple[bytes, bytes], ...] | None = None
        self._changed = asyncio.Event()
        self._gone: Callable[[str], None] | None = None
        self.lost = ""

    @property
    def done(self) -> bool:
        """The request's body has been read to its end."""
        return self._ended and not self._parts

    @property
    def unread(self) -> int:
        """Bytes that came and that nobody read."""
        return sum(map(len, self._parts))

    # What the connection calls.

    def received(self, data: bytes) -> None:
        """Bytes of the body came."""
        self._parts.append(data)
        self._changed.set()

    def ended(self) -> None:
        """The body is complete."""
        self._ended = True
        self._changed.set()

    def lose(self, why: str) -> None:
        """The stream is gone."""
        self.lost = self.lost or why
        self._changed.set()
        if self._gone is not None:
            gone, self._gone = self._gone, None
            gone(self.lost)

    def flush(self) -> None:
        """Send what the windows let through."""
        link = self._owner.link
        try:
            while self._out and not self.lost:
                room = min(link.local_flow_control_window(self._number), link.max_outbound_frame_size, len(self._out))
                if room <= 0:
                    return
                link.send_data(self._number, bytes(self._out[:room]))
                del self._out[:room]
            if self._finish is not None and not self.lost:
                if self._finish:
                    link.send_headers(self._number, self._finish, end_stream=True)
                else:
                    link.end_stream(self._number)
                self._finish = None
                self._owner.finished(self._number)
        except H2Error:
            self.lose("client_gone")
        self._changed.set()

    # What an exchange calls.

    async def read(self) -> bytes:
        while not self._parts and not self._ended:
            await self._wait(self._owner.limits.body_s)
        if not self._parts:
            return b""
        data = self._parts.popleft()
        self._owner.taken(self._number, len(data))
        return data

    def proceed(self) -> None:
        """HTTP/2 clients do not wait for it."""

    def start(self, head: ResponseHead, *, body: bool) -> None:
        fields = [(b":status", b"%d" % head.status), *head.headers]
        if head.length is not None and head.status >= 200 and head.status != 204:
            fields.append((b"content-length", b"%d" % head.length))
        try:
            self._owner.link.send_headers(self._number, fields)
        except H2Error:
            self.lose("client_gone")
            raise Lost("client_gone") from None
        self._owner.send()

    def write(self, data: bytes) -> None:
        if self.lost:
            raise Lost(self.lost)
        self._out += data
        self.flush()
        self._owner.send()

    async def drain(self) -> None:
        while len(self._out) > HIGH_WATER:
            await self._wait(self._owner.limits.stream_s)
        await self._owner.stream.drain(self._owner.limits.stream_s)

    def end(self, trailers: Headers = ()) -> None:
        self._finish = trailers
        self.flush()
        self._owner.send()

    def cut(self) -> None:
        self._owner.reset(self._number)

    def watch(self, gone: Callable[[str], None] | None) -> None:
        self._gone = gone
        if gone is not None and self.lost:
            gone(self.lost)

    async def settle(self) -> None:
        """Wait until the answer has left, as fast as the client takes it."""
        while self._finish is not None and not self.lost:
            await self._wait(self._owner.limits.stream_s)

    async def _wait(self, seconds: float) -> None:
        if self.lost:
            raise Lost(self.lost)
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            self.cut()
            raise Lost("timeout") from None
        if self.lost:
            raise Lost(self.lost)


class Http2Connection:
    """One intercepted connection. Ends when the client ends it, or breaks the protocol."""

    def __init__(self, outlet: Outlet, stream: Stream, inside: Inside) -> None:
        self.outlet = outlet
        self.limits: Limits = outlet.limits
        self.stream = stream
        self._inside = inside
        self.link = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._askers: dict[int, Http2Asker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resets = 0

    async def run(self) -> None:
        """Serve the connection to its end."""
        values = {
            SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
            SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: self.limits.head,
        }
        self.link.local_settings = Settings(client=False, initial_values=values)
        self.link.initiate_connection()
        self.link.increment_flow_control_window(WINDOW * 16)
        self.send()
        try:
            await self._pump()
        except H2Error:
            # h2 has the GOAWAY ready that says what was wrong.
            self.outlet.door.rejected(Deny.of(http1.malformed("HTTP/2 frames")))
        except Refused as refused:
            self.outlet.door.rejected(Deny.of(refused))
            self.link.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        finally:
            with contextlib.suppress(Lost, H2Error):
                self.send()
            for asker in list(self._askers.values()):
                asker.lose("client_gone")
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _pump(self) -> None:
        stream = self.stream
        while True:
            if not stream.buffer and not await stream.more(self.limits.idle_s if not self._askers else 86_400.0):
                return
            for event in self.link.receive_data(stream.take()):
                if isinstance(event, ConnectionTerminated):
                    return
                self._handle(event)
            self.send()
            # A client that makes us answer (pings, settings, resets) and does not read is waited for.
            await stream.drain(self.limits.stream_s)

    def _handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            self._begin(event.stream_id, event.headers or [], event.stream_ended is not None)
        elif isinstance(event, DataReceived):
            asker = self._askers.get(event.stream_id or 0)
            padding = (event.flow_controlled_length or 0) - len(event.data or b"")
            if asker is None:
                self.taken(event.stream_id or 0, event.flow_controlled_length or 0)
                return
            if padding:
                self.taken(event.stream_id or 0, padding)
            if event.data:
                asker.received(event.data)
        elif isinstance(event, StreamEnded):
            if (asker := self._askers.get(event.stream_id or 0)) is not None:
                asker.ended()
        elif isinstance(event, StreamReset):
            self._resets += 1
            if self._resets > RESETS:
                raise Refused(f"more than {RESETS} streams were reset", kind="framing", status=400)
            if (asker := self._askers.get(event.stream_id or 0)) is not None:
                asker.lose("client_gone")
        elif isinstance(event, WindowUpdated):
            for asker in list(self._askers.values()):
                asker.flush()

    def _begin(self, number: int, headers: Iterable[tuple[bytes, bytes]], ended: bool) -> None:
        asker = Http2Asker(self, number)
        self._askers[number] = asker
        if ended:
            asker.ended()
        task = self.outlet.loop.create_task(self._exchange(asker, list(headers), ended, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, asker: Http2Asker, headers: list[tuple[bytes, bytes]], ended: bool, number: int) -> None:
        try:
            try:
                head = request(
                    headers, self._inside, self.limits, ended=ended, encoded_slashes=self.outlet.encoded_slashes
                )
            except Refused as refused:
                self._turn_away(asker, Deny.of(refused))
            else:
                await Exchange(self.outlet, asker, head).run()
            await asker.settle()
        except Lost:
            self.reset(number)
        except asyncio.CancelledError:
            self.reset(number)
            raise
        except Exception:  # noqa: BLE001 - harms this stream only
            _log.exception("a stream of the egress proxy failed")
            self.reset(number)
        finally:
            self._askers.pop(number, None)
            self.taken(number, asker.unread)

    def _turn_away(self, asker: Http2Asker, deny: Deny) -> None:
        self.outlet.door.rejected(deny)
        answer, body = answers.render(deny)
        asker.start(answer, body=True)
        asker.write(body)
        asker.end()

    # What its streams call.

    def send(self) -> None:
        """Hand over what h2 has to say."""
        if data := self.link.data_to_send():
            self.stream.write(data)

    def taken(self, number: int, length: int) -> None:
        """Bytes were read: the client may send as many again."""
        with contextlib.suppress(H2Error):
            if length:
                self.link.acknowledge_received_data(length, number)
        with contextlib.suppress(Lost):
            self.send()

    def finished(self, number: int) -> None:
        """An answer is complete; what the client still sends of its request is not wanted."""
        asker = self._askers.get(number)
        if asker is not None and not asker.done:
            with contextlib.suppress(H2Error):
                self.link.reset_stream(number, ErrorCodes.NO_ERROR)

    def reset(self, number: int) -> None:
        """Break a stream off."""
        with contextlib.suppress(H2Error, Lost):
            self.link.reset_stream(number, ErrorCodes.INTERNAL_ERROR)
            self.send()
        if (asker := self._askers.get(number)) is not None:
            asker.lose("cut")


def request(
    headers: Iterable[tuple[bytes, bytes]],
    inside: Inside,
    limits: Limits,
    *,
    ended: bool,
    encoded_slashes: bool = False,
) -> RequestHead:
    """What a stream's header block means, by the rules of HTTP/1.1.

    Raises:
        Refused: pseudo-fields are missing or name another host, or a field has no place in HTTP/1.1 or HTTP/2.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    cookies: list[bytes] = []
    for name, value in headers:
        if name.startswith(b":"):
            if name in pseudo or fields or cookies:
                raise http1.malformed("pseudo-fields that are repeated or late")
            pseudo[name] = value
        elif name == b"cookie":
            cookies.append(value)
        else:
            fields.append((name, value))
    if set(pseudo) != {b":method", b":scheme", b":authority", b":path"}:
        raise http1.malformed("other pseudo-fields than method, scheme, authority and path")
    if pseudo[b":scheme"] != inside.scheme.encode():
        raise http1.malformed("another scheme than the tunnel's")
    if cookies:
        # Split for compression; one field in HTTP/1.1 (RFC 9113, 8.2.3).
        fields.append((b"cookie", b"; ".join(cookies)))
    hosts = [value for name, value in fields if name == b"host"]
    if any(value != pseudo[b":authority"] for value in hosts):
        raise http1.malformed("a Host that differs from the authority")
    fields = [(b"host", pseudo[b":authority"]), *[field for field in fields if field[0] != b"host"]]
    line = b"%b %b HTTP/1.1" % (pseudo[b":method"], pseudo[b":path"])
    # Written as HTTP/1.1 and read again: what would be two lines there, or another field, shows.
    raw = line + b"".join([b"\r\n%b: %b" % field for field in fields])
    if len(raw) > limits.head:
        raise http1.malformed(f"a head of more than {limits.head} bytes", status=431)
    method, where, _, read = http1.request_head(raw, limits.headers)
    if len(read) != len(fields) or any(name in _FORBIDDEN or name != name.lower() for name, _ in fields):
        raise http1.malformed("a field that HTTP/2 does not have")
    if method == "CONNECT" or not where.startswith(("/", "*")):
        raise http1.malformed("a path that is none")
    head = messages.request(method, where, "2", read, inside=inside, encoded_slashes=encoded_slashes).head
    announced = any(name == b"content-length" for name, _ in fields)
    if ended and head.length:
        raise http1.malformed("Content-Length and no body")
    return head if ended or announced else msgspec.structs.replace(head, length=None)


_FORBIDDEN: Final = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


async def serve(outlet: Outlet, stream: Stream, inside: Inside) -> None:
    """Serve an intercepted connection that chose HTTP/2."""
    await Http2Connection(outlet, stream, inside).run()
