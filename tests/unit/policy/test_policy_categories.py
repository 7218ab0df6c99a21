"""A table of allow and deny cases for every category, and the proof that the table notices a change of each rule."""

from __future__ import annotations

import textwrap
from typing import Any

import msgspec
import pytest

from holdfast.action import Action, Facts, Grant, Outcome, Price, Refusal, Verdict
from holdfast.errors import PolicyFileError
from holdfast.policy.bundle import Bundle
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.base import Breach
from holdfast.policy.decide import decide
from holdfast.policy.model import examine, one
from holdfast.policy.source import parse

CENT = 10_000_000
HOUR = 3_600_000_000
NOW = 1_772_366_400_000_000  # 2026-03-01 12:00:00 UTC
PRICE = Price(input=3_000, output=15_000)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One action under one policy, and what must come of it."""

    name: str
    with_: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    action: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    outcome: str = "allow"
    reserves: tuple[str, ...] = ()
    max_tokens: int = 0
    reason: str = ""
    """A part of the reason."""

    @property
    def verdict(self) -> Verdict:
        return decide(self._action(), self._facts(), Bundle([one(self._policy())]))

    def _policy(self) -> dict[str, Any]:
        return {"id": "rule", "category": self.category, "with": self.with_, **self.policy}

    def _action(self) -> Action:
        return Action(**{"kind": KINDS[self.category], "name": "validate", "id": "validate.1", **self.action})

    def _facts(self) -> Facts:
        standard = {"now": NOW, "agent": "finance", "workflow": "run", "run": "run-1", "root": "run-0", "price": PRICE}
        return Facts(**{**standard, "principal": "ann", "auth": "peer-uid:1000", "started_at": NOW, **self.facts})

    @property
    def category(self) -> str:
        return next(name for name, cases in CASES.items() if self in cases)


def refused(key: str, limit: int, used: int, retry_after_us: int = 0) -> dict[str, Any]:
    return {key: Refusal(key=key, policy="rule", limit=limit, used=used, retry_after_us=retry_after_us)}


def grant(principal: str, *roles: str, approved: bool = True, auth: str = "peer-uid:1") -> Grant:
    return Grant(principal=principal, auth=auth, roles=roles, approved=approved)


KINDS = {
    "budget_usd": "llm",
    "budget_tokens": "llm",
    "model_price_ceiling": "llm",
    "model_allowlist": "llm",
    "step_limit": "step",
    "wall_clock_limit": "step",
    "idle_limit": "step",
    "kill_switch": "step",
    **dict.fromkeys(("rate_limit", "concurrency_limit", "tool_call_limit", "loop_detection", "tool_allowlist"), "tool"),
    **dict.fromkeys(("require_approval", "four_eyes"), "tool"),
}
CALL = {"model": "m-1", "provider": "anthropic", "input_tokens": 100, "max_tokens": 200}
WORST = 100 * 3_000 + 200 * 15_000
RUN_KEY = "budget_usd/default/rule/run/run-1"
TOKEN_KEY = "budget_tokens/default/rule/run/run-1"
RATE_KEY = "rate_limit/rule/default"
HOLD_KEY = "concurrency_limit/rule/default"
A, B, C = "a" * 64, "b" * 64, "c" * 64

CASES: dict[str, tuple[Case, ...]] = {
    "budget_usd": (
        Case(name="fits", with_={"limit": "1"}, action=CALL, reserves=(f"{WORST} of 1000000000 under {RUN_KEY}",)),
        Case(
            name="lowered to what fits the limit",
            with_={"limit": "0.002"},
            action=CALL,
            max_tokens=113,
            reserves=(f"{300_000 + 113 * 15_000} of 2000000 under {RUN_KEY}",),
        ),
        Case(
            name="lowered to what is left",
            with_={"limit": "1"},
            action=CALL,
            facts={"refusals": refused(RUN_KEY, 10**9, 10**9 - 2_000_000)},
            max_tokens=113,
            reserves=(f"{300_000 + 113 * 15_000} of 1000000000 under {RUN_KEY}",),
        ),
        Case(
            name="below the floor",
            with_={"limit": "1", "floor_tokens": 114},
            action=CALL,
            facts={"refusals": refused(RUN_KEY, 10**9, 10**9 - 2_000_000)},
            outcome="deny",
        ),
        Case(
            name="at the floor",
            with_={"limit": "1", "floor_tokens": 113},
            action=CALL,
            facts={"refusals": refused(RUN_KEY, 10**9, 10**9 - 2_000_000)},
            max_tokens=113,
            reserves=(f"{300_000 + 113 * 15_000} of 1000000000 under {RUN_KEY}",),
        ),
        Case(name="input alone is too dear", with_={"limit": "0.0003"}, action=CALL, outcome="deny"),
        Case(name="unknown price", with_={"limit": "1"}, action=CALL, facts={"price": None}, outcome="deny"),
        Case(
            name="unknown price, although it would only warn",
            with_={"limit": "1"},
            policy={"on_breach": "warn"},
            action=CALL,
            facts={"price": None},
            outcome="deny",
        ),
        Case(name="no output limit", with_={"limit": "1"}, action={**CALL, "max_tokens": 0}, outcome="deny"),
        Case(
            name="free model",
            with_={"limit": "0.01"},
            action=CALL,
            facts={"price": Price(input=0, output=0)},
            reserves=(f"0 of {CENT} under {RUN_KEY}",),
        ),
        Case(name="a single call fits", with_={"limit": "0.01", "window": "call"}, action=CALL),
        Case(name="a single call is lowered", with_={"limit": "0.002", "window": "call"}, action=CALL, max_tokens=113),
        Case(
            name="a single call is too dear", with_={"limit": "0.0003", "window": "call"}, action=CALL, outcome="deny"
        ),
        Case(
            name="by day and agent",
            with_={"limit": "1", "window": "day", "per": "agent"},
            action=CALL,
            reserves=(f"{WORST} of 1000000000 under budget_usd/default/rule/day/2026-03-01/agent/finance",),
        ),
        Case(
            name="the whole tree",
            with_={"limit": "1", "window": "tree"},
            action=CALL,
            reserves=(f"{WORST} of 1000000000 under budget_usd/default/rule/tree/run-0",),
        ),
        Case(
            name="a tool with a price",
            with_={"limit": "1", "per_call": "0.25"},
            policy={"gates": ["tool"]},
            action={"kind": "tool"},
            reserves=(f"250000000 of 1000000000 under {RUN_KEY}",),
        ),
        Case(
            name="a tool that is too dear now",
            with_={"limit": "1", "per_call": "0.25"},
            policy={"gates": ["tool"]},
            action={"kind": "tool"},
            facts={"refusals": refused(RUN_KEY, 10**9, 9 * 10**8)},
            outcome="deny",
        ),
        Case(
            name="a step after all is spent",
            with_={"limit": "0.01"},
            policy={"gates": ["step"]},
            action={"kind": "step"},
            facts={"counters": {"cost": CENT}},
            outcome="deny",
        ),
        Case(
            name="a step before all is spent",
            with_={"limit": "0.01"},
            policy={"gates": ["step"]},
            action={"kind": "step"},
            facts={"counters": {"cost": CENT - 1}},
        ),
    ),
    "budget_tokens": (
        Case(name="fits", with_={"limit": 1000}, action=CALL, reserves=(f"300 of 1000 under {TOKEN_KEY}",)),
        Case(
            name="lowered",
            with_={"limit": 250},
            action=CALL,
            max_tokens=150,
            reserves=(f"250 of 250 under {TOKEN_KEY}",),
        ),
        Case(name="no room", with_={"limit": 115}, action=CALL, outcome="deny"),
        Case(
            name="just the floor",
            with_={"limit": 116},
            action=CALL,
            max_tokens=16,
            reserves=(f"116 of 116 under {TOKEN_KEY}",),
        ),
        Case(name="a higher floor", with_={"limit": 116, "floor_tokens": 17}, action=CALL, outcome="deny"),
        Case(
            name="by month and person",
            with_={"limit": 1000, "window": "month", "per": "principal"},
            action=CALL,
            reserves=("300 of 1000 under budget_tokens/default/rule/month/2026-03/principal/ann",),
        ),
        Case(
            name="no price is needed",
            with_={"limit": 1000},
            action=CALL,
            facts={"price": None},
            reserves=(f"300 of 1000 under {TOKEN_KEY}",),
        ),
    ),
    "model_price_ceiling": (
        Case(name="cheap enough", with_={"input_per_mtok": "3", "output_per_mtok": "15"}, action=CALL),
        Case(name="input too dear", with_={"input_per_mtok": "2.99"}, action=CALL, outcome="deny"),
        Case(name="output too dear", with_={"output_per_mtok": "14.99"}, action=CALL, outcome="deny"),
        Case(name="unknown price", with_={"output_per_mtok": "15"}, action=CALL, facts={"price": None}, outcome="deny"),
    ),
    "rate_limit": (
        Case(name="takes a cell", with_={"limit": 5, "period": "1s"}, reserves=(f"1 of 5 under {RATE_KEY}",)),
        Case(
            name="too soon",
            with_={"limit": 5, "period": "1s"},
            facts={"refusals": refused(RATE_KEY, 5, 5, 200_000)},
            outcome="throttle",
        ),
        Case(
            name="too soon, and refused",
            with_={"limit": 5, "period": "1s"},
            policy={"on_breach": "deny"},
            facts={"refusals": refused(RATE_KEY, 5, 5, 200_000)},
            outcome="deny",
        ),
        Case(
            name="another's count",
            with_={"limit": 5, "burst": 2, "per": "agent"},
            facts={"refusals": refused(RATE_KEY, 5, 5)},
            reserves=("1 of 5 under rate_limit/rule/default/agent/finance",),
        ),
    ),
    "concurrency_limit": (
        Case(name="takes a place", with_={"limit": 2}, reserves=(f"1 of 2 under {HOLD_KEY}",)),
        Case(name="no place", with_={"limit": 2}, facts={"refusals": refused(HOLD_KEY, 2, 2)}, outcome="throttle"),
        Case(
            name="of one run, for a while",
            with_={"limit": 2, "per": "run", "ttl": "5m"},
            reserves=("1 of 2 under concurrency_limit/rule/default/run/run-1",),
        ),
    ),
    "step_limit": (
        Case(name="the last step", with_={"limit": 5}, facts={"counters": {"steps": 4}}),
        Case(name="one too many", with_={"limit": 5}, facts={"counters": {"steps": 5}}, outcome="terminate"),
        Case(name="the last step again", with_={"limit": 5}, action={"attempt": 2}, facts={"counters": {"steps": 5}}),
        Case(
            name="a decision is a step",
            with_={"limit": 5},
            action={"kind": "decision"},
            facts={"counters": {"steps": 5}},
            outcome="terminate",
        ),
    ),
    "tool_call_limit": (
        Case(name="the last call", with_={"limit": 3}, facts={"counters": {"tool_calls": 2}}),
        Case(name="one too many", with_={"limit": 3}, facts={"counters": {"tool_calls": 3}}, outcome="deny"),
        Case(name="none at all", with_={"limit": 0}, outcome="deny"),
        Case(
            name="of some tools, together",
            with_={"limit": 3, "tool": "wire_*"},
            action={"name": "wire_out"},
            facts={"counters": {"tool_calls": 9, "tool_calls:wire_out": 1, "tool_calls:wire_in": 2}},
            outcome="deny",
        ),
        Case(
            name="another tool",
            with_={"limit": 3, "tool": "wire_*"},
            action={"name": "lookup"},
            facts={"counters": {"tool_calls": 9, "tool_calls:wire_out": 9}},
        ),
    ),
    "wall_clock_limit": (
        Case(name="in time", with_={"limit": "2h"}, facts={"started_at": NOW - 2 * HOUR}),
        Case(name="too late", with_={"limit": "2h"}, facts={"started_at": NOW - 2 * HOUR - 1}, outcome="terminate"),
        Case(name="the clock went back", with_={"limit": "2h"}, facts={"started_at": NOW + HOUR}),
    ),
    "idle_limit": (
        Case(name="in time", with_={"limit": "2h"}, facts={"active_at": NOW - 2 * HOUR, "started_at": 1}),
        Case(name="too late", with_={"limit": "2h"}, facts={"active_at": NOW - 2 * HOUR - 1}, outcome="terminate"),
    ),
    "loop_detection": (
        Case(
            name="often, but not too often", with_={"max_repeats": 3}, action={"digest": A}, facts={"recent": (A, B, A)}
        ),
        Case(
            name="too often",
            with_={"max_repeats": 3},
            action={"digest": A},
            facts={"recent": (A, B, A, A)},
            outcome="deny",
        ),
        Case(
            name="long ago",
            with_={"max_repeats": 3, "window": 4},
            action={"digest": A},
            facts={"recent": (A, A, B, C, B)},
        ),
        Case(
            name="a cycle",
            with_={"max_repeats": 19, "cycle_repeats": 2},
            action={"digest": B},
            facts={"recent": (C, A, B, A, B, A)},
            outcome="deny",
        ),
        Case(
            name="not yet a cycle",
            with_={"max_repeats": 19, "cycle_repeats": 2},
            action={"digest": B},
            facts={"recent": (C, A, B, A)},
        ),
        Case(
            name="a cycle of three where two are looked for",
            with_={"max_repeats": 19, "max_cycle": 2, "cycle_repeats": 1},
            action={"digest": C},
            facts={"recent": (A, B, C, A, B)},
        ),
        Case(
            name="another attempt",
            with_={"max_repeats": 1},
            action={"digest": A, "attempt": 2},
            facts={"recent": (A, A)},
        ),
    ),
    "kill_switch": (
        Case(name="in its scope", policy={"scope": {"agent": "fin*"}}, outcome="terminate"),
        Case(name="beside its scope", policy={"scope": {"agent": "ops"}}),
        Case(name="says why", with_={"reason": "audit week"}, outcome="terminate", reason="audit week"),
    ),
    "require_approval": (
        Case(name="asks", outcome="require_approval"),
        Case(name="anyone", facts={"grants": (grant("bob"),)}),
        Case(name="not authenticated", facts={"grants": (grant("bob", auth=""),)}, outcome="require_approval"),
        Case(name="refused", facts={"grants": (grant("bob", approved=False),)}, outcome="deny"),
        Case(
            name="refused, and that ends it",
            policy={"on_breach": "terminate"},
            facts={"grants": (grant("bob", approved=False),)},
            outcome="terminate",
        ),
        Case(
            name="the right role",
            with_={"approvers": ["role:controller"]},
            facts={"grants": (grant("bob", "controller"),)},
        ),
        Case(
            name="the wrong role",
            with_={"approvers": ["role:controller"]},
            facts={"grants": (grant("bob", "clerk"),), "approval_state": "approved"},
            outcome="require_approval",
        ),
        Case(name="by name", with_={"approvers": ["user:bob"]}, facts={"grants": (grant("bob"),)}),
        Case(
            name="twice the same person",
            with_={"quorum": 2},
            facts={"grants": (grant("bob"), grant("bob"))},
            outcome="require_approval",
        ),
        Case(name="two people", with_={"quorum": 2}, facts={"grants": (grant("bob"), grant("eve"))}),
        Case(name="expired", facts={"approval_state": "expired"}, outcome="deny"),
        Case(name="denied", facts={"approval_state": "denied"}, outcome="deny"),
        Case(name="expired, and so approved", with_={"on_expiry": "approve"}, facts={"approval_state": "expired"}),
        Case(
            name="escalated",
            with_={"approvers": ["user:bob"], "on_expiry": "escalate", "escalate_to": ["user:eve"]},
            facts={"grants": (grant("eve"),)},
        ),
        Case(name="soon", with_={"ttl": "5m"}, outcome="require_approval"),
    ),
    "four_eyes": (
        Case(name="asks", outcome="require_approval"),
        Case(name="two others", facts={"grants": (grant("bob"), grant("eve"))}),
        Case(name="the requester is one", facts={"grants": (grant("bob"), grant("ann"))}, outcome="require_approval"),
        Case(name="one is enough", with_={"quorum": 1}, facts={"grants": (grant("bob"),)}),
        Case(
            name="of a role",
            with_={"quorum": 1, "approvers": ["role:treasury"]},
            facts={"grants": (grant("bob"),)},
            outcome="require_approval",
        ),
        Case(name="nobody asked", facts={"principal": "", "grants": (grant("bob"), grant("eve"))}, outcome="deny"),
        Case(name="expired, and so approved", with_={"on_expiry": "approve"}, facts={"approval_state": "expired"}),
        Case(
            name="escalated",
            with_={"quorum": 1, "approvers": ["user:bob"], "on_expiry": "escalate", "escalate_to": ["user:eve"]},
            facts={"grants": (grant("eve"),)},
        ),
        Case(name="soon", with_={"ttl": "5m"}, outcome="require_approval"),
    ),
    "tool_allowlist": (
        Case(name="listed", with_={"allow": ["look*", "validate"]}),
        Case(name="not listed", with_={"allow": ["look*"]}, outcome="deny"),
        Case(name="capitals count", with_={"allow": ["Validate", "VALID*"]}, outcome="deny"),
        Case(name="denied by a pattern", with_={"allow": ["*"], "deny": ["valid*"]}, outcome="deny"),
        Case(name="not denied", with_={"deny": ["wire_*"]}),
        Case(name="nothing is allowed", with_={"allow": []}, outcome="deny"),
    ),
    "model_allowlist": (
        Case(name="listed", with_={"allow": ["m-1"]}, action=CALL),
        Case(name="with its provider", with_={"allow": ["anthropic/m-*"]}, action=CALL),
        Case(name="of another provider", with_={"allow": ["openai/m-*"]}, action=CALL, outcome="deny"),
        Case(name="denied", with_={"allow": ["*"], "deny": ["m-1"]}, action=CALL, outcome="deny"),
        Case(name="not denied", with_={"deny": ["m-2"]}, action=CALL),
        Case(
            name="a floating alias",
            with_={"pinned": True, "deny": ["m-2"]},
            action={**CALL, "model": "m-latest"},
            outcome="deny",
        ),
        Case(name="a pinned version", with_={"pinned": True}, action=CALL),
        Case(name="no model", with_={"deny": ["m-2"]}, action={**CALL, "model": ""}, outcome="deny"),
    ),
}

OTHER: dict[str, dict[str, Any]] = {
    "budget_usd": {"limit": "0.5", "window": "hour", "per": "principal", "floor_tokens": 200, "per_call": "0.5"},
    "budget_tokens": {"limit": 999, "window": "hour", "per": "agent", "floor_tokens": 500},
    "model_price_ceiling": {"input_per_mtok": "0.01", "output_per_mtok": "0.01"},
    "rate_limit": {"limit": 6, "period": "2s", "burst": 3, "per": "principal"},
    "concurrency_limit": {"limit": 3, "per": "principal", "ttl": "6m"},
    "step_limit": {"limit": 4},
    "tool_call_limit": {"limit": 1, "tool": "look*"},
    "wall_clock_limit": {"limit": "1h"},
    "idle_limit": {"limit": "1h"},
    "loop_detection": {"max_repeats": 2, "window": 64, "max_cycle": 3, "cycle_repeats": 3},
    "kill_switch": {"reason": "another"},
    "require_approval": {
        "approvers": ["user:zoe"],
        "quorum": 3,
        "ttl": "6m",
        "on_expiry": "deny",
        "escalate_to": ["user:zoe"],
    },
    "four_eyes": {
        "approvers": ["user:zoe"],
        "quorum": 3,
        "ttl": "6m",
        "on_expiry": "deny",
        "escalate_to": ["user:zoe"],
    },
    "tool_allowlist": {"allow": ["zzz"], "deny": ["*"]},
    "model_allowlist": {"allow": ["zzz"], "deny": ["*"], "pinned": False},
}
"""Another value of every parameter."""

FLAT = [pytest.param(case, id=f"{name}: {case.name}") for name, cases in CASES.items() for case in cases]


def show(verdict: Verdict) -> tuple[Any, ...]:
    """All of a verdict that its bundle does not name."""
    return (verdict.outcome, verdict.reason, verdict.reservations, verdict.max_tokens, verdict.approval)


@pytest.mark.parametrize("case", FLAT)
def test_case(case: Case) -> None:
    verdict = case.verdict
    assert verdict.outcome.word == case.outcome, verdict.reason
    assert case.reason in verdict.reason
    assert verdict.max_tokens == case.max_tokens
    kept = tuple(f"{getattr(item, 'amount', 1)} of {item.limit} under {item.key}" for item in verdict.reservations)
    assert kept == case.reserves
    if verdict.outcome is not Outcome.ALLOW:
        assert verdict.rule == "rule"
        assert verdict.category == case.category
        assert verdict.reason


def test_every_category_has_cases_both_ways() -> None:
    assert set(CASES) == set(CATEGORIES) == set(OTHER) == set(KINDS)
    for name, cases in CASES.items():
        words = {case.outcome for case in cases}
        assert "allow" in words, name
        assert words - {"allow"}, name


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("answer", [None, Breach(reason="always")], ids=["never objects", "always objects"])
def test_the_table_notices_a_rule_that_does_not_look(
    name: str, answer: Breach | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(CATEGORIES[name]), "before", lambda self, action, facts, rule: answer)
    assert any(
        case.verdict.outcome.word != case.outcome or case.reason not in case.verdict.reason for case in CASES[name]
    )


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in OTHER.items() for key in keys])
def test_every_parameter_matters(name: str, key: str) -> None:
    assert set(OTHER[name]) == set(CATEGORIES[name].params.model_fields)
    verdicts = []
    for case in CASES[name]:
        with_ = {**case.with_, key: OTHER[name][key]}
        if key == "escalate_to":
            with_["on_expiry"] = "escalate"
        elif key == "on_expiry":
            with_.pop("escalate_to", None)
        try:
            bundle = Bundle([one({**case._policy(), "with": with_})])
        except PolicyFileError:  # this value does not go together with the case's others
            continue
        verdicts.append((show(decide(case._action(), case._facts(), bundle)), show(case.verdict)))
    assert any(other != usual for other, usual in verdicts)


@pytest.mark.parametrize("name", CASES)
def test_scope_condition_mode_and_gates_switch_a_rule(name: str) -> None:
    category = CATEGORIES[name]
    case = next(case for case in CASES[name] if case.outcome != "allow" or case.reserves)
    base, action, facts = case._policy(), case._action(), case._facts()

    def outcome(**changes: Any) -> tuple[Any, ...]:
        verdict = decide(action, facts, Bundle([one({**base, **changes})]))
        return verdict.outcome, verdict.reservations

    silent = (Outcome.ALLOW, ())
    assert outcome() != silent
    assert outcome(scope={"agent": "finance", "tenant": "def*"}) == outcome()
    assert outcome(scope={"agent": "finance", "tenant": "other"}) == silent
    assert outcome(when='action.name == "validate"') == outcome()
    assert outcome(when='action.name == "other"') == silent
    assert outcome(mode="shadow") == silent
    assert outcome(mode="off") == silent
    elsewhere = [gate for gate in category.gates if gate != action.gate]
    if elsewhere:
        assert outcome(gates=elsewhere) == silent


@pytest.mark.parametrize("name", CASES)
def test_the_example_loads(name: str) -> None:
    category = CATEGORIES[name]
    assert category.name == name
    item = "- " + category.example.replace("\n", "\n  ")
    document = parse(f"version: 1\npolicies:\n{textwrap.indent(item, '  ')}".encode(), "example.yaml")
    checked, problems = examine(document)
    assert not problems
    assert [item.policy.category for item in checked] == [name]


@pytest.mark.parametrize("name", CASES)
def test_a_category_describes_itself(name: str) -> None:
    category = CATEGORIES[name]
    assert set(category.default_gates) <= set(category.gates)
    assert category.summary.endswith(".")
    assert category.verdicts
    for key, field in category.params.model_fields.items():
        assert field.description, f"{name}.{key} says nothing"


def test_denials_never_show_arguments() -> None:
    for cases in CASES.values():
        for case in cases:
            secret = {"args": {"iban": "DE89370400440532013000"}}
            verdict = decide(
                msgspec.structs.replace(case._action(), **secret), case._facts(), Bundle([one(case._policy())])
            )
            assert b"DE89370400440532013000" not in msgspec.json.encode(verdict)
