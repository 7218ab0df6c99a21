"""A node's end of the channel, scripted: drives the real worker process without a journal, a gate or a sandbox.

For tests of author code and of the worker itself. Step ids are derived as the node derives them; what each call answers
comes from a table, and every result is kept, so that a second broker can replay the first one's run.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from holdfast import wire
from holdfast.errors import ProtocolError
from holdfast.values import dump, load

PATIENCE = 60.0
"""Seconds without a message from the worker after which a test gives up."""


class Failure:
    """An answer that is an error."""

    def __init__(self, code: str, message: str, rule: str = "") -> None:
        self.code = code
        self.message = message
        self.rule = rule


class Later:
    """No answer yet; with ``park`` the worker is told that the call waits for someone. See :meth:`Broker.answer`."""

    def __init__(self, *, park: bool = False) -> None:
        self.park = park


class Streamed:
    """A model's answer in pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces


class Raw(bytes):
    """Bytes of an artefact, sent as they are."""


Script = Callable[["Broker", str, Any], Any]
"""Called with the broker, the step id and the message; returns an answer."""


class Broker:
    """One worker process and what it said.

    Args:
        root: folder of the author's code.
        target: ``file.py:Class`` or ``module:Class`` below it.
        answers: by step id, or by name (``llm.classify``, ``approve``, a connector's name): a JSON value, a
            :class:`Failure`, :class:`Later`, :class:`Streamed`, :class:`Raw`, or a :data:`Script` that returns one.
        recorded: results by step id, of an earlier run: these are replayed.
    """

    def __init__(
        self,
        root: Path,
        target: str,
        *,
        input: Any = None,
        workflow: str = "",
        answers: Mapping[str, Any] | None = None,
        recorded: Mapping[str, Any] | None = None,
        settings: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        begin: bool = True,
    ) -> None:
        self.root = root
        self.answers = dict(answers or {})
        self.recorded: dict[str, Any] = dict(recorded or {})
        """Step id to the bytes of its result, or its Failure."""
        self.messages: list[wire.FromWorker] = []
        """Everything that the worker said, in order."""
        self.ids: dict[int, str] = {}
        """Number of each call to its step id."""
        self.values: dict[str, Any] = {}
        """Step id to what it was called with."""
        self.logs: list[wire.Log] = []
        self.idle: list[tuple[int, ...]] = []
        self.done: Any = None
        self.failed: wire.Failed | None = None
        self.loaded: wire.Loaded | None = None
        self.continued: Any = None
        self.on_idle: Callable[[Broker], None] | None = None
        """Called when the worker says Idle."""
        self._counts: dict[tuple[str, str], int] = {}
        self._paths: dict[int, str] = {0: ""}
        self._calls: dict[int, wire.Call] = {}
        self._attempts: dict[int, int] = {}
        self._credit: dict[int, int] = {}
        self._pieces: dict[int, list[str]] = {}
        self._numbers = 0
        self._begin = wire.Begin(
            wire.VERSION, "run-1", "default", str(root), target, workflow, wire.Value(), dict(settings or {})
        )
        self._input = dump(input)
        self._wait_for_ready = begin
        self._deframer = wire.Deframer()
        self._bodies: deque[bytes] = deque()
        self._blobs = wire.BlobReader(64 << 20)
        self.outer, inner = socket.socketpair()
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            # As a boundary has it: the order of a set must not differ between two incarnations.
            "PYTHONHASHSEED": "0",
            "HOLDFAST_CHANNEL": str(inner.fileno()),
            **(env or {}),
        }
        with inner:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.agent.worker"],
                env=environment,
                cwd=root,
                pass_fds=(inner.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.outer.close()
        self.process.kill()
        self.process.communicate()

    # sending

    def send(self, message: wire.FromNode) -> None:
        """Say anything, lies included."""
        self.outer.sendall(wire.frame(message))

    def _value(self, data: bytes) -> wire.Value:
        self._numbers += 1
        parts, value = wire.pack(data, self._numbers)
        for part in parts:
            self.send(part)
        return value

    def answer(self, number: int, answer: Any, *, replayed: bool = False) -> None:
        """Answer a call; keeps the answer for a replay."""
        id_ = self.ids[number]
        if isinstance(answer, Later):
            if answer.park:
                self.send(wire.Parked(number))
            return
        if isinstance(answer, Failure):
            self.recorded[id_] = answer
            self.send(wire.Fault(number, answer.code, answer.message, answer.rule))
            return
        if isinstance(answer, Streamed):
            self._pieces[number] = list(answer.pieces)
            self._credit[number] = wire.WINDOW
            self._flow(number)
            return
        data = bytes(answer) if isinstance(answer, Raw) else dump(answer)
        self.recorded[id_] = data
        self.send(wire.Reply(number, self._value(data), replayed))

    def _flow(self, number: int) -> None:
        pieces = self._pieces[number]
        while pieces and self._credit[number]:
            self._credit[number] -= 1
            piece = pieces.pop(0)
            self.recorded[f"text:{number}"] = self.recorded.get(f"text:{number}", "") + piece
            self.send(wire.Chunk(number, piece))
        if not pieces:
            del self._pieces[number]
            self.answer(number, model(self.recorded.pop(f"text:{number}", "")))

    # the loop

    def run(self) -> Broker:
        """Serve the worker until it said Done or Failed, or continues as new.

        Raises:
            ProtocolError: it broke the protocol, or ended without a word.
        """
        while self.done is None and self.failed is None and self.continued is None:
            self.step()
        return self

    def step(self) -> wire.FromWorker:
        """Serve one message."""
        message = self.receive()
        self.serve(message)
        return message

    def until(self, kind: type, count: int = 1) -> wire.FromWorker:
        """Serve messages until the ``count``-th of a kind; returns it."""
        while True:
            message = self.step()
            if isinstance(message, kind):
                count -= 1
                if not count:
                    return message

    def receive(self) -> wire.FromWorker:
        """The next message, blobs aside; not served yet."""
        while True:
            while self._bodies:
                message = wire.decode(wire.worker_decoder, self._bodies.popleft())
                if isinstance(message, wire.Blob):
                    self._blobs.add(message)
                    continue
                self.messages.append(message)
                return message
            ready, _, _ = select.select([self.outer], [], [], PATIENCE)
            data = self.outer.recv(1 << 20) if ready else b""
            if not data:
                self.process.kill()
                said = self.process.communicate()[0].decode(errors="replace")
                why = "ended without a word" if ready else f"said nothing for {PATIENCE:g} s"
                raise ProtocolError(f"the worker {why}; it printed: {said[-4000:]}")
            self._deframer.feed(data)
            self._bodies.extend(self._deframer)

    def quiet(self, seconds: float) -> bool:
        """Whether nothing came from the worker for so long."""
        return not self._bodies and not select.select([self.outer], [], [], seconds)[0]

    def serve(self, message: wire.FromWorker) -> None:
        """Do what a node does with a message."""
        kind = type(message)
        if isinstance(message, wire.Ready):
            if self._wait_for_ready:
                self.begin()
        elif isinstance(message, wire.Loaded):
            self.loaded = message
        elif isinstance(message, wire.Branch):
            self._paths[message.id] = self._below(message.scope, f"gather.{message.group}.{message.index}")
        elif isinstance(message, wire.Log):
            self.logs.append(message)
        elif isinstance(message, wire.Idle):
            self.idle.append(message.waiting)
            if self.on_idle is not None:
                self.on_idle(self)
        elif isinstance(message, wire.Credit):
            self._credit[message.id] += message.count
            if message.id in self._pieces:
                self._flow(message.id)
        elif isinstance(message, wire.Done):
            self.done = (load(self._blobs.take(message.value)),)
        elif isinstance(message, wire.Failed):
            self.failed = message
        elif isinstance(message, wire.Continue):
            self.continued = (load(self._blobs.take(message.input)),)
        elif isinstance(message, wire.Close):
            self._close(message)
        elif kind in _NAMES:
            self._call(message)

    def begin(self) -> None:
        """Tell the worker what to run."""
        fields = {name: getattr(self._begin, name) for name in self._begin.__struct_fields__}
        self.send(wire.Begin(**{**fields, "input": self._value(self._input)}))

    def _below(self, scope: int, name: str) -> str:
        path = self._paths[scope]
        return f"{path}/{name}" if path else name

    def _call(self, message: Any) -> None:
        name = _NAMES[type(message)](message)
        path = self._paths[message.scope]
        count = self._counts[path, name] = self._counts.get((path, name), 0) + 1
        id_ = self._below(message.scope, f"{name}.{count}")
        self.ids[message.id] = id_
        held = _VALUES.get(type(message))
        if held is not None:
            data = self._blobs.take(getattr(message, held))
            raw = isinstance(message, wire.File) or not data
            self.values[id_] = data if raw else load(data)
        recorded = self.recorded.get(id_)
        if recorded is not None:
            self.answer(message.id, Raw(recorded) if isinstance(recorded, bytes) else recorded, replayed=True)
            return
        answer = self.answers.get(id_, self.answers.get(name, _DEFAULTS.get(type(message), "")))
        if callable(answer):
            answer = answer(self, id_, message)
        if isinstance(message, wire.Call):
            if isinstance(answer, Failure | Later):
                self.answer(message.id, answer)
                return
            self._paths[message.id] = id_
            self._calls[message.id] = message
            self._go(message.id)
            return
        self.answer(message.id, answer)

    def _go(self, number: int) -> None:
        attempt = self._attempts[number] = self._attempts.get(number, 0) + 1
        for path, name in list(self._counts):
            if path == self.ids[number]:
                del self._counts[path, name]
        self.send(wire.Go(number, attempt, f"key-{self.ids[number]}"))

    def _close(self, message: wire.Close) -> None:
        id_ = self.ids[message.id]
        if not message.error:
            self.recorded[id_] = self._blobs.take(message.value)
        elif self._attempts[message.id] < self._calls[message.id].retry.attempts and not message.code:
            self._go(message.id)
        else:
            text = f"{id_}: {message.error}: {message.message}"
            self.answer(message.id, Failure(message.code or "step_failed", text, message.rule))

    # what tests ask

    def of(self, kind: type) -> list[Any]:
        """The worker's messages of one kind."""
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def output(self) -> Any:
        """What the workflow returned.

        Raises:
            AssertionError: it did not return; the message is its failure.
        """
        assert self.done is not None, self.failed
        return self.done[0]

    def finish(self) -> int:
        """Close the channel and wait for the process; its exit status."""
        self.outer.close()
        return self.process.wait(PATIENCE)


def model(text: str = "", value: Any = None) -> dict[str, Any]:
    """The reply to a model call."""
    usage = {"input": 1, "output": 1, "cache_read": 0, "cache_write": 0, "reported": True}
    return {"text": text, "model": "scripted", "usage": usage, "value": value, "stop_reason": "", "request_id": ""}


_NAMES: dict[type, Callable[[Any], str]] = {
    wire.Call: lambda m: str(m.name),
    wire.Llm: lambda m: f"llm.{m.operation}",
    wire.Tool: lambda m: str(m.name),
    wire.Approve: lambda m: "approve",
    wire.Ask: lambda m: "ask",
    wire.Signal: lambda m: f"signal.{m.name}",
    wire.WaitSignal: lambda m: f"wait_signal.{m.name}",
    wire.Sleep: lambda m: "sleep",
    wire.Sample: lambda m: f"patch.{m.name}" if m.what == "patch" else str(m.what),
    wire.Spawn: lambda m: "spawn",
    wire.Join: lambda m: "join",
    wire.Memory: lambda m: f"memory.{m.operation}",
    wire.File: lambda m: f"file.{m.operation}",
    wire.Balance: lambda m: "balance",
    wire.Compensate: lambda m: "compensate",
}
_VALUES: dict[type, str] = {
    wire.Call: "args",
    wire.Llm: "request",
    wire.Tool: "args",
    wire.Approve: "what",
    wire.Ask: "question",
    wire.Signal: "data",
    wire.Spawn: "input",
    wire.Memory: "value",
    wire.File: "data",
}
_DEFAULTS: dict[type, Any] = {
    wire.Approve: {"approved": True, "by": ["alice"], "reason": "", "state": "approved"},
    wire.Signal: True,
    wire.Sleep: None,
    wire.Sample: lambda broker, id_, message: {
        "now": 1_700_000_000_000_000,
        "random": 42,
        "uuid": "0b0cf3a1-9a51-4a2e-8f3e-2b8a8d7a6c11",
        "patch": message.highest,
    }[message.what],
    wire.Spawn: lambda broker, id_, message: f"child-{id_}",
    wire.Balance: {"usd_nano": None, "tokens": None},
    wire.Compensate: [],
}
