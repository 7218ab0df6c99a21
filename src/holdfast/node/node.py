"""The node: claims the runs that want to be driven, and drives them side by side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from holdfast.action import Glass
from holdfast.audit import keys
from holdfast.audit.heads import HeadKeeper
from holdfast.clock import Clock, SystemClock
from holdfast.config import PrincipalSettings, Settings
from holdfast.errors import HoldfastError, PolicyFileError, StoreError
from holdfast.gate import Control
from holdfast.journal.base import Header, Store, StreamState
from holdfast.journal.open import open_store
from holdfast.journal.writer import Writer
from holdfast.llm.http import Timing
from holdfast.llm.router import LLM
from holdfast.log import Log
from holdfast.node import lease as leases
from holdfast.node.admission import Admission, recorded_peaks
from holdfast.node.bundles import Bundles, urgent
from holdfast.node.connectors import ConnectorPool
from holdfast.node.dispatch.local import Nudges, nudge, queues
from holdfast.node.drive import Driver
from holdfast.node.egress import Egress
from holdfast.node.glass import Glasses
from holdfast.node.history import history
from holdfast.node.http_connector import HttpConnectors
from holdfast.node.launch import Launcher
from holdfast.node.lease import Lease
from holdfast.node.operate import facts_of
from holdfast.node.people import People
from holdfast.node.pressure import under_pressure
from holdfast.node.watch import Watch
from holdfast.policy.bundle import Bundle
from holdfast.sandbox import registry
from holdfast.sandbox.base import Boundary, Label, Level, Limits
from holdfast.sandbox.levels import level
from holdfast.sandbox.pool import Pool

TICK = 0.25
"""Seconds between two looks at the store, when nobody nudges."""
POLICY_LOOK = 1.0
"""Seconds between two looks at the policy files."""
RETRY = 1.0
"""Seconds before a run that could not be driven is taken up again."""
FOREGROUND_GRACE = 0.1
"""Seconds that a waiting run's process is kept where no one else serves it."""

log = Log(__name__)
AuthorLog = Callable[[Header, str, str], None]


class Node:
    """One node on one home. With ``root`` it drives that run and its children only."""

    def __init__(
        self,
        settings: Settings,
        home: Path,
        *,
        root: str = "",
        clock: Clock | None = None,
        author_log: AuthorLog | None = None,
        before_commit: Callable[[Any], None] | None = None,
        after_commit: Callable[[Any], None] | None = None,
    ) -> None:
        self.settings = settings
        self.home = home
        self.clock: Clock = clock or SystemClock()
        self._root = root
        self._author_log = author_log
        url = settings.store.url

        def open_one() -> Store:
            return open_store(url, home)

        self._open = open_one
        self.store: Store = self._open()
        self._side: Store = self._open()
        self._side_thread = ThreadPoolExecutor(1, thread_name_prefix="holdfast-side")
        self._log: Store = self._open()
        self._heads = HeadKeeper(home, keys.ensure(home), self._log, on_error=_head_failed)
        self._writer = Writer(
            self._open(),
            on_commit=[self._heads.committed],
            before_commit=before_commit,
            after_commit=after_commit,
            inline=True,
        )
        self.lease = Lease(self.clock, settings.node.lease, serves=not root)
        self.control = Control(self.store)
        dial = settings.node.dial / 1e6
        self.models = LLM(settings.llm, os.environ, price_cache=home / "prices", timing=Timing(send=dial))
        self.egress = Egress(settings, self.store, self.clock, self.models)
        self.connectors = ConnectorPool(
            settings.connectors_of, home=home, dial=dial, http=HttpConnectors(self.egress, dial)
        )
        self._watch = Watch(self._open, self, self._on_control)
        self._drivers: dict[str, Driver] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._bundles: dict[str, Bundle] = {}
        self._reading: asyncio.Future[Bundle | None] | None = None
        self.policies = Bundles(settings)
        self._glasses = Glasses(self.store)
        self._people = People(settings)
        self._levels: dict[str, Level] = {}
        self.admission = Admission.of(settings)
        self._look = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._frozen = False
        self._fault: HoldfastError | None = None
        sandbox = settings.sandbox
        limits = Limits(
            memory=sandbox.memory,
            swap=sandbox.swap,
            pids=sandbox.pids,
            cpu=sandbox.cpu,
            disk=sandbox.disk,
            files=sandbox.files,
            file_size=sandbox.file_size,
        )
        # A node in the foreground is there for one run: no other will come.
        keeps = sandbox.pool > 0 and not root
        pool = Pool(size=sandbox.pool, memory=sandbox.pool_memory, room=self._has_room) if keeps else None
        self.launcher = Launcher(home, limits, pool)

    # life

    async def start(self) -> None:
        """Begin: reap what a dead node left, register, watch."""
        await self._aside(registry.reap, self.home)
        self._writer.start()
        self._heads.start()
        self.lease.register(self._side)
        self._nudges = await Nudges.listen(self.home, self.lease.node, self._look, self._metrics)
        self._watch.start()

    def _metrics(self) -> bytes:
        own = {"node": self.lease.node, "serves": not self._root, "ready_boundaries": len(self.launcher.boundaries())}
        return msgspec.json.encode(own | self.admission.metrics())

    async def serve(self, until: asyncio.Event) -> None:
        """Drive whatever becomes ready until ``until`` is set."""
        renewing = asyncio.ensure_future(self._keep_lease())
        minding = asyncio.ensure_future(self._mind_policies())
        try:
            while not until.is_set():
                self._look.clear()
                try:
                    await self._dispatch()
                except StoreError as error:
                    log.error("the store cannot be used", reason=str(error))
                looking = asyncio.ensure_future(self._look.wait())
                ending = asyncio.ensure_future(until.wait())
                await asyncio.wait([looking, ending], timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                ending.cancel()
        finally:
            renewing.cancel()
            minding.cancel()

    async def _keep_lease(self) -> None:
        """Renew the lease apart from the dispatch, whose long rounds must not let it run out."""
        while True:
            try:
                await self._renew()
            except StoreError as error:
                log.error("the lease cannot be renewed", reason=str(error))
            await asyncio.sleep(self.lease.lease_us / 4e6)

    async def drive(self, run: str, wait_timers_us: int) -> None:
        """Drive one run, and its children, until it ends or waits for longer than ``wait_timers_us``."""
        done = asyncio.Event()
        serving = asyncio.ensure_future(self.serve(done))
        try:
            while True:
                await self._changed(run, serving)
                state = self.store.stream(run)
                if state is None or self._at_rest(state, wait_timers_us):
                    return
        finally:
            done.set()
            await serving

    async def _changed(self, run: str, serving: asyncio.Future[None]) -> None:
        task = self._tasks.get(run)
        await asyncio.wait([task, serving] if task else [serving], timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        if self._fault is not None:
            raise self._fault

    def _at_rest(self, state: StreamState, wait_timers_us: int) -> bool:
        """Whether nothing will happen to the run soon by itself."""
        if self._tasks or state.owner:
            return False
        if state.status in ("pending", "running"):
            return False
        if state.ready_at is not None and state.ready_at <= self.store.now() + wait_timers_us:
            return False
        soon = self.store.now() + wait_timers_us
        family = self.store.ready(limit=1000, root=state.header.root)
        return not any(s.ready_at is not None and s.ready_at <= soon for s in family)

    async def close(self) -> None:
        """Let every run go, resumable, and give back what is held."""
        self._watch.close()
        for boundary in self._boundaries():
            boundary.kill()
        for task in list(self._tasks.values()):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self.launcher.close()
        await self.connectors.close()
        await self.models.aclose()
        self._nudges.close()
        await self._aside(self._writer.close)
        try:
            await self._aside(self._heads.close)
        except HoldfastError as error:
            _head_failed(error)
        with contextlib.suppress(StoreError):
            await self._aside(self._side.unregister, self.lease.node)
        self._side_thread.shutdown()
        for store in (self.store, self._side, self._log, self._writer.store):
            store.close()

    async def _aside(self, work: Callable[..., Any], *args: Any) -> Any:
        """Work on the side store, or anything that blocks, away from the loop."""
        return await self._loop.run_in_executor(self._side_thread, work, *args)

    async def _renew(self) -> None:
        if not await self._aside(self.lease.renew, self._side):
            # Another node took over what this one drove. All of that ends before there is a lease again: a call that
            # was decided under the old one must not find a new one to leave by.
            for driver in list(self._drivers.values()):
                driver.fence()
            if self._tasks:
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self._aside(self.lease.register, self._side)

    # dispatch

    async def _dispatch(self) -> None:
        gone = await self._aside(leases.dead, self._side, self.lease.node, self.settings.node.dial)
        for stream in await self._aside(self._stirred):
            if (driver := self._drivers.get(stream)) is not None:
                driver.poke()
        await self._admit(gone)
        if gone and not self._root:
            await self._forget(gone)

    def _stirred(self) -> list[str]:
        return self._side.stirred(self.lease.node)

    async def _admit(self, gone: list[str]) -> None:
        """Start what there is room for."""
        room = self.settings.node.concurrency - len(self._tasks)
        if room <= 0:
            return
        driven = frozenset(self._tasks)
        waiting: dict[str, deque[StreamState]] = await self._aside(
            lambda: queues(self._side, node=self.lease.node, gone=gone, driven=driven, root=self._root, limit=room)
        )
        for agent in {(state.header.tenant, state.header.agent) for queue in waiting.values() for state in queue}:
            if not self.admission.ceilings.known(agent):
                self.admission.ceilings.learn(agent, await self._aside(recorded_peaks, self._side, agent))
        self.admission.paused = under_pressure()
        if self.admission.crowded and self.launcher.pool is not None:
            self.launcher.pool.drain(lambda label: True)
        while (name := self.admission.next(waiting)) is not None:
            state = next(queue.popleft() for queue in waiting.values() if queue and queue[0].header.stream == name)
            claimed = False
            try:
                claimed = await self._claim(state, (self.lease.node, *gone))
            finally:
                if not claimed:
                    self.admission.undo(name)

    async def _forget(self, gone: list[str]) -> None:
        """A dead node that owns nothing any more need not be known."""
        for node in gone:
            with contextlib.suppress(StoreError):
                if not await self._aside(self._side.owned, node):
                    await self._aside(self._side.unregister, node)

    async def _claim(self, state: StreamState, free: tuple[str, ...]) -> bool:
        name = state.header.stream
        epoch = await self._aside(lambda: self._side.claim(name, self.lease.node, free=free))
        fresh = self.store.stream(name)
        if epoch is None or fresh is None:
            return False
        self._tasks[name] = asyncio.ensure_future(self._drive(fresh, epoch))
        if not self._root and self.policies.known(fresh.header.tenant, fresh.header.agent) is None:
            # From now on a change of its files is seen, also while the run waits without a process.
            self._reading = asyncio.ensure_future(self.standing(fresh.header))
        return True

    async def _drive(self, stream: StreamState, epoch: int) -> None:
        name = stream.header.stream
        try:
            driver = Driver(
                self,
                stream=stream,
                epoch=epoch,
                level=self._level(stream),
                control=self.control,
                writer=self._writer,
                node=self.lease.node,
                grace=FOREGROUND_GRACE if self._root else self.settings.node.grace / 1e6,
            )
            self._drivers[name] = driver
            await driver.drive()
        except HoldfastError as error:
            await self._not_driven(name, error)
        except Exception as error:
            log.exception("run not driven", run=name)
            await self._not_driven(
                name, HoldfastError(f"the node failed while it drove {name}: {type(error).__name__}")
            )
        finally:
            self._drivers.pop(name, None)
            self._tasks.pop(name, None)
            self.admission.release(name)
            self._look.set()

    async def _not_driven(self, name: str, error: HoldfastError) -> None:
        """A run could not be driven: in the foreground that is the end, otherwise it is tried again a little later."""
        if self._root:
            self._fault = error
            return
        log.error("run not driven", run=name, reason=str(error))
        await asyncio.sleep(RETRY)

    def _level(self, stream: StreamState) -> Level:
        name = str(history(self.store, stream)[0].data["isolation"])
        if name not in self._levels:
            self._levels[name] = level(name, uid_range=self.settings.sandbox.uid_range)
        return self._levels[name]

    # Services

    def before_dial(self, deadline: float) -> None:
        """See :class:`holdfast.node.services.Services`."""
        if self._frozen:
            raise StoreError("the kill generation cannot be read, so nothing is sent; check the database")
        self.lease.before_dial(deadline)

    async def payload(self, tenant: str, commitment: str) -> bytes | None:
        """See :class:`holdfast.node.services.Services`."""
        return self.store.payload(tenant, commitment)

    async def until(self, at: int) -> None:
        """See :class:`holdfast.node.services.Services`."""
        # The wall clock may be set while this sleeps, so it is asked again.
        while (left := at - self.clock.now()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left / 1e6)

    def author_log(self, header: Header, level: str, text: str) -> None:
        """See :class:`holdfast.node.services.Services`."""
        if self._author_log is not None:
            self._author_log(header, level, text)

    def nudge(self, stream: str) -> None:
        """See :class:`holdfast.node.services.Services`."""
        self._look.set()
        if stream not in self._drivers:
            nudge(self.home)

    @property
    def crowded(self) -> bool:
        """See :class:`holdfast.node.services.Services`."""
        return self.admission.crowded

    def measured(self, header: Header, peak: int) -> None:
        """See :class:`holdfast.node.services.Services`."""
        self.admission.ceilings.learn((header.tenant, header.agent), [peak])

    def bundle(self, digest: str) -> Bundle:
        """See :class:`holdfast.node.services.Services`."""
        found = self._bundles.get(digest)
        if found is None:
            data = self.store.blob(digest)
            if data is None:
                raise StoreError(f"the store does not hold the policies {digest[:12]} that the run is pinned to")
            found = self._bundles[digest] = Bundle.from_bytes(data)
        return found

    def person(self, name: str) -> PrincipalSettings:
        """See :class:`holdfast.node.services.Services`."""
        return self._people.of(name)

    def glasses(self, tenant: str, now: int) -> tuple[Glass, ...]:
        """See :class:`holdfast.node.services.Services`."""
        return self._glasses.of(tenant, now)

    async def standing(self, header: Header) -> Bundle | None:
        """See :class:`holdfast.node.services.Services`."""
        known = self.policies.known(header.tenant, header.agent)
        if known is not None:
            return known
        try:
            return await self._aside(self.policies.of, header.tenant, header.agent)  # type: ignore[no-any-return]
        except PolicyFileError as error:
            log.error("runs go on under the policies that they began with", run=header.stream, reason=str(error))
            return None

    async def _mind_policies(self) -> None:
        """Bring policies that changed to the runs that are driven here, each as far as its own differ."""
        while True:
            await asyncio.sleep(POLICY_LOOK)
            changed = await self._aside(self.policies.look)
            for driver in list(self._drivers.values()):
                driver.mind_policies()
            if changed and not self._root:
                for state in await asyncio.to_thread(urgent, self._open, self.policies):
                    if state.header.stream not in self._tasks:
                        await self._claim(state, ())

    # kills

    def _on_control(self) -> None:
        self._loop.call_soon_threadsafe(self._control_changed)

    def _control_changed(self) -> None:
        try:
            self.control.refresh()
        except StoreError:
            return
        for driver in list(self._drivers.values()):
            driver.control_changed()
        if self.launcher.pool is not None:
            self.launcher.pool.drain(lambda label: self.control.standing(facts_of(label)) is not None)
        for kill in self.control.kills:
            if kill.scope == "fleet":
                self.connectors.kill()
            elif kill.scope == "tenant":
                self.connectors.kill(kill.name)

    def freeze(self) -> None:
        """Stop every boundary and connector where it stands (from the watch's thread)."""
        self._frozen = True
        self.connectors.freeze()
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)
        self.connectors.thaw()
        self._frozen = False

    def end(self) -> None:
        """End every boundary and connector."""
        for boundary in self._boundaries():
            boundary.kill()
        self.connectors.kill()

    def _signal(self, number: int) -> None:
        for boundary in self._boundaries():
            for pid in boundary.pids():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    def _boundaries(self) -> list[Boundary]:
        driven = [driver.boundary for driver in list(self._drivers.values()) if driver.boundary is not None]
        return driven + self.launcher.boundaries()

    def _has_room(self, label: Label) -> bool:
        """Whether a boundary may be started for whoever comes next."""
        refused = self._frozen or self.crowded or under_pressure()
        return not refused and self.control.standing(facts_of(label)) is None


def _head_failed(error: HoldfastError) -> None:
    log.error("the signed head was not written", reason=str(error))
