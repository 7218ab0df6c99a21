"""What others say to a run, and what the clock says: taken from the inbox once, judged, recorded, and passed on."""

from __future__ import annotations

from typing import Any

from holdfast.action import ApprovalSpec, Grant
from holdfast.journal.base import InboxItem, Refused
from holdfast.journal.event import Kind
from holdfast.journal.fold import Record
from holdfast.node.approvals import eligible, settled
from holdfast.node.run import Run, Stop
from holdfast.values import dump


class Inbox:
    """One run's inbox."""

    def __init__(self, run: Run) -> None:
        self.run = run
        run.inbox = self

    async def expire(self, record: Record) -> None:
        """The time of a waiting record is up: write what follows."""
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
        await self._settle_approval(record, state)

    async def take(self, items: list[InboxItem]) -> None:
        """Consume what others said to this run; what it answers goes on."""
        for item in items:
            await self._consume(item)

    async def _consume(self, item: InboxItem) -> None:
        data: dict[str, Any] = {"item": item.id, "kind": item.kind, **item.data}
        record: Record | None = None
        if item.kind in ("approval", "answer"):
            record = self._addressed(item)
            data |= self._judge(item, record)
        payloads = {"data": item.payload} if item.payload else None
        draft = self.run.recorder.draft(Kind.INBOX, data, payloads, principal=item.principal, auth=item.auth)
        result = await self.run.recorder.write(draft, consume=(item.id,))
        if isinstance(result, Refused) or not data.get("accepted", True):
            return
        if item.kind == "approval" and record is not None:
            await self._weigh(record)
        elif item.kind == "answer" and record is not None:
            outcome = self.run.recorder.draft(
                Kind.OUTCOME, {"id": record.id, "status": "ok"}, {"result": item.payload or b"null"}
            )
            await self.run.recorder.write(outcome)
            self.run.wake(record.id)
        elif item.kind in ("signal", "child"):
            await self.feed()
        elif item.kind == "resolve":
            await self._resolve(item)

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
            grant = Grant(principal=item.principal, auth=item.auth, roles=tuple(item.data.get("roles", ())), at=item.at)
            why = eligible(record.wait.spec, grant, self.run.header.principal)
        return {"id": record.id, "accepted": not why, "why": why}

    async def _weigh(self, record: Record) -> None:
        assert record.wait is not None
        assert record.wait.spec is not None
        state = settled(record.wait.spec, record.grants, self.run.header.principal)
        if state:
            await self._settle_approval(record, state)
            self.run.wake(record.id)

    async def _settle_approval(self, record: Record, state: str) -> None:
        """An approval is through: a call's own goes on to its gate, ``ctx.approve`` gets its outcome."""
        draft = self.run.recorder.draft
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
        await self.run.recorder.write(*drafts)

    async def feed(self) -> None:
        """Give signals and ended children to the calls that wait for them, oldest call first."""
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

    async def _resolve(self, item: InboxItem) -> None:
        """A person says how a doubt, or a divergence, ends."""
        how, id_ = item.data["how"], self.run.state.doubt or self.run.state.diverged
        drafts = [
            self.run.recorder.draft(
                Kind.RUN_RESOLVED, {"id": id_, "how": how}, principal=item.principal, auth=item.auth
            )
        ]
        if self.run.state.doubt:
            if how == "done":
                outcome = {"id": id_, "status": "ok"}
                drafts.append(self.run.recorder.draft(Kind.OUTCOME, outcome, {"result": item.payload or b"null"}))
            elif how == "fail":
                fault = {"id": id_, "status": "fault", "code": "step_failed"}
                fault["message"] = f"{id_} was resolved as failed by {item.principal}"
                drafts.append(self.run.recorder.draft(Kind.OUTCOME, fault))
        elif how == "fail":
            raise Stop(
                Kind.RUN_FAILED,
                code="diverged",
                message=f"resolved as failed by {item.principal}: {self.run.state.error}",
            )
        await self.run.recorder.write(*drafts)
