"""One request through the engine: what the door sees, what the upstream gets, what the agent gets back."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from holdfast.egress.base import Body, Deny, Dressed, Go, Limits, Refused, Request, RequestHead, ResponseHead, Served
from holdfast.egress.guard import TenantGuard
from holdfast.egress.proxy import listen_unix
from holdfast.egress.tls import Authority
from holdfast.testing.egress import WAIT_S, NotingDoor, Rig, Upstream, in_loop, rig

CLOSE = b"Connection: close\r\n\r\n"


def get(rig: Rig, path: str = "/", more: bytes = b"") -> bytes:
    host = rig.upstream.authority.encode()
    return b"GET http://%b%b HTTP/1.1\r\nHost: %b\r\n%b" % (host, path.encode(), host, more) + CLOSE


def post(rig: Rig, body: bytes, more: bytes = b"") -> bytes:
    host = rig.upstream.authority.encode()
    head = b"POST http://%b/in HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n" % (host, host, len(body))
    return head + more + CLOSE + body


def error_of(answer: bytes) -> dict[str, Any]:
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2])["error"])


@in_loop
async def test_request_is_decided_sent_and_reported_once() -> None:
    async with rig() as r:
        answer = await r.send(post(r, b"hello", b"X-Custom: 1\r\nProxy-Authorization: secret\r\n"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nok")
        (seen,) = r.upstream.requests
        assert (seen.method, seen.target, seen.body) == (b"POST", b"/in", b"hello")
        assert seen.get(b"x-custom") == b"1"
        assert seen.get(b"proxy-authorization") is None
        assert seen.get(b"accept-encoding") == b"identity"
        (asked,) = r.door.requests
        assert asked.head.url() == f"http://{r.upstream.authority}/in"
        assert asked.body == Body(data=b"hello", decoded=b"hello")
        (outcome,) = r.door.outcomes
        assert (outcome.status, outcome.body, outcome.aborted, outcome.dialled) == (200, b"ok", "", True)
        assert outcome.address == "127.0.0.1"


@in_loop
async def test_connections_are_kept_on_both_sides() -> None:
    async with rig() as r:
        host = r.upstream.authority.encode()
        one = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (host, host)
        answer = await r.send(one * 4 + get(r))
        assert answer.count(b"HTTP/1.1 200 OK") == 5
        assert len(r.door.outcomes) == 5
        assert r.upstream.connections == 1


@in_loop
async def test_chunked_upload_is_read_whole_before_the_decision() -> None:
    async with rig() as r:
        host = r.upstream.authority.encode()
        head = b"PUT http://%b/a HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n" % (host, host)
        await r.send(head + CLOSE + b"3\r\nabc\r\n2\r\nde\r\n0\r\nTrailer-Field: x\r\n\r\n")
        assert r.upstream.requests[0].body == b"abcde"
        assert r.upstream.requests[0].get(b"content-length") == b"5"
        assert b"railer" not in r.upstream.raw
        assert r.door.requests[0].body.complete


@in_loop
async def test_long_upload_is_decided_by_its_beginning_and_streamed() -> None:
    body = bytes(range(256)) * 4096
    async with rig(limits=Limits(hold=65_536)) as r:
        answer = await r.send(post(r, body))
        assert answer.startswith(b"HTTP/1.1 200")
        assert r.upstream.requests[0].body == body
        assert not r.door.requests[0].body.complete
        assert body.startswith(r.door.requests[0].body.data)
        assert r.door.outcomes[0].sent_length == len(body)


@in_loop
async def test_expectation_is_met_by_the_proxy() -> None:
    async with rig() as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
        request = post(r, b"abc", b"Expect: 100-continue\r\n")
        writer.write(request[:-3])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert r.upstream.requests[0].get(b"expect") is None


@in_loop
async def test_denial_says_what_to_do_and_nothing_is_dialled() -> None:
    deny = Deny(type="denied", rule="where-to", reason="not on the list", allowed=("api.example",), approval_id="ap_1")
    async with rig(door=NotingDoor(lambda _: deny)) as r:
        answer = await r.send(get(r))
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert error_of(answer) == {
            "type": "denied",
            "rule": "where-to",
            "reason": "not on the list",
            "allowed": ["api.example"],
            "approval_id": "ap_1",
            "retry": False,
        }
        assert r.upstream.connections == 0
        assert not r.door.outcomes


@in_loop
async def test_recorded_response_is_served_without_dialling() -> None:
    head = ResponseHead(status=201, headers=((b"x-from", b"record"),), length=4)
    served = Go(ticket=1, served=Served(head=head, body=b"same"))
    async with rig(door=NotingDoor(lambda _: served)) as r:
        answer = await r.send(get(r))
        assert answer.startswith(b"HTTP/1.1 201")
        assert b"x-from: record" in answer
        assert answer.endswith(b"same")
        assert r.upstream.connections == 0
        assert not r.door.outcomes


@in_loop
async def test_gate_that_fails_denies() -> None:
    def fail(_: Request) -> Go:
        raise RuntimeError("broken")

    async with rig(door=NotingDoor(fail)) as r:
        answer = await r.send(get(r))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"broken" not in answer
        assert r.upstream.connections == 0


@in_loop
async def test_lease_that_ran_out_stops_the_dial_and_is_reported() -> None:
    door = NotingDoor()
    door.lease = Refused("the lease is too short", kind="lease", status=503)
    async with rig(door=door) as r:
        answer = await r.send(get(r))
        assert answer.startswith(b"HTTP/1.1 503")
        assert r.upstream.connections == 0
        assert [(o.aborted, o.dialled) for o in door.outcomes] == [("lease", False)]


@in_loop
async def test_name_is_resolved_only_after_the_decision() -> None:
    asked: list[str] = []

    async def resolver(name: str) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"]

    guard = TenantGuard(allow_private=["127.0.0.1"], resolver=resolver)
    deny = Deny(type="denied", rule="r", reason="no")
    async with rig(guard=guard, door=NotingDoor(lambda _: deny)) as r:
        await r.send(b"GET http://leak.example/ HTTP/1.1\r\nHost: leak.example\r\n" + CLOSE)
        assert asked == []
    async with rig(guard=guard) as r:
        site = b"good.example:%d" % r.upstream.port
        answer = await r.send(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n" % (site, site) + CLOSE)
        assert answer.startswith(b"HTTP/1.1 200")
        assert asked == ["good.example"]
        assert r.upstream.requests[0].get(b"host") == site


class Fitter:
    """Adds a secret, and takes it out of what comes back."""

    async def dress(self, ticket: Any, head: RequestHead, body: Body) -> Dressed:
        kept = tuple(field for field in head.headers if field[0] != b"authorization")
        fitted = msgspec.structs.replace(head, headers=(*kept, (b"authorization", b"Bearer s3cret")))
        return Dressed(head=fitted, scrub=Hiding(), secret=True)


class Hiding:
    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        whole = (self._held + data).replace(b"s3cret", b"******")
        self._held, out = whole[-5:], whole[:-5]
        return out

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return held


@in_loop
async def test_credential_is_added_and_scrubbed() -> None:
    upstream = Upstream()
    upstream.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\nyou sent Bearer s3cret"
    async with rig(upstream=upstream, outfitter=Fitter()) as r:
        answer = await r.send(get(r, more=b"Authorization: mine\r\n"))
        assert r.upstream.requests[0].get(b"authorization") == b"Bearer s3cret"
        assert answer.endswith(b"\r\n\r\nyou sent Bearer ******")
        assert b"content-length: 22" in answer
        assert r.door.outcomes[0].body == b"you sent Bearer ******"


@in_loop
async def test_events_are_passed_on_as_they_come() -> None:
    turn = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            writer.write(b"data: %d\n\n" % number)
            await writer.drain()
            await turn.wait()
            turn.clear()

    async with rig(handler=handler) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
        writer.write(get(r))
        await reader.readuntil(b"\r\n\r\n")
        for number in range(3):
            # The upstream writes the next event only when this one has arrived here.
            async with asyncio.timeout(WAIT_S):
                assert b"data: %d\n\n" % number in await reader.readuntil(b"data: %d\n\n" % number)
            turn.set()
        await reader.read()
        writer.close()
        (outcome,) = await r.door.until_outcomes()
        assert outcome.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert outcome.aborted == ""


@in_loop
async def test_base_url_leads_to_its_upstream() -> None:
    async with Upstream() as upstream, rig(bases={"models": f"http://{upstream.authority}/v1"}) as r:
        await r.send(b"GET /models/list?a=b HTTP/1.1\r\nHost: localhost:1\r\n" + CLOSE)
        assert upstream.requests[0].target == b"/v1/list?a=b"
        assert upstream.requests[0].get(b"host") == upstream.authority.encode()
        answer = await r.send(b"GET /other/list HTTP/1.1\r\nHost: localhost:1\r\n" + CLOSE)
        assert error_of(answer)["type"] == "framing"
        assert b"HTTPS_PROXY" in answer


@in_loop
async def test_unix_socket_serves_like_tcp(tmp_path: Path) -> None:
    async with rig() as r:
        path = tmp_path / "egress.sock"
        listener = await listen_unix(path, r.listener.outlet)
        assert path.stat().st_mode & 0o777 == 0o600
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(get(r))
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        await listener.close()
        assert not path.exists()


@pytest.fixture(scope="module")
def roots() -> trustme.CA:
    return trustme.CA()


def trusting(roots: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    roots.configure_trust(context)
    return context


def serving(roots: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    roots.issue_cert(*names).configure_cert(context)
    return context


async def connect(r: Rig, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
    writer.write(b"CONNECT %b:%d HTTP/1.1\r\nHost: %b:%d\r\n\r\n" % (host.encode(), port, host.encode(), port))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    return reader, writer


def guard_for(host: str) -> TenantGuard:
    return TenantGuard(allow_private=["127.0.0.1"], resolve={host: ["127.0.0.1"]})


@in_loop
async def test_tls_is_opened_with_the_runs_own_authority(roots: trustme.CA) -> None:
    authority = Authority()
    upstream = Upstream(tls=serving(roots, "site.example"))
    async with rig(
        upstream=upstream, authority=authority, upstream_tls=trusting(roots), guard=guard_for("site.example")
    ) as r:
        reader, writer = await connect(r, "site.example", upstream.port)
        await writer.start_tls(
            ssl.create_default_context(cadata=authority.pem.decode()), server_hostname="site.example"
        )
        site = b"site.example:%d" % upstream.port
        for path in (b"/one", b"/two"):
            writer.write(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, site))
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()
        assert [request.target for request in upstream.requests] == [b"/one", b"/two"]
        assert [request.head.method for request in r.door.requests] == ["CONNECT", "GET", "GET"]
        assert r.door.requests[1].head.url() == f"https://site.example:{upstream.port}/one"
        assert len(r.door.outcomes) == 2
        assert upstream.connections == 1


@in_loop
async def test_upstream_with_another_name_or_root_is_refused(roots: trustme.CA) -> None:
    for tls in (serving(roots, "other.example"), serving(trustme.CA(), "site.example")):
        upstream = Upstream(tls=tls)
        async with rig(upstream=upstream, upstream_tls=trusting(roots), guard=guard_for("site.example")) as r:
            site = b"site.example:%d" % upstream.port
            answer = await r.send(b"GET https://%b/ HTTP/1.1\r\nHost: %b\r\n" % (site, site) + CLOSE)
            assert answer.startswith(b"HTTP/1.1 502")
            assert error_of(answer)["type"] == "tls_failed"
            assert [(o.aborted, o.dialled) for o in r.door.outcomes] == [("tls_failed", False)]


@in_loop
async def test_hello_for_another_host_is_refused(roots: trustme.CA) -> None:
    authority = Authority()
    async with rig(authority=authority, guard=guard_for("site.example")) as r:
        _, writer = await connect(r, "site.example", r.upstream.port)
        context = ssl.create_default_context(cadata=authority.pem.decode())
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.start_tls(context, server_hostname="other.example")
        writer.close()
        assert r.upstream.connections == 0


@in_loop
async def test_passthrough_relays_what_it_cannot_read(roots: trustme.CA) -> None:
    upstream = Upstream(tls=serving(roots, "site.example"))
    door = NotingDoor(lambda _: Go(ticket=1, tls="passthrough"))
    async with rig(upstream=upstream, door=door, guard=guard_for("site.example")) as r:
        reader, writer = await connect(r, "site.example", upstream.port)
        await writer.start_tls(trusting(roots), server_hostname="site.example")
        writer.write(b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        (outcome,) = await door.until_outcomes()
        assert outcome.dialled
        assert outcome.sent_length > 0
        assert outcome.length > 0
        assert outcome.body == b""


@in_loop
async def test_passthrough_holds_the_hello_against_connect(roots: trustme.CA) -> None:
    upstream = Upstream(tls=serving(roots, "site.example"))
    door = NotingDoor(lambda _: Go(ticket=1, tls="passthrough"))
    async with rig(upstream=upstream, door=door, guard=guard_for("front.example")) as r:
        _, writer = await connect(r, "front.example", upstream.port)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.start_tls(trusting(roots), server_hostname="site.example")
        writer.close()
        (outcome,) = await door.until_outcomes()
        assert (outcome.aborted, outcome.sent_length) == ("tls", 0)


@in_loop
async def test_plain_http_in_a_tunnel_is_read_too() -> None:
    async with rig(authority=Authority()) as r:
        reader, writer = await connect(r, "127.0.0.1", r.upstream.port)
        writer.write(b"GET /x HTTP/1.1\r\nHost: %b\r\n" % r.upstream.authority.encode() + CLOSE)
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        assert r.door.requests[1].head.url() == f"http://{r.upstream.authority}/x"


@in_loop
async def test_what_repeats_is_read_anew_where_it_differs() -> None:
    async with rig() as r:
        host = r.upstream.authority.encode()
        one = b"GET http://%b/a HTTP/1.1\r\nHost: %b\r\n\r\n" % (host, host)
        two = b"POST http://%b/a HTTP/1.1\r\nHost: %b\r\nContent-Length: 1\r\n\r\nx" % (host, host)
        raw = one + one + two + two + one + get(r)
        assert (await r.send(raw)).count(b"HTTP/1.1 200") == 6
        assert [(seen.method, seen.body) for seen in r.upstream.requests] == [
            (b"GET", b""), (b"GET", b""), (b"POST", b"x"), (b"POST", b"x"), (b"GET", b""), (b"GET", b""),
        ]  # fmt: skip
        assert (await r.send(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
