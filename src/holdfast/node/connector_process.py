"""One connector process, from its start to its end, and the calls in flight in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import ProtocolError
from holdfast.node import connector_messages as messages
from holdfast.node.connector_messages import Cancel, Failure, Invoke, Ready, Result, Setup, Stuck
from holdfast.sandbox import procs, registry
from holdfast.sandbox.base import Label

MAX_IN_FLIGHT = 64
"""Calls at once in one process. Further ones wait their turn, unsent."""
START = 60.0
"""Seconds in which a process has to have imported its callables."""
GRACE = 1.0
"""Seconds that a process has to give up an overdue call, or to end when it is closed."""

BeforeDial = Callable[[float], None]

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


class _Pending:
    def __init__(self, number: int, what: str, timeout: float, future: asyncio.Future[bytes]) -> None:
        self.number = number
        self.what = what
        self.timeout = timeout
        self.future = future
        self.timer: asyncio.TimerHandle | None = None
        self.overdue = False


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Whose process it is, where it works, and in which home it is registered (None: in none)."""

    tenant: str
    folder: str
    home: Path | None


class ConnectorProcess:
    """One connector process, from start to end."""

    def __init__(self, origin: Origin, targets: Iterable[str], dial: float, grace: float) -> None:
        self._origin = origin
        self._targets = tuple(dict.fromkeys(targets))
        self._dial = dial
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Pending] = {}
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._faults: dict[str, str] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._closed = False
        self._end: tuple[str, bool] | None = None
        self._entry = f"connectors-{secrets.token_hex(8)}"

    @property
    def usable(self) -> bool:
        return not self._closed and self._end is None and self._child is not None and self._child.returncode is None

    @property
    def ready(self) -> bool:
        """Whether calls may be sent: its start is over."""
        return self.usable and self._ready.done()

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    async def start(self, env: Mapping[str, str], output: int) -> None:
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
                    cwd=self._origin.folder,
                    env={**env, registry.MARKER: self._entry},
                    # Not the terminal's: an interrupt there is the node's to handle. A kill ends the whole group.
                    start_new_session=True,
                )
            self._register()
            if self._end is not None:
                self.signal(signal.SIGKILL)
            reader, self._writer = await asyncio.open_connection(sock=outer, limit=1 << 20)
        except OSError as error:
            outer.close()
            raise ConnectorFailure(
                f"the connector process cannot be started in {self._origin.folder}: {error.strerror or error}",
                sent=False,
                retryable=True,
            ) from None
        self._reading = asyncio.create_task(self._read(reader))
        self._writer.write(messages.frame(Setup(messages.VERSION, self._targets)))
        try:
            async with asyncio.timeout(START):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise ConnectorFailure(
                f"the connectors in {self._origin.folder} were not imported within {START:g} s; import less",
                sent=False,
                retryable=True,
            ) from None

    def _register(self) -> None:
        """Let a kill find this process even when its node does not answer.

        Raises:
            OSError: the registry cannot be written: what cannot be killed does not run.
        """
        assert self._child is not None
        node, outer = procs.identify(os.getpid()), procs.identify(self._child.pid)
        if self._origin.home is None or node is None or outer is None:
            return
        entry = registry.Entry(
            id=self._entry,
            level="process",
            label=Label(tenant=self._origin.tenant),
            node=node,
            outer=outer,
            boot=procs.boot_id(),
            pid_namespace=procs.pid_namespace(),
        )
        registry.write(self._origin.home, entry)

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
        number = next(self._numbers)
        dial = min(self._dial, timeout)
        dial_by = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 + int(dial * 1_000_000)
        try:
            data = messages.frame(Invoke(number, target, args, key, dial_by, result))
        except ProtocolError as error:
            raise ConnectorFailure(f"{what}: {error}", sent=False, retryable=False) from None
        before_dial(dial)
        try:
            assert self._writer is not None
            self._writer.write(data)
        except (OSError, RuntimeError):  # what uvloop raises for a closed transport
            raise ConnectorFailure(f"{what}: the connector process has ended", sent=False, retryable=True) from None
        pending = self._calls[number] = _Pending(number, what, timeout, self._loop.create_future())
        pending.timer = self._loop.call_later(timeout, self._overdue, number)
        return pending

    def _say(self, message: messages.ToHost) -> None:
        if self._writer is not None and not self._closed:
            with contextlib.suppress(OSError, RuntimeError):  # it ended: its calls are lost in a moment
                self._writer.write(messages.frame(message))

    def _overdue(self, number: int) -> None:
        pending = self._calls[number]
        pending.overdue = True
        self._say(Cancel(number))
        pending.timer = self._loop.call_later(self._grace, self._hung, number)

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
        self._closed = True
        await self._gone(reason)

    def _take(self, message: messages.FromHost) -> None:
        if isinstance(message, Ready):
            if not self._ready.done():
                self._faults = message.faults
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
        """End the process and its children now, from any thread; calls in flight are lost."""
        if self._end is None:
            self._end = (reason, retryable)
        self.signal(signal.SIGKILL)
        if threading.get_ident() == self._thread:
            self._lose()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                self._loop.call_soon_threadsafe(self._lose)

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
        home = self._origin.home
        killed = home is not None and registry.was_killed(home, self._entry)
        self.end("it was killed" if killed else reason, retryable=not killed)
        self._writer.close()
        await self._child.wait()
        if home is not None:
            with contextlib.suppress(OSError):
                registry.forget(home, self._entry)

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
        if not self._ready.done():
            text = f"the connector process in {self._origin.folder} did not start ({reason})"
            self._ready.set_exception(ConnectorFailure(text, sent=False, retryable=retryable))
            self._ready.add_done_callback(_forget)

    async def close(self) -> None:
        """End it: politely when it is idle."""
        if self._end is None and self._writer is not None and not self._closed and not self._calls:
            self._end = ("the node is closing", True)
            with contextlib.suppress(OSError, RuntimeError):  # it ended this very moment
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
