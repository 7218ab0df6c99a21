"""Drive one run: from the claim of its stream to its end, or until it waits and needs no process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

from holdfast import wire
from holdfast.action import Kill as StandingKill
from holdfast.errors import HoldfastError, IsolationError, PayloadError, ProtocolError, StoreError
from holdfast.gate import Control, Fenced
from holdfast.journal.base import Appended, Draft, Patch, Store, StreamState
from holdfast.journal.event import Kind
from holdfast.journal.fold import fold
from holdfast.log import Log
from holdfast.node import children, compensate, deadlines, keep, models, steps, tools, waits
from holdfast.node.anew import begin_anew
from holdfast.node.bundles import catch_up, keep_up
from holdfast.node.channel import Channel
from holdfast.node.complete import complete
from holdfast.node.deployment import materialise
from holdfast.node.finish import finish, left_open
from holdfast.node.history import history
from holdfast.node.inbox import Inbox, failing
from holdfast.node.incarnation import Incarnation
from holdfast.node.launch import root_inside
from holdfast.node.pressure import under_pressure
from holdfast.node.recorder import Recorder
from holdfast.node.run import Run, Stop, doubt, never_again
from holdfast.node.services import Services
from holdfast.sandbox.base import Boundary, Level

HANDLERS = (children, keep, models, steps, tools, waits)
"""The modules that register what a worker's messages do."""
READY_TIMEOUT = 60.0
"""Seconds within which a worker must speak and have loaded its code."""
LINGER = 2.0
"""Seconds in which a worker whose channel is gone may end by itself."""
MAX_LOSSES = 3
"""Workers that may die in a row without progress before the run fails."""
_ENDS = frozenset({Kind.RUN_KILLED, Kind.RUN_TERMINATED, Kind.RUN_DENIED, Kind.RUN_FAILED, Kind.RUN_COMPLETED})

T = TypeVar("T")
log = Log(__name__)


def killed(kill: StandingKill) -> Stop:
    """How a kill ends a run."""
    message = f"{kill.scope} {kill.name} was killed: {kill.reason}".replace("  ", " ")
    return Stop(Kind.RUN_KILLED, code="killed", message=message, rule=f"kill:{kill.id}")


class Driver:
    """One run's driver on this node."""

    def __init__(
        self,
        services: Services,
        *,
        stream: StreamState,
        epoch: int,
        level: Level,
        control: Control,
        writer: Any,
        node: str,
        grace: float,
    ) -> None:
        self._services = services
        self._stream = stream
        self._level = level
        self._grace = grace
        self._store: Store = services.store
        self._poked = asyncio.Event()
        self._inc: Incarnation | None = None
        self.boundary: Boundary | None = None
        header = stream.header
        events = history(self._store, stream)
        state = fold(events)
        recorder = Recorder(
            state, epoch=epoch, node=node, writer=writer, clock=services.clock, on_failure=self._on_failure
        )
        self.run = Run(
            header=header,
            state=state,
            recorder=recorder,
            bundle=services.bundle(state.created["bundle"]),
            control=control,
            services=services,
            isolation=level.name,
        )
        self._inbox = Inbox(self.run)
        self._adopting: asyncio.Task[None] | None = None

    # what the node calls

    def poke(self) -> None:
        """Something came into the run's inbox."""
        self._poked.set()

    def control_changed(self) -> None:
        """Kills came or went: end the run at once when one is meant for it."""
        kill = self.run.control.standing(self.run.facts({}, None, None))
        if kill is not None:
            if self.boundary is not None:
                self.boundary.kill()
            self.run.end(killed(kill))

    def mind_policies(self) -> None:
        """What policies in force change for this run holds from the next decision on."""
        if self._adopting is None or self._adopting.done():
            self._adopting = asyncio.ensure_future(keep_up(self.run, self._on_failure))

    def fence(self) -> None:
        """This node may no longer drive the run: nothing more of it leaves or lands here."""
        self._on_failure(Fenced("this node lost its lease; another one may drive the run"))

    async def drive(self) -> str:
        """Drive until the run ends, waits, or this node may no longer; gives the run's status.

        Raises:
            StoreError: nothing more can be made durable; the run can be taken up again.
        """
        run = self.run
        try:
            if run.state.final:
                return run.state.status
            if not await self._prepare():
                return run.state.status
            while await self._incarnate():
                pass
        except Stop as stop:
            await self._conclude(stop)
        except Fenced as error:
            log.warning("run let go", run=run.state.run, reason=str(error))
        finally:
            await self._end_boundary()
        return run.state.status

    def _on_failure(self, error: HoldfastError) -> None:
        if isinstance(error, PayloadError):
            self.run.end(Stop(Kind.RUN_FAILED, code=error.code, message=f"it cannot be recorded: {error}"))
            return
        if self.boundary is not None:
            self.boundary.kill()
        self.run.failed(error)

    # before a process

    async def _prepare(self) -> bool:
        """Bring the run up to date; says whether it needs a process now."""
        run, state = self.run, self.run.state
        self.control_changed()
        if run.stop.done():
            raise run.stop.result()
        # A kill whose undoing had begun ends the run even when it was lifted meanwhile.
        if state.undoing:
            raise compensate.resumed(state)
        if state.incarnation:
            await catch_up(run)
        if (late := deadlines.overdue(run)) is not None:
            raise late
        before = {record.id for record in state.waiting()}
        await self._inbox.take(self._store.inbox(state.run))
        for record in state.waiting():
            await self._inbox.expire(record)
        await self._inbox.feed()
        if state.doubt:
            return await self._rest("in_doubt")
        if state.failing:
            raise failing(state)
        if state.diverged:
            return await self._rest("suspended")
        if (stop := self._doubt()) is not None:
            raise stop
        waiting = {record.id for record in state.waiting()}
        if state.incarnation and state.status == "suspended" and waiting and waiting == before:
            return await self._rest("suspended")
        return True

    async def _rest(self, status: str) -> bool:
        """Nothing to do now: give the stream up until it is woken."""
        await self._let_go(status, deadlines.wake_at(self.run))
        return False

    async def _let_go(self, status: str, ready_at: int | None, *drafts: Draft) -> None:
        """Give the stream up. Not past a kill that came a moment ago: nobody else would end the run then.

        Raises:
            Stop: such a kill ends the run.
        """
        run = self.run
        waiting = run.state.waiting() if status == "suspended" else []
        asking = any(record.wait is not None and record.wait.approval for record in waiting)
        patch = Patch(status=status, ready_at=ready_at, set_ready=True, release=True, asking=asking)
        while True:
            generation = run.control.generation
            kill = run.control.standing(run.facts({}, None, None))
            if kill is not None:
                raise killed(kill)
            result = await run.recorder.write(*drafts, patch=patch, kill_generation=generation)
            if isinstance(result, Appended):
                return
            if result.reason != "kill":
                raise StoreError(result.message)
            run.control.refresh()

    # one process

    async def _incarnate(self) -> bool:
        """Run one worker to its end; says whether another is needed."""
        run, state = self.run, self.run.state
        await self._fetch_results()
        inc = Incarnation(run, state.incarnation + 1)
        self._inc = inc
        run.stop = asyncio.get_running_loop().create_future()
        self.control_changed()
        try:
            if not await self._start(inc):
                return await self._ended(inc)
            return await self._follow(inc)
        finally:
            inc.close()
            await self._end_boundary()

    async def _fetch_results(self) -> None:
        state = self.run.state
        wanted = [r for r in state.records.values() if r.state == "done" and r.result and r.value is None]
        found = self._store.payloads(state.tenant, [record.result for record in wanted])
        for record in wanted:
            record.value = found.get(record.result)

    async def _start(self, inc: Incarnation) -> bool:
        """Start the worker and tell it what to run; False when it ended before it said a word."""
        run, state, header = self.run, self.run.state, self.run.header
        folder, deployment = materialise(self._store, header.deployment, self._services.home)
        input_ = await self._services.payload(header.tenant, state.input)
        if input_ is None:
            raise Stop(Kind.RUN_FAILED, code="payload", message="the run's input was erased; it cannot go on")
        try:
            launched = await self._services.launcher.launch(
                self._level, header, folder, deployment.target, fresh=inc.number == 1
            )
        except IsolationError as error:
            raise Stop(Kind.RUN_FAILED, code=error.code, message=str(error)) from None
        self.boundary = launched.boundary
        inc.way = self._services.egress.open(inc, launched.way)
        inc.workspace = self.boundary.workspace
        inc.channel = await Channel.open(launched.broker, inc.on_message, inc.on_end)
        if launched.ready is not None:
            inc.on_message(launched.ready)
        await self._said(inc, inc.ready, "speak")
        if not inc.ready.done():
            return False
        data = {"incarnation": inc.number, "held": self.boundary.held, "python": inc.ready.result().python}
        if launched.ready is not None:
            data["warm"] = True
        if inc.number == 1:
            data |= run.beyond.labels.told(input_)
        started = run.recorder.draft(Kind.RUN_STARTED, data)
        write = asyncio.ensure_future(
            run.recorder.write(started, settle=left_open(state), patch=Patch(status="running", set_ready=True))
        )
        inc.send(
            wire.Begin(
                version=wire.VERSION,
                run=header.stream,
                tenant=header.tenant,
                root=root_inside(self._level, folder),
                target=deployment.target,
                workflow=header.workflow,
                input=inc.channel.pack(input_),
                settings=inc.way.settings(self._level.name),
            )
        )
        await write
        return True

    async def _said(self, inc: Incarnation, word: asyncio.Future[Any], what: str) -> None:
        """Wait for a worker's word, for its end, for a stop, or for the time to be up."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await self._any(word, inc.ended, self.run.stop)
        except TimeoutError:
            message = f"the worker did not {what} within {READY_TIMEOUT:g} s"
            raise Stop(Kind.RUN_FAILED, code="timeout", message=message) from None
        if self.run.stop.done():
            raise self.run.stop.result()

    async def _any(self, *futures: asyncio.Future[Any]) -> None:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    async def _follow(self, inc: Incarnation) -> bool:
        run = self.run
        assert self.boundary is not None
        exit_ = asyncio.ensure_future(self.boundary.wait())
        loading = asyncio.get_running_loop().call_later(READY_TIMEOUT, self._not_loaded, inc)
        patience = asyncio.ensure_future(deadlines.mind(run))
        idle: asyncio.Task[Any] | None = None
        poked: asyncio.Task[Any] | None = None
        try:
            while True:
                idle = idle or asyncio.ensure_future(inc.idle.wait())
                poked = poked or asyncio.ensure_future(self._poked.wait())
                await self._any(inc.ended, run.stop, exit_, idle, poked)
                if run.stop.done():
                    return await self._stopped(run.stop.result())
                if inc.ended.done():
                    return await self._ended(inc)
                if poked.done():
                    poked = None
                    self._poked.clear()
                    await self._inbox.take(self._store.inbox(run.state.run))
                if exit_.done():
                    # What it said last may still be in the channel: the channel's end decides.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.shield(inc.ended), 5)
                    return await self._ended(inc)
                if idle.done():
                    idle = None
                    if await self._suspend(inc):
                        return False
        finally:
            loading.cancel()
            for task in (idle, poked, exit_, patience):
                if task is not None:
                    task.cancel()

    def _not_loaded(self, inc: Incarnation) -> None:
        if not inc.loaded.done():
            message = f"the code was not imported within {READY_TIMEOUT:g} s"
            self.run.end(Stop(Kind.RUN_FAILED, code="timeout", message=message))

    async def _suspend(self, inc: Incarnation) -> bool:
        """Every branch waits: after a short grace the process goes."""
        run = self.run
        poked = asyncio.ensure_future(self._poked.wait())
        try:
            watched: list[asyncio.Future[Any]] = [inc.ended, run.stop, poked]
            await asyncio.wait(watched, timeout=self._grace_left(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            poked.cancel()
        if not inc.idle.is_set() or inc.ended.done() or run.stop.done() or self._poked.is_set():
            await asyncio.sleep(0)
            return False
        if not inc.parked():
            return False
        await self._sleep(inc)
        return True

    async def _sleep(self, inc: Incarnation) -> None:
        """The process is not needed until something wakes the run."""
        run = self.run
        inc.close()
        data = {"waiting": [r.id for r in run.state.waiting()], **self._measured()}
        suspended = run.recorder.draft(Kind.RUN_SUSPENDED, data)
        await self._let_go("suspended", deadlines.wake_at(run), suspended)

    def _grace_left(self) -> float:
        """A timer that is due soon is cheaper waited for than resumed from; short memory lets the process go now."""
        if self._services.crowded or under_pressure():
            return 0.0
        wake = self.run.state.wake_at
        if wake is None:
            return self._grace
        due = (wake - self._services.clock.now()) / 1e6
        return max(self._grace, due + 0.05) if due < max(self._grace, 1.0) else self._grace

    # how a process ends

    async def _ended(self, inc: Incarnation) -> bool:
        """The worker's side ended; says whether another incarnation follows."""
        said = inc.ended.result() if inc.ended.done() else None
        if isinstance(said, wire.Done):
            left = inc.unserved()
            if left:
                message = f"the workflow ended before {left}, which its journal holds; restore the code and resume"
                return await self._stopped(Stop(Kind.RUN_DIVERGED, code="diverged", message=message))
            return await self._complete(said.value.data)
        if isinstance(said, wire.Continue):
            inc.close()
            await self._end_boundary()
            await begin_anew(self.run, said.input.data)
            return True
        if isinstance(said, wire.Failed):
            kind = Kind.RUN_DENIED if said.code == "denied" else Kind.RUN_FAILED
            message = f"{said.error}: {said.message}" if said.error and not said.code else said.message
            return await self._stopped(Stop(kind, code=said.code, message=message, rule=said.rule), trace=said.trace)
        if isinstance(said, ProtocolError):
            return await self._stopped(
                Stop(Kind.RUN_FAILED, code=said.code, message=f"the worker broke the protocol: {said}")
            )
        return await self._lost()

    async def _lost(self) -> bool:
        """The process is gone without a word."""
        run = self.run
        assert self.boundary is not None
        # Its channel goes before it: how it ended is known only to a boundary that was let end by itself.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.boundary.wait()), LINGER)
        self.boundary.kill()
        exit_ = await self.boundary.wait()
        await run.recorder.flush()
        data = {"reason": exit_.reason.value, "status": exit_.status, **self._measured()}
        await run.recorder.write(run.recorder.draft(Kind.WORKER_LOST, data))
        if run.state.losses >= MAX_LOSSES:
            words = {"out_of_memory": "ran out of memory", "crashed": "crashed", "killed": "was killed"}
            how = words.get(exit_.reason.value, f"exited with status {exit_.status}")
            message = f"the worker {how}, {MAX_LOSSES} times in a row without progress"
            return await self._stopped(Stop(Kind.RUN_FAILED, code="worker_lost", message=message))
        if (stop := self._doubt()) is not None:
            return await self._stopped(stop)
        return True

    def _doubt(self) -> Stop | None:
        """What may have happened, must not happen twice, and has no outcome: it is asked about before anything else."""
        for record in self.run.state.open():
            if never_again(record.action):
                return doubt(self.run, record.id, f"{record.id} was begun and its outcome is not known")
        return None

    async def _stopped(self, stop: Stop, trace: str = "") -> bool:
        if stop.kind == Kind.RUN_SUSPENDED and self._inc is not None:
            await self._sleep(self._inc)
            return False
        if stop.kind == Kind.WORKER_LOST and stop.code == "timeout":
            # A step overran: its process goes, the run does not.
            if self._inc is not None:
                self._inc.close()
            await self._end_boundary()
            await self.run.recorder.flush()
            if (unclear := self._doubt()) is not None:
                raise unclear
            return True
        if stop.kind == Kind.WORKER_LOST:
            raise StoreError(stop.message) if stop.code != "fenced" else Fenced(stop.message)
        await self._conclude(stop, trace)
        return False

    async def _complete(self, value: bytes) -> bool:
        """The workflow returned."""
        if (stop := await complete(self.run, value, self._measured())) is not None:
            await self._conclude(stop)
        return False

    async def _conclude(self, stop: Stop, trace: str = "") -> None:
        """The run stops: for good, or until a person settles what is open."""
        run = self.run
        if self.boundary is not None:
            self.boundary.kill()
        if self._inc is not None:
            self._inc.close()
        data: dict[str, Any] = {"code": stop.code, "message": stop.message, "rule": stop.rule, **self._measured()}
        if stop.kind == Kind.RUN_KILLED:
            await self._end_boundary()
            data |= await compensate.undo(run, stop)
        if stop.kind in _ENDS:
            await finish(run, stop.kind, data, {"trace": trace.encode()} if trace else None)
            return
        if stop.kind == Kind.RUN_IN_DOUBT:
            data["id"], status = stop.rule, "in_doubt"
        else:
            data["id"], status = "", "suspended"
        if stop.kind == Kind.RUN_DIVERGED:
            data["id"] = "diverged"
        draft = run.recorder.draft(stop.kind, data)
        try:
            await self._let_go(status, None, draft)
        except Stop as kill:
            await self._conclude(kill)

    def _measured(self) -> dict[str, int]:
        """For the event that ends an incarnation: what admission learns from."""
        peak = 0 if self.boundary is None else self.boundary.memory()[1]
        return {"memory_peak": peak} if peak else {}

    async def _end_boundary(self) -> None:
        boundary, self.boundary = self.boundary, None
        if boundary is not None:
            self._services.measured(self.run.header, boundary.memory()[1])
            boundary.kill()
            await boundary.close()
