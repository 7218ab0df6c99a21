"""What others say to a run, and what the clock says: taken from the inbox once, judged, recorded, and passed on."""

from __future__ import annotations

import asyncio
from typing import Any

from holdfast.action import ApprovalSpec, Declassified, Grant
from holdfast.journal.base import Draft, InboxItem, Refused
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record, RunState
from holdfast.node.approvals import eligible, settled
from holdfast.node.labels import named
from holdfast.node.run import Run, Stop
from holdfast.values import dump, load


class Inbox:
    """One run's inbox."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # What ends a waiting must not be judged twice, by the clock and by an answer, or by two calls that both wait.
        self._turn = asyncio.Lock()
        run.inbox = self

    async def expire(self, record: Record) -> None:
        """The time of a waiting record is up: write what follows."""
        async with self._turn:
            await self._expire(record)

    async def _expire(self, record: Record) -> None:
        wait = record.wait
        if wait is None or record.state != "waiting":
            return
        if wait.wake_at is None or wait.wake_at > self.run.services.clock.now():
            return
        draft = self.run.recorder.draft
        if wait.kind == "timer":
            await self.run.recorder.write(draft(Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": b"null"}))
        elif wait.kind == "approval" and wait.spec is not None:
            await self._expire_approval(record, wait.spec)
        else:
            message = f"nothing came for {record.id} in time"
            data = {"id": record.id, "status": "fault", "code": "timeout", "message": message}
            await self.run.recorder.write(draft(Kind.OUTCOME, data))
        self.run.wake(record.id)

    async def _expire_approval(self, record: Record, spec: ApprovalSpec) -> None:
        draft = self.run.recorder.draft
        base = {"item": 0, "id": record.id, "accepted": True}
        if spec.on_expiry == "escalate" and spec.escalate_to:
            data = {**base, "kind": "escalated", "approvers": list(spec.escalate_to)}
            data["wake_at"] = self.run.services.clock.now() + spec.ttl_us
            await self.run.recorder.write(draft(Kind.INBOX, data))
            return
        state = "approved" if spec.on_expiry == "approve" else "expired"
        await self.run.recorder.write(*self._settle(record, record.grants, state))

    async def take(self, items: list[InboxItem]) -> None:
        """Consume what others said to this run; what it answers goes on."""
        async with self._turn:
            for item in items:
                await self._consume(item)

    async def _consume(self, item: InboxItem) -> None:
        data: dict[str, Any] = {"item": item.id, "kind": item.kind, **item.data}
        record: Record | None = None
        if item.kind in ("approval", "answer"):
            record = self._addressed(item)
            data |= self._judge(item, record)
        if data.get("accepted", True):
            data |= self.run.beyond.labels.told(item.payload, data.get("labels", ()))
        payloads = {"data": item.payload} if item.payload else None
        draft = self.run.recorder.draft(Kind.INBOX, data, payloads, principal=item.principal, auth=item.auth)
        # What follows from it is written with it: a node that died in between would have heard it for nothing.
        follows = self._follows(item, record) if data.get("accepted", True) else []
        result = await self.run.recorder.write(draft, *follows, consume=(item.id,))
        if isinstance(result, Refused) or not data.get("accepted", True):
            return
        if record is not None:
            if record.state != "waiting":
                self.run.wake(record.id)
        elif item.kind in ("signal", "child"):
            await self._feed()
        elif item.kind == "resolve" and self.run.state.failing:
            raise failing(self.run.state)

    def _follows(self, item: InboxItem, record: Record | None) -> list[Draft]:
        """What an item that counts leads to at once."""
        if item.kind == "resolve":
            return self._resolve(item)
        if record is None or record.wait is None:
            return []
        if item.kind == "answer":
            outcome = {"id": record.id, "status": "ok"}
            return [self.run.recorder.draft(Kind.OUTCOME, outcome, {"result": item.payload or b"null"})]
        assert record.wait.spec is not None
        grants = [*record.grants, _grant(item)]
        state = settled(record.wait.spec, grants, self.run.header.principal)
        return self._settle(record, grants, state) if state else []

    def _addressed(self, item: InboxItem) -> Record | None:
        wanted = item.data.get("approval")
        for record in self.run.state.waiting():
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
            grant = _grant(item)
            why = eligible(record.wait.spec, grant, self.run.header.principal)
        return {"id": record.id, "accepted": not why, "why": why}

    def _settle(self, record: Record, grants: list[Grant], state: str) -> list[Draft]:
        """An approval is through: a call's own goes on to its gate, ``ctx.approve`` gets its outcome."""
        draft = self.run.recorder.draft
        data: dict[str, Any] = {"item": 0, "kind": "settled", "id": record.id, "accepted": True, "state": state}
        if record.action.name == "declassify" and state == "approved":
            data["declassified"] = self._declassified(record, grants)
        drafts = [draft(Kind.INBOX, data)]
        if record.action.kind == "approval":
            by = [grant.principal for grant in grants]
            reason = "; ".join(grant.reason for grant in grants if grant.reason)
            value = dump({"approved": state == "approved", "state": state, "by": by, "reason": reason})
            drafts.append(draft(Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": value}))
        elif state != "approved":
            who = ", ".join(g.principal for g in grants if not g.approved)
            message = f"approval of {record.id} {'was refused by ' + who if state == 'denied' else 'expired'}"
            fault = {"id": record.id, "status": "fault", "code": "denied", "message": message, "rule": "approval"}
            drafts.append(draft(Kind.OUTCOME, fault))
        return drafts

    def _declassified(self, record: Record, grants: list[Grant]) -> list[Declassified]:
        """What people have taken off by approving it. Where it just expired into approval, nobody answers for it."""
        run = self.run
        shown = run.services.store.payload(run.state.tenant, record.args)
        if shown is None or not grants:
            return []
        label, reason = named(load(shown))
        by = ", ".join(sorted({grant.principal for grant in grants}))
        return [Declassified(label=label, by=by, reason=reason, at=run.services.clock.now())]

    async def feed(self) -> None:
        """Give signals and ended children to the calls that wait for them, oldest call first."""
        async with self._turn:
            await self._feed()

    async def _feed(self) -> None:
        for record in self.run.state.waiting():
            wait = record.wait
            if wait is None:
                continue
            draft = self.run.recorder.draft
            if wait.kind == "signal" and self.run.state.signals.get(wait.name):
                value = await self.run.services.payload(self.run.header.tenant, self.run.state.signals[wait.name][0])
                taken = {"item": 0, "kind": "taken", "id": record.id, "name": wait.name, "accepted": True}
                outcome = {"id": record.id, "status": "ok"}
                await self.run.recorder.write(
                    draft(Kind.INBOX, taken), draft(Kind.OUTCOME, outcome, {"result": value or b"null"})
                )
                self.run.wake(record.id)
            elif wait.kind == "join" and wait.name in self.run.state.ended:
                await self._join(record, self.run.state.ended[wait.name])
                self.run.wake(record.id)

    async def _join(self, record: Record, ended: dict[str, Any]) -> None:
        draft = self.run.recorder.draft
        if ended["status"] == "completed":
            value = (
                await self.run.services.payload(self.run.header.tenant, ended["output"]) if ended["output"] else b"null"
            )
            await self.run.recorder.write(
                draft(Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": value or b"null"})
            )
            return
        message = f"child {ended['run']} {ended['status']}: {ended.get('message', '')}"
        data = {"id": record.id, "status": "fault", "code": "step_failed", "message": message}
        await self.run.recorder.write(draft(Kind.OUTCOME, data))

    def _resolve(self, item: InboxItem) -> list[Draft]:
        """A person says how a doubt, or a divergence, ends."""
        how, state, draft = item.data["how"], self.run.state, self.run.recorder.draft
        id_ = state.doubt or state.diverged
        if not state.doubt and how == "fail":
            # The run's end says it; until then the state remembers.
            return []
        said = {"id": id_, "how": how}
        drafts = [draft(Kind.RUN_RESOLVED, said, principal=item.principal, auth=item.auth)]
        if state.doubt and how == "done":
            drafts.append(draft(Kind.OUTCOME, {"id": id_, "status": "ok"}, {"result": item.payload or b"null"}))
        elif state.doubt and how == "fail":
            message = f"{id_} was resolved as failed by {item.principal}"
            fault = {"id": id_, "status": "fault", "code": "step_failed", "message": message}
            drafts.append(draft(Kind.OUTCOME, fault))
        return drafts


def _grant(item: InboxItem) -> Grant:
    """An answer as it is weighed."""
    data = item.data
    return Grant(
        principal=item.principal,
        auth=item.auth,
        roles=tuple(data.get("roles", ())),
        at=item.at,
        approved=data.get("approved", False),
        reason=data.get("reason", ""),
    )


def failing(state: RunState) -> Stop:
    """The end of a diverged run that a person gave up."""
    message = f"resolved as failed by {state.failing}: {state.error}"
    return Stop(Kind.RUN_FAILED, code="diverged", message=message)
