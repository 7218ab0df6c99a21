"""CONNECT: opened and read (``inspect``), or relayed unseen to the one host that it names (``passthrough``)."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Coroutine
from typing import Final, cast

from holdfast.egress import answers, http1, http2
from holdfast.egress.base import Body, Deny, Go, Outcome, Refused, RequestHead, ResponseHead
from holdfast.egress.client import Http1Asker
from holdfast.egress.exchange import Exchange
from holdfast.egress.messages import Inside
from holdfast.egress.outlet import Outlet
from holdfast.egress.stream import Lost, Stream, relay
from holdfast.egress.tls import MAX_HELLO, hello_name
from holdfast.egress.upstream import DialError, lost_reason

_ESTABLISHED: Final = ResponseHead(status=200)
_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection (RFC 8446, 5.1)."""


async def opened(outlet: Outlet, asker: Http1Asker, head: RequestHead) -> Http1Asker | None:
    """Answer a CONNECT. Gives what the next requests come from; None when nothing more is to be read.

    Raises:
        Refused: what the client sends is neither TLS for that host nor HTTP.
        Lost: the client is gone.
    """
    exchange = Exchange(outlet, asker, head)
    if asker.stream.buffer:
        raise http1.malformed("bytes that follow CONNECT before its answer")
    answer = await exchange.decide(Body())
    if isinstance(answer, Go) and answer.tls == "passthrough":
        await _pass(outlet, asker, head, exchange, answer)
        return None
    if isinstance(answer, Go) and outlet.authority is None:
        answer = Deny(type="tls", rule="tls", reason="TLS cannot be inspected here: no authority was made", status=501)
    if isinstance(answer, Deny):
        exchange.deny(answer)
        return asker if asker.keep_alive else None
    return await _inspect(outlet, asker, head)


async def _inspect(outlet: Outlet, asker: Http1Asker, head: RequestHead) -> Http1Asker | None:
    stream, limits = asker.stream, outlet.limits
    asker.switch(_ESTABLISHED, b"")
    if not stream.buffer and not await stream.more(limits.head_s):
        raise Lost("closed")
    scheme = "https"
    if stream.buffer[0] == _HANDSHAKE:
        assert outlet.authority is not None
        await start_tls(outlet, stream, outlet.authority.context(head.host))
        if stream.chosen_protocol == "h2":
            await http2.serve(outlet, stream, Inside(head.host, head.port))
            return None
    elif 0x41 <= stream.buffer[0] <= 0x5A:
        scheme = "http"
    else:
        raise Refused("the tunnel carries neither TLS nor HTTP", kind="tunnel", status=400)
    inside = Inside(head.host, head.port, scheme)
    return Http1Asker(stream, limits, inside=inside, encoded_slashes=outlet.encoded_slashes)


async def start_tls(outlet: Outlet, stream: Stream, context: ssl.SSLContext) -> None:
    """Become the server side of TLS on a stream whose first bytes were already read.

    Raises:
        Lost: the handshake failed: the client does not trust the run's authority, or asked for another host.
    """
    loop, raw = outlet.loop, stream.transport
    assert raw is not None
    raw.pause_reading()
    first = stream.take()

    def hand_over() -> None:
        # The loop's TLS reads from the socket alone; what was read before is put first, ahead of its first read.
        protocol = cast(asyncio.BufferedProtocol, raw.get_protocol())
        rest = memoryview(first)
        while rest:
            room = memoryview(protocol.get_buffer(len(rest)))
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            protocol.buffer_updated(count)
            rest = rest[count:]

    task = loop.create_task(
        loop.start_tls(raw, stream, context, server_side=True, ssl_handshake_timeout=outlet.limits.head_s)
    )
    loop.call_soon(loop.call_soon, hand_over)
    try:
        transport = await task
    except (OSError, ssl.SSLError) as error:
        stream.abort("tls")
        raise Lost("tls") from error
    if transport is None:
        raise Lost("closed")
    stream.transport = transport
    if stream.lost:
        raise Lost(stream.lost)


async def _pass(outlet: Outlet, asker: Http1Asker, head: RequestHead, exchange: Exchange, go: Go) -> None:
    """Relay a tunnel unseen, once its ClientHello has named the host that the rules were asked about."""
    client, limits = asker.stream, outlet.limits
    up: Stream | None = None
    address, aborted, sent, got = "", "", 0, 0
    digest = hashlib.sha256()

    def upwards(data: bytes) -> None:
        nonlocal sent
        sent += len(data)

    def downwards(data: bytes) -> None:
        nonlocal got
        got += len(data)
        digest.update(data)

    try:
        addresses = await exchange.resolve()
        await outlet.door.before_dial(go.ticket)
        up, address = await outlet.connect(head, addresses, go.deadline_s, None)
        client.half_open = up.half_open = True
        asker.switch(_ESTABLISHED, b"")
        await _check_hello(client, head, limits.head_s)
        await both(relay(client, up, limits.stream_s, upwards), relay(up, client, limits.stream_s, downwards))
    except Refused as refused:
        aborted = refused.kind
        if up is None:
            exchange.deny(Deny.of(refused))
        else:
            outlet.door.rejected(Deny.of(refused))
    except DialError as error:
        aborted = error.aborted
        exchange.deny(answers.failure(aborted, str(error)))
    except Lost as lost:
        aborted = "client_gone" if client.lost or client.eof else lost_reason(lost)
    except asyncio.CancelledError:
        aborted = "stopped"
        raise
    finally:
        if up is not None:
            outlet.upstreams.discard(up)
            up.close() if not aborted else up.abort(aborted)
            if aborted:
                client.abort(aborted)
        outcome = Outcome(
            status=200 if up is not None else 0,
            length=got,
            digest=digest.hexdigest(),
            truncated=got > 0,
            sent_length=sent,
            dialled=up is not None,
            address=address,
            aborted=aborted,
            took_s=outlet.loop.time() - exchange.began,
        )
        await outlet.door.outcome(go.ticket, outcome)


async def _check_hello(client: Stream, head: RequestHead, seconds: float) -> None:
    while (name := hello_name(bytes(client.buffer))) is None:
        if len(client.buffer) > MAX_HELLO:
            raise Refused("the tunnel's ClientHello is too long", kind="tls", status=400)
        if not await client.more(seconds):
            raise Lost("closed")
    literal = ":" in head.host or head.host.replace(".", "").isdigit()
    if name != ("" if literal else head.host):
        raise Refused("the tunnel's ClientHello names another host than CONNECT", kind="tls", status=400)


async def both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    """Run two directions until both have ended; the first failure ends the other and is raised."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
