"""The door of one run: each request becomes an action at the gate, each answer an outcome in the run's record.

A connection is asked for from a scope (``ctx.http``) or from anywhere; the step that a request belongs to follows from
it. What the record already answers is served from there.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.action import Action, Effect, Outcome, Verdict
from holdfast.action import Ended as Answered
from holdfast.config import EgressSettings
from holdfast.egress.base import Deny, Go, Meter, MeterState, Refused, Request, RequestHead
from holdfast.egress.base import Outcome as Ended
from holdfast.errors import HoldfastError, PayloadError, StoreError
from holdfast.gate import Fenced, Passage
from holdfast.journal.event import Kind, Witness
from holdfast.journal.fold import Record
from holdfast.node import effects
from holdfast.node.answered import Withheld
from holdfast.node.incarnation import Incarnation
from holdfast.node.run import Place, Stop, approval_id, doubt, idempotency_key
from holdfast.policy.categories.base import Rule
from holdfast.policy.decide import decide, settlements
from holdfast.values import digest, dump

HOLD_S = 30.0
"""How long a request that waits for people is held before it is answered so and the run is suspended."""
ANSWER_S = 0.1
_BLIND = frozenset({"reach", "limits", "cost", "rates"})
"""Families whose rules do not read what is sent."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange whose intent is durable."""

    id: str
    action: Action
    verdict: Verdict
    call: tuple[str, Verdict] | None = None
    """Id and verdict of the model call that the request is."""
    brought: dict[str, Any] = {}
    """Labels that its answer brings into the run, for the outcome's event."""
    held: Withheld | None = None
    """The rules' hold on its answer."""


class RunDoor:
    """What the requests of one connection pass. ``scope`` is where it was asked for; a number that names no open scope
    stands for anywhere."""

    def __init__(
        self,
        inc: Incarnation,
        ledger: effects.Ledger,
        scope: int,
        settings: EgressSettings,
        credential: Callable[[RequestHead], str],
        meter: Meter | None,
    ) -> None:
        self._inc = inc
        self._ledger = ledger
        self._scope = scope
        self._settings = settings
        self._credential = credential
        self._meter = meter

    # holdfast.egress.base.Door

    async def decide(self, request: Request) -> Go | Deny:
        """See :class:`holdfast.egress.base.Door`."""
        inc, run, head = self._inc, self._inc.run, request.head
        if inc.leaving or inc.ended.done() or run.stop.done():
            return Deny(type="stopped", rule="run", reason="the run is being stopped", status=503)
        try:
            if head.method == "CONNECT" and not _fits(head.host, self._settings.passthrough):
                # What is asked for inside is decided, request by request.
                return Go(ticket=None, tls="inspect")
            return await self._enter(request)
        except Stop as stop:
            run.end(stop)
            return Deny(type=stop.code, rule=stop.rule, reason=stop.message)
        except (Fenced, StoreError) as error:
            run.failed(error)
            raise

    def rejected(self, deny: Deny) -> None:
        """See :class:`holdfast.egress.base.Door`."""
        run = self._inc.run
        data = {"level": "warning", "bytes": len(deny.reason)}
        text = f"egress: a request was turned away ({deny.type}): {deny.reason}"[:1000]
        run.recorder.note(run.recorder.draft(Kind.LOG, data, {"message": text.encode()}, witness=Witness.NODE))

    async def before_dial(self, ticket: Any) -> None:
        """See :class:`holdfast.egress.base.Door`."""
        run = self._inc.run
        if run.stop.done():
            raise Refused("the run is being stopped", kind="stopped", status=503)
        try:
            run.services.before_dial(self._settings.dial / 1e6)
        except HoldfastError as error:
            raise Refused(str(error), kind="lease", status=503) from None

    async def outcome(self, ticket: Any, outcome: Ended) -> None:
        """See :class:`holdfast.egress.base.Door`."""
        run = self._inc.run
        if not isinstance(ticket, Ticket) or (outcome.aborted == "stopped" and run.stop.done()):
            # What was cut because the run stops stays open: the next process, or a person, settles it.
            return
        try:
            self._record(ticket, outcome)
        except HoldfastError as error:
            run.failed(error)

    # one request

    async def _enter(self, request: Request) -> Go | Deny:
        run, head, body = self._inc.run, request.head, request.body
        parent, attempt, enclosing = self._maker()
        sha = effects.sha_of(head, body)
        id_ = self._ledger.next(parent, attempt, sha)
        key = idempotency_key(run.state.run, id_)
        own_key = head.get(b"idempotency-key") is not None
        heeded = _fits(head.host, self._settings.idempotency)
        effect = effects.effect_of(head, enclosing, own_key or heeded)
        record = run.state.records.get(id_)
        if record is not None:
            answer = await self._before(record, effect)
            if answer is not None:
                return answer
        elif head.method not in effects.SAFE:
            self._same_way(parent, attempt, id_)
        action = Action(
            kind="http",
            name=f"{head.method} {head.authority}",
            id=id_,
            args=effects.arguments(head, body),
            digest=sha,
            effect=effect,
            attempt=(record.attempt if record else 0) + 1,
            host=head.authority,
            method=head.method,
            path=head.path,
            credential=self._credential(head),
        )
        siblings = run.state.children.get(effects.place_of(parent), {})
        place = Place(id_, effects.place_of(parent), self._ledger.place(parent, len(siblings)))
        facts = run.facts({}, None, None)
        rules = [rule for rule in run.bundle.plan("http", facts) if rule.enforced]
        if not body.complete and (readers := [rule for rule in rules if rule.category.family not in _BLIND]):
            size = len(body.data)
            reason = f"{readers[0].id} reads what is sent, and this is longer than {size} bytes; send it in parts"
            return self._refuse(action, place, Refused(reason, kind="body_too_large", rule=readers[0].id, status=413))
        # A name that no list names is not even looked up.
        if decide(action, facts, run.bundle).rule not in _lists(rules):
            try:
                addresses = await request.resolve()
            except Refused as refused:
                return self._refuse(action, place, refused)
            action = msgspec.structs.replace(action, addresses=addresses)
        passage = await self._pass(action, place, dump(dict(action.args), "a request"), key)
        if isinstance(passage, Deny):
            return passage
        # From the first byte of the answer on, what the run does next may come of it.
        brought = run.beyond.labels.take(action, Answered())
        held = Withheld.of(run, action)
        go = Go(
            ticket=Ticket(id=id_, action=action, verdict=passage.verdict, brought=brought, held=held),
            tap=held,
            tls="passthrough" if head.method == "CONNECT" else "inspect",
            deadline_s=self._settings.dial / 1e6,
            idempotency_key=key if heeded and not own_key else "",
        )
        meter = self._meter.begin(head, body) if self._meter is not None else None
        return go if meter is None else await self._call(go, meter, key, head)

    def _refuse(self, action: Action, at: Place, refused: Refused) -> Deny:
        """What cannot be sent at all is on record like an outcome: the code may go another way because of it."""
        recorder = self._inc.run.recorder
        sample = {"action": msgspec.structs.replace(action, args={}), "parent": at.parent, "place": at.place}
        recorder.note(recorder.draft(Kind.SAMPLE, sample))
        data = {"id": action.id, "status": "fault", "code": "denied", "message": str(refused), "rule": refused.rule}
        recorder.note(recorder.draft(Kind.OUTCOME, data))
        return Deny.of(refused)

    def _maker(self) -> tuple[str, int, Effect | None]:
        """Which step makes the request: its path, its attempt, and its class where it is a tool.

        A connection of ``ctx.http`` says where it was asked for. For any other program's it is the step whose body
        runs; where several run side by side, the step around all of them.
        """
        inc = self._inc
        bodies = {body.place.id: body for body in inc.bodies.values()}
        scope = inc.scopes.get(self._scope)
        path = scope.path if scope is not None else _common(list(bodies))
        # A branch of a gather is no step: what counts is the step around it.
        while path and path not in bodies:
            path = path.rpartition("/")[0]
        if not path:
            return "", inc.number, None
        action = bodies[path].action
        return path, action.attempt, action.effect if action.kind == "tool" else None

    def _same_way(self, parent: str, attempt: int, id_: str) -> None:
        """A request that changes something and is not on record, while one on record was not made again.

        Raises:
            Stop: the code takes another way than the one that its effects came of.
        """
        run = self._inc.run
        ids = run.state.children.get(effects.place_of(parent), {})
        left = self._ledger.left(parent, attempt, [run.state.records[one] for one in ids.values()])
        if left is not None:
            message = (
                f"{parent or 'the workflow'} asked for {id_}, which its journal does not hold, before it repeated "
                f"{left.id} ({left.action.name}), which it does; restore the code and resume, or end it with "
                "`runs resolve --fail`"
            )
            raise Stop(Kind.RUN_DIVERGED, code="diverged", message=message)

    async def _before(self, record: Record, effect: Effect) -> Go | Deny | None:
        """What the record says of a request that was made before; None: it goes through the gate again."""
        run = self._inc.run
        if record.state == "done":
            value = record.value
            if value is None and record.result:
                value = await run.services.payload(run.header.tenant, record.result)
            if value is not None:
                return Go(ticket=None, served=effects.recorded(value))
            if effect is Effect.PURE:
                return None
            raise doubt(run, record.id, f"{record.id} was answered, and its answer is not on record")
        if record.state == "fault" and record.code == "denied":
            return Deny(type="denied", rule=record.rule, reason=record.message)
        if record.state == "open" and effect is Effect.IRREVERSIBLE:
            raise doubt(run, record.id, f"{record.id} was sent and its answer is not known")
        return None

    async def _pass(self, action: Action, at: Place, args: bytes, key: str) -> Passage | Deny:
        run = self._inc.run
        entering = asyncio.ensure_future(run.gate(action, at, args, key=key, streams=self._inc.prefix()))
        done, _ = await asyncio.wait({entering}, timeout=HOLD_S)
        if not done:
            entering.cancel()
            await asyncio.wait({entering})
            return self._held(action)
        try:
            passage = entering.result()
        except PayloadError as error:
            return Deny(type=error.code, rule="gate", reason=str(error), status=413)
        if passage.written is not None:
            return passage
        verdict = passage.verdict
        reason = verdict.reason
        if verdict.outcome is Outcome.REDACT:
            reason = f"{reason} (nothing can be taken out of a request, so it is denied)"
        return Deny(type="denied", rule=verdict.rule, reason=reason, allowed=self._allowed(verdict))

    def _held(self, action: Action) -> Deny:
        """Nobody has answered in time: the request is told so, and the run waits without its process."""
        run = self._inc.run
        message = f"{action.name} waits for approval"
        stop = Stop(Kind.RUN_SUSPENDED, code="suspended", message=message, rule=action.id)
        # The answer is on its way first, but nothing that follows from it inside counts any more.
        self._inc.leaving = True
        asyncio.get_running_loop().call_later(ANSWER_S, run.end, stop)
        return Deny(
            type="approval_required",
            rule="approval",
            reason=f"{message}; the run is suspended and goes on once people have answered",
            approval_id=approval_id(run.state.run, action.id),
        )

    def _allowed(self, verdict: Verdict) -> tuple[str, ...]:
        """What the list that denied would let through."""
        for rule in self._inc.run.bundle.rules:
            if rule.id == verdict.rule and rule.category.name == "egress_allowlist":
                return tuple(rule.params.hosts)[:20]
        return ()

    # a request that is a model call

    async def _call(self, go: Go, meter: MeterState, key: str, head: RequestHead) -> Go | Deny:
        """It passes the gate of model calls too, which reserves what it may cost."""
        run, ticket = self._inc.run, go.ticket
        id_ = f"{ticket.id}/llm.1"
        action = Action(
            kind="llm",
            name="request",
            id=id_,
            args={"body": ticket.action.args.get("body")},
            digest=digest("llm", ticket.action.digest),
            effect=Effect.IDEMPOTENT,
            attempt=ticket.action.attempt,
            model=meter.model,
            provider=meter.provider,
            max_tokens=meter.max_tokens,
            input_tokens=meter.input_tokens,
        )
        passage = await run.gate(action, Place(id_, ticket.id, 0), b"", key=key, price=meter.price)
        verdict = passage.verdict
        if passage.written is None:
            self._fault(ticket, "denied", verdict.reason, verdict.rule)
            return Deny(type="over_budget", rule=verdict.rule, reason=verdict.reason)
        body = meter.limited(verdict.max_tokens or meter.max_tokens)
        if body is not None and head.get(b"content-encoding") is not None:
            plain = tuple(field for field in head.headers if field[0] != b"content-encoding")
            go = msgspec.structs.replace(go, head=msgspec.structs.replace(go.head or head, headers=plain))
        return msgspec.structs.replace(
            go, ticket=msgspec.structs.replace(ticket, call=(id_, verdict)), body=body, meter=meter
        )

    # what became of it

    def _record(self, ticket: Ticket, ended: Ended) -> None:
        run, action = self._inc.run, ticket.action
        if ticket.call is not None:
            self._record_call(ticket.call, ended)
        tunnel = bool(action.method == "CONNECT" or (ended.head is not None and ended.head.status == 101))
        if ended.aborted and ended.dialled and action.effect is Effect.IRREVERSIBLE and not tunnel:
            run.end(doubt(run, ticket.id, f"{action.name} was sent and not answered ({ended.aborted})"))
            return
        about = {
            "status": ended.status,
            "bytes": ended.length,
            "sha256": ended.digest,
            "sent": ended.sent_length,
            "address": ended.address,
            "aborted": ended.aborted,
        }
        if ended.aborted and not tunnel:
            self._fault(ticket, "http", f"{action.name} broke off: {ended.aborted}", exchange=about, sent=ended.dialled)
            return
        data: dict[str, Any] = {"id": ticket.id, "status": "ok", "exchange": about, **ticket.brought}
        data |= run.beyond.labels.take(action, Answered(value=effects.value_of(ended.text)))
        payloads: dict[str, bytes] = {}
        if ended.head is not None and not ended.truncated and not tunnel:
            payloads["result"] = effects.keep(ended.head, ended.body)
        if ticket.held is not None and (judged := ticket.held.judged) is not None:
            data |= judged.data()
            if judged.changed:
                payloads["received"] = ticket.held.received
            if judged.refused:
                payloads.pop("result", None)
            if (stop := judged.stop()) is not None:
                run.end(stop)
        self._note(data, ticket.verdict, payloads or None)

    def _record_call(self, call: tuple[str, Verdict], ended: Ended) -> None:
        id_, verdict = call
        usage, recorder = ended.usage, self._inc.run.recorder
        data: dict[str, Any] = {"id": id_, "status": "ok", "usage": usage}
        if ended.aborted:
            data |= {"status": "fault", "code": "http", "message": ended.aborted}
        if usage is None or usage.settled_at_worst:
            settle = settlements(verdict.reservations, sent=ended.dialled)
        else:
            tokens = usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            data |= {"model": usage.model, "provider": usage.provider, "prices": usage.prices}
            data["tokens"] = tokens
            if usage.cost is not None:
                data["cost"] = usage.cost
            settle = settlements(verdict.reservations, cost=usage.cost, tokens=tokens)
        recorder.note(recorder.draft(Kind.OUTCOME, data), settle)

    def _fault(
        self,
        ticket: Ticket,
        code: str,
        message: str,
        rule: str = "",
        *,
        exchange: dict[str, Any] | None = None,
        sent: bool = False,
    ) -> None:
        data: dict[str, Any] = {"id": ticket.id, "status": "fault", "code": code, "message": message, "rule": rule}
        data |= ticket.brought
        if exchange is not None:
            data["exchange"] = exchange
        self._note(data, ticket.verdict, None, sent=sent)

    def _note(
        self, data: dict[str, Any], verdict: Verdict, payloads: dict[str, bytes] | None, *, sent: bool = True
    ) -> None:
        recorder = self._inc.run.recorder
        recorder.note(recorder.draft(Kind.OUTCOME, data, payloads), settlements(verdict.reservations, sent=sent))
        recorder.push()


def _common(ids: list[str]) -> str:
    """The innermost path around all of some steps that run at once."""
    leaves = [one for one in ids if not any(other.startswith(one + "/") for other in ids)]
    if not leaves:
        return ""
    parts = [one.split("/") for one in leaves]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "/".join(shared)


def _fits(host: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(host, pattern) for pattern in patterns)


def _lists(rules: list[Rule]) -> set[str]:
    """The ids under which a decision says that no list names a host."""
    return {"egress", *(rule.id for rule in rules if rule.category.name == "egress_allowlist")}
