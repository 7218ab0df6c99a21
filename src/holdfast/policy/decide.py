"""``decide``: an action, facts and a bundle become a verdict. Pure: no I/O, no clock, no globals.

Live gating, shadow mode, ``policy explain`` and offline verification all call it. The strongest outcome wins; every
rule that had something to say is recorded; whatever cannot be decided denies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from holdfast.action import (
    GATES,
    Action,
    ApprovalSpec,
    Budget,
    Ended,
    Facts,
    Hit,
    Hold,
    Kill,
    Once,
    Outcome,
    Rate,
    Redaction,
    Release,
    Reservation,
    Settle,
    Settlement,
    Verdict,
)
from holdfast.policy.bundle import Bundle, misfit
from holdfast.policy.categories import cost
from holdfast.policy.categories.approvals import asked
from holdfast.policy.categories.base import Breach, Finding, Granted, Lift, Rule, Spend, fits_any
from holdfast.policy.categories.reach import EgressAllowlist
from holdfast.policy.conditions import Scene, Unanswered
from holdfast.policy.history import Unrecorded
from holdfast.policy.kills import standing
from holdfast.policy.units import format_duration

_COUNTED = frozenset({"blast_radius", "spawn_limit"})
"""Categories whose budgets count something else than what a call costs: what was reserved is what was used."""
_ANYONE = ApprovalSpec()
_ALLOW, _DENY, _ASK = Outcome.ALLOW, Outcome.DENY, Outcome.REQUIRE_APPROVAL
_RESERVES = (Budget, Rate, Hold, Once)


def decide(action: Action, facts: Facts, bundle: Bundle) -> Verdict:
    """What may happen, why, and what must be reserved for it. Raises nothing for any action and facts."""
    kill = standing(facts.kills, facts) if facts.kills else None
    gate = action.gate
    if gate not in GATES:
        court = _court(action, facts, bundle, kill)
        court.record(
            "gate", "gate", _DENY, f"there is no gate for actions of kind {gate[:40]!r}, so nothing can allow them"
        )
        return court.verdict()
    scene: Scene | None = None
    plan = bundle.plan(gate, facts)
    rules: tuple[Rule, ...] = plan
    if (quiet := plan.quiet) is not None:
        try:
            scene = bundle.conditions.bind(action, facts)
            if quiet(scene):
                rules = plan.always
        except Exception:  # noqa: BLE001 - it is met again below, where the rule denies
            scene = None
    found: list[tuple[Rule, Finding]] = []
    for rule in rules:
        if rule.when is not None and scene is None:
            try:
                scene = bundle.conditions.bind(action, facts)
            except Exception as error:  # noqa: BLE001 - whatever failed, the rule denies below
                found.append((rule, failed(error)))
                continue
        # As consult() does, without the call: this loop runs for every rule of every step.
        try:
            if rule.when is not None and not rule.when(scene):
                continue
            finding = rule.category.before(action, facts, rule)
        except Exception as error:  # noqa: BLE001 - fail closed: what cannot be decided is denied
            finding = failed(error)
        if finding is not None:
            found.append((rule, finding))
    unlisted = gate == "http" and not _listed(plan, scene)
    if kill is None and not unlisted and (clear := _clear(found, facts, bundle)) is not None:
        return clear
    court = _court(action, facts, bundle, kill)
    for rule, finding in found:
        court.hear(rule, finding)
    if unlisted:
        reason = f"no egress_allowlist applies, so {action.host or 'nothing'} cannot be reached"
        court.record("egress", EgressAllowlist.name, _DENY, reason)
    return court.verdict()


def _clear(found: Iterable[tuple[Rule, Finding]], facts: Facts, bundle: Bundle) -> Verdict | None:
    """The verdict where no rule has anything against it, as most of the time; None where it takes a court. The same
    verdict, without what it takes to weigh objections."""
    if facts.refusals:
        return None
    plain: list[Reservation] = []
    budgets: list[Reservation] = []
    for rule, finding in found:
        if isinstance(finding, Spend):
            if finding.per_token or finding.fixed > finding.limit - finding.used:
                return None
            if finding.key and rule.mode == "enforce":
                budgets.append(Budget(key=finding.key, amount=finding.fixed, limit=finding.limit, policy=rule.id))
        elif isinstance(finding, _RESERVES):
            if rule.mode == "enforce":
                plain.append(finding)
        else:
            return None
    return Verdict(
        outcome=_ALLOW,
        reservations=(*plain, *budgets),
        kill_generation=facts.kill_generation,
        bundle=bundle.digest,
    )


def _court(action: Action, facts: Facts, bundle: Bundle, kill: Kill | None) -> Court:
    court = Court(action, facts, bundle.digest)
    if kill is not None:
        where = "the fleet" if kill.scope == "fleet" else f"{kill.scope} {kill.name}"
        reason = f"{where} is stopped by kill {kill.id}: {kill.reason}"
        court.record(
            f"kill:{kill.id}", "kill_switch", Outcome.TERMINATE, reason, facts={"generation": facts.kill_generation}
        )
    return court


def _listed(plan: Iterable[Rule], scene: Scene | None) -> bool:
    """Whether a list says what can be reached: without one, nothing is. Off the list, the list itself objects."""
    for rule in plan:
        if rule.enforced and rule.category.name == EgressAllowlist.name:
            try:
                if rule.when is None or (scene is not None and rule.when(scene)):
                    return True
            except Exception:  # noqa: BLE001, S112 - the loop over the rules has denied for it
                continue
    return False


def decide_during(action: Action, text: str, facts: Facts, bundle: Bundle) -> Verdict:
    """What may go on to the reader of a stream, given all the text that it has brought so far.

    Pure, as :func:`decide`. An outcome above ``redact`` stops the stream. Nothing is reserved.
    """
    return _later(action, facts, bundle, "during", lambda rule: rule.category.during(action, text, facts, rule))


def decide_after(action: Action, ended: Ended, facts: Facts, bundle: Bundle) -> Verdict:
    """What may be handed on of what came back, with facts as they are after the action.

    Pure, as :func:`decide`. An outcome above ``redact`` keeps the value from the agent; ``terminate`` ends the run.
    What was done stays done: nothing is reserved, and people who are asked decide on handing on alone.
    """
    return _later(action, facts, bundle, "after", lambda rule: rule.category.after(action, ended, facts, rule))


def _later(action: Action, facts: Facts, bundle: Bundle, phase: str, look: Callable[[Rule], Finding]) -> Verdict:
    court = Court(action, facts, bundle.digest)
    if action.gate not in GATES:
        reason = f"there is no gate for actions of kind {action.gate[:40]!r}, so nothing can allow what came of it"
        court.record("gate", "gate", _DENY, reason)
        return court.verdict()
    scene: Scene | None = None
    for rule in bundle.plan(action.gate, facts, phase):
        try:
            if rule.when is not None:
                scene = scene or bundle.conditions.bind(action, facts)
                if not rule.when(scene):
                    continue
            finding = look(rule)
            if finding is not None and type(finding) not in (Breach, Granted, Lift):
                raise TypeError("nothing can be reserved any more")
        except Exception as error:  # noqa: BLE001 - fail closed: what cannot be decided is denied
            finding = failed(error)
        court.hear(rule, finding)
    return court.verdict()


def consult(rule: Rule, action: Action, facts: Facts, scene: Scene | None) -> Finding:
    """What one rule says, if it applies; a rule that raises denies."""
    try:
        if rule.when is not None and not rule.when(scene):
            return None
        return rule.category.before(action, facts, rule)
    except Exception as error:  # noqa: BLE001 - fail closed: what cannot be decided is denied
        return failed(error)


def failed(error: Exception) -> Breach:
    """The objection of a rule that raised. Says the type only: a message could hold what the action carries."""
    if isinstance(error, Unrecorded):
        return Breach(reason=f"the record does not tell {error}", outcome=_DENY, failure=True)
    if isinstance(error, Unanswered):
        return Breach(reason=f"its condition gave no answer: {error}", outcome=_DENY, failure=True)
    return Breach(reason=f"the rule failed ({type(error).__name__}), so it denies", outcome=_DENY, failure=True)


class Court:
    """Gathers what the rules say into one verdict."""

    __slots__ = (
        "_action",
        "_approval",
        "_bundle",
        "_facts",
        "_hits",
        "_lifts",
        "_plain",
        "_redactions",
        "_retry_after",
        "_spends",
        "_strongest",
    )

    def __init__(self, action: Action, facts: Facts, bundle: str) -> None:
        self._action = action
        self._facts = facts
        self._bundle = bundle
        self._hits: list[Hit] = []
        self._lifts: list[Lift] = []
        self._strongest: Hit | None = None
        self._plain: list[Reservation] = []
        self._redactions: list[Redaction] = []
        self._spends: list[tuple[Rule, Spend]] = []
        self._approval: ApprovalSpec | None = None
        self._retry_after = 0

    def record(
        self, rule: str, category: str, outcome: Outcome, reason: str, *, mode: str = "enforce", facts: object = None
    ) -> None:
        """A rule had something to say."""
        hit = Hit(
            rule=rule,
            category=category,
            outcome=outcome,
            reason=reason,
            mode=mode,
            facts=facts if isinstance(facts, dict) else {},
        )
        self._hits.append(hit)
        if (
            mode == "enforce"
            and outcome is not _ALLOW
            and (self._strongest is None or outcome > self._strongest.outcome)
        ):
            self._strongest = hit

    def hear(self, rule: Rule, finding: Finding) -> None:
        """Take what a rule found."""
        kind = type(finding)
        if kind is Spend:
            self._spends.append((rule, finding))  # type: ignore[arg-type]
        elif kind is Breach:
            self.object(rule, finding)  # type: ignore[arg-type]
        elif kind is Lift:
            self._lifted(rule, finding)  # type: ignore[arg-type]
        elif kind is Granted:
            self.record(rule.id, rule.category.name, _ALLOW, finding.reason, mode=rule.mode, facts=finding.facts)  # type: ignore[union-attr]
        elif finding is not None:
            self._reserve(rule, finding)  # type: ignore[arg-type]

    def _lifted(self, rule: Rule, lift: Lift) -> None:
        self.record(rule.id, rule.category.name, _ALLOW, lift.reason, mode=rule.mode, facts=lift.facts)
        if rule.enforced:
            self._lifts.append(lift)

    def object(self, rule: Rule, breach: Breach) -> None:
        """A rule objects: its outcome counts unless people have approved, have lifted it, or it is in shadow."""
        outcome = breach.outcome if breach.outcome is not None else rule.on_breach
        reason, facts, approval = breach.reason, breach.facts, breach.approval
        if self._lifts and not rule.category.first and not breach.failure:
            for lift in self._lifts:
                if fits_any(lift.rules, rule.id):
                    reason = f"{reason}; {lift.reason}"
                    self.record(rule.id, rule.category.name, _ALLOW, reason, mode=rule.mode, facts=facts)
                    return
        if outcome is _ASK and approval is None:
            answer = asked(rule.approval or _ANYONE, self._facts)
            reason, facts = f"{reason}; {answer.reason}", {**facts, **answer.facts}
            if type(answer) is Granted:
                outcome = _ALLOW
            else:
                outcome = answer.outcome if answer.outcome is not None else _DENY  # type: ignore[union-attr]
                approval = answer.approval  # type: ignore[union-attr]
        self.record(rule.id, rule.category.name, outcome, reason, mode=rule.mode, facts=facts)
        if not rule.enforced:
            return
        self._retry_after = max(self._retry_after, breach.retry_after_us)
        if outcome is Outcome.REDACT:
            self._redactions += breach.redactions
        if (
            outcome is _ASK
            and approval is not None
            and (self._approval is None or approval.quorum > self._approval.quorum)
        ):
            self._approval = approval

    def _reserve(self, rule: Rule, wanted: Reservation) -> None:
        refusal = self._facts.refusals.get(wanted.key)
        if refusal is None:
            if rule.enforced:
                self._plain.append(wanted)
            return
        if isinstance(wanted, Rate):
            reason = f"more than {wanted.limit} in {format_duration(wanted.period_us)}"
        elif isinstance(wanted, Hold):
            reason = f"all {refusal.limit} places are taken ({refusal.used} held)"
        elif isinstance(wanted, Once):
            reason = f"{wanted.holder or 'this'} comes second: the key {wanted.key} is taken"
        else:
            reason = f"{wanted.key} does not fit: {refusal.used} of {refusal.limit} used"
        used = {"limit": refusal.limit, "used": refusal.used}
        self.object(rule, Breach(reason=reason, facts=used, retry_after_us=refusal.retry_after_us))

    def _settle_spends(self) -> tuple[int, list[tuple[Rule, Spend]]]:
        asked_for = tokens = self._action.max_tokens
        kept = []
        for rule, spend in self._spends:
            refusal = self._facts.refusals.get(spend.key) if spend.key else None
            used = refusal.used if refusal is not None else spend.used
            room = spend.limit - used
            if spend.per_token and asked_for <= 0:
                self.object(rule, Breach(reason="the call sets no output limit; give max_tokens", outcome=_DENY))
                continue
            worst = spend.fixed + spend.per_token * max(asked_for, 0)
            if worst > room:
                fit = (room - spend.fixed) // spend.per_token if spend.per_token else 0
                if fit < max(1, spend.floor_tokens):
                    self.object(rule, _exceeded(spend, used, worst))
                    continue
                if rule.enforced:
                    tokens = min(tokens, fit)
            if rule.enforced:
                kept.append((rule, spend))
        return tokens, kept

    def verdict(self) -> Verdict:
        """The verdict of all that was heard."""
        tokens, kept = self._settle_spends() if self._spends else (0, [])
        lowered = bool(kept) and tokens < self._action.max_tokens
        strongest = self._strongest
        outcome = strongest.outcome if strongest is not None else _ALLOW
        if outcome > Outcome.REDACT:
            return Verdict(
                outcome=outcome,
                rule=strongest.rule if strongest else "",
                category=strongest.category if strongest else "",
                reason=strongest.reason if strongest else "",
                hits=tuple(self._hits),
                kill_generation=self._facts.kill_generation,
                bundle=self._bundle,
                approval=self._approval if outcome is _ASK else None,
                retry_after_us=self._retry_after,
            )
        reservations = self._plain
        for rule, spend in kept:
            if spend.key:
                amount = spend.fixed + spend.per_token * tokens if spend.per_token else spend.fixed
                reservations.append(Budget(key=spend.key, amount=amount, limit=spend.limit, policy=rule.id))
                if lowered:
                    reason = (
                        f"the output limit is lowered from {self._action.max_tokens} to {tokens} tokens, which fits"
                    )
                    self.record(
                        rule.id, rule.category.name, _ALLOW, reason, facts={"limit": spend.limit, "max_tokens": tokens}
                    )
        return Verdict(
            outcome=outcome,
            rule=strongest.rule if strongest is not None else "",
            category=strongest.category if strongest is not None else "",
            reason=strongest.reason if strongest is not None else "",
            hits=tuple(self._hits),
            reservations=tuple(reservations),
            kill_generation=self._facts.kill_generation,
            bundle=self._bundle,
            max_tokens=tokens if lowered else 0,
            redactions=tuple(self._redactions),
        )


def _exceeded(spend: Spend, used: int, worst: int) -> Breach:
    show = spend.render
    least = spend.fixed + spend.per_token * spend.floor_tokens
    cost = f"at least {show(least)}" if spend.per_token else show(worst)
    reason = f"{show(used)} of {show(spend.limit)} is used or reserved and this takes {cost}"
    return Breach(reason=reason, facts={"limit": spend.limit, "used": used, "amount": worst})


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """When a rule will object although the run does nothing: what a node sets a timer for."""

    at: int
    """Microseconds since the Unix epoch."""
    rule: str
    category: str
    outcome: Outcome
    reason: str


def deadlines(facts: Facts, bundle: Bundle) -> tuple[Deadline, ...]:
    """The times at which enforced rules without a condition end or refuse a run that does nothing, earliest first."""
    found = []
    for rule in bundle.rules:
        if not rule.enforced or rule.when is not None or misfit(rule, facts):
            continue
        at = rule.category.deadline(facts, rule)
        if at is not None:
            reason = f"{rule.category.name} {rule.id} allows no more time"
            found.append(
                Deadline(at=at, rule=rule.id, category=rule.category.name, outcome=rule.on_breach, reason=reason)
            )
    return tuple(sorted(found, key=lambda deadline: (deadline.at, deadline.rule)))


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """A budget that applies to a run: where its count stands in the ledger, and its limit."""

    policy: str
    unit: str
    """usd (nano-dollars) or tokens."""
    window: str
    key: str
    limit: int


def ceilings(facts: Facts, bundle: Bundle) -> tuple[Ceiling, ...]:
    """The enforced budgets that a run's LLM calls are counted against now, for showing what is left."""
    return tuple(
        Ceiling(
            policy=rule.id,
            unit=rule.category.name.removeprefix("budget_"),
            window=rule.params.window,
            key=cost.key(rule.category.name, rule, facts),
            limit=rule.params.limit,
        )
        for rule in bundle.plan("llm", facts)
        if rule.enforced and rule.category.name in ("budget_usd", "budget_tokens") and rule.params.window != "call"
    )


def settlements(
    reservations: Iterable[Reservation], *, cost: int | None = None, tokens: int | None = None, sent: bool = True
) -> tuple[Settlement, ...]:
    """What to settle when an action has ended, for the reservations of its verdict.

    Args:
        cost: what it cost in nano-dollars; None: not known, settled at the reservation.
        tokens: what it used, input and output together; None: not known, settled at the reservation.
        sent: False when it certainly never left: nothing is counted as spent.
    """
    result: list[Settlement] = []
    for item in reservations:
        if isinstance(item, Budget):
            kind = item.key.partition("/")[0]
            actual = tokens if kind == "budget_tokens" else None if kind in _COUNTED else cost
            if not sent:
                actual = 0
            elif actual is None:
                actual = item.amount
            result.append(Settle(key=item.key, reserved=item.amount, actual=actual))
        elif isinstance(item, Hold):
            result.append(Release(key=item.key, holder=item.holder))
    return tuple(result)
