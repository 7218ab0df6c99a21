"""One run while this node drives it: its state, its gate, its inbox, and what its calls wait for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from holdfast.action import Action, ApprovalSpec, Effect, Facts, Outcome, Past, Price, Refusal, Settlement, Verdict
from holdfast.errors import HoldfastError, TerminatedError
from holdfast.gate import Control, Fenced, Passage, enter
from holdfast.journal.base import Appended, Draft, Header, InboxItem, MemoryWrite, Result
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record, RunState
from holdfast.node.facts import Beyond
from holdfast.node.recorder import Recorder
from holdfast.node.services import Services
from holdfast.policy.bundle import Bundle
from holdfast.policy.categories.rates import ConcurrencyLimit
from holdfast.policy.decide import decide, settlements
from holdfast.policy.history import past
from holdfast.values import digest

THROTTLE_LIMIT_US = 300_000_000
"""A throttled action that would wait longer than this is denied."""


SENT = frozenset({"llm", "tool", "http"})
"""Kinds of actions that leave the node: of one whose outcome is not known, the worst is assumed."""
HOLD_POLL_US = 50_000
"""A place among those that are held may be free again long before it lapses, so it is asked for this often."""


_NONE: Mapping[str, Refusal] = {}
_EFFECTS: Mapping[str, Effect] = {effect.value: effect for effect in Effect}


def pause_us(verdict: Verdict) -> int:
    """How long a throttled action waits before it is decided again."""
    pause = max(verdict.retry_after_us, 1000)
    return min(pause, HOLD_POLL_US) if verdict.category == ConcurrencyLimit.name else pause


class Stop(Exception):
    """The run ends now, with this status. Raised in the node's own tasks only; author code never sees it."""

    def __init__(self, kind: Kind, *, code: str, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.message = message
        self.rule = rule


class Place:
    """Where a call stands in its run."""

    __slots__ = ("digest", "id", "kind", "name", "parent", "place")

    def __init__(self, id_: str, parent: str, place: int, *, kind: str = "", name: str = "", digest: str = "") -> None:
        self.id = id_
        self.parent = parent
        self.place = place
        self.kind = kind
        self.name = name
        self.digest = digest


class Deliveries(Protocol):
    """What ends waiting."""

    async def expire(self, record: Record) -> None:
        """The time of a waiting record may be up: write what follows."""

    async def feed(self) -> None:
        """Give signals and ended children to the calls that wait for them."""


class Run:
    """The shared middle of everything that happens to one run on this node."""

    def __init__(
        self,
        *,
        header: Header,
        state: RunState,
        recorder: Recorder,
        bundle: Bundle,
        control: Control,
        services: Services,
        isolation: str,
    ) -> None:
        self.header = header
        self.state = state
        self.recorder = recorder
        self.bundle = bundle
        self.control = control
        self.services = services
        self.isolation = isolation
        self.beyond = Beyond(state, bundle, services)
        """What it has taken in, and who is behind it."""
        self.stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        """Resolved when the run must end."""
        self.inbox: Deliveries
        """What ends the waiting of its calls (:class:`holdfast.node.inbox.Inbox`)."""
        self.on_parked: Callable[[str], None] = lambda _: None
        """Told when a call begins to wait, so that the worker can be told."""
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._inflight: dict[str, int] = {}
        self._inflight_recent: list[str] = []
        self._inflight_past: list[Past] = []

    def go_by(self, bundle: Bundle) -> None:
        """Other policies are in force from now on."""
        self.bundle = bundle
        self.beyond.go_by(bundle)

    # facts

    def facts(
        self,
        refusals: Mapping[str, Refusal],
        record: Record | None,
        price: Price | None,
        action: Action | None = None,
        phase: str = "before",
    ) -> Facts:
        """Facts for a decision now; with an action, also what the rules ask of the record about it."""
        state, header = self.state, self.header
        counters = dict(state.counters)
        for key, count in self._inflight.items():
            counters[key] = counters.get(key, 0) + count
        now = self.services.clock.now()
        facts = Facts(
            now=now,
            tenant=header.tenant,
            region=header.region,
            agent=header.agent,
            workflow=header.workflow,
            run=header.stream,
            root=header.root,
            depth=header.depth,
            principal=header.principal,
            auth=header.auth,
            isolation=self.isolation,
            deployment=header.deployment,
            started_at=state.started_at or now,
            active_at=state.active_at or now,
            counters=counters,
            price=price,
            kills=self.control.kills,
            kill_generation=self.control.generation,
            grants=tuple(record.grants) if record else (),
            approval_state=record.approval_state if record else "",
            recent=(*state.recent, *self._inflight_recent),
            refusals=dict(refusals) if refusals else _NONE,
        )
        if beyond := self.beyond.now():
            facts = msgspec.structs.replace(facts, **beyond)
        if action is None:
            return facts
        if self.bundle.vouches or self.bundle.people or self.bundle.cites:
            facts = self.beyond.about(action, facts)
        if self.bundle.glassed:
            facts = msgspec.structs.replace(facts, glasses=self.services.glasses(header.tenant, now))
        if not self.bundle.historic:
            return facts
        asked = self.bundle.asks(action, facts, phase)
        return self.beyond.recalled(action, facts, asked, [*state.past.values(), *self._inflight_past])

    # the gate

    def gate_now(
        self, action: Action, at: Place, args: bytes, *, key: str, undo: str, then: Callable[[Verdict, bool], None]
    ) -> bool:
        """Take a call that the journal does not know through the gate, without a task of its own.

        Says whether its intent is under way; ``then`` hears the verdict, and whether the intent is durable: where it is
        not, and where this gives False, nothing was written and the call goes through :meth:`gate`.

        Raises:
            Fenced, StoreError: nothing more of this run lands here.
        """
        facts = self.facts({}, None, None, action)
        verdict = decide(action, facts, self.bundle)
        if verdict.outcome > Outcome.WARN or verdict.redactions:
            return False
        intent, held = self._intent(action, at, args, key, undo, verdict, facts, ())

        def done(result: Result | None) -> None:
            self._leave(action, held)
            if result is not None:
                then(verdict, isinstance(result, Appended))

        self._enter(action, held)
        try:
            self.recorder.post(intent, reserve=verdict.reservations, kill_generation=facts.kill_generation, done=done)
        except HoldfastError:
            self._leave(action, held)
            raise
        return True

    def _intent(
        self,
        action: Action,
        at: Place,
        args: bytes,
        key: str,
        undo: str,
        verdict: Verdict,
        facts: Facts,
        streams: tuple[dict[str, Any], ...],
    ) -> tuple[Draft, Past | None]:
        """The intent's event, and what rules over the record will ask of it."""
        data: dict[str, Any] = {
            "action": msgspec.structs.replace(action, args={}),
            "facts": facts,
            "verdict": verdict,
            "parent": at.parent,
            "place": at.place,
            "key": key,
            "undo": undo,
        }
        if streams:
            data["streams"] = list(streams)
        held: Past | None = None
        if self.bundle.historic and self.bundle.remembers(action):
            held = data["past"] = past(action, facts.now, self.header.agent, self.bundle.figures)
        return self.recorder.draft(Kind.INTENT, data, {"args": args} if args else None), held

    async def gate(
        self,
        action: Action,
        at: Place,
        args: bytes,
        *,
        key: str = "",
        undo: str = "",
        price: Price | None = None,
        streams: tuple[dict[str, Any], ...] = (),
        memory: Callable[[Verdict], tuple[MemoryWrite, ...]] | None = None,
        deliver: tuple[InboxItem, ...] = (),
        outcome: Callable[[Verdict], tuple[dict[str, Any], dict[str, bytes]]] | None = None,
        redacts: bool = False,
    ) -> Passage:
        """Take an action through the gate; waits for people and for rates where a policy says so.

        With ``redacts`` the caller sends on only what the verdict's redactions leave; the record keeps what was asked.
        With ``outcome`` (what it says and its payloads) intent and outcome are one commit: for what the store performs.

        Raises:
            Stop: a policy or a kill ends the run.
            Fenced, StoreError: nothing more of this run lands here.
        """
        waited = 0
        stored = msgspec.structs.replace(action, args={})
        while True:
            record = self.state.records.get(at.id)

            async def commit(verdict: Verdict, facts: Facts) -> Result:
                intent, held = self._intent(action, at, args, key, undo, verdict, facts, streams)
                drafts = [intent]
                settle: tuple[Settlement, ...] = ()
                if outcome is not None:
                    said, payloads = outcome(verdict)
                    drafts.append(self.recorder.draft(Kind.OUTCOME, {"id": at.id, "status": "ok", **said}, payloads))
                    settle = settlements(verdict.reservations, sent=True)
                # From here on other branches count this action; its own decision did not.
                self._enter(action, held)
                return await self.recorder.write(
                    *drafts,
                    then=functools.partial(self._leave, action, held),
                    reserve=verdict.reservations,
                    settle=settle,
                    kill_generation=facts.kill_generation,
                    memory=memory(verdict) if memory is not None else (),
                    deliver=deliver,
                )

            passage = await enter(
                action,
                self.bundle,
                self.control,
                functools.partial(self.facts, record=record, price=price, action=action),
                commit,
                redacts=redacts,
            )
            verdict = passage.verdict
            if passage.written is not None:
                return passage
            if verdict.outcome is Outcome.TERMINATE:
                self.note_verdict(action, at, passage, args, key)
                raise self._terminated(passage)
            if verdict.outcome is Outcome.REQUIRE_APPROVAL:
                await self._await_approval(stored, at, args, passage, key=key, undo=undo)
                continue
            pause = pause_us(verdict)
            if verdict.outcome is Outcome.THROTTLE and waited + pause <= THROTTLE_LIMIT_US:
                if not waited:
                    self.note_verdict(action, at, passage, args, key, retry_at=passage.facts.now + pause)
                waited += pause
                await asyncio.sleep(pause / 1e6)
                continue
            self.note_verdict(action, at, passage, args, key)
            return passage

    async def decide(self, action: Action, at: Place, args: bytes) -> Passage:
        """Decide an action whose going ahead is a wait, or the run's end, and not an effect.

        Raises:
            Stop: a policy or a kill ends the run.
        """
        facts = self.facts({}, self.state.records.get(action.id), None, action)
        if self.control.standing(facts) is None:
            facts = self.facts({}, self.state.records.get(action.id), None, action)
        passage = Passage(verdict=decide(action, facts, self.bundle), facts=facts)
        if passage.verdict.outcome is Outcome.TERMINATE:
            self.note_verdict(action, at, passage, args)
            raise self._terminated(passage)
        return passage

    def note_verdict(
        self, action: Action, at: Place, passage: Passage, args: bytes, key: str = "", *, retry_at: int = 0
    ) -> None:
        """Record a verdict that led to no intent: for good, or with ``retry_at`` until it is decided again then."""
        stored = msgspec.structs.replace(action, args={})
        data: dict[str, Any] = {
            "action": stored,
            "facts": passage.facts,
            "verdict": passage.verdict,
            "parent": at.parent,
            "place": at.place,
            "key": key,
        }
        if retry_at:
            data["retry_at"] = retry_at
        self.recorder.note(self.recorder.draft(Kind.VERDICT, data, {"args": args} if args else None))

    def _enter(self, action: Action, held: Past | None) -> None:
        for key in _counted(action):
            self._inflight[key] = self._inflight.get(key, 0) + 1
        if action.kind == "tool":
            self._inflight_recent.append(action.digest)
        if held is not None:
            self._inflight_past.append(held)

    def _leave(self, action: Action, held: Past | None) -> None:
        for key in _counted(action):
            left = self._inflight[key] - 1
            if left:
                self._inflight[key] = left
            else:
                del self._inflight[key]
        if action.kind == "tool":
            self._inflight_recent.remove(action.digest)
        if held is not None:
            self._inflight_past.remove(held)

    def _terminated(self, passage: Passage) -> Stop:
        verdict = passage.verdict
        if verdict.category == "kill_switch":
            return Stop(Kind.RUN_KILLED, code="killed", message=verdict.reason, rule=verdict.rule)
        return Stop(Kind.RUN_TERMINATED, code=TerminatedError.code, message=verdict.reason, rule=verdict.rule)

    # waiting

    async def _await_approval(
        self, action: Action, at: Place, args: bytes, passage: Passage, *, key: str, undo: str
    ) -> None:
        record = self.state.records.get(at.id)
        if record is None or record.state != "waiting":
            spec = passage.verdict.approval or ApprovalSpec()
            await self.open_wait(
                action, at, "approval", args, wake_after_us=spec.ttl_us, spec=spec, passage=passage, key=key, undo=undo
            )
        await self.waiting(at.id)

    async def open_wait(
        self,
        action: Action,
        at: Place,
        kind: str,
        args: bytes,
        *,
        wake_after_us: int | None,
        spec: ApprovalSpec | None = None,
        name: str = "",
        passage: Passage | None = None,
        key: str = "",
        undo: str = "",
    ) -> None:
        """Record that a call waits from now on."""
        now = self.services.clock.now()
        data: dict[str, Any] = {
            "action": action,
            "parent": at.parent,
            "place": at.place,
            "wait": kind,
            "wake_at": None if wake_after_us is None else now + wake_after_us,
            "name": name,
            "key": key,
            "undo": undo,
        }
        if spec is not None:
            data["spec"] = spec
        if kind in ("approval", "ask"):
            data["approval"] = approval_id(self.state.run, at.id)
        if passage is not None:
            data["facts"], data["verdict"] = passage.facts, passage.verdict
        await self.recorder.write(self.recorder.draft(Kind.WAIT, data, {"args": args} if args else None))

    async def waiting(self, id_: str) -> None:
        """Wait until the record no longer waits: the inbox or the clock brought what it waits for."""
        while True:
            record = self.state.records[id_]
            if record.state != "waiting":
                return
            assert record.wait is not None
            future = self._waiters.get(id_)
            if future is None or future.done():
                future = asyncio.get_running_loop().create_future()
                self._waiters[id_] = future
                self.on_parked(id_)
            delay: float | None = None
            if record.wait.wake_at is not None:
                delay = max(0.0, (record.wait.wake_at - self.services.clock.now()) / 1e6)
            try:
                await asyncio.wait_for(asyncio.shield(future), delay)
            except TimeoutError:
                await self.inbox.expire(record)
            if not future.done():
                continue
            self._waiters.pop(id_, None)

    def wake(self, id_: str) -> None:
        """Let the call that waits as ``id_`` look again."""
        future = self._waiters.pop(id_, None)
        if future is not None and not future.done():
            future.set_result(None)

    # ending

    def end(self, stop: Stop) -> None:
        """The run must end; the first reason wins."""
        if not self.stop.done():
            self.stop.set_result(stop)

    def failed(self, error: HoldfastError) -> None:
        """Nothing more can be written by this node: the boundary must go, the journal stays as it is."""
        code = "fenced" if isinstance(error, Fenced) else error.code
        self.end(Stop(Kind.WORKER_LOST, code=code, message=str(error)))


def _counted(action: Action) -> tuple[str, ...]:
    if action.kind in ("step", "decision"):
        return ("steps",)
    if action.kind == "tool":
        return ("tool_calls", f"tool_calls:{action.name}")
    if action.kind == "llm":
        return ("llm_calls",)
    return ("spawns",) if action.kind == "spawn" else ()


def approval_id(run: str, step: str) -> str:
    """The id that people answer to: the run's, and which of its calls waits."""
    return f"{run}-{digest(step)[:8]}"


def idempotency_key(run: str, step: str) -> str:
    """The key that an effect carries over all its attempts."""
    return digest(run, step)[:32]


def doubt(run: Run, id_: str, message: str) -> Stop:
    """The run stops and asks what became of an irreversible effect."""
    name = run.state.run
    cure = f"find out at the receiver (key {idempotency_key(name, id_)}), then `holdfast runs resolve {name}`"
    return Stop(Kind.RUN_IN_DOUBT, code="in_doubt", message=f"{message}; {cure}", rule=id_)


def never_again(action: Action) -> bool:
    """Whether it must not be done a second time when it may have happened once."""
    return action.kind in ("tool", "http") and action.effect == Effect.IRREVERSIBLE


def effect_of(word: str) -> Effect:
    """An effect class by its word; an unknown one counts as irreversible."""
    return _EFFECTS.get(word, Effect.IRREVERSIBLE)
