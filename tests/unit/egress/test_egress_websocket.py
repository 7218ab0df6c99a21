"""WebSockets through the engine, between two ends that another implementation (wsproto) speaks for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

from holdfast.egress.base import Go, Limits, Refused
from holdfast.egress.websocket import BINARY, CLOSE, PING, TEXT, Reader, accept_of, frame
from holdfast.testing.egress import WAIT_S, NotingDoor, Rig, in_loop, rig


class End:
    """One end of a WebSocket on asyncio streams."""

    def __init__(self, kind: ConnectionType, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection = WSConnection(kind)
        self._reader, self._writer = reader, writer
        self._events: list[Any] = []

    async def send(self, event: Any) -> None:
        self._writer.write(self._connection.send(event))
        await self._writer.drain()

    async def next(self) -> Any:
        while not self._events:
            async with asyncio.timeout(WAIT_S):
                data = await self._reader.read(65_536)
            self._connection.receive_data(data or None)
            self._events += self._connection.events()
        return self._events.pop(0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    end = End(ConnectionType.SERVER, reader, writer)
    while True:
        event = await end.next()
        if isinstance(event, ws.Request):
            await end.send(ws.AcceptConnection(subprotocol=event.subprotocols[0] if event.subprotocols else None))
        elif isinstance(event, ws.TextMessage | ws.BytesMessage):
            await end.send(type(event)(data=event.data))
        elif isinstance(event, ws.Ping):
            await end.send(event.response())
        elif isinstance(event, ws.CloseConnection):
            with contextlib.suppress(Exception):
                await end.send(event.response())
            return


async def open_socket(r: Rig, *protocols: str) -> End:
    reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
    end = End(ConnectionType.CLIENT, reader, writer)
    site = r.upstream.authority
    raw = end._connection.send(ws.Request(host=site, target=f"http://{site}/ws", subprotocols=list(protocols)))
    writer.write(raw)
    assert isinstance(await end.next(), ws.AcceptConnection)
    return end


@in_loop
async def test_messages_go_both_ways_and_are_seen() -> None:
    seen: list[tuple[bool, int, bytes]] = []

    def look(outwards: bool, opcode: int, payload: bytes) -> bool:
        seen.append((outwards, opcode, payload))
        return True

    async with rig(handler=echo, door=NotingDoor(lambda _: Go(ticket=1, frames=look))) as r:
        end = await open_socket(r, "chat")
        await end.send(ws.TextMessage(data="grüß dich"))
        assert (await end.next()).data == "grüß dich"
        await end.send(ws.BytesMessage(data=b"\x00" * 70_000))
        received = b""
        while len(received) < 70_000:
            received += (await end.next()).data
        await end.send(ws.Ping(payload=b"p"))
        assert isinstance(await end.next(), ws.Pong)
        await end.send(ws.CloseConnection(code=1000))
        assert isinstance(await end.next(), ws.CloseConnection)
        (outcome,) = await r.door.until_outcomes()
        assert (outcome.status, outcome.aborted, outcome.dialled) == (101, "", True)
        assert outcome.sent_length > 70_000
        text = "grüß dich".encode()
        assert seen[:2] == [(True, TEXT, text), (False, TEXT, text)]
        assert seen[2] == (True, BINARY, bytes(70_000))
        assert {entry[:2] for entry in seen[3:]} == {(False, BINARY)}
        assert r.door.requests[0].head.upgrade == "websocket"


@in_loop
async def test_message_that_is_refused_ends_the_connection() -> None:
    door = NotingDoor(lambda _: Go(ticket=1, frames=lambda outwards, opcode, payload: b"secret" not in payload))
    async with rig(handler=echo, door=door) as r:
        end = await open_socket(r)
        await end.send(ws.TextMessage(data="fine"))
        assert (await end.next()).data == "fine"
        await end.send(ws.TextMessage(data="a secret", message_finished=False))
        await end.send(ws.TextMessage(data=" in two parts"))
        closed = await end.next()
        assert (type(closed), closed.code) == (ws.CloseConnection, 1008)
        (outcome,) = await door.until_outcomes()
        assert (outcome.aborted, outcome.sent_length) == ("frame_refused", 4)


@in_loop
async def test_secret_that_is_cut_by_fragments_is_found_whole() -> None:
    # The payload is judged only when it is complete: "sec" and "ret" never pass one by one.
    passed: list[bytes] = []
    door = NotingDoor(lambda _: Go(ticket=1, frames=lambda outwards, opcode, payload: passed.append(payload) or True))
    async with rig(handler=echo, door=door) as r:
        end = await open_socket(r)
        await end.send(ws.TextMessage(data="sec", message_finished=False))
        await end.send(ws.TextMessage(data="ret"))
        assert (await end.next()).data == "secret"
        assert passed[0] == b"secret"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: other\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        b"",
    ],
)
@in_loop
async def test_upgrade_that_is_not_valid_is_no_upgrade(reply: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply.replace(b"{accept}", accept_of(KEY)))

    async with rig(handler=handler, limits=Limits(first_byte_s=1.0)) as r:
        answer = await r.send(handshake(r))
        assert answer.startswith(b"HTTP/1.1 502")
        (outcome,) = r.door.outcomes
        assert outcome.aborted in {"websocket", "upstream_closed"}


KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def handshake(r: Rig, key: bytes = KEY, version: bytes = b"13") -> bytes:
    site = r.upstream.authority.encode()
    return (
        b"GET http://%b/ws HTTP/1.1\r\nHost: %b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: %b\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    ) % (site, site, key, version)


@in_loop
async def test_handshake_that_is_malformed_leaves_nothing() -> None:
    async with rig(handler=echo) as r:
        for raw in (
            handshake(r, key=b"short"),
            handshake(r, version=b"8"),
            handshake(r) + frame(TEXT, b"x", masked=True),
        ):
            assert (await r.send(raw)).startswith(b"HTTP/1.1 400")
        assert r.upstream.connections == 0


def test_accept_is_that_of_the_standard() -> None:
    assert accept_of(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("masked", [True, False])
def test_frame_is_read_back(size: int, masked: bool) -> None:
    buffer = bytearray(frame(BINARY, bytes(size), masked=masked))
    assert Reader(masked=masked).message(buffer) == (BINARY, bytes(size))
    assert not buffer


@pytest.mark.parametrize(
    "raw",
    [
        b"\x81\x01a",  # no mask
        b"\xc1\x81kkkka",  # a reserved bit
        b"\x83\x81kkkka",  # an opcode that is none
        b"\x09\x81kkkka",  # a fragmented ping
        b"\x89\xfe\x00\x7ekkkk",  # a long ping
        b"\x80\x81kkkka",  # a continuation of nothing
        b"\x01\x81kkkka\x81\x81kkkka",  # a message within a message
        b"\x81\xfe\x00\x01kkkka",  # a length that is not the shortest
        b"\x81\xff\x00\x00\x00\x00\x00\x00\x00\x01kkkka",
        b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff",  # a length beyond bounds
        b"\x81\x81\x00\x00\x00\x00\xff",  # not UTF-8
        b"\x88\x81\x00\x00\x00\x00a",  # half a close code
        b"\x88\x82\x00\x00\x00\x00\x03\xed",  # 1005
        b"\x88\x82\x00\x00\x00\x00\x00\x01",
    ],
)
def test_malformed_frames_are_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        list(iter(functools.partial(Reader(masked=True).message, bytearray(raw)), None))


def test_control_frames_come_between_fragments() -> None:
    reader = Reader(masked=False)
    buffer = bytearray(b"\x01\x01a\x89\x01p\x80\x01b\x88\x00")
    found = [reader.message(buffer) for _ in range(4)]
    assert found == [(PING, b"p"), (TEXT, b"ab"), (CLOSE, b""), None]
