"""HTTP/2 within an intercepted tunnel: a real client, gRPC's ways, and everything that a downgrade could smuggle."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import pytest
import trustme

from holdfast.egress.base import Deny, Go, Limits, Request
from holdfast.egress.guard import TenantGuard
from holdfast.egress.tls import Authority
from holdfast.testing.egress import WAIT_S, NotingDoor, Rig, Upstream, in_loop, rig

SITE = "site.example"


@pytest.fixture(scope="module")
def roots() -> trustme.CA:
    return trustme.CA()


def serving(roots: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    roots.issue_cert(SITE).configure_cert(context)
    context.set_alpn_protocols(list(protocols))
    return context


class Server(Upstream):
    """An upstream that speaks HTTP/2 (h2 chosen by ALPN) and calls ``handle`` per event."""

    def __init__(self, roots: trustme.CA, handle: Callable[[Any, Any], None]) -> None:
        super().__init__(self._speak, serving(roots, "h2"))
        self._handle = handle
        self.heads: list[dict[bytes, bytes]] = []

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        link.initiate_connection()
        writer.write(link.data_to_send())
        while data := await reader.read(65_536):
            for event in link.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.heads.append(dict(event.headers))
                if isinstance(event, h2.events.DataReceived):
                    link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._handle(link, event)
            writer.write(link.data_to_send())
            await writer.drain()


@contextlib.asynccontextmanager
async def tunnelled(
    roots: trustme.CA, upstream: Upstream, door: NotingDoor | None = None, limits: Limits | None = None
) -> AsyncIterator[tuple[Rig, Authority]]:
    trust = ssl.create_default_context()
    roots.configure_trust(trust)
    authority = Authority()
    guard = TenantGuard(allow_private=["127.0.0.1"], resolve={SITE: ["127.0.0.1"]})
    async with rig(
        upstream=upstream, authority=authority, upstream_tls=trust, guard=guard, door=door, limits=limits
    ) as r:
        yield r, authority


class Client:
    """An HTTP/2 client that sends what it is told to, valid or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.link = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self.link.initiate_connection()
        self._events: list[Any] = []

    @classmethod
    async def to(cls, r: Rig, authority: Authority) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
        site = f"{SITE}:{r.upstream.port}".encode()
        writer.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (site, site))
        await reader.readuntil(b"\r\n\r\n")
        context = ssl.create_default_context(cadata=authority.pem.decode())
        context.set_alpn_protocols(["h2"])
        await writer.start_tls(context, server_hostname=SITE)
        return cls(reader, writer)

    def flush(self) -> None:
        self._writer.write(self.link.data_to_send())

    async def until(self, kind: type, number: int | None = None) -> Any:
        """The next event of a kind; earlier ones are kept in ``seen``."""
        while True:
            for at, event in enumerate(self._events):
                if isinstance(event, kind) and number in (None, getattr(event, "stream_id", None)):
                    del self._events[at]
                    return event
            async with asyncio.timeout(WAIT_S):
                data = await self._reader.read(65_536)
            if not data:
                raise ConnectionResetError
            events = self.link.receive_data(data)
            for event in events:
                if isinstance(event, h2.events.DataReceived):
                    self.link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._events += events
            self.flush()

    def close(self) -> None:
        self._writer.close()


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
@in_loop
async def test_real_client_speaks_http2_whatever_the_upstream_does(roots: trustme.CA, protocol: str) -> None:
    upstream = Server(roots, _echo) if protocol == "h2" else Upstream(tls=serving(roots, "http/1.1"))
    async with tunnelled(roots, upstream) as (r, authority):
        context = ssl.create_default_context(cadata=authority.pem.decode())
        async with httpx.AsyncClient(
            http2=True, verify=context, proxy=f"http://127.0.0.1:{r.port}", timeout=WAIT_S
        ) as client:
            url = f"https://{SITE}:{upstream.port}/in?a=b"
            first = await client.post(url)
            answers = [first, *await asyncio.gather(*[client.post(url, content=b"x" * size) for size in (10, 200_000)])]
            assert [(answer.status_code, answer.http_version) for answer in answers] == [(200, "HTTP/2")] * 3
            if protocol == "h2":
                assert [len(answer.content) for answer in answers] == [0, 10, 200_000]
        assert [asked.head.method for asked in r.door.requests] == ["CONNECT", "POST", "POST", "POST"]
        bodies = sorted(len(asked.body.data) for asked in r.door.requests[1:])
        assert bodies == [0, 10, 200_000]
        assert r.door.requests[1].head.url() == url
        assert [outcome.aborted for outcome in await r.door.until_outcomes(3)] == [""] * 3


_BODIES: dict[tuple[int, int], bytearray] = {}


def _echo(link: h2.connection.H2Connection, event: Any) -> None:
    number = getattr(event, "stream_id", None)
    body = _BODIES.setdefault((id(link), number or 0), bytearray())
    if isinstance(event, h2.events.DataReceived):
        body += event.data
    elif isinstance(event, h2.events.StreamEnded):
        link.send_headers(number, [(":status", "200"), ("content-type", "application/octet-stream")])
        _send(link, number, body)
    elif isinstance(event, h2.events.WindowUpdated):
        for (owner, stream), left in list(_BODIES.items()):
            if owner == id(link) and stream and left and number in (0, stream):
                _send(link, stream, left)


def _send(link: h2.connection.H2Connection, number: int, body: bytearray) -> None:
    with contextlib.suppress(h2.exceptions.ProtocolError):
        while body:
            room = min(link.local_flow_control_window(number), link.max_outbound_frame_size, len(body))
            if room <= 0:
                return
            link.send_data(number, bytes(body[:room]))
            del body[:room]
        link.end_stream(number)


def grpc_headers(port: int, path: str = "/pkg.Service/Call") -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", f"{SITE}:{port}".encode()),
        (b":path", path.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


def _grpc(link: h2.connection.H2Connection, event: Any) -> None:
    """Answers each message with one, and ends with the client."""
    if isinstance(event, h2.events.RequestReceived):
        link.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
    elif isinstance(event, h2.events.DataReceived) and event.data:
        link.send_data(event.stream_id, event.data)
    elif isinstance(event, h2.events.StreamEnded):
        link.send_headers(event.stream_id, [("grpc-status", "0"), ("grpc-message", "fine")], end_stream=True)


@in_loop
async def test_grpc_streams_both_ways_and_keeps_its_trailers(roots: trustme.CA) -> None:
    upstream = Server(roots, _grpc)
    async with tunnelled(roots, upstream) as (r, authority):
        client = await Client.to(r, authority)
        client.link.send_headers(1, grpc_headers(upstream.port))
        for turn in range(3):
            message = b"\0\0\0\0\x01" + bytes([turn])
            client.link.send_data(1, message)
            client.flush()
            # The answer comes while the request is still open.
            assert (await client.until(h2.events.DataReceived)).data == message
        client.link.end_stream(1)
        client.flush()
        trailers = dict((await client.until(h2.events.TrailersReceived)).headers)
        assert trailers == {b"grpc-status": b"0", b"grpc-message": b"fine"}
        client.close()
        assert upstream.heads[0][b"te"] == b"trailers"
        (outcome,) = await r.door.until_outcomes()
        assert (outcome.aborted, outcome.length, outcome.sent_length) == ("", 18, 18)
        assert not r.door.requests[1].body.complete


@in_loop
async def test_denied_stream_leaves_the_others_alone(roots: trustme.CA) -> None:
    def answer(request: Request) -> Go | Deny:
        if request.head.path.startswith("/no"):
            return Deny(type="denied", rule="r", reason="no")
        return Go(ticket=1)

    upstream = Server(roots, _echo)
    async with tunnelled(roots, upstream, NotingDoor(answer)) as (r, authority):
        client = await Client.to(r, authority)
        for number, path in ((1, "/yes"), (3, "/no")):
            client.link.send_headers(number, grpc_headers(upstream.port, path)[:4], end_stream=True)
        client.flush()
        statuses = {n: dict((await client.until(h2.events.ResponseReceived, n)).headers)[b":status"] for n in (1, 3)}
        assert statuses == {1: b"200", 3: b"403"}
        assert len(upstream.heads) == 1
        client.close()


@in_loop
async def test_client_that_resets_ends_its_exchange(roots: trustme.CA) -> None:
    upstream = Server(roots, lambda link, event: None)
    async with tunnelled(roots, upstream) as (r, authority):
        client = await Client.to(r, authority)
        client.link.send_headers(1, grpc_headers(upstream.port)[:4], end_stream=True)
        client.flush()
        async with asyncio.timeout(WAIT_S):
            while not upstream.heads:
                await asyncio.sleep(0.01)
        client.link.reset_stream(1)
        client.flush()
        (outcome,) = await r.door.until_outcomes()
        assert (outcome.aborted, outcome.dialled) == ("client_gone", True)
        client.close()


@in_loop
async def test_rapid_reset_ends_the_connection(roots: trustme.CA) -> None:
    deny = Deny(type="denied", rule="r", reason="no")
    door = NotingDoor(lambda asked: Go(ticket=1) if asked.head.method == "CONNECT" else deny)
    async with tunnelled(roots, Upstream(tls=serving(roots, "h2")), door) as (r, authority):
        client = await Client.to(r, authority)
        for number in range(1, 1001, 2):
            client.link.send_headers(number, grpc_headers(r.upstream.port)[:4])
            client.link.reset_stream(number)
        client.flush()
        with pytest.raises((ConnectionError, h2.exceptions.ProtocolError)):
            await client.until(type(None))
        client.close()
        assert any("reset" in deny.reason for deny in r.door.rejections)


def changed(
    *fields: tuple[bytes, bytes], drop: bytes = b"", **pseudo: bytes
) -> Callable[[int], list[tuple[bytes, bytes]]]:
    def make(port: int) -> list[tuple[bytes, bytes]]:
        head = [field for field in grpc_headers(port, "/in")[:4] if field[0] != drop]
        site = f"{SITE}:{port}".encode()
        return [
            *[(name, pseudo.get(name[1:].decode(), value)) for name, value in head],
            *[(name, value.replace(b"{site}", site)) for name, value in fields],
        ]

    return make


TRICKS = [
    changed((b"transfer-encoding", b"chunked")),
    changed((b"connection", b"close")),
    changed((b"connection", b"content-length")),
    changed((b"keep-alive", b"5")),
    changed((b"proxy-connection", b"close")),
    changed((b"upgrade", b"h2c")),
    changed((b"te", b"gzip")),
    changed((b"content-length", b"5")),
    changed((b"content-length", b"0"), (b"content-length", b"5")),
    changed((b"content-length", b"+0")),
    changed((b"content_length", b"5")),
    changed((b"transfer_encoding", b"chunked")),
    changed((b"host", b"other.example")),
    changed((b"host", b"{site}"), (b"host", b"other.example")),
    changed((b"X-Upper", b"a")),
    changed((b"x y", b"a")),
    changed((b"x:y", b"a")),
    changed((b"", b"a")),
    changed((b"x\r\ny", b"a")),
    changed((b"x", b"a\r\nTransfer-Encoding: chunked")),
    changed((b"x", b"a\nb")),
    changed((b"x", b"a\x00b")),
    changed((b"x", b"a\r")),
    changed((b":status", b"200")),
    changed((b":path", b"/other")),
    changed((b":authority", b"other.example")),
    changed((b":unknown", b"x")),
    changed((b"x", b"y"), (b":method", b"DELETE")),
    changed((b":protocol", b"websocket"), method=b"CONNECT"),
    changed(method=b"CONNECT"),
    changed(method=b"GET /evil HTTP/1.1\r\nX: y"),
    changed(method=b"GET /"),
    changed(method=b""),
    changed(path=b""),
    changed(path=b"in"),
    changed(path=b"/in HTTP/1.1\r\nX: y"),
    changed(path=b"/in evil"),
    changed(path=b"/a/../b"),
    changed(path=b"/%2e%2e/b"),
    changed(path=b"http://other.example/"),
    changed(path=b"//other.example/"),
    changed(path=b"/in#frag"),
    changed(scheme=b"http"),
    changed(scheme=b"https://x/?"),
    changed(authority=b"other.example"),
    changed(authority=b"u@site.example"),
    changed(authority=b"site.example"),
    changed(authority=b"site.example\r\nX: y"),
    changed(authority=b""),
    changed(drop=b":method"),
    changed(drop=b":path"),
    changed(drop=b":scheme"),
    changed(drop=b":authority"),
    changed(*[(b"x-%d" % n, b"y") for n in range(300)]),
    changed((b"x", b"y" * 60_000)),
    changed((b"x-http-method-override", b"DELETE")),
    changed((b"expect", b"202-x")),
]


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
@in_loop
async def test_no_trick_reaches_an_upstream(roots: trustme.CA, protocol: str) -> None:
    upstream = Server(roots, _echo) if protocol == "h2" else Upstream(tls=serving(roots, "http/1.1"))
    async with tunnelled(roots, upstream, limits=Limits(head=16_384, headers=100)) as (r, authority):
        for number, trick in enumerate(TRICKS):
            client = await Client.to(r, authority)
            client.link.send_headers(1, trick(upstream.port), end_stream=True)
            client.flush()
            with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
                await client.until(
                    (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)  # type: ignore[arg-type]
                )
            client.close()
            assert upstream.connections == 0, (number, trick(upstream.port))
        assert {asked.head.method for asked in r.door.requests} == {"CONNECT"}


@in_loop
async def test_cookies_are_joined_for_http1(roots: trustme.CA) -> None:
    upstream = Upstream(tls=serving(roots, "http/1.1"))
    async with tunnelled(roots, upstream) as (r, authority):
        client = await Client.to(r, authority)
        head = grpc_headers(upstream.port, "/in")[:4]
        client.link.send_headers(1, [*head, (b"cookie", b"a=1"), (b"cookie", b"b=2")], end_stream=True)
        client.flush()
        await client.until(h2.events.StreamEnded)
        assert upstream.requests[0].get(b"cookie") == b"a=1; b=2"
        client.close()


@in_loop
async def test_length_that_lies_ends_the_connection(roots: trustme.CA) -> None:
    upstream = Upstream(tls=serving(roots, "http/1.1"))
    async with tunnelled(roots, upstream) as (r, authority):
        client = await Client.to(r, authority)
        client.link.send_headers(1, [*grpc_headers(upstream.port, "/in")[:4], (b"content-length", b"3")])
        client.link.send_data(1, b"abcdef", end_stream=True)
        client.flush()
        await client.until((h2.events.ConnectionTerminated, h2.events.StreamReset))  # type: ignore[arg-type]
        assert upstream.connections == 0
        client.close()
