"""One run while this node drives it: its state, its gate, its inbox, and what its calls wait for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from holdfast.action import Action, ApprovalSpec, Effect, Facts, Grant, Outcome, Price, Refusal, Settlement, Verdict
from holdfast.errors import HoldfastError, TerminatedError
from holdfast.gate import Control, Fenced, Passage, enter
from holdfast.journal.base import Header, InboxItem, MemoryWrite, Refused, Result
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record, RunState
from holdfast.node.approvals import eligible, settled
from holdfast.node.recorder import Recorder
from holdfast.node.services import Services
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide, settlements
from holdfast.values import digest, dump

APPROVAL_TTL_US = 86_400_000_000
THROTTLE_LIMIT_US = 300_000_000
"""A throttled action that would wait longer than this is denied."""


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

    __slots__ = ("id", "parent", "place")

    def __init__(self, id_: str, parent: str, place: int) -> None:
        self.id = id_
        self.parent = parent
        self.place = place


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
        self.stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        """Resolved when the run must end."""
        self.changed = asyncio.Event()
        """Set when the inbox brought something."""
        self.on_parked: Callable[[str], None] = lambda _: None
        """Told when a call begins to wait, so that the worker can be told."""
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._inflight: dict[str, int] = {}
        self._inflight_recent: list[str] = []

    # facts

    def facts(self, refusals: Mapping[str, Refusal], record: Record | None, price: Price | None) -> Facts:
        """Facts for a decision now."""
        state, header = self.state, self.header
        counters = state.counters
        if self._inflight:
            counters = dict(counters)
            for key, count in self._inflight.items():
                counters[key] = counters.get(key, 0) + count
        now = self.services.clock.now()
        return Facts(
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
            counters=dict(counters),
            price=price,
            kills=self.control.kills,
            kill_generation=self.control.generation,
            grants=tuple(record.grants) if record else (),
            approval_state=record.approval_state if record else "",
            recent=(*state.recent, *self._inflight_recent),
            refusals=dict(refusals),
        )

    # the gate

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
        memory: tuple[MemoryWrite, ...] = (),
        deliver: tuple[InboxItem, ...] = (),
        outcome: dict[str, Any] | None = None,
        outcome_payloads: dict[str, bytes] | None = None,
    ) -> Passage:
        """Take an action through the gate; waits for people and for rates where a policy says so.

        With ``outcome`` the intent and its outcome are one commit: for effects that the store itself performs.

        Raises:
            Stop: a policy or a kill ends the run.
            Fenced, StoreError: nothing more of this run lands here.
        """
        waited = 0
        stored = msgspec.structs.replace(action, args={})
        while True:
            record = self.state.records.get(at.id)

            async def commit(verdict: Verdict, facts: Facts) -> Result:
                data: dict[str, Any] = {
                    "action": stored,
                    "facts": facts,
                    "verdict": verdict,
                    "parent": at.parent,
                    "place": at.place,
                    "key": key,
                    "undo": undo,
                }
                if streams:
                    data["streams"] = list(streams)
                drafts = [self.recorder.draft(Kind.INTENT, data, {"args": args} if args else None)]
                settle: tuple[Settlement, ...] = ()
                if outcome is not None:
                    drafts.append(self.recorder.draft(Kind.OUTCOME, {"id": at.id, **outcome}, outcome_payloads))
                    settle = settlements(verdict.reservations, sent=True)
                return await self.recorder.write(
                    *drafts,
                    reserve=verdict.reservations,
                    settle=settle,
                    kill_generation=facts.kill_generation,
                    memory=memory,
                    deliver=deliver,
                )

            self._enter(action)
            try:
                passage = await enter(
                    action, self.bundle, self.control, functools.partial(self.facts, record=record, price=price), commit
                )
            finally:
                self._leave(action)
            verdict = passage.verdict
            if passage.written is not None:
                return passage
            if verdict.outcome is Outcome.TERMINATE:
                raise self._terminated(passage)
            if verdict.outcome is Outcome.REQUIRE_APPROVAL:
                await self._await_approval(stored, at, args, passage, key=key, undo=undo)
                continue
            if verdict.outcome is Outcome.THROTTLE and waited + verdict.retry_after_us <= THROTTLE_LIMIT_US:
                waited += max(verdict.retry_after_us, 1000)
                await asyncio.sleep(max(verdict.retry_after_us, 1000) / 1e6)
                continue
            self.note_verdict(action, at, passage, args, key)
            return passage

    async def decide(self, action: Action) -> Passage:
        """Decide an action whose going ahead is a wait, not an effect.

        Raises:
            Stop: a policy or a kill ends the run.
        """
        facts = self.facts({}, self.state.records.get(action.id), None)
        passage = Passage(verdict=decide(action, facts, self.bundle), facts=facts)
        if passage.verdict.outcome is Outcome.TERMINATE:
            raise self._terminated(passage)
        return passage

    def note_verdict(self, action: Action, at: Place, passage: Passage, args: bytes, key: str = "") -> None:
        """Record a verdict that led to no intent."""
        stored = msgspec.structs.replace(action, args={})
        data = {
            "action": stored,
            "facts": passage.facts,
            "verdict": passage.verdict,
            "parent": at.parent,
            "place": at.place,
            "key": key,
        }
        self.recorder.note(self.recorder.draft(Kind.VERDICT, data, {"args": args} if args else None))

    def _enter(self, action: Action) -> None:
        for key in _counted(action):
            self._inflight[key] = self._inflight.get(key, 0) + 1
        if action.kind == "tool":
            self._inflight_recent.append(action.digest)

    def _leave(self, action: Action) -> None:
        for key in _counted(action):
            left = self._inflight[key] - 1
            if left:
                self._inflight[key] = left
            else:
                del self._inflight[key]
        if action.kind == "tool":
            self._inflight_recent.remove(action.digest)

    def _terminated(self, passage: Passage) -> Stop:
        verdict = passage.verdict
        kill = next((k for k in passage.facts.kills if k.id == verdict.rule), None)
        if kill is not None or verdict.category == "kill_switch":
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
                await self.expire(record)
            if not future.done():
                continue
            self._waiters.pop(id_, None)

    def wake(self, id_: str) -> None:
        """Let the call that waits as ``id_`` look again."""
        future = self._waiters.pop(id_, None)
        if future is not None and not future.done():
            future.set_result(None)

    async def expire(self, record: Record) -> None:
        """The time of a waiting record is up: write what follows."""
        wait = record.wait
        if wait is None or record.state != "waiting":
            return
        if wait.wake_at is not None and wait.wake_at > self.services.clock.now():
            return
        draft = self.recorder.draft
        if wait.kind == "timer":
            await self.recorder.write(draft(Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": b"null"}))
        elif wait.kind == "approval" and wait.spec is not None:
            await self._expire_approval(record, wait.spec)
        else:
            message = f"nothing came for {record.id} in time"
            data = {"id": record.id, "status": "fault", "code": "timeout", "message": message}
            await self.recorder.write(draft(Kind.OUTCOME, data))
        self.wake(record.id)

    async def _expire_approval(self, record: Record, spec: ApprovalSpec) -> None:
        draft = self.recorder.draft
        base = {"item": 0, "id": record.id, "accepted": True}
        if spec.on_expiry == "escalate" and spec.escalate_to:
            data = {**base, "kind": "escalated", "approvers": list(spec.escalate_to)}
            data["wake_at"] = self.services.clock.now() + spec.ttl_us
            await self.recorder.write(draft(Kind.INBOX, data))
            return
        state = "approved" if spec.on_expiry == "approve" else "expired"
        await self._settle_approval(record, state)

    # the inbox

    async def take_inbox(self, items: list[InboxItem]) -> None:
        """Consume what others said to this run; what it answers goes on."""
        for item in items:
            await self._take(item)
        self.changed.set()

    async def _take(self, item: InboxItem) -> None:
        data: dict[str, Any] = {"item": item.id, "kind": item.kind, **item.data}
        record: Record | None = None
        if item.kind in ("approval", "answer"):
            record = self._addressed(item)
            data |= self._judge(item, record)
        payloads = {"data": item.payload} if item.payload else None
        draft = self.recorder.draft(Kind.INBOX, data, payloads, principal=item.principal, auth=item.auth)
        result = await self.recorder.write(draft, consume=(item.id,))
        if isinstance(result, Refused) or not data.get("accepted", True):
            return
        if item.kind == "approval" and record is not None:
            await self._weigh(record)
        elif item.kind == "answer" and record is not None:
            outcome = self.recorder.draft(
                Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": item.payload or b"null"}
            )
            await self.recorder.write(outcome)
            self.wake(record.id)
        elif item.kind in ("signal", "child"):
            await self.feed()
        elif item.kind == "resolve":
            await self._resolve(item)

    def _addressed(self, item: InboxItem) -> Record | None:
        wanted = item.data.get("approval")
        for record in self.state.waiting():
            if record.wait is not None and record.wait.approval == wanted:
                return record
        return None

    def _judge(self, item: InboxItem, record: Record | None) -> dict[str, Any]:
        """Whether an answer counts, and why not."""
        if record is None or record.wait is None:
            return {"id": "", "accepted": False, "why": "nothing waits for this answer any more"}
        if item.data.get("digest") != record.action.digest:
            return {"id": record.id, "accepted": False, "why": "it was given to other arguments"}
        if item.kind == "answer":
            return {"id": record.id, "accepted": record.wait.kind == "ask", "why": ""}
        why = ""
        if record.wait.kind != "approval" or record.wait.spec is None:
            why = "it asks for an answer, not for approval"
        else:
            grant = Grant(principal=item.principal, auth=item.auth, roles=tuple(item.data.get("roles", ())), at=item.at)
            why = eligible(record.wait.spec, grant, self.header.principal)
        return {"id": record.id, "accepted": not why, "why": why}

    async def _weigh(self, record: Record) -> None:
        assert record.wait is not None
        assert record.wait.spec is not None
        state = settled(record.wait.spec, record.grants, self.header.principal)
        if state:
            await self._settle_approval(record, state)
            self.wake(record.id)

    async def _settle_approval(self, record: Record, state: str) -> None:
        """An approval is through: a call's own goes on to its gate, ``ctx.approve`` gets its outcome."""
        draft = self.recorder.draft
        data = {"item": 0, "kind": "settled", "id": record.id, "accepted": True, "state": state}
        drafts = [draft(Kind.INBOX, data)]
        if record.action.kind == "approval":
            by = [grant.principal for grant in record.grants]
            reason = "; ".join(grant.reason for grant in record.grants if grant.reason)
            value = dump({"approved": state == "approved", "state": state, "by": by, "reason": reason})
            drafts.append(draft(Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": value}))
        elif state != "approved":
            who = ", ".join(g.principal for g in record.grants if not g.approved)
            message = f"approval of {record.id} {'was refused by ' + who if state == 'denied' else 'expired'}"
            fault = {"id": record.id, "status": "fault", "code": "denied", "message": message, "rule": "approval"}
            drafts.append(draft(Kind.OUTCOME, fault))
        await self.recorder.write(*drafts)

    async def feed(self) -> None:
        """Give signals and ended children to the calls that wait for them, oldest call first."""
        for record in self.state.waiting():
            wait = record.wait
            if wait is None:
                continue
            draft = self.recorder.draft
            if wait.kind == "signal" and self.state.signals.get(wait.name):
                value = await self.services.payload(self.header.tenant, self.state.signals[wait.name][0])
                taken = {"item": 0, "kind": "taken", "id": record.id, "name": wait.name, "accepted": True}
                outcome = {"id": record.id, "status": "ok"}
                await self.recorder.write(
                    draft(Kind.INBOX, taken), draft(Kind.OUTCOME, outcome, {"result": value or b"null"})
                )
                self.wake(record.id)
            elif wait.kind == "join" and wait.name in self.state.ended:
                await self._join(record, self.state.ended[wait.name])
                self.wake(record.id)

    async def _join(self, record: Record, ended: dict[str, Any]) -> None:
        draft = self.recorder.draft
        if ended["status"] == "completed":
            value = await self.services.payload(self.header.tenant, ended["output"]) if ended["output"] else b"null"
            await self.recorder.write(
                draft(Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": value or b"null"})
            )
            return
        message = f"child {ended['run']} {ended['status']}: {ended.get('message', '')}"
        data = {"id": record.id, "status": "fault", "code": "step_failed", "message": message}
        await self.recorder.write(draft(Kind.OUTCOME, data))

    async def _resolve(self, item: InboxItem) -> None:
        """A person says how a doubt, or a divergence, ends."""
        how, id_ = item.data["how"], self.state.doubt or self.state.diverged
        drafts = [
            self.recorder.draft(Kind.RUN_RESOLVED, {"id": id_, "how": how}, principal=item.principal, auth=item.auth)
        ]
        if self.state.doubt:
            if how == "done":
                outcome = {"id": id_, "status": "ok"}
                drafts.append(self.recorder.draft(Kind.OUTCOME, outcome, {"result": item.payload or b"null"}))
            elif how == "fail":
                fault = {"id": id_, "status": "fault", "code": "step_failed"}
                fault["message"] = f"{id_} was resolved as failed by {item.principal}"
                drafts.append(self.recorder.draft(Kind.OUTCOME, fault))
        elif how == "fail":
            raise Stop(
                Kind.RUN_FAILED, code="diverged", message=f"resolved as failed by {item.principal}: {self.state.error}"
            )
        await self.recorder.write(*drafts)

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


def effect_of(word: str) -> Effect:
    """An effect class by its word; an unknown one counts as irreversible."""
    try:
        return Effect(word)
    except ValueError:
        return Effect.IRREVERSIBLE
