"""What a candidate bundle would have decided on recorded runs: the pure core of ``holdfast policy replay``.

Each recorded decision is decided again on its recorded action and facts. What depends on what happened before follows
the candidate: budgets and rates are counted in books of their own, questions about the record are answered from the
record, and a run that the candidate refuses stops there. What the record answers is taken from it: a reservation that
fitted then fits here. With the bundle that was in force, every verdict is the recorded one.

A family, which is a run with its descendants, is replayed by itself. Only what families count together is settled
afterwards, in the order of time (:func:`across`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from holdfast.action import Action, Ended, Facts, Outcome, Past, Refusal, Reservation, Verdict
from holdfast.policy.books import Books
from holdfast.policy.bundle import Bundle
from holdfast.policy.categories.base import safe
from holdfast.policy.decide import decide, decide_after, settlements
from holdfast.policy.history import COST, answers, past
from holdfast.policy.recorded import Change, Claim, Decided, Deferred, Delta, Done, Recorded, Told, Unreadable

ROUNDS = 16
"""How often one action is decided anew because a reservation does not fit: as the gate does."""
_parts = attrgetter(
    "outcome", "rule", "category", "reason", "reservations", "approval", "max_tokens", "kill_generation"
)
"""What two verdicts must share in order to be the same."""

ASSUMED = (
    "a run stops at the first action that the candidate refuses, although its code might catch the refusal",
    "whoever is asked approves, and takes the given minutes for each person of the quorum",
    "an action that the candidate delays goes ahead when its time has come",
    "an action that it allows and the record refused costs its worst case; what would have followed is not known",
    "the candidate's budgets and rates begin empty with the earliest run that is replayed",
    "a rule that asks about other runs is answered only where the record holds the answer",
)
"""What a replay takes for granted, for people."""


Refused = Mapping[tuple[str, int], Mapping[str, Refusal]]
"""By run and sequence number: reservations that are known not to fit there."""


class _Line:
    """One run while it is replayed."""

    __slots__ = ("asked", "begun", "delta", "latest", "lost", "prices", "record", "reserved", "stopped_at")

    def __init__(self, run: Recorded) -> None:
        self.delta = Delta(
            run=run.run, tenant=run.tenant, agent=run.agent, workflow=run.workflow, status=run.status, changes=[]
        )
        self.stopped_at: int | None = None
        self.asked: set[str] = set()
        self.lost: set[str] = set()
        self.reserved: dict[str, tuple[Reservation, ...]] = {}
        self.record: dict[int, Past] = {}
        """What rules over the record ask about, by the intent's place."""
        self.latest: dict[str, int] = {}
        """Place of each step's latest attempt there."""
        self.begun: dict[str, Decided] = {}
        """By step: the decision under which it is under way."""
        self.prices: dict[str, tuple[int, int]] = {}
        """By step: the lowered output limit, and the price of an output token."""


class Replay:
    """Replays families under one candidate. ``minutes``: what one person takes for one approval."""

    def __init__(self, candidate: Bundle, *, minutes: float = 5.0) -> None:
        self._bundle = candidate
        self._minutes = minutes

    def family(self, runs: Sequence[Recorded], refused: Refused | None = None) -> Told:
        """Replay a run and its descendants. ``refused``: see :func:`across`."""
        lines = {run.run: _Line(run) for run in runs}
        told = Told(root=runs[0].run, deltas=[line.delta for line in lines.values()], claims=[])
        books = Books()
        for run in runs:
            if run.wrong:
                lines[run.run].delta.unknown = [run.wrong]
        items: Sequence[Decided | Done] = runs[0].items
        if len(runs) > 1:
            items = sorted((item for run in runs for item in run.items), key=lambda item: (item.at, item.run, item.seq))
        parents = {run.run: (run.parent, run.created_at) for run in runs}
        for item in items:
            line = lines[item.run]
            if isinstance(item, Done):
                self._done(item, line, books, told)
            elif line.stopped_at is not None or self._orphan(item.run, parents, lines):
                line.delta.not_reached += 1
                line.lost.add(item.action.id)
            else:
                self._decided(item, line, books, told, refused or {})
        return told

    @staticmethod
    def _orphan(run: str, parents: Mapping[str, tuple[str, int]], lines: Mapping[str, _Line]) -> bool:
        """Whether a run was begun by one that would have stopped before."""
        parent, created_at = parents[run]
        while parent in lines:
            stopped = lines[parent].stopped_at
            if stopped is not None and created_at >= stopped:
                return True
            parent, created_at = parents[parent]
        return False

    def _done(self, item: Done, line: _Line, books: Books, told: Told) -> None:
        place = line.latest.get(item.id)
        if place is not None:
            held = line.record[place]
            figures = held.figures if item.cost is None else {**held.figures, COST: item.cost}
            line.record[place] = msgspec.structs.replace(
                held, state="ok" if item.ok else "failed", ended_at=item.at, figures=figures
            )
        if item.id in line.lost:
            line.delta.saved += item.cost or 0
            return
        if item.id in line.prices:
            limit, price = line.prices.pop(item.id)
            line.delta.saved += max(item.output_tokens - limit, 0) * price
        begun = line.begun.pop(item.id, None)
        if begun is not None and item.value is not None and self._looks(begun, item):
            self._after(begun, item, item.value, line)
        reserved = line.reserved.pop(item.id, ())
        if not reserved:
            return
        settle = settlements(reserved, cost=item.cost, tokens=item.tokens)
        own = tuple(op for op in settle if _own(op.key, item.run, told.root))
        books.settle(own, item.at)
        shared = tuple(op for op in settle if op not in own)
        if shared:
            told.claims.append(Claim(run=item.run, seq=item.seq, at=item.at, settles=shared))

    def _decided(self, item: Decided, line: _Line, books: Books, told: Told, refused: Refused) -> None:
        delta, was, args = line.delta, item.verdict, item.action.args
        verdict = self._verdict(item, line, books, told, refused.get((item.run, item.seq), {}))
        if isinstance(args, Deferred) and args.wrong:
            delta.unknown.append(f"{item.action.id}: {args.wrong}")
            return
        same = _count(delta, verdict, was, pinned=was.bundle == self._bundle.digest)
        delta.shadow += any(hit.mode == "shadow" and hit.outcome is not Outcome.ALLOW for hit in verdict.hits)
        if item.went:
            line.begun[item.action.id] = item
        if item.went and self._bundle.historic:
            line.record[item.seq] = past(item.action, item.facts.now, item.facts.agent, self._bundle.figures)
            line.latest[item.action.id] = item.seq
        if not same:
            self._compare(item, verdict, line)

    def _looks(self, begun: Decided, item: Done) -> bool:
        """Whether rules look at what came back, or did."""
        return item.verdict is not None or ("after", begun.action.gate) in self._bundle.later

    def _after(self, begun: Decided, item: Done, value: Callable[[], Any], line: _Line) -> None:
        """What the candidate says of what came back."""
        bundle, delta, action, was = self._bundle, line.delta, begun.action, item.verdict
        pinned = begun.verdict.bundle == bundle.digest
        if was is None and pinned:
            return  # it had nothing to say then, on facts that were not kept
        facts = item.facts or msgspec.structs.replace(begun.facts, now=item.at)
        if not pinned:
            facts = self._recalled(action, facts, line, "after")
        try:
            ended = Ended(value=value(), cost=item.cost, tokens=item.tokens)
        except Unreadable as error:
            delta.unknown.append(f"{action.id}: {error}")
            return
        verdict = decide_after(action, ended, facts, bundle)
        if isinstance(action.args, Deferred) and action.args.wrong:
            delta.unknown.append(f"{action.id}: {action.args.wrong}")
            return
        before = was or Verdict(outcome=Outcome.ALLOW, kill_generation=verdict.kill_generation)
        same = _count(delta, verdict, before, pinned=pinned)
        if not same or verdict.redactions != before.redactions:
            self._compare(msgspec.structs.replace(begun, at=item.at, verdict=before), verdict, line)

    def _recalled(self, action: Action, facts: Facts, line: _Line, phase: str) -> Facts:
        """The facts with answers to what the candidate asks of the record; those that were recorded stand."""
        asks = self._bundle.asks(action, facts, phase)
        if not asks:
            return facts
        asked = (question.of(action) for question in asks if question.over == "run")
        found = answers(asked, facts, tuple(line.record.values()))
        return msgspec.structs.replace(facts, history={**found, **facts.history})

    def _verdict(self, item: Decided, line: _Line, books: Books, told: Told, given: Mapping[str, Refusal]) -> Verdict:
        """What the candidate says, with what it reserves in the books."""
        action, facts, was, bundle = item.action, item.facts, item.verdict, self._bundle
        if was.bundle == bundle.digest:
            verdict = decide(action, facts, bundle)
            self._reserve(item, verdict, verdict.reservations, line, books, told)
            return verdict
        facts = self._recalled(action, facts, line, "before")
        refusals = dict(given)
        known = was.reservations if was.allowed else ()
        for _ in range(ROUNDS):
            verdict = decide(action, msgspec.structs.replace(facts, refusals=refusals), bundle)
            if not verdict.allowed:
                return verdict
            fresh = tuple(op for op in verdict.reservations if op not in known)
            lacking = {op.key: old for op in fresh if (old := _recorded(op, item.facts, refusals)) is not None}
            if not lacking:
                own = [op for op in fresh if _own(op.key, item.run, told.root)]
                lacking = books.take(own, item.at)
            if not lacking:
                break
            refusals.update(lacking)
        sure = tuple(op for op in verdict.reservations if op in known)
        self._reserve(item, verdict, sure, line, books, told)
        return verdict

    @staticmethod
    def _reserve(
        item: Decided, verdict: Verdict, known: tuple[Reservation, ...], line: _Line, books: Books, told: Told
    ) -> None:
        if not verdict.allowed or not verdict.reservations:
            return
        line.reserved[item.action.id] = verdict.reservations
        own = [op for op in known if _own(op.key, item.run, told.root)]
        books.enter(own, item.at)
        shared = tuple(op for op in verdict.reservations if not _own(op.key, item.run, told.root))
        if shared:
            told.claims.append(
                Claim(
                    run=item.run,
                    seq=item.seq,
                    at=item.at,
                    wants=tuple(op for op in shared if op not in known),
                    known=tuple(op for op in shared if op in known),
                )
            )

    def _compare(self, item: Decided, now: Verdict, line: _Line) -> None:
        """Count in what another verdict changes."""
        delta, was, action = line.delta, item.verdict, item.action
        more = len(now.redactions) - len(was.redactions)
        effect = _effect(was.outcome, now.outcome)
        if effect == "asked" and action.id in line.asked:
            return
        if effect in ("asked", "unasked"):
            spec = now.approval if effect == "asked" else was.approval
            people = spec.quorum if spec is not None else 1
            delta.minutes += self._minutes * people * (1 if effect == "asked" else -1)
            line.asked.add(action.id)
        if effect == "denied":
            delta.denied += 1
            delta.stops_at, line.stopped_at = action.id, item.at
            line.lost.add(action.id)
        elif effect == "asked":
            delta.asked += 1
        elif effect == "unasked":
            delta.unasked += 1
        elif effect == "allowed":
            delta.allowed += 1
            if now.outcome is Outcome.REQUIRE_APPROVAL and action.id not in line.asked:
                delta.asked += 1
                delta.minutes += self._minutes * (now.approval.quorum if now.approval is not None else 1)
                line.asked.add(action.id)
            delta.spent += _worst(item, now)
        elif effect in ("delayed", "sooner"):
            delta.delayed += 1 if effect == "delayed" else -1
        if effect != "denied":
            delta.redactions += more
        if not effect and more:
            effect = "redacted"
        if not effect and now.outcome is not was.outcome:
            effect = "warned"
        if not effect and now.max_tokens != was.max_tokens and now.max_tokens:
            effect = "lowered"
            if item.facts.price is not None:
                line.prices[action.id] = (now.max_tokens, item.facts.price.output)
        if effect:
            rule, reason = (now.rule, now.reason) if now.rule else (was.rule, f"no longer: {was.reason}")
            if effect == "lowered":
                rule, reason = next(
                    ((hit.rule, hit.reason) for hit in now.hits if "max_tokens" in hit.facts), (rule, reason)
                )
            delta.changes.append(
                Change(
                    step=action.id,
                    action=f"{action.kind} {action.target}",
                    effect=effect,
                    was=was.outcome.word,
                    now=now.outcome.word,
                    rule=rule,
                    reason=reason,
                )
            )


def across(
    found: Mapping[str, Told], again: Callable[[str, Refused], Told], *, begun: Callable[[int], None] = lambda _: None
) -> dict[str, Told]:
    """Settle what families count together, in the order of time.

    Args:
        found: what each family's replay gave, by its root, as if everything shared had fitted.
        again: replays one family once more, with what is refused to it.
        begun: told how many families were replayed again.
    """
    results = dict(found)
    if not any(claim.wants for told in results.values() for claim in told.claims):
        return results
    books = Books()
    refused: dict[str, dict[tuple[str, int], dict[str, Refusal]]] = {}
    tries: dict[tuple[str, int], int] = {}
    version = dict.fromkeys(results, 0)
    heap = [(claim.at, root, place, 0) for root, told in results.items() for place, claim in enumerate(told.claims)]
    heapq.heapify(heap)
    while heap:
        at, root, place, of = heapq.heappop(heap)
        if of != version[root]:
            continue
        claim = results[root].claims[place]
        books.settle(claim.settles, at)
        lacking = books.take(claim.wants, at)
        here = (claim.run, claim.seq)
        tries[here] = tries.get(here, 0) + bool(lacking)
        if not lacking or tries[here] > ROUNDS:
            books.enter(claim.known, at)
            continue
        mine = refused.setdefault(root, {})
        mine[here] = {**mine.get(here, {}), **lacking}
        results[root] = again(root, mine)
        begun(len(refused))
        # What came before is as it was: a family's replay depends on nothing that comes later.
        version[root] += 1
        for later in range(place, len(results[root].claims)):
            heapq.heappush(heap, (max(at, results[root].claims[later].at), root, later, version[root]))
    return results


def _count(delta: Delta, now: Verdict, was: Verdict, *, pinned: bool) -> bool:
    """Count a decision in; says whether it comes out as recorded."""
    same = _parts(now) == _parts(was)
    delta.decisions += 1
    delta.same += same
    delta.pinned += pinned
    delta.differ += pinned and not same
    return same


def _effect(was: Outcome, now: Outcome) -> str:
    """What the change of an outcome comes to; empty: nothing but its rule or words."""
    if was is now:
        return ""
    if now >= Outcome.DENY:
        return "" if was >= Outcome.DENY else "denied"
    if was >= Outcome.DENY:
        return "allowed"
    if now is Outcome.REQUIRE_APPROVAL:
        return "asked"
    if was is Outcome.REQUIRE_APPROVAL:
        return "unasked"
    if now is Outcome.THROTTLE:
        return "delayed"
    return "sooner" if was is Outcome.THROTTLE else ""


def _recorded(op: Reservation, facts: Facts, refusals: Mapping[str, Refusal]) -> Refusal | None:
    """The record's own answer that a reservation did not fit."""
    old = facts.refusals.get(op.key)
    if old is None or op.key in refusals or old.limit != getattr(op, "limit", 1):
        return None
    return old


def _own(key: str, run: str, root: str) -> bool:
    """Whether only this family counts under a ledger key: it names the run, or the root of the tree."""
    parts = key.split("/")
    return safe(run) in parts or safe(root) in parts


def _worst(item: Decided, now: Verdict) -> int:
    """What a call that was refused would have cost at most, in nano-dollars."""
    action, price = item.action, item.facts.price
    if action.kind != "llm" or price is None:
        return 0
    return action.input_tokens * price.input + (now.max_tokens or action.max_tokens) * price.output
