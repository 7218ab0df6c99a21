"""One worker process of a run: its channel, its scopes, and who handles which message.

Every message is checked against what the worker may say at that point; a worker that breaks the protocol loses its
process and nothing else. What its calls do is in the modules that ``HANDLERS`` names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from holdfast import wire
from holdfast.action import Action, Outcome
from holdfast.errors import DeniedError, DivergenceError, HoldfastError, ProtocolError, StepError, StoreError
from holdfast.gate import Fenced, Passage
from holdfast.journal.event import Kind, Witness
from holdfast.journal.fold import Record
from holdfast.log import Log
from holdfast.node.channel import Channel
from holdfast.node.run import Place, Run, Stop
from holdfast.node.scope import Scope, clean
from holdfast.values import digest

log = Log(__name__)
HOLD_AT = 512
"""Open calls above which the worker is not listened to until some are answered."""
MAX_LOG = 16 << 10
"""Bytes of one line of the author's log that are kept."""


class WayOut(Protocol):
    """A process's connections to the egress proxy."""

    def settings(self, level: str) -> dict[str, str]:
        """What the worker is told of it."""

    def close(self) -> None:
        """End them all."""


class Incarnation:
    """A worker, seen from the node."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.number = number
        self.channel: Channel | None = None
        self.way: WayOut | None = None
        """The process's way to the egress proxy (:mod:`holdfast.node.egress`)."""
        self.scopes: dict[int, Scope] = {0: Scope()}
        self.places: dict[int, Place] = {}
        """Calls that are open, by their number on the wire."""
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.bodies: dict[int, Any] = {}
        """Steps whose body runs inside (:mod:`holdfast.node.steps`)."""
        self.streams: dict[int, Any] = {}
        """Model streams under way (:mod:`holdfast.node.models`)."""
        self.leaving = False
        """Whether the process is about to be let go: what it still does counts for nothing."""
        self.ready: asyncio.Future[wire.Ready] = asyncio.get_running_loop().create_future()
        self.loaded: asyncio.Future[wire.Loaded] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[wire.Done | wire.Failed | wire.Continue | ProtocolError | None] = (
            asyncio.get_running_loop().create_future()
        )
        """How the worker's side ended: by a word, by a broken protocol, or silently."""
        self.workspace: Callable[[], int] | None = None
        """Gives a descriptor of the boundary's workspace (:meth:`holdfast.sandbox.base.Boundary.workspace`)."""
        self.idle = asyncio.Event()
        """Set while every branch waits for something parked."""
        self.effects: dict[str, tuple[str, str]] = {}
        self.patches: dict[str, bytes] = {}
        """Versions that this incarnation was told, by the patch's name (:mod:`holdfast.node.keep`)."""
        self._parked_calls: set[int] = set()
        self._idle_calls: tuple[int, ...] = ()
        self._last = 0
        finished = [run.state.records[id_].finished for id_ in run.state.children.get("", {}).values()]
        self._unserved = sum(finished)
        run.on_parked = self._parked

    # the channel

    def on_message(self, message: wire.FromWorker) -> None:
        """A message came. Raises ProtocolError when the worker may not say this now."""
        if self.leaving or self.ended.done() or self.run.stop.done():
            return
        self.idle.clear()
        handler = HANDLERS.get(type(message)) or _OWN.get(type(message))
        if handler is None:
            raise ProtocolError(f"{wire.describe(message)} is not for a worker to say")
        if type(message) is not wire.Ready and not self.ready.done():
            raise ProtocolError("the first message must be ready")
        try:
            handler(self, message)
        except DivergenceError as error:
            self.broken(error)

    def on_end(self, fault: ProtocolError | None) -> None:
        """The channel is gone."""
        if not self.ended.done():
            self.ended.set_result(fault)

    def send(self, message: wire.FromNode) -> None:
        """Send to the worker."""
        if self.channel is not None:
            self.channel.send(message)

    def value(self, value: wire.Value) -> bytes:
        """The bytes of a value that came along.

        Raises:
            ProtocolError: it names a blob that did not arrive.
        """
        assert self.channel is not None
        return self.channel.value(value)

    def close(self) -> None:
        """Stop answering; cancel what is under way."""
        for task in list(self.tasks.values()):
            task.cancel()
        for body in self.bodies.values():
            body.stop()
        if self.channel is not None:
            self.channel.close()
        if self.way is not None:
            self.way.close()

    # calls

    def place(self, number: int, scope: int, kind: str, name: str, sha: str) -> tuple[Place, Record | None]:
        """Open a call: its id, and what the journal holds of it.

        Raises:
            ProtocolError: the number or the scope is not one that the worker may use.
            DivergenceError: the journal holds another call at this place.
        """
        self.claim(number)
        enclosing = self.scopes.get(scope)
        if enclosing is None:
            raise ProtocolError(f"call {number} names scope {scope}, which is not open")
        id_, at = enclosing.next(clean(name))
        place = Place(id_, enclosing.path, at, kind=kind, name=name, digest=sha)
        expected = self.run.state.children.get(enclosing.path, {}).get(at)
        record = self.run.state.records.get(id_)
        if expected is None and record is None:
            self.places[number] = place
            return place, None
        if expected != id_ or record is None or (record.action.kind, record.action.digest) != (kind, sha):
            self._diverge(id_, kind, expected or id_)
        self.places[number] = place
        return place, record

    def claim(self, number: int) -> None:
        """A number for a call or a branch: higher than any before it.

        Raises:
            ProtocolError: it is not, or too many calls are open.
        """
        if number <= self._last:
            raise ProtocolError(f"call {number} comes after call {self._last}; numbers must rise")
        if len(self.places) >= wire.MAX_OPEN_CALLS:
            raise ProtocolError(f"more than {wire.MAX_OPEN_CALLS} calls are open")
        self._last = number

    def _diverge(self, found: str, kind: str, expected: str) -> None:
        record = self.run.state.records.get(expected)
        held = f"{expected} ({record.action.kind})" if record else expected
        why = " with other arguments" if expected == found and record and record.action.kind == kind else ""
        raise DivergenceError(
            f"the code asked for {found} ({kind}){why} where the journal holds {held}; "
            "make the change with ctx.patched, or restore the code and resume, or end it with `runs resolve --fail`"
        )

    def start(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        """Work on a call in a task of its own; its errors become the call's fault, or end the run."""
        task = asyncio.get_running_loop().create_task(self._guard(number, work))
        self.tasks[number] = task
        assert self.channel is not None
        if len(self.tasks) - len(self._parked_calls) >= HOLD_AT:
            self.channel.hold(True)

    def _listen(self) -> None:
        # Parked calls do not count: a worker that is not read could never say that it is idle.
        if len(self.tasks) - len(self._parked_calls) < HOLD_AT // 2 and self.channel is not None:
            self.channel.hold(False)

    async def _guard(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        run = self.run
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Stop as stop:
            run.end(stop)
        except (ProtocolError, DivergenceError) as error:
            self.broken(error)
        except (Fenced, StoreError) as error:
            run.failed(error)
        except HoldfastError as error:
            self._refused(number, error)
        except Exception as error:
            run.failed(HoldfastError(f"the node failed at call {number}: {type(error).__name__}"))
            log.exception("call failed", run=run.state.run, call=number)
        finally:
            self.tasks.pop(number, None)
            self._parked_calls.discard(number)
            self._listen()

    def _refused(self, number: int, error: HoldfastError) -> None:
        """A call could not be made at all. Recorded like an outcome: the code may go another way because of it."""
        place, recorder = self.places.get(number), self.run.recorder
        rule = error.rule if isinstance(error, DeniedError) else ""
        if place is not None:
            record = self.run.state.records.get(place.id)
            if record is None:
                action = Action(kind=place.kind, name=place.name, id=place.id, digest=place.digest)
                data = {"action": action, "parent": place.parent, "place": place.place}
                recorder.note(recorder.draft(Kind.SAMPLE, data))
            if record is None or not record.finished:
                fault = {"id": place.id, "status": "fault", "code": error.code, "message": str(error), "rule": rule}
                recorder.note(recorder.draft(Kind.OUTCOME, fault))
        self.fault(number, error.code, str(error), rule)

    def broken(self, error: ProtocolError | DivergenceError) -> None:
        """The worker broke the protocol, or the code does not fit its journal."""
        if isinstance(error, DivergenceError):
            self.run.end(Stop(Kind.RUN_DIVERGED, code=error.code, message=str(error)))
        else:
            self.on_end(error)

    def reply(self, number: int, data: bytes, *, replayed: bool = False) -> None:
        """Answer a call."""
        self.places.pop(number, None)
        self.idle.clear()
        assert self.channel is not None
        self.send(wire.Reply(number, self.channel.pack(data), replayed))

    def fault(self, number: int, code: str, message: str, rule: str = "") -> None:
        """Answer a call with an error."""
        self.places.pop(number, None)
        self.idle.clear()
        self.send(wire.Fault(number, code, message[:4000], rule))

    def serve(self, number: int, record: Record) -> None:
        """Answer a call from the journal."""
        if not record.parent:
            self._unserved -= 1
        if record.state == "fault":
            self.fault(number, record.code, record.message, record.rule)
            return
        if record.value is None:
            # Done in this very incarnation, and asked for again by another attempt of the step around it.
            record.value = self.run.services.store.payload(self.run.header.tenant, record.result)
        if record.value is None:
            raise StepError(f"the result of {record.id} was erased; the run cannot go on past it")
        self.reply(number, record.value, replayed=True)

    def denied(self, number: int, passage: Passage) -> None:
        """Answer a call that a policy denied."""
        verdict = passage.verdict
        reason = verdict.reason
        if verdict.outcome is Outcome.REDACT:
            reason = f"{reason} (nothing can be taken out at this gate, so it is denied)"
        self.fault(number, DeniedError.code, reason, verdict.rule)

    def _parked(self, id_: str) -> None:
        for number, place in self.places.items():
            if place.id == id_:
                self._parked_calls.add(number)
                self._listen()
                self.send(wire.Parked(number))
                return

    def prefix(self) -> tuple[dict[str, Any], ...]:
        """What streams under way have delivered so far: an intent made meanwhile may rest on it."""
        if not self.streams:
            return ()
        return tuple(stream.delivered() for stream in self.streams.values())

    @property
    def replaying(self) -> bool:
        """Whether the workflow is still being answered from the journal: what it logs now was logged before."""
        return self._unserved > 0

    def parked(self) -> bool:
        """Whether every call that the worker says it is blocked on still waits: none was answered meanwhile."""
        places = [self.places.get(number) for number in self._idle_calls]
        records = [self.run.state.records.get(place.id) if place else None for place in places]
        return bool(records) and all(record is not None and record.state == "waiting" for record in records)

    def unserved(self) -> str:
        """A call of the workflow's own that the journal holds and the code did not make; empty when there is none."""
        made = self.scopes[0].place
        left = [id_ for at, id_ in sorted(self.run.state.children.get("", {}).items()) if at >= made]
        return left[0] if left else ""

    # messages without a handler elsewhere

    def _on_ready(self, message: wire.Ready) -> None:
        if self.ready.done():
            raise ProtocolError("ready was said twice")
        if message.version != wire.VERSION:
            raise ProtocolError(f"the worker speaks version {message.version} of the wire, this node {wire.VERSION}")
        self.ready.set_result(message)

    def _on_loaded(self, message: wire.Loaded) -> None:
        if self.loaded.done():
            raise ProtocolError("loaded was said twice")
        self.effects = message.effects
        self.loaded.set_result(message)

    def _on_branch(self, message: wire.Branch) -> None:
        self.claim(message.id)
        enclosing = self.scopes.get(message.scope)
        if enclosing is None:
            raise ProtocolError(f"branch {message.id} names scope {message.scope}, which is not open")
        if len(self.scopes) >= 4 * wire.MAX_OPEN_CALLS:
            raise ProtocolError("too many scopes are open")
        self.scopes[message.id] = enclosing.branch(message.group, message.index)

    def _on_log(self, message: wire.Log) -> None:
        fields = self.value(message.fields)
        if self.replaying:
            return
        text = message.message.encode()[:MAX_LOG].decode(errors="ignore")
        payloads = {"message": text.encode()}
        if fields:
            payloads["fields"] = fields[:MAX_LOG]
        data = {"level": clean(message.level), "bytes": len(message.message)}
        self.run.recorder.note(self.run.recorder.draft(Kind.LOG, data, payloads, witness=Witness.BOUNDARY))
        self.run.services.author_log(self.run.header, message.level, text)

    def _on_idle(self, message: wire.Idle) -> None:
        self._idle_calls = message.waiting
        if self.parked():
            self.idle.set()

    def _on_cancel(self, message: wire.Cancel) -> None:
        task = self.tasks.get(message.id)
        # A call whose intent is out must be settled; only what merely waits can be let go.
        place = self.places.get(message.id)
        record = self.run.state.records.get(place.id) if place else None
        if task is not None and record is not None and record.state == "waiting":
            task.cancel()

    def _on_done(self, message: wire.Done) -> None:
        if not self.loaded.done():
            raise ProtocolError("done was said before loaded")
        self.ended.set_result(wire.Done(wire.Value(self.value(message.value))))

    def _on_failed(self, message: wire.Failed) -> None:
        self.ended.set_result(message)

    def _on_continue(self, message: wire.Continue) -> None:
        self.claim(message.id)
        if (left := self.unserved()) != "":
            raise DivergenceError(f"the code continued as new before {left}, which its journal holds; restore the code")
        self.ended.set_result(wire.Continue(message.id, wire.Value(self.value(message.input))))


Handler = Callable[[Incarnation, Any], None]

HANDLERS: dict[type, Handler] = {}
"""Message type to the function that handles it; the modules of calls fill it."""

_OWN: dict[type, Handler] = {
    wire.Ready: Incarnation._on_ready,
    wire.Loaded: Incarnation._on_loaded,
    wire.Branch: Incarnation._on_branch,
    wire.Log: Incarnation._on_log,
    wire.Idle: Incarnation._on_idle,
    wire.Cancel: Incarnation._on_cancel,
    wire.Done: Incarnation._on_done,
    wire.Failed: Incarnation._on_failed,
    wire.Continue: Incarnation._on_continue,
}


def handles(kind: type) -> Callable[[Handler], Handler]:
    """Register the handler of a message."""

    def register(function: Handler) -> Handler:
        HANDLERS[kind] = function
        return function

    return register


def call_digest(kind: str, name: str, args: bytes) -> str:
    """What an approval, and the replay, hold a call to."""
    return digest(kind, name, args)
