"""The process in which one tenant's connectors run: imports the operator's callables and calls them on the node's word.

Started as ``python -P -m holdfast.node.connector_host FD NODE_PID`` by :mod:`holdfast.node.connectors` in the folder
of the settings file. It ends with the node: by the kernel's parent-death signal, whatever the callables are doing,
and when the socket closes. Plain callables run in threads, ``async def`` ones in the event loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import importlib
import importlib.util
import inspect
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast import values
from holdfast.errors import PayloadError, ProtocolError
from holdfast.node import connector_messages as messages
from holdfast.node.connector_messages import Cancel, Failure, Invoke, Ready, Result, Setup, Stuck

MAX_IN_FLIGHT = 64
"""Calls at once in one process; the node sends no more."""
MAX_MESSAGE = 2000
"""Characters of an exception's message that reach the run."""
KEY = "idempotency_key"

_PR_SET_PDEATHSIG = 1


class Target:
    """A callable and what it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose call is async, not "is it callable"
        )
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):
            self._signature = None

    def arguments(self, call: Invoke) -> dict[str, Any]:
        """The keyword arguments of a call.

        Raises:
            TypeError: the callable does not take them.
        """
        given: dict[str, Any] = values.load(call.args)
        signature = self._signature
        if signature is None:
            return given
        names = {
            name
            for name, one in signature.parameters.items()
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        }
        if call.result:
            whole = {"args": given, "result": values.load(call.result), **given}
            takes_all = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
            given = {name: value for name, value in whole.items() if takes_all or name in names}
        if KEY in names:
            given = {**given, KEY: call.key}
        signature.bind(**given)
        return given


class Host:
    """Serves one node over one socket."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._targets: dict[str, Target] = {}
        self._threads = ThreadPoolExecutor(MAX_IN_FLIGHT, "connector")
        self._running: dict[int, asyncio.Task[Result | Failure] | None] = {}
        self._entered: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._running)

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer until the node closes the socket.

        Raises:
            ProtocolError: the node broke the protocol.
        """
        while (message := await messages.read(reader, messages.host_decoder)) is not None:
            if isinstance(message, Invoke):
                task = self._running[message.id] = asyncio.create_task(self._call(message))
                task.add_done_callback(functools.partial(self._answer, message.id))
            elif isinstance(message, Cancel):
                self._cancel(message.id)
            elif message.version == messages.VERSION:
                self._send(Ready(messages.VERSION, self._load(message)))
            else:
                raise ProtocolError(f"the node speaks version {message.version}, not {messages.VERSION}")

    def _send(self, message: messages.FromHost) -> None:
        self._writer.write(messages.frame(message))

    def _load(self, setup: Setup) -> dict[str, str]:
        faults, modules = {}, {}
        for target in setup.targets:
            place, _, name = target.rpartition(":")
            try:
                if place not in modules:
                    modules[place] = import_place(place)
                function = getattr(modules[place], name, None)
            except BaseException as error:  # noqa: BLE001 - whatever importing the operator's file raises is told
                faults[target] = f"{place} cannot be imported: {describe(error)}"
                continue
            if callable(function):
                self._targets[target] = Target(function)
            else:
                faults[target] = f"{place} has no function {name}"
        return faults

    def _answer(self, number: int, task: asyncio.Task[Result | Failure]) -> None:
        del self._running[number]
        if task.cancelled():
            # A task that is cancelled before its first step never runs: only here can it still be answered.
            entered = number in self._entered
            answer: Result | Failure = Failure(number, "was cancelled", sent=entered, retryable=True, timeout=True)
        else:
            answer = task.result()
        self._entered.discard(number)
        try:
            self._send(answer)
        except ProtocolError as error:
            self._send(Failure(number, str(error), sent=True))

    async def _call(self, call: Invoke) -> Result | Failure:
        target = self._targets.get(call.target)
        if target is None:
            return Failure(call.id, "is not of this process; restart the node", sent=False)
        try:
            given = target.arguments(call)
        except TypeError as error:
            return Failure(call.id, f"TypeError: {error}", sent=False)
        if target.is_async:
            if late(call):
                return too_late(call)
            self._entered.add(call.id)
            try:
                return finished(call, await target.function(**given))
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever the operator's code raises is its outcome
                return failed(call, error)
        # From here on the call cannot be cancelled, only its process ended.
        self._running[call.id] = None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, run, target.function, given, call)

    def _cancel(self, number: int) -> None:
        if number not in self._running:
            return
        task = self._running[number]
        if task is None:
            self._send(Stuck(number))
        else:
            task.cancel()


def run(function: Callable[..., Any], given: dict[str, Any], call: Invoke) -> Result | Failure:
    """One plain call, in a thread."""
    if late(call):
        return too_late(call)
    try:
        return finished(call, function(**given))
    except BaseException as error:  # noqa: BLE001 - whatever the operator's code raises is its outcome
        return failed(call, error)


def late(call: Invoke) -> bool:
    """Whether the node's right to send has run out: it was stopped between its check and the start of the call."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 > call.dial_by


def too_late(call: Invoke) -> Failure:
    """The failure of a call that did not start."""
    return Failure(call.id, "did not start in time", sent=False, retryable=True)


def finished(call: Invoke, value: Any) -> Result | Failure:
    """The outcome of a callable that returned."""
    try:
        return Result(call.id, values.dump(value, "its result"))
    except PayloadError as error:
        return Failure(call.id, f"returned what cannot be recorded: {error}", sent=True)


def failed(call: Invoke, error: BaseException) -> Failure:
    """The outcome of a callable that raised. One with ``retryable = False`` is not tried again."""
    places = [f"{place.filename}:{place.lineno} in {place.name}" for place in traceback.extract_tb(error.__traceback__)]
    inner = [place for place in places if not place.startswith(f"{__file__}:")]
    return Failure(
        call.id,
        describe(error),
        sent=True,
        retryable=getattr(error, "retryable", True) is not False,
        trace=" < ".join(reversed(inner)),
    )


def describe(error: BaseException) -> str:
    """An exception's type and message, bounded."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception whose message raises has none
        text = ""
    name = type(error).__name__
    return f"{name}: {text[:MAX_MESSAGE]}" if text else name


def import_place(place: str) -> ModuleType:
    """A module by dotted name or by path of its file.

    Raises:
        BaseException: whatever importing raises.
    """
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).absolute()
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is not a Python file")
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    if name in sys.modules:
        name = f"{name}@{path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def end_with(parent: int) -> None:
    """Have the kernel end this process with the node, even when the node is killed with -9 (prctl(2),
    PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        os._exit(1)


async def serve(channel: socket.socket) -> bool:
    """Serve the node at the other end; True when calls are left that cannot be ended."""
    reader, writer = await asyncio.open_connection(sock=channel, limit=1 << 20)
    host = Host(writer)
    await host.serve(reader)
    return host.busy


def main() -> None:
    """Entry of the process."""
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    end_with(parent)
    os.set_inheritable(channel.fileno(), False)
    sys.argv = ["holdfast-connectors"]
    sys.path.insert(0, os.getcwd())
    try:
        busy = asyncio.run(serve(channel))
    except ProtocolError:
        os._exit(3)
    if busy:
        # A thread that hangs would keep the interpreter from ending.
        os._exit(0)


if __name__ == "__main__":
    main()
