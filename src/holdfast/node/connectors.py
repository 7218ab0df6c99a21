"""Connectors: the operator's callables, called by name from the node's side, in a process of their own.

One process for each tenant and settings folder, started with the first call and ended with the node (see
:mod:`holdfast.node.connector_host`). It may crash or hang: that harms the calls in flight in it, whose outcome is then
unknown, and nothing else; the next call starts another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast import values
from holdfast.config import ConnectorSettings
from holdfast.errors import PayloadError, ProtocolError
from holdfast.node import connector_messages as messages
from holdfast.node.connector_messages import Cancel, Failure, Invoke, Ready, Result, Setup, Stuck

DIAL = 5.0
"""Seconds within which the process begins a call or refuses it: the dial's deadline, which a lease has to outlast."""
MAX_IN_FLIGHT = 64
"""Calls at once in one process. Further ones wait their turn, unsent."""
START = 60.0
"""Seconds in which a process has to have imported its callables."""
GRACE = 1.0
"""Seconds that a process has to give up an overdue call, or to end when it is closed."""

BeforeDial = Callable[[float], None]
ConnectorsOf = Callable[[str], Mapping[str, ConnectorSettings]]

log = logging.getLogger("holdfast.connectors")


class ConnectorFailure(Exception):
    """A call that failed.

    ``sent``: the callable may have done something. ``retryable``: trying again can help. ``timeout``: it took too long.
    ``answered``: the callable itself said so; otherwise what it did is not known.
    """

    def __init__(
        self, message: str, *, sent: bool, retryable: bool, timeout: bool = False, answered: bool = False
    ) -> None:
        super().__init__(message)
        self.answered = answered
        self.sent = sent
        self.retryable = retryable
        self.timeout = timeout


class ConnectorPool:
    """The connector processes of a node. Belongs to one event loop, in a thread that lives as long as the node.

    ``connectors_of`` gives a tenant's connectors by name. ``env`` is the processes' environment (the node's own by
    default: connectors may hold credentials), ``output`` the descriptor of what they print. ``dial`` and ``grace`` are
    seconds (see :data:`DIAL` and :data:`GRACE`).
    """

    def __init__(
        self,
        connectors_of: ConnectorsOf,
        *,
        env: Mapping[str, str] | None = None,
        output: int = 2,
        dial: float = DIAL,
        grace: float = GRACE,
    ) -> None:
        self._connectors_of = connectors_of
        self._env = _environment(os.environ if env is None else env)
        self._output = output
        self._dial = dial
        self._grace = grace
        self._processes: dict[tuple[str, str], _Process] = {}
        self._starting: dict[tuple[str, str], asyncio.Lock] = {}

    def settings(self, tenant: str, name: str) -> ConnectorSettings | None:
        """A tenant's connector; None when it has none of that name."""
        return self._connectors_of(tenant).get(name)

    async def call(
        self,
        tenant: str,
        name: str,
        args: dict[str, Any],
        key: str,
        timeout_us: int,
        before_dial: BeforeDial,
    ) -> bytes:
        """Make one attempt of a call; the canonical JSON of what it returned.

        Args:
            tenant: whose connector.
            name: of the connector.
            args: its keyword arguments.
            key: idempotency key, stable over retries; passed on when the callable takes ``idempotency_key``.
            timeout_us: of the attempt; 0: the connector's own.
            before_dial: called right before the call is handed over, with the seconds in which it begins or never does;
                what it raises ends the attempt with nothing sent.

        Raises:
            ConnectorFailure: it failed, or cannot be called.
        """
        connector = self._find(tenant, name)
        return await self._attempt(tenant, name, connector, connector.call, args, b"", key, timeout_us, before_dial)

    async def undo(
        self,
        tenant: str,
        name: str,
        args: dict[str, Any],
        result: bytes,
        key: str,
        timeout_us: int,
        before_dial: BeforeDial,
    ) -> bytes:
        """Undo a call of a compensable connector. ``undo`` names a callable or another connector.

        It is called with those of the call's arguments that it takes, with ``result`` and ``args`` (all of them)
        where it takes these, and with the ``key`` of this undoing. ``result`` is the JSON that the call had returned.

        Raises:
            ConnectorFailure: as :meth:`call`.
        """
        connector = self._find(tenant, name)
        if not connector.undo:
            raise ConnectorFailure(f"the connector {name} names no undo", sent=False, retryable=False)
        target = connector.undo
        if ":" not in target:
            connector = self._find(tenant, target)
            target = connector.call
        what = f"{name}'s undo"
        return await self._attempt(tenant, what, connector, target, args, result, key, timeout_us, before_dial)

    def _find(self, tenant: str, name: str) -> ConnectorSettings:
        connector = self.settings(tenant, name)
        if connector is None:
            known = ", ".join(sorted(self._connectors_of(tenant))) or "none"
            raise ConnectorFailure(
                f"the tenant {tenant} has no connector {name}; configured: {known}", sent=False, retryable=False
            )
        if not connector.call:
            raise ConnectorFailure(
                f"the connector {name} is not a Python callable; write call = in holdfast.toml",
                sent=False,
                retryable=False,
            )
        return connector

    async def _attempt(
        self,
        tenant: str,
        what: str,
        connector: ConnectorSettings,
        target: str,
        args: dict[str, Any],
        result: bytes,
        key: str,
        timeout_us: int,
        before_dial: BeforeDial,
    ) -> bytes:
        if "idempotency_key" in args:
            raise ConnectorFailure(
                f"{what}: idempotency_key is given by Holdfast; leave it out", sent=False, retryable=False
            )
        try:
            data = values.dump(args, f"the arguments of {what}")
        except PayloadError as error:
            raise ConnectorFailure(str(error), sent=False, retryable=False) from None
        timeout = (timeout_us or connector.timeout) / 1_000_000
        process = await self._process(tenant, str(connector.folder))
        return await process.call(what, target, data, result, key, timeout, before_dial)

    async def _process(self, tenant: str, folder: str) -> _Process:
        place = (tenant, folder)
        process = self._processes.get(place)
        if process is not None and process.usable:
            return process
        async with self._starting.setdefault(place, asyncio.Lock()):
            process = self._processes.get(place)
            if process is None or not process.usable:
                process = _Process(folder, self._targets(tenant, folder), self._dial, self._grace)
                self._processes[place] = process
                try:
                    await process.start(self._env, self._output)
                except BaseException:
                    process.end("its start was given up", retryable=True)
                    if self._processes.get(place) is process:
                        del self._processes[place]
                    raise
            return process

    def _targets(self, tenant: str, folder: str) -> tuple[str, ...]:
        found = {}
        for connector in self._connectors_of(tenant).values():
            if str(connector.folder) == folder:
                found[connector.call] = connector.call
                if ":" in connector.undo:
                    found[connector.undo] = connector.undo
        return tuple(target for target in found if target)

    def pids(self, tenant: str | None = None) -> tuple[int, ...]:
        """The processes of a tenant, or of all."""
        return tuple(process.pid for process in self._of(tenant) if process.usable)

    def kill(self, tenant: str | None = None) -> None:
        """End the processes of a tenant, or all, now. Calls in flight fail as sent and are not to be tried again."""
        for process in self._of(tenant):
            process.end("it was killed", retryable=False)

    def freeze(self, tenant: str | None = None) -> None:
        """Stop the processes where they stand (SIGSTOP), until :meth:`thaw`. Time-outs go on."""
        for process in self._of(tenant):
            process.signal(signal.SIGSTOP)

    def thaw(self, tenant: str | None = None) -> None:
        """Let frozen processes go on."""
        for process in self._of(tenant):
            process.signal(signal.SIGCONT)

    async def ended(self, tenant: str) -> None:
        """The tenant has no work here any more: its processes end, unless a call is in flight."""
        idle = {place: process for place, process in self._processes.items() if place[0] == tenant and not process.busy}
        for place in idle:
            del self._processes[place]
        await asyncio.gather(*(process.close() for process in idle.values()))

    async def close(self) -> None:
        """End all processes. Calls in flight fail as sent."""
        processes = list(self._processes.values())
        self._processes.clear()
        await asyncio.gather(*(process.close() for process in processes))

    def _of(self, tenant: str | None) -> list[_Process]:
        return [process for place, process in self._processes.items() if tenant in (None, place[0])]


class _Pending:
    def __init__(self, number: int, what: str, timeout: float, future: asyncio.Future[bytes]) -> None:
        self.number = number
        self.what = what
        self.timeout = timeout
        self.future = future
        self.timer: asyncio.TimerHandle | None = None
        self.overdue = False


class _Process:
    """One connector process, from start to end."""

    def __init__(self, folder: str, targets: tuple[str, ...], dial: float, grace: float) -> None:
        self._folder = folder
        self._dial = dial
        self._grace = grace
        self._targets = targets
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Pending] = {}
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._ready: asyncio.Future[Ready] | None = None
        self._faults: dict[str, str] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._end: tuple[str, bool] | None = None

    @property
    def usable(self) -> bool:
        return self._end is None and self._child is not None and self._child.returncode is None

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    async def start(self, env: Mapping[str, str], output: int) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        outer, inner = socket.socketpair()
        try:
            with inner:
                self._child = await asyncio.create_subprocess_exec(
                    *(
                        sys.executable,
                        "-P",
                        "-m",
                        "holdfast.node.connector_host",
                        str(inner.fileno()),
                        str(os.getpid()),
                    ),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(inner.fileno(),),
                    cwd=self._folder,
                    env=env,
                    # Not the terminal's: an interrupt there is the node's to handle. A kill ends the whole group.
                    start_new_session=True,
                )
            if self._end is not None:
                self.signal(signal.SIGKILL)
            reader, self._writer = await asyncio.open_connection(sock=outer, limit=1 << 20)
        except OSError as error:
            outer.close()
            raise ConnectorFailure(
                f"the connector process cannot be started in {self._folder}: {error.strerror or error}",
                sent=False,
                retryable=True,
            ) from None
        self._reading = asyncio.create_task(self._read(reader))
        self._writer.write(messages.frame(Setup(messages.VERSION, self._targets)))
        try:
            async with asyncio.timeout(START):
                self._faults = (await asyncio.shield(self._ready)).faults
        except TimeoutError:
            raise ConnectorFailure(
                f"the connectors in {self._folder} were not imported within {START:g} s; let their modules do less",
                sent=False,
                retryable=True,
            ) from None

    async def call(
        self, what: str, target: str, args: bytes, result: bytes, key: str, timeout: float, before_dial: BeforeDial
    ) -> bytes:
        if fault := self._faults.get(target):
            raise ConnectorFailure(f"{what}: {fault}; correct it and restart the node", sent=False, retryable=False)
        try:
            async with asyncio.timeout(timeout):
                await self._places.acquire()
        except TimeoutError:
            raise ConnectorFailure(
                f"{what}: {MAX_IN_FLIGHT} calls were under way for {timeout:g} s",
                sent=False,
                retryable=True,
                timeout=True,
            ) from None
        try:
            pending = self._send(what, target, args, result, key, timeout, before_dial)
        except BaseException:
            self._places.release()
            raise
        pending.future.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.shield(pending.future)
        except asyncio.CancelledError:
            if not pending.future.done():
                # Nobody waits any more; its time-out still holds.
                pending.future.add_done_callback(_forget)
                self._say(Cancel(pending.number))
            raise

    def _send(
        self, what: str, target: str, args: bytes, result: bytes, key: str, timeout: float, before_dial: BeforeDial
    ) -> _Pending:
        if not self.usable:
            raise ConnectorFailure(f"{what}: the connector process has ended", sent=False, retryable=True)
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        dial = min(self._dial, timeout)
        dial_by = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 + int(dial * 1_000_000)
        try:
            data = messages.frame(Invoke(number, target, args, key, dial_by, result))
        except ProtocolError as error:
            raise ConnectorFailure(f"{what}: {error}", sent=False, retryable=False) from None
        before_dial(dial)
        assert self._writer is not None
        self._writer.write(data)
        pending = self._calls[number] = _Pending(number, what, timeout, loop.create_future())
        pending.timer = loop.call_later(timeout, self._overdue, number)
        return pending

    def _say(self, message: messages.ToHost) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(messages.frame(message))

    def _overdue(self, number: int) -> None:
        pending = self._calls[number]
        pending.overdue = True
        self._say(Cancel(number))
        pending.timer = asyncio.get_running_loop().call_later(self._grace, self._hung, number)

    def _hung(self, number: int) -> None:
        what = self._calls[number].what
        log.warning("connector %s hung: its process %d is ended", what, self.pid)
        self.end(f"{what} hung in it", retryable=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = ""
        try:
            while (message := await messages.read(reader, messages.node_decoder)) is not None:
                self._take(message)
        except ProtocolError as error:
            reason = str(error)
        await self._gone(reason)

    def _take(self, message: messages.FromHost) -> None:
        if isinstance(message, Ready):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)
            return
        if isinstance(message, Stuck):
            # A call whose caller left goes on until its time is up; an overdue one takes its process with it.
            if (pending := self._calls.get(message.id)) is not None and pending.overdue:
                self._hung(message.id)
            return
        pending = self._calls.pop(message.id, None)
        if pending is None:
            return
        if pending.timer is not None:
            pending.timer.cancel()
        if isinstance(message, Result):
            _settle(pending, message.value)
        else:
            _settle(pending, self._failure(pending, message))

    def _failure(self, pending: _Pending, message: Failure) -> ConnectorFailure:
        if message.trace:
            log.warning("connector %s raised at %s", pending.what, message.trace)
        if message.timeout:
            return _timed_out(pending, sent=message.sent)
        return ConnectorFailure(
            f"{pending.what}: {message.message}", sent=message.sent, retryable=message.retryable, answered=True
        )

    def end(self, reason: str, *, retryable: bool) -> None:
        """End the process and its children now; calls in flight are lost."""
        if self._end is None:
            self._end = (reason, retryable)
        self.signal(signal.SIGKILL)
        self._lose()

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    async def _gone(self, reason: str) -> None:
        """The socket closed: say how the process ended, and end what is left of it."""
        assert self._child is not None
        assert self._writer is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._child.wait()
        status = self._child.returncode
        if not reason:
            reason = f"it ended with {_status(status)}" if status is not None else "it closed its channel"
        self.end(reason, retryable=True)
        self._writer.close()
        await self._child.wait()

    def _lose(self) -> None:
        assert self._end is not None
        reason, retryable = self._end
        calls, self._calls = self._calls, {}
        for pending in calls.values():
            if pending.timer is not None:
                pending.timer.cancel()
            if pending.overdue:
                _settle(pending, _timed_out(pending))
                continue
            message = f"{pending.what}: the connector process was lost ({reason}); what the call did is not known"
            _settle(pending, ConnectorFailure(message, sent=True, retryable=retryable))
        if self._ready is not None and not self._ready.done():
            text = f"the connector process in {self._folder} did not start ({reason})"
            self._ready.set_exception(ConnectorFailure(text, sent=False, retryable=retryable))
            self._ready.add_done_callback(_forget)

    async def close(self) -> None:
        """End it: politely when it is idle."""
        if self._end is None:
            self._end = ("the node is closing", True)
        if self._writer is not None and not self._calls:
            self._writer.write_eof()
        else:
            self.end("the node is closing", retryable=True)
        if self._reading is not None:
            done, _ = await asyncio.wait({self._reading}, timeout=GRACE)
            if not done:
                self.signal(signal.SIGKILL)
                await self._reading


def _settle(pending: _Pending, outcome: bytes | ConnectorFailure) -> None:
    if pending.future.done():
        return
    if isinstance(outcome, bytes):
        pending.future.set_result(outcome)
    else:
        pending.future.set_exception(outcome)


def _timed_out(pending: _Pending, *, sent: bool = True) -> ConnectorFailure:
    return ConnectorFailure(
        f"{pending.what} did not answer within {pending.timeout:g} s", sent=sent, retryable=True, timeout=True
    )


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that works in another folder: relative module paths still lead to the same
    place."""
    own = dict(env)
    if paths := own.get("PYTHONPATH"):
        own["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    return own
