"""Upstreams and agents that misbehave: bounded memory, a clear error, one outcome each."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable

import pytest

from holdfast.egress.base import Limits, Outcome, Refused
from holdfast.egress.coding import decoded
from holdfast.testing.egress import WAIT_S, NotingDoor, Rig, in_loop, rig

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
LONG = Limits(head=16_384)
SHORT = Limits(first_byte_s=0.5, stream_s=0.5, head_s=0.5, body_s=0.5)
"""For what is to time out; a busy machine may take longer than this for anything else."""
OK = b"HTTP/1.1 200 OK\r\n"


def asking(r: Rig, method: bytes = b"POST", body: bytes = b"{}") -> bytes:
    site = r.upstream.authority.encode()
    return b"%b http://%b/ HTTP/1.1\r\nHost: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
        method,
        site,
        site,
        len(body),
        body,
    )


async def kill(reader: Reader, writer: Writer) -> None:
    """Goes away without a word."""
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


async def reset(reader: Reader, writer: Writer) -> None:
    """Resets the connection in the middle of its answer."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK + b"Content-Length: 100\r\n\r\npart")
    await writer.drain()
    line = writer.get_extra_info("socket")
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def say_nothing(reader: Reader, writer: Writer) -> None:
    """Reads, and never answers."""
    await reader.read()


async def stall(reader: Reader, writer: Writer) -> None:
    """Stops in the middle of its answer."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await reader.read()


async def half_close(reader: Reader, writer: Writer) -> None:
    """Ends its side before the answer is complete, and keeps the connection."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK + b"Content-Length: 100\r\n\r\npart")
    writer.write_eof()
    await reader.read()


async def half_close_at_once(reader: Reader, writer: Writer) -> None:
    """Ends its side without an answer."""
    writer.write_eof()
    await reader.read()


async def endless_headers(reader: Reader, writer: Writer) -> None:
    """Sends fields for ever."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    while True:
        writer.write(b"X-Field: value\r\n" * 100)
        await writer.drain()


async def trickling_headers(reader: Reader, writer: Writer) -> None:
    """Sends its head byte by byte, fast enough for a time-out between reads."""
    await reader.readuntil(b"\r\n\r\n")
    for byte in OK + b"X: " + b"y" * 10_000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def bomb(reader: Reader, writer: Writer) -> None:
    """A gigabyte in a megabyte."""
    await reader.readuntil(b"\r\n\r\n")
    data = BOMB
    writer.write(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data))
    writer.write(data)
    await writer.drain()
    await reader.read()


def _bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    return b"".join([packer.compress(piece) for _ in range(256)]) + packer.flush()


BOMB = _bomb()


@pytest.mark.parametrize(
    ("handler", "aborted"),
    [
        (kill, {"upstream_closed", "upstream_reset"}),
        (reset, {"upstream_reset", "upstream_closed"}),
        (say_nothing, {"upstream_timeout"}),
        (stall, {"upstream_timeout"}),
        (half_close, {"upstream_closed"}),
        (half_close_at_once, {"upstream_closed"}),
        (endless_headers, {"upstream_framing"}),
        (trickling_headers, {"upstream_timeout"}),
        (bomb, {"undecodable"}),
    ],
)
@in_loop
async def test_upstream_that_misbehaves(
    handler: Callable[[Reader, Writer], Awaitable[None]], aborted: set[str]
) -> None:
    async with rig(handler=handler, limits=SHORT if aborted == {"upstream_timeout"} else LONG) as r:
        tracemalloc.start()
        try:
            answer = await r.send(asking(r))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        (outcome,) = r.door.outcomes
        assert outcome.aborted in aborted
        assert outcome.dialled
        assert peak < 24 << 20
        if answer.startswith(OK):
            # It had begun: the end is missing, so that nobody takes it for complete.
            assert not answer.endswith(b"0\r\n\r\n")
            assert outcome.length < 100 or handler is bomb
        else:
            assert answer[9:12] in (b"502", b"504")
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["type"] == outcome.aborted
            assert error["reason"]


@in_loop
async def test_upstream_that_refuses_connections() -> None:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        async with rig() as r:
            site = b"127.0.0.1:%d" % line.getsockname()[1]
            answer = await r.send(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (site, site))
            assert answer.startswith(b"HTTP/1.1 502")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["retry"] is True
            assert [(o.aborted, o.dialled) for o in r.door.outcomes] == [("connect_failed", False)]


@in_loop
async def test_kept_connection_that_died_is_replaced_for_safe_methods_only() -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")
        await writer.drain()
        # The next request is read and never answered: as if it had crossed with the close.
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    for method, status in ((b"GET", b"200"), (b"POST", b"502")):
        async with rig(handler=once) as r:
            first = asking(r, method, b"").replace(b"Connection: close\r\n", b"")
            answer = await r.send(first + asking(r, method, b""))
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(status)
            assert r.upstream.connections == (2 if method == b"GET" else 1)
            assert [outcome.dialled for outcome in r.door.outcomes] == [True, True]


@in_loop
async def test_client_that_goes_away_ends_the_upstreams_work() -> None:
    reached, gone = asyncio.Event(), asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        while await reader.read(1024):
            pass
        gone.set()

    async with rig(handler=handler) as r:
        _, writer = await asyncio.open_connection("127.0.0.1", r.port)
        writer.write(asking(r))
        async with asyncio.timeout(WAIT_S):
            await reached.wait()
            writer.close()
            await gone.wait()
        (outcome,) = await r.door.until_outcomes()
        assert (outcome.aborted, outcome.dialled, outcome.status) == ("client_gone", True, 0)


@in_loop
async def test_slow_reader_slows_the_upstream_and_costs_no_memory() -> None:
    sent = 0
    blocked = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"\r\n")
        while sent < 256 << 20:
            writer.write(bytes(65_536))
            sent += 65_536
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                blocked.set()
                await writer.drain()

    async with rig(handler=handler) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.port, limit=65_536)
        writer.write(asking(r))
        await reader.readexactly(1000)
        async with asyncio.timeout(WAIT_S):
            await blocked.wait()
        assert sent < 64 << 20
        writer.transport.abort()
        (outcome,) = await r.door.until_outcomes()
        assert outcome.aborted == "client_gone"


@in_loop
async def test_answer_that_is_too_large_is_cut() -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 300000\r\n\r\n" + bytes(300_000))

    async with rig(handler=handler, limits=Limits(response=100_000)) as r:
        answer = await r.send(asking(r))
        assert len(answer) < 300_000
        assert r.door.outcomes[0].aborted == "response_too_large"


@in_loop
async def test_body_that_is_too_large_is_refused_unread() -> None:
    async with rig(limits=Limits(body=1000)) as r:
        answer = await r.send(asking(r, body=bytes(2000)))
        assert answer.startswith(b"HTTP/1.1 413")
        assert r.door.rejections[0].type == "body_too_large"
        assert r.upstream.connections == 0


@in_loop
async def test_connections_are_bounded() -> None:
    async with rig(limits=Limits(connections=2)) as r:
        held = [await asyncio.open_connection("127.0.0.1", r.port) for _ in range(2)]
        async with asyncio.timeout(WAIT_S):
            while len(r.listener.outlet.clients) < 2:
                await asyncio.sleep(0.01)
        answer = await r.send(asking(r))
        assert answer.startswith(b"HTTP/1.1 503")
        for _, writer in held:
            writer.close()


@in_loop
async def test_client_that_trickles_its_head_is_let_go() -> None:
    async with rig(limits=SHORT) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.port)

        async def trickle() -> None:
            for byte in asking(r)[:-6]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        task = asyncio.create_task(trickle())
        answer = b""
        async with asyncio.timeout(WAIT_S):
            # What trickles on meanwhile may turn the end into a reset.
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
        task.cancel()
        assert answer == b""
        assert not r.door.requests


@in_loop
async def test_stop_ends_everything_and_each_exchange_reports() -> None:
    waiting = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        waiting.set()
        await reader.read()

    async with rig(handler=handler) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
        writer.write(asking(r))
        async with asyncio.timeout(WAIT_S):
            await waiting.wait()
            await r.listener.close()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert [outcome.aborted for outcome in r.door.outcomes] == ["stopped"]
        writer.close()


@in_loop
async def test_door_that_cannot_record_an_outcome_withholds_the_answer() -> None:
    class Broken(NotingDoor):
        async def outcome(self, ticket: object, outcome: Outcome) -> None:
            await super().outcome(ticket, outcome)
            raise OSError("disk full")

    async with rig(door=Broken()) as r:
        assert await r.send(asking(r)) == b""
        assert len(r.door.outcomes) == 1


@pytest.mark.parametrize("coding", [b"gzip", b"x-gzip", b"deflate"])
def test_codings_are_undone(coding: bytes) -> None:
    data = b"hello " * 1000
    coded = gzip.compress(data) if b"gzip" in coding else zlib.compress(data)
    assert decoded(coded, coding, 200, 1 << 20) == data


def test_bare_deflate_and_joined_gzip_are_undone() -> None:
    packer = zlib.compressobj(wbits=-15)
    assert decoded(packer.compress(b"abc") + packer.flush(), b"deflate", 200, 1000) == b"abc"
    assert decoded(gzip.compress(b"abc") + gzip.compress(b"def"), b"gzip", 200, 1000) == b"abcdef"


@in_loop
async def test_coded_answer_is_passed_on_as_it_is_and_seen_without_its_coding() -> None:
    coded = gzip.compress(b"hello " * 50_000)

    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(coded), coded))

    async with rig(handler=handler) as r:
        answer = await r.send(asking(r))
        assert answer.endswith(coded)
        assert r.door.outcomes[0].body == coded
        assert r.door.outcomes[0].text == b"hello " * 50_000


@in_loop
async def test_coded_upload_is_judged_without_its_coding() -> None:
    async with rig() as r:
        coded = gzip.compress(b"account 4111")
        raw = asking(r, body=coded).replace(
            b"Connection: close\r\n", b"Connection: close\r\nContent-Encoding: gzip\r\n"
        )
        await r.send(raw)
        assert r.door.requests[0].body.decoded == b"account 4111"
        assert r.upstream.requests[0].body == coded
        answer = await r.send(raw.replace(b"gzip", b"zstd"))
        assert answer.startswith(b"HTTP/1.1 415")
        assert len(r.upstream.requests) == 1


@in_loop
async def test_what_is_held_for_decisions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.egress.exchange.HELD", 300_000)
    async with rig() as r:
        answer = await r.send(asking(r, body=bytes(900_000)))
        assert answer.startswith(b"HTTP/1.1 503")
        assert r.door.rejections[0].type == "too_much_held"
        assert r.listener.outlet.pool.held == 0
        assert (await r.send(asking(r, body=bytes(10_000)))).startswith(OK)


@in_loop
async def test_kept_connection_of_a_refused_request_is_not_leaked() -> None:
    async with rig() as r:
        first = asking(r).replace(b"Connection: close\r\n", b"")
        assert (await r.send(first + asking(r))).count(OK) == 2
        r.door.lease = Refused("the lease is too short", kind="lease", status=503)
        assert (await r.send(asking(r))).startswith(b"HTTP/1.1 503")
        assert [outcome.aborted for outcome in r.door.outcomes] == ["", "", "lease"]
        assert r.upstream.connections == 1
        assert not r.listener.outlet.upstreams
