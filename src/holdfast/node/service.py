"""The service on one home: what the command line, and later the API, asks for."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast.action import Kill
from holdfast.audit import keys
from holdfast.audit.heads import HeadKeeper
from holdfast.clock import Clock, SystemClock
from holdfast.config import Settings
from holdfast.egress import vault
from holdfast.egress.bindings import Binding
from holdfast.errors import HoldfastError, KilledError, UsageError
from holdfast.journal.base import Store
from holdfast.journal.event import Event, Kind
from holdfast.journal.fold import FINAL
from holdfast.journal.open import open_store
from holdfast.node import glass, lease, operate, show
from holdfast.node.bundles import Bundles
from holdfast.node.dispatch.local import nudge
from holdfast.node.forking import fork
from holdfast.node.mandate import Mandate
from holdfast.node.submit import create_tenant, ensure_default, submit
from holdfast.node.views import ApprovalView, DrillResult, KillResult, Principal, RunRow, RunView, TenantView
from holdfast.policy.glass import Shown

SYSTEM = Principal(name="holdfast", auth="system")
CANARY = Path(__file__).parent.parent / "examples" / "canary.py"
FOLLOW = 0.05
"""Seconds between two looks at a run that another node drives."""


class Service:
    """Opens a home and works on it. A context manager; belongs to one thread."""

    def __init__(self, settings: Settings, home: Path, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._home = home
        self._clock = clock
        self.store = store
        self._heads: HeadKeeper | None = None
        self._policies = Bundles(settings)

    @classmethod
    def open(cls, settings: Settings, home: Path, clock: Clock | None = None) -> Service:
        """Open a home, made when it is missing.

        Raises:
            StoreError: the home or its database cannot be used.
        """
        store = open_store(settings.store.url, home)
        service = cls(settings, home, store, clock or SystemClock())
        ensure_default(store, service._clock, SYSTEM)
        return service

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Sign what was written, and close the store."""
        if self._heads is not None:
            self._heads.close()
            self._heads = None
        self.store.close()

    def _committed(self, events: tuple[Event, ...] | list[Event]) -> None:
        """What this command wrote is signed before it ends."""
        if self._heads is None:
            self._heads = HeadKeeper(self._home, keys.ensure(self._home), self.store)
        self._heads.committed(events)

    # runs

    def submit(
        self,
        target: str,
        input_: bytes,
        *,
        workflow: str = "",
        tenant: str = "default",
        policy_files: tuple[Path, ...] = (),
        isolation: str = "",
        principal: Principal = SYSTEM,
        mandate: Mandate | None = None,
    ) -> str:
        """Create a run; gives its id (:func:`holdfast.node.submit.submit`)."""
        name, events = submit(
            self.store,
            self._clock,
            self._settings,
            target,
            input_,
            workflow=workflow,
            tenant=tenant,
            policy_files=policy_files,
            isolation=isolation,
            principal=principal,
            mandate=mandate or Mandate(),
            policies=self._policies,
        )
        self._committed(events)
        nudge(self._home)
        return name

    def drive(
        self, run: str, *, on_event: Callable[[Event], None] | None = None, wait_timers_us: int = 60_000_000
    ) -> RunView:
        """Drive a run here until it ends or waits; where another node lives, hand it over and follow.

        Raises:
            UsageError: there is no such run.
            StoreError: the store cannot be used.
        """
        stream = show.find(self.store, run)
        if stream.status not in FINAL:
            with self._reporting(run, on_event):
                if lease.serving(self.store) or self._driven_elsewhere(stream.owner):
                    self._follow(run, wait_timers_us)
                else:
                    self._drive_here(run, stream.header.root, wait_timers_us)
        return self.run(run)

    def _driven_elsewhere(self, owner: str) -> bool:
        return bool(owner) and any(row.node == owner for row in lease.living(self.store))

    def _drive_here(self, run: str, root: str, wait_timers_us: int) -> None:
        from holdfast.node.node import Node

        async def main() -> None:
            node = Node(self._settings, self._home, root=root)
            await node.start()
            try:
                await node.drive(run, wait_timers_us)
            finally:
                await node.close()

        _run_loop(main())

    def _follow(self, run: str, wait_timers_us: int) -> None:
        nudge(self._home)
        while True:
            stream = show.find(self.store, run)
            if stream.status in FINAL or (stream.status == "in_doubt" and not stream.owner):
                return
            if stream.status == "suspended" and not stream.owner:
                soon = self.store.now() + wait_timers_us
                if stream.ready_at is None or stream.ready_at > soon:
                    return
            if not lease.serving(self.store) and not self._driven_elsewhere(stream.owner):
                self._drive_here(run, stream.header.root, wait_timers_us)
                return
            time.sleep(FOLLOW)

    @contextlib.contextmanager
    def _reporting(self, run: str, on_event: Callable[[Event], None] | None) -> Iterator[None]:
        """Show events as they land, from a thread with a connection of its own."""
        if on_event is None:
            yield
            return
        ended = threading.Event()

        def report() -> None:
            store = open_store(self._settings.store.url, self._home)
            seen = 0
            try:
                while not ended.wait(0.1):
                    for event in store.events(run, start=seen + 1):
                        seen = event.seq
                        on_event(event)
            except HoldfastError:
                return
            finally:
                store.close()

        thread = threading.Thread(target=report, name="holdfast-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def run(self, run: str) -> RunView:
        """A run as it stands."""
        return show.view(self.store, run)

    def fork(self, run: str, step: str = "", *, principal: Principal = SYSTEM) -> str:
        """Create a run that shares another's history up to a step; gives its id
        (:func:`holdfast.node.forking.fork`)."""
        name, events = fork(self.store, self._clock, run, step, principal)
        self._committed(events)
        nudge(self._home)
        return name

    def runs(self, limit: int | None = None) -> list[RunRow]:
        """Runs, newest first."""
        return show.rows(self.store, limit)

    def file(self, run: str, name: str) -> Iterator[bytes]:
        """The bytes of a file that a run keeps (:func:`holdfast.node.show.read_file`)."""
        return show.read_file(self.store, self._home, run, name)

    def events(self, run: str, *, start: int = 1) -> list[Event]:
        """A run's events."""
        show.find(self.store, run)
        return self.store.events(run, start=start)

    # people

    def approvals(self) -> list[ApprovalView]:
        """What waits for people."""
        return show.approvals(self.store)

    def answer(self, id_: str, value: Any, *, reason: str = "", principal: Principal) -> None:
        """Answer a request (:func:`holdfast.node.operate.answer`)."""
        operate.answer(self.store, self._clock, self._home, id_, value, reason, principal)

    def signal(self, run: str, name: str, data: bytes, *, principal: Principal) -> None:
        """Send a signal (:func:`holdfast.node.operate.signal`)."""
        operate.signal(self.store, self._clock, self._home, run, name, data, principal)

    def resolve(self, run: str, how: str, data: bytes, *, principal: Principal) -> None:
        """Settle a doubt or a divergence (:func:`holdfast.node.operate.resolve`)."""
        operate.resolve(self.store, self._clock, self._home, run, how, data, principal)

    # kills

    def kill(self, scope: str, name: str, reason: str, *, principal: Principal, compensate: bool = False) -> KillResult:
        """Put a kill in force (:func:`holdfast.node.operate.kill`)."""
        result, put, events = operate.kill(
            self.store, self._clock, self._home, scope, name, reason, principal, compensate
        )
        self._committed(events)
        marked = operate.mark_killed(self.store, self._clock, put, principal, self._settings.node.dial)
        self._committed(marked)
        if not lease.serving(self.store):
            for run in [event.stream for event in marked if event.kind == Kind.RUN_UNDOING]:
                self._drive_here(run, show.find(self.store, run).header.root, 0)
        return result

    def lift(self, id_: str, *, principal: Principal) -> None:
        """Lift a kill."""
        self._committed(operate.lift(self.store, self._clock, self._home, id_, principal))

    def kills(self) -> list[Kill]:
        """Kills in force."""
        return self.store.kills()

    def drill(self, principal: Principal = SYSTEM) -> DrillResult:
        """Kill a canary run of its own, and measure the halt.

        Raises:
            KilledError: a standing kill refuses the canary.
        """
        run = self.submit(f"{CANARY}:Canary", b"{}", principal=principal)
        if show.find(self.store, run).status == "refused":
            raise KilledError(f"a standing kill refuses the canary: {self.run(run).error}")
        ended = threading.Thread(target=_drill, args=(self._settings, self._home, run), daemon=True)
        ended.start()
        deadline = time.monotonic() + 60
        while not any(e.kind == "outcome" for e in self.store.events(run)):
            if time.monotonic() > deadline or show.find(self.store, run).status in FINAL:
                raise UsageError(f"the canary did not start: {self.run(run).error or 'no word in 60 s'}")
            time.sleep(0.02)
        result = self.kill("run", run, "drill", principal=principal)
        ended.join(30)
        self.lift(result.id, principal=principal)
        return DrillResult(kill_id=result.id, run_id=run, ms=result.ms)

    # policies

    def apply(self, policies: Bundles, *, principal: Principal) -> list[tuple[str, str]]:
        """Keep the bundle that is in force for each tenant, and record who put it in force; gives the digests.

        Raises:
            PolicyFileError: a file is wrong.
        """
        found = []
        for tenant in self.tenants():
            bundle = policies.of(tenant.name, "")
            self.store.put_blobs({bundle.digest: bundle.to_bytes()})
            data = {"bundle": bundle.digest, "rules": [rule.id for rule in bundle.rules]}
            kind = Kind.BUNDLE_PINNED
            self._committed(operate.write_control(self.store, self._clock, tenant.name, kind, data, principal))
            found.append((tenant.name, bundle.digest))
        nudge(self._home)
        return found

    def glass_ask(
        self, tenant: str, reason: str, for_us: int, review_within_us: int, people: int, *, principal: Principal
    ) -> Shown:
        """Ask for the glass to be broken (:func:`holdfast.node.glass.ask`)."""
        asked = glass.ask(self.store, self._clock, tenant, reason, for_us, review_within_us, people, principal)
        return self._broken(asked)

    def glass_join(self, tenant: str, id_: str, *, principal: Principal) -> Shown:
        """Join somebody who asked (:func:`holdfast.node.glass.join`)."""
        return self._broken(glass.join(self.store, self._clock, tenant, id_, principal))

    def glass_close(self, tenant: str, id_: str, *, principal: Principal) -> Shown:
        """End a glass before its time (:func:`holdfast.node.glass.close`)."""
        return self._broken(glass.close(self.store, self._clock, tenant, id_, principal))

    def glass_review(self, tenant: str, id_: str, note: str, *, principal: Principal) -> Shown:
        """Record a review (:func:`holdfast.node.glass.review`)."""
        return self._broken(glass.review(self.store, self._clock, tenant, id_, note, principal))

    def glasses(self, tenant: str) -> list[Shown]:
        """A tenant's glasses, newest first."""
        return list(glass.Glasses(self.store).ledger(tenant).glasses.values())[::-1]

    def _broken(self, done: tuple[Shown, tuple[Event, ...]]) -> Shown:
        shown, events = done
        self._committed(events)
        nudge(self._home)
        return shown

    # tenants

    def create_tenant(self, name: str, region: str, *, principal: Principal) -> None:
        """Create a tenant.

        Raises:
            UsageError: the name or region cannot be used, or the tenant is there.
        """
        _check_name(name, "a tenant's name")
        _check_name(region, "a region")
        if not create_tenant(self.store, self._clock, name, region, principal):
            raise UsageError(f"the tenant {name} exists; a tenant's region never changes")
        self._committed(self.store.events(f"control:{name}"))

    def tenants(self) -> list[TenantView]:
        """Tenants."""
        return [
            TenantView(name=t.name, region=t.region, created_at=t.created_at)
            for t in self.store.tenants()
            if t.name != "*"
        ]

    # secrets

    def set_secret(self, tenant: str, name: str, bound: Binding, value: bytes, *, principal: Principal) -> int:
        """Set or rotate a secret; gives its version (:func:`holdfast.egress.vault.set_secret`)."""
        events = vault.set_secret(
            self.store, self._clock, tenant, name, bound, value, principal=principal.name, auth=principal.auth
        )
        self._committed(events)
        return events[-1].seq

    def remove_secret(self, tenant: str, name: str, *, principal: Principal) -> None:
        """Destroy a secret (:func:`holdfast.egress.vault.remove_secret`)."""
        self._committed(
            vault.remove_secret(self.store, self._clock, tenant, name, principal=principal.name, auth=principal.auth)
        )

    def secrets(self, tenant: str) -> list[vault.Listed]:
        """A tenant's secrets, without values."""
        return vault.list_secrets(self.store, tenant)

    # serving

    def serve(self, ready: Callable[..., None] | None = None) -> None:
        """Drive whatever becomes ready until SIGINT or SIGTERM."""
        from holdfast.node.node import Node

        async def main() -> None:
            node = Node(self._settings, self._home)
            until = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signals.SIGINT, signals.SIGTERM):
                loop.add_signal_handler(number, until.set)
            await node.start()
            try:
                if ready is not None:
                    ready()
                await node.serve(until)
            finally:
                await node.close()

        _run_loop(main())


def _drill(settings: Settings, home: Path, run: str) -> None:
    with Service.open(settings, home) as service:
        service.drive(run)


def _run_loop(main: Any) -> None:
    import gc

    import uvloop

    # Modules stay for good, and a step makes far fewer cycles than objects: looked for at every 700 objects, as is the
    # default, they cost a node a sixth of its time.
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def _check_name(name: str, what: str) -> None:
    if not name or len(name) > 63 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise UsageError(f"{name!r} cannot be {what}: letters, digits, - and _, at most 63")
