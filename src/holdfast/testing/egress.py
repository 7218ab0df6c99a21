"""What tests of the egress engine use: a door that notes everything, an upstream that says what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import h11
import uvloop

from holdfast.egress.base import Deny, Go, Guard, Limits, Outcome, Outfitter, Refused, Request
from holdfast.egress.guard import TenantGuard
from holdfast.egress.outlet import Outlet
from holdfast.egress.proxy import Listener, listen_tcp
from holdfast.egress.stream import Sweeper
from holdfast.egress.tls import Authority, UpstreamTls
from holdfast.egress.upstream import Pool

WAIT_S = 60.0
"""How long a test waits before it fails: far beyond what a busy machine needs."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def in_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run an asynchronous test on the loop that the engine runs on."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


class NotingDoor:
    """Lets everything through (or what ``answer`` says), and keeps what it was asked and told."""

    def __init__(self, answer: Callable[[Request], Go | Deny] | None = None) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.outcomes: list[Outcome] = []
        self.rejections: list[Deny] = []
        self.reported = asyncio.Event()
        self.lease: Refused | None = None

    async def decide(self, request: Request) -> Go | Deny:
        self.requests.append(request)
        return self.answer(request) if self.answer is not None else Go(ticket=len(self.requests))

    def rejected(self, deny: Deny) -> None:
        self.rejections.append(deny)

    async def before_dial(self, ticket: Any) -> None:
        if self.lease is not None:
            raise self.lease

    async def outcome(self, ticket: Any, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.reported.set()

    async def until_outcomes(self, count: int = 1) -> list[Outcome]:
        """Wait until so many outcomes were reported."""
        async with asyncio.timeout(WAIT_S):
            while len(self.outcomes) < count:
                self.reported.clear()
                await self.reported.wait()
        return self.outcomes


class Seen:
    """A request as a second parser (h11) reads it at the upstream."""

    def __init__(self, event: h11.Request, body: bytes) -> None:
        self.method = event.method
        self.target = event.target
        self.headers = [(bytes(name), bytes(value)) for name, value in event.headers]
        self.body = body

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field."""
        return next((value for key, value in self.headers if key == name), None)


class Upstream:
    """A server on loopback. Without a handler it answers each request that h11 can read with 200 and a small body."""

    def __init__(self, handler: Handler | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler or self._answer
        self._tls = tls
        self.requests: list[Seen] = []
        self.raw = bytearray()
        self.errors: list[str] = []
        self.connections = 0
        self.reply = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        event: h11.Request | None = None
        body = b""
        while data := await reader.read(65_536):
            self.raw += data
            connection.receive_data(data)
            try:
                while (got := connection.next_event()) is not h11.NEED_DATA:
                    if isinstance(got, h11.Request):
                        event, body = got, b""
                    elif isinstance(got, h11.Data):
                        body += got.data
                    elif isinstance(got, h11.EndOfMessage):
                        assert event is not None
                        self.requests.append(Seen(event, body))
                        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                        connection.send(h11.EndOfMessage())
                        writer.write(self.reply)
                        await writer.drain()
                        if connection.our_state is not h11.DONE:
                            return
                        connection.start_next_cycle()
                    else:
                        return
            except h11.RemoteProtocolError as error:
                self.errors.append(str(error))
                return


class Rig:
    """A proxy in front of one upstream."""

    def __init__(self, listener: Listener, door: NotingDoor, upstream: Upstream) -> None:
        self.listener = listener
        self.door = door
        self.upstream = upstream

    @property
    def port(self) -> int:
        """Where the proxy listens."""
        return self.listener.port

    async def send(self, raw: bytes) -> bytes:
        """Send bytes on a connection of their own; gives all that comes back until the proxy closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answer = b""
        try:
            async with asyncio.timeout(WAIT_S):
                # A reset ends what came before it, and does not undo it.
                with contextlib.suppress(OSError):
                    writer.write(raw)
                    while data := await reader.read(65_536):
                        answer += data
        finally:
            writer.close()
        return answer


@contextlib.asynccontextmanager
async def rig(
    *,
    handler: Handler | None = None,
    upstream: Upstream | None = None,
    door: NotingDoor | None = None,
    guard: Guard | None = None,
    limits: Limits | None = None,
    outfitter: Outfitter | None = None,
    upstream_tls: ssl.SSLContext | None = None,
    authority: Authority | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A proxy and an upstream for the time of a block."""
    door = door or NotingDoor()
    async with upstream or Upstream(handler) as server:
        outlet = Outlet(
            door=door,
            guard=guard or TenantGuard(allow_private=["127.0.0.1"]),
            pool=Pool(),
            sweeper=Sweeper(),
            limits=limits,
            outfitter=outfitter,
            upstream_tls=UpstreamTls(lambda: upstream_tls) if upstream_tls is not None else None,
            authority=authority,
            **options,
        )
        listener = await listen_tcp("127.0.0.1", 0, outlet)
        try:
            yield Rig(listener, door, server)
        finally:
            await listener.close()
            outlet.pool.close()
