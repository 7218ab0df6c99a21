"""PostgreSQL through the boundary: the agent connects without a password, and each statement passes the door.

The door sees a request with the scheme ``postgres``: ``CONNECT`` for the session, then ``QUERY`` for each statement
that would run, whose body is ``{"sql": …, "params": […]}`` as JSON. A prepared statement passes each time that it is
bound. A statement that is refused never reaches the server: in its place goes one that no server understands, so that
the refusal comes in its order, ends the transaction and is skipped to the next Sync like any other error.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.egress import pgwire
from holdfast.egress.base import Body, Deny, Door, Go, Guard, Outcome, Refused, Request, RequestHead
from holdfast.egress.pgdial import Dial, Server, connect, dial, read
from holdfast.egress.pgwire import Startup, WireError, message

MAX_STATEMENT = 32 << 20
"""Bytes of one message of a client, values included."""
CHUNK = 1 << 16
KEPT = frozenset(
    {"application_name", "client_encoding", "DateStyle", "TimeZone", "extra_float_digits", "IntervalStyle"}
)
"""Parameters of a client's startup that go on, beside the database."""
Login = Callable[[RequestHead], tuple[str, str]]
"""User and password for a session (:meth:`holdfast.egress.credentials.Credentials.login`)."""
PASSED = frozenset({b"D", b"H", b"X", b"c", b"d", b"f"})
"""Messages of a client that run nothing."""
_TRANSACTION = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback|abort|savepoint|release)\b[\w\s,\"]*;?\s*", re.IGNORECASE
)
"""Begins and ends of transactions, which are no statements of their own."""
_READ = frozenset(b"CEIsZ")
"""Messages of a server that tell how a statement ended."""


class Running(msgspec.Struct, kw_only=True):
    """What the server will answer, in order: a statement, a refusal, or the end of what one Sync covers."""

    ticket: Any = None
    """Of a statement whose outcome is still to be reported."""
    denied: Deny | None = None
    """The statement was refused; the server's error holds ``mark``."""
    mark: str = ""
    sync: bool = False
    began: float = 0.0
    sent: int = 0


class PgProxy:
    """The sessions of one agent with one database."""

    def __init__(self, door: Door, guard: Guard, host: str, port: int, login: Login, *, dial: Dial = dial) -> None:
        self._door = door
        self._guard = guard
        self._host = host
        self._port = port
        self._login = login
        self._dial = dial
        self._keys: set[bytes] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection of the agent's, to its end."""
        try:
            await self._serve(reader, writer)
        except Refused as refused:
            writer.write(pgwire.error("FATAL", "28000", str(refused)))
        except WireError as broken:
            writer.write(pgwire.error("FATAL", "08P01", str(broken)))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if not 8 <= size <= pgwire.MAX_STARTUP:
                raise WireError("the startup message is malformed")
            data = await reader.readexactly(size - 4)
            first = Startup(int.from_bytes(data[:4], "big"), data[4:])
            if first.code not in (pgwire.SSL_REQUEST, pgwire.GSS_REQUEST):
                break
            # Between the agent and this proxy there is no network.
            writer.write(b"N")
        if first.code == pgwire.CANCEL_REQUEST:
            await self._cancel(first.rest)
            return
        if first.code != pgwire.VERSION:
            raise WireError("only version 3.0 of the protocol is spoken")
        asked = first.parameters()
        if asked.get("replication", "false").lower() not in ("", "false", "off", "no", "0"):
            raise WireError("replication is not carried")
        database = asked.get("database") or asked.get("user", "")
        go = await self._ask(database, "CONNECT", b"")
        if isinstance(go, Deny):
            raise Refused(f"{go.reason} (rule {go.rule})", kind=go.type, rule=go.rule)
        await self._door.before_dial(go.ticket)
        parameters = {name: value for name, value in asked.items() if name in KEPT} | {"database": database}
        # Asked for each session, so that a rotation counts from the next one on.
        user, password = self._login(self._head(database, "CONNECT", b""))
        server = await connect(self._host, self._port, user, password, parameters, self._guard, dial=self._dial)
        self._keys.add(server.key)
        try:
            writer.write(message(b"R", b"\0\0\0\0") + server.hello)
            await Session(self, server, reader, writer, database, go.ticket).carry()
        finally:
            self._keys.discard(server.key)
            server.writer.close()

    async def _cancel(self, key: bytes) -> None:
        """A cancel request, for a session of this agent's only."""
        if key not in self._keys:
            return
        address = (await self._guard.addresses(self._host, self._port))[0]
        _, writer = await self._dial(address, self._port)
        writer.write(struct.pack(">II", 8 + len(key), pgwire.CANCEL_REQUEST) + key)
        await writer.drain()
        writer.close()

    async def _ask(self, database: str, method: str, body: bytes) -> Go | Deny:
        head = self._head(database, method, body)

        async def resolve() -> tuple[str, ...]:
            return await self._guard.addresses(self._host, self._port)

        return await self._door.decide(Request(head=head, body=Body(data=body, decoded=body), resolve=resolve))

    def _head(self, database: str, method: str, body: bytes) -> RequestHead:
        return RequestHead(
            method=method,
            scheme="postgres",
            host=self._host,
            port=self._port,
            path=f"/{database}",
            headers=((b"content-type", b"application/json"),) if body else (),
            length=len(body),
        )

    async def statement(self, database: str, sql: str, values: list[str | None]) -> Go | Deny:
        """Take one statement through the door."""
        body = msgspec.json.encode({"sql": sql, "params": values})
        go = await self._ask(database, "QUERY", body)
        if isinstance(go, Go):
            try:
                await self._door.before_dial(go.ticket)
            except Refused as refused:
                await self._door.outcome(go.ticket, Outcome(aborted="lease", dialled=False))
                return Deny.of(refused)
        return go

    async def in_time(self, ticket: Any) -> None:
        """Whether this node may still send (:meth:`holdfast.egress.base.Door.before_dial`)."""
        await self._door.before_dial(ticket)

    async def ended(self, running: Running, outcome: Outcome) -> None:
        """Report how a statement ended, once."""
        if running.ticket is not None:
            ticket, running.ticket = running.ticket, None
            await self._door.outcome(ticket, outcome)


class Session:
    """One session: what the agent says to the server, and the other way."""

    def __init__(
        self,
        proxy: PgProxy,
        server: Server,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        database: str,
        ticket: Any,
    ) -> None:
        self._ticket = ticket
        self._proxy = proxy
        self._server = server
        self._reader = reader
        self._writer = writer
        self._database = database
        self._statements: dict[str, str] = {}
        self._portals: dict[str, Running] = {}
        """Bound and not yet run."""
        self._running: deque[Running] = deque()

    async def carry(self) -> None:
        """Carry messages until either side ends."""
        tasks = [asyncio.create_task(self._upward()), asyncio.create_task(self._downward())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Statements whose end nobody saw: what they did is not known.
            for running in self._running:
                await self._proxy.ended(running, _outcome(running, aborted="upstream_closed"))
            await self._forget(*self._portals)
        for task in done:
            task.result()

    async def _upward(self) -> None:
        while True:
            kind, payload = await read(self._reader, MAX_STATEMENT)
            data = message(kind, payload)
            if kind == b"Q":
                running = await self._asked(pgwire.text(payload)[0], [], len(data))
                if running.denied is not None:
                    data = message(b"Q", f'"{running.mark}"\0'.encode())
                self._running += (running, Running(sync=True))
            elif kind == b"B":
                data = await self._bind(payload, data)
            elif kind == b"P":
                name, at = pgwire.text(payload)
                self._statements[name] = pgwire.text(payload, at)[0]
            elif kind == b"E":
                portal, _ = pgwire.text(payload)
                self._running.append(self._portals.pop(portal) if portal in self._portals else Running())
            elif kind == b"C":
                name, _ = pgwire.text(payload, 1)
                if payload[:1] == b"S":
                    self._statements.pop(name, None)
                else:
                    await self._forget(name)
            elif kind == b"S":
                await self._forget("")
                self._running.append(Running(sync=True))
            elif kind == b"F":
                raise WireError("calls of functions by number are not carried; use SELECT")
            elif kind not in PASSED:
                raise WireError(f"there is no message {kind!r}")
            self._server.writer.write(data)
            if kind == b"X":
                return
            await self._server.writer.drain()

    async def _bind(self, payload: bytes, data: bytes) -> bytes:
        bound = pgwire.bound(payload)
        sql = self._statements.get(bound.statement)
        if sql is None:
            raise WireError(f"the statement {bound.statement!r} was never prepared")
        await self._forget(bound.portal)
        running = await self._asked(sql, bound.values, len(data))
        if running.denied is None:
            self._portals[bound.portal] = running
            return data
        self._running.append(running)
        return message(b"P", f'\0"{running.mark}"\0\0\0'.encode())

    async def _asked(self, sql: str, values: list[str | None], size: int) -> Running:
        """Take a statement through the door."""
        if _TRANSACTION.fullmatch(sql):
            # What it holds has passed; it only has to be early enough still.
            await self._proxy.in_time(self._ticket)
            return Running()
        go = await self._proxy.statement(self._database, sql, values)
        running = Running(began=time.monotonic(), sent=size)
        if isinstance(go, Go):
            running.ticket = go.ticket
        else:
            running.denied, running.mark = go, f"refused-{secrets.token_hex(12)}"
        return running

    async def _forget(self, *portals: str) -> None:
        """Report of portals that were bound, and never run, that nothing happened."""
        for name in portals:
            if name in self._portals:
                running = self._portals.pop(name)
                await self._proxy.ended(running, _outcome(running, dialled=False))

    async def _downward(self) -> None:
        reader, writer = self._server.reader, self._writer
        while True:
            head = await reader.readexactly(5)
            size = int.from_bytes(head[1:], "big") - 4
            if size < 0:
                raise WireError("the server sent a message of no length")
            if head[0] not in _READ:
                writer.write(head)
                while size:
                    chunk = await reader.read(min(size, CHUNK))
                    if not chunk:
                        return
                    size -= len(chunk)
                    writer.write(chunk)
                    await writer.drain()
                continue
            if size > MAX_STATEMENT:
                raise WireError("the server sent too long a message")
            payload = await reader.readexactly(size)
            writer.write(await self._told(head[:1], payload))
            await writer.drain()

    async def _told(self, kind: bytes, payload: bytes) -> bytes:
        """Take down how statements ended; gives what the agent is told."""
        running = self._running
        if kind == b"Z":
            while running and not running[0].sync:
                # After an error the server passes over everything up to the Sync.
                skipped = running.popleft()
                await self._proxy.ended(skipped, _outcome(skipped, dialled=False))
            if running:
                running.popleft()
        elif running and not running[0].sync:
            front = running.popleft()
            if kind == b"E" and front.denied is not None and front.mark in pgwire.fields(payload).get("M", ""):
                return _refusal(front.denied)
            status = 400 if kind == b"E" else 200
            await self._proxy.ended(front, _outcome(front, status=status, body=payload[:1024].rstrip(b"\0")))
        return message(kind, payload)


def _outcome(
    running: Running, *, status: int = 0, body: bytes = b"", aborted: str = "", dialled: bool = True
) -> Outcome:
    return Outcome(
        status=status,
        body=body,
        length=len(body),
        sent_length=running.sent,
        dialled=dialled,
        aborted=aborted,
        took_s=time.monotonic() - running.began,
    )


def _refusal(denied: Deny) -> bytes:
    said = {"type": denied.type, "rule": denied.rule, "approval_id": denied.approval_id, "retry": False}
    return pgwire.error("ERROR", "42501", denied.reason, msgspec.json.encode(said).decode())
