"""The engine's listeners: a Unix socket for each run, TCP for the forward proxy. Which one it came by is who it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from holdfast.egress import answers, messages, tunnel, websocket
from holdfast.egress.base import Deny, Refused
from holdfast.egress.client import Http1Asker
from holdfast.egress.exchange import Exchange
from holdfast.egress.outlet import Outlet
from holdfast.egress.stream import Lost, Stream
from holdfast.log import Log

_log = Log("egress")

LINGER_S = 2.0
"""How long a client that is still sending may go on after it was refused, so that it reads the answer."""


class Client(Stream):
    """A connection from the inside: serves itself as soon as it is made."""

    __slots__ = ("outlet", "task")

    def __init__(self, outlet: Outlet) -> None:
        super().__init__(outlet.loop, outlet.sweeper)
        self.outlet = outlet
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        outlet = self.outlet
        if outlet.stopped:
            self.abort("stopped")
            return
        outlet.clients.add(self)
        self.task = self._loop.create_task(serve(outlet, self))

    def connection_lost(self, exc: Exception | None) -> None:
        self.outlet.clients.discard(self)
        super().connection_lost(exc)


async def serve(outlet: Outlet, stream: Stream) -> None:
    """Serve one client connection to its end."""
    asker = Http1Asker(stream, outlet.limits, bases=outlet.bases, encoded_slashes=outlet.encoded_slashes)
    try:
        if len(outlet.clients) > outlet.limits.connections:
            raise Refused(
                f"more than {outlet.limits.connections} connections at once", kind="too_many_connections", status=503
            )
        await requests(outlet, asker)
        stream.close()
    except Refused as refused:
        await turn_away(outlet, stream, Deny.of(refused))
    except Lost:
        stream.abort("client_gone")
    except asyncio.CancelledError:
        stream.abort("stopped")
        raise
    except Exception:  # noqa: BLE001 - harms this connection only
        _log.exception("a connection of the egress proxy failed")
        stream.abort("failed")


async def requests(outlet: Outlet, asker: Http1Asker) -> None:
    """The requests of one connection, one after the other; those inside a tunnel like those outside."""
    while asker.keep_alive:
        head = await asker.request()
        if head is None:
            return
        if head.method == "CONNECT":
            inner = await tunnel.opened(outlet, asker, head)
            if inner is None:
                return
            asker = inner
        elif head.upgrade:
            await websocket.carry(outlet, asker, head)
            return
        else:
            await Exchange(outlet, asker, head).run()
            if not asker.done:
                await linger(asker.stream)


async def turn_away(outlet: Outlet, stream: Stream, deny: Deny) -> None:
    """Answer what was not understood, and let the client read that before the connection goes."""
    outlet.door.rejected(deny)
    head, body = answers.render(deny)
    try:
        stream.write(messages.response_bytes(head, chunked=False, keep_alive=False) + body)
        await linger(stream)
    except Lost:
        return
    stream.close()


async def linger(stream: Stream) -> None:
    """Let a client that is still sending read its answer: closing at once would reset what is on its way to it.

    Raises:
        Lost: the client is gone, or goes on for too long.
    """
    transport = stream.transport
    if transport is not None and transport.can_write_eof():
        transport.write_eof()
    until = stream.time() + LINGER_S
    while (left := until - stream.time()) > 0:
        stream.buffer.clear()
        if not await stream.more(left):
            return


class Listener:
    """A socket that accepts connections of one outlet."""

    def __init__(self, server: asyncio.Server, outlet: Outlet, path: Path | None = None) -> None:
        self._server = server
        self.outlet = outlet
        self._path = path

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Accept no more, end what is open, and wait until each exchange has reported its outcome."""
        self._server.close()
        tasks = [client.task for client in self.outlet.clients if isinstance(client, Client) and client.task]
        self.outlet.stop()
        if tasks:
            await asyncio.wait(tasks)
        if self._path is not None:
            self._path.unlink(missing_ok=True)


async def listen_unix(path: Path, outlet: Outlet, *, mode: int = 0o600, uid: int = -1) -> Listener:
    """Listen on a Unix socket that only ``uid`` (with ``mode``) may connect to."""
    before = os.umask(0o177)
    try:
        server = await outlet.loop.create_unix_server(lambda: Client(outlet), str(path), backlog=512)
    finally:
        os.umask(before)
    if uid >= 0:
        os.chown(path, uid, -1)
    os.chmod(path, mode)
    return Listener(server, outlet, path)


async def listen_tcp(host: str, port: int, outlet: Outlet) -> Listener:
    """Listen on TCP, for the forward proxy."""
    server = await outlet.loop.create_server(lambda: Client(outlet), host, port, backlog=512)
    return Listener(server, outlet)
