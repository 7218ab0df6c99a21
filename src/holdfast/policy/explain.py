"""Why this verdict: every rule of a bundle, whether it applies to an action, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.action import Action, Ended, Facts, Hit, Outcome, Verdict
from holdfast.policy.bundle import Bundle, misfit
from holdfast.policy.categories.base import Finding, Rule
from holdfast.policy.conditions import Scene, Unanswered
from holdfast.policy.decide import Court, consult, decide, decide_after, failed


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule does with an action."""

    rule: str
    category: str
    mode: str
    applies: bool
    why: str
    """Why it applies or does not, and what it found."""
    outcome: Outcome = Outcome.ALLOW
    facts: Mapping[str, Any] = {}
    """The facts that it used, by name."""
    reserves: tuple[str, ...] = ()
    """Ledger keys that it would reserve, with the amount."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, and each rule's part in it."""

    verdict: Verdict
    accounts: tuple[Account, ...]

    def to_json_value(self) -> dict[str, Any]:
        """As plain data, for ``--json``."""
        verdict = msgspec.to_builtins(self.verdict)
        verdict["outcome"] = self.verdict.outcome.word
        for hit in verdict.setdefault("hits", []):
            hit["outcome"] = Outcome(hit["outcome"]).word
        rules = [{**msgspec.to_builtins(account), "outcome": account.outcome.word} for account in self.accounts]
        return {"verdict": verdict, "rules": rules}


def explain(action: Action, facts: Facts, bundle: Bundle, ended: Ended | None = None) -> Explanation:
    """Account for the verdict on an action, typed or recorded, rule by rule. Standing kills come first.

    ``ended``: what came back; then the account is of the verdict on that.
    """
    verdict = decide(action, facts, bundle) if ended is None else decide_after(action, ended, facts, bundle)
    known = {rule.id for rule in bundle.rules}
    said = {hit.rule: hit for hit in verdict.hits}
    accounts = [
        Account(rule=hit.rule, category=hit.category, mode=hit.mode, applies=True, why=hit.reason, outcome=hit.outcome)
        for hit in verdict.hits
        if hit.rule not in known
    ]
    accounts += [_account(rule, action, facts, bundle, said, ended) for rule in bundle.rules]
    return Explanation(verdict=verdict, accounts=tuple(accounts))


def _account(
    rule: Rule, action: Action, facts: Facts, bundle: Bundle, said: Mapping[str, Hit], ended: Ended | None
) -> Account:
    def say(why: str, **more: Any) -> Account:
        return Account(rule=rule.id, category=rule.category.name, mode=rule.mode, why=why, **more)

    if rule.mode == "off":
        return say("it is off", applies=False)
    if action.gate not in rule.gates:
        return say(f"it stands at {', '.join(sorted(rule.gates))}, not at {action.gate}", applies=False)
    if ended is not None and "after" not in rule.category.phases:
        return say("it does not look at what comes back", applies=False)
    if field := misfit(rule, facts):
        here = getattr(facts, field) or "(none)"
        return say(f"its scope is {field} {rule.scope[field]}, and this is {here}", applies=False)
    scene: Scene | None = None
    if rule.when is not None:
        scene = bundle.conditions.bind(action, facts)
        try:
            if not rule.when(scene):
                return say(f"its condition does not hold: {rule.source}", applies=False)
        except Unanswered:
            pass  # consult() below turns it into a denial, with the reason
    finding = consult(rule, action, facts, scene) if ended is None else _after(rule, action, ended, facts, scene)
    part = _alone(rule, finding, action, facts, bundle)
    reserves = tuple(_reservation(item) for item in part.reservations)
    hit = next((hit for hit in part.hits if hit.rule == rule.id), None)
    # What people lifted shows only beside the rule that lifts.
    hit = said.get(rule.id, hit)
    if hit is None:
        return say("it has no objection", applies=True, reserves=reserves)
    return say(hit.reason, applies=True, outcome=hit.outcome, facts=hit.facts, reserves=reserves)


def _after(rule: Rule, action: Action, ended: Ended, facts: Facts, scene: Scene | None) -> Finding:
    try:
        return rule.category.after(action, ended, facts, rule) if rule.when is None or rule.when(scene) else None
    except Exception as error:  # noqa: BLE001 - as the gate: what cannot be decided is denied
        return failed(error)


def _alone(rule: Rule, finding: Finding, action: Action, facts: Facts, bundle: Bundle) -> Verdict:
    court = Court(action, facts, bundle.digest)
    court.hear(rule, finding)
    return court.verdict()


def _reservation(item: Any) -> str:
    amount = getattr(item, "amount", 1)
    return f"{amount} of {getattr(item, 'limit', 1)} under {item.key}"
