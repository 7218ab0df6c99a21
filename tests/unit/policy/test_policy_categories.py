"""A table of allow and deny cases for every category, and the proof that the table notices a change of each rule."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.action import Action, Ended, Facts, Grant, Outcome, Price, Refusal, Verdict
from holdfast.errors import PolicyFileError
from holdfast.policy.bundle import Bundle
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.base import Breach
from holdfast.policy.decide import decide, decide_after, decide_during
from holdfast.policy.model import one
from holdfast.values import sha256

CENT = 10_000_000
DENY, ASK, END = "deny", "require_approval", "terminate"
HOUR = 3_600_000_000
NOW = 1_772_366_400_000_000  # 2026-03-01 12:00:00 UTC
PRICE = Price(input=3_000, output=15_000)


OPEN = one({"id": "zz-open", "category": "egress_allowlist", "with": {"hosts": ["*"]}})
"""Nothing is reachable without a list; this one leaves the word to the rule under test."""


def _bundle(policy: dict[str, Any]) -> Bundle:
    return Bundle([one(policy), OPEN])


class Case(msgspec.Struct, frozen=True):
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
    text: str | None = None
    """What a stream has brought: the case is about the phase ``during``."""
    ended: dict[str, Any] | None = None
    """What came back: the case is about the phase ``after``."""

    @property
    def verdict(self) -> Verdict:
        return self.judged(_bundle(self._policy()))

    def judged(self, bundle: Bundle) -> Verdict:
        if self.ended is not None:
            return decide_after(self._action(), Ended(**self.ended), self._facts(), bundle)
        if self.text is not None:
            return decide_during(self._action(), self.text, self._facts(), bundle)
        return decide(self._action(), self._facts(), bundle)

    def _policy(self) -> dict[str, Any]:
        return {"id": "rule", "category": self.category, "with": self.with_, **self.policy}

    def _action(self) -> Action:
        given = {"kind": KINDS[self.category], "name": "validate", "id": "validate.1", **self.action}
        if given["kind"] == "http" and self.category not in ("egress_allowlist", "ssrf_guard"):
            given.setdefault("host", "api.example")
        return Action(**given)

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
PROMPT = sha256(b"Be brief.")
A, B, C = "a" * 64, "b" * 64, "c" * 64

CASES: dict[str, tuple[Case, ...]] = {
    "budget_usd": (
        Case("fits", {"limit": "1"}, action=CALL, reserves=(f"{WORST} of 1000000000 under {RUN_KEY}",)),
        Case(
            "lowered to what fits the limit",
            {"limit": "0.002"},
            action=CALL,
            max_tokens=113,
            reserves=(f"{300_000 + 113 * 15_000} of 2000000 under {RUN_KEY}",),
        ),
        Case(
            "lowered to what is left",
            {"limit": "1"},
            action=CALL,
            facts={"refusals": refused(RUN_KEY, 10**9, 10**9 - 2_000_000)},
            max_tokens=113,
            reserves=(f"{300_000 + 113 * 15_000} of 1000000000 under {RUN_KEY}",),
        ),
        Case(
            "below the floor",
            {"limit": "1", "floor_tokens": 114},
            action=CALL,
            facts={"refusals": refused(RUN_KEY, 10**9, 10**9 - 2_000_000)},
            outcome=DENY,
        ),
        Case(
            "at the floor",
            {"limit": "1", "floor_tokens": 113},
            action=CALL,
            facts={"refusals": refused(RUN_KEY, 10**9, 10**9 - 2_000_000)},
            max_tokens=113,
            reserves=(f"{300_000 + 113 * 15_000} of 1000000000 under {RUN_KEY}",),
        ),
        Case("input alone is too dear", {"limit": "0.0003"}, action=CALL, outcome=DENY),
        Case("unknown price", {"limit": "1"}, action=CALL, facts={"price": None}, outcome=DENY),
        Case(
            "unknown price, although it would only warn",
            {"limit": "1"},
            policy={"on_breach": "warn"},
            action=CALL,
            facts={"price": None},
            outcome=DENY,
        ),
        Case("no output limit", {"limit": "1"}, action={**CALL, "max_tokens": 0}, outcome=DENY),
        Case(
            "free model",
            {"limit": "0.01"},
            action=CALL,
            facts={"price": Price(input=0, output=0)},
            reserves=(f"0 of {CENT} under {RUN_KEY}",),
        ),
        Case("a single call fits", {"limit": "0.01", "window": "call"}, action=CALL),
        Case("a single call is lowered", {"limit": "0.002", "window": "call"}, action=CALL, max_tokens=113),
        Case("a single call is too dear", {"limit": "0.0003", "window": "call"}, action=CALL, outcome=DENY),
        Case(
            "by day and agent",
            {"limit": "1", "window": "day", "per": "agent"},
            action=CALL,
            reserves=(f"{WORST} of 1000000000 under budget_usd/default/rule/day/2026-03-01/agent/finance",),
        ),
        Case(
            "the whole tree",
            {"limit": "1", "window": "tree"},
            action=CALL,
            reserves=(f"{WORST} of 1000000000 under budget_usd/default/rule/tree/run-0",),
        ),
        Case(
            "a tool with a price",
            {"limit": "1", "per_call": "0.25"},
            policy={"gates": ["tool"]},
            action={"kind": "tool"},
            reserves=(f"250000000 of 1000000000 under {RUN_KEY}",),
        ),
        Case(
            "a tool that is too dear now",
            {"limit": "1", "per_call": "0.25"},
            policy={"gates": ["tool"]},
            action={"kind": "tool"},
            facts={"refusals": refused(RUN_KEY, 10**9, 9 * 10**8)},
            outcome=DENY,
        ),
        Case(
            "a step after all is spent",
            {"limit": "0.01"},
            policy={"gates": ["step"]},
            action={"kind": "step"},
            facts={"counters": {"cost": CENT}},
            outcome=DENY,
        ),
        Case(
            "a step before all is spent",
            {"limit": "0.01"},
            policy={"gates": ["step"]},
            action={"kind": "step"},
            facts={"counters": {"cost": CENT - 1}},
        ),
    ),
    "budget_tokens": (
        Case("fits", {"limit": 1000}, action=CALL, reserves=(f"300 of 1000 under {TOKEN_KEY}",)),
        Case("lowered", {"limit": 250}, action=CALL, max_tokens=150, reserves=(f"250 of 250 under {TOKEN_KEY}",)),
        Case("no room", {"limit": 115}, action=CALL, outcome=DENY),
        Case("just the floor", {"limit": 116}, action=CALL, max_tokens=16, reserves=(f"116 of 116 under {TOKEN_KEY}",)),
        Case("a higher floor", {"limit": 116, "floor_tokens": 17}, action=CALL, outcome=DENY),
        Case(
            "by month and person",
            {"limit": 1000, "window": "month", "per": "principal"},
            action=CALL,
            reserves=("300 of 1000 under budget_tokens/default/rule/month/2026-03/principal/ann",),
        ),
        Case(
            "no price is needed",
            {"limit": 1000},
            action=CALL,
            facts={"price": None},
            reserves=(f"300 of 1000 under {TOKEN_KEY}",),
        ),
    ),
    "model_price_ceiling": (
        Case("cheap enough", {"input_per_mtok": "3", "output_per_mtok": "15"}, action=CALL),
        Case("input too dear", {"input_per_mtok": "2.99"}, action=CALL, outcome=DENY),
        Case("output too dear", {"output_per_mtok": "14.99"}, action=CALL, outcome=DENY),
        Case("unknown price", {"output_per_mtok": "15"}, action=CALL, facts={"price": None}, outcome=DENY),
    ),
    "rate_limit": (
        Case("takes a cell", {"limit": 5, "period": "1s"}, reserves=(f"1 of 5 under {RATE_KEY}",)),
        Case(
            "too soon",
            {"limit": 5, "period": "1s"},
            facts={"refusals": refused(RATE_KEY, 5, 5, 200_000)},
            outcome="throttle",
        ),
        Case(
            "too soon, and refused",
            {"limit": 5, "period": "1s"},
            policy={"on_breach": "deny"},
            facts={"refusals": refused(RATE_KEY, 5, 5, 200_000)},
            outcome=DENY,
        ),
        Case(
            "another's count",
            {"limit": 5, "burst": 2, "per": "agent"},
            facts={"refusals": refused(RATE_KEY, 5, 5)},
            reserves=("1 of 5 under rate_limit/rule/default/agent/finance",),
        ),
    ),
    "concurrency_limit": (
        Case("takes a place", {"limit": 2}, reserves=(f"1 of 2 under {HOLD_KEY}",)),
        Case("no place", {"limit": 2}, facts={"refusals": refused(HOLD_KEY, 2, 2)}, outcome="throttle"),
        Case(
            "of one run, for a while",
            {"limit": 2, "per": "run", "ttl": "5m"},
            reserves=("1 of 2 under concurrency_limit/rule/default/run/run-1",),
        ),
    ),
    "step_limit": (
        Case("the last step", {"limit": 5}, facts={"counters": {"steps": 4}}),
        Case("one too many", {"limit": 5}, facts={"counters": {"steps": 5}}, outcome=END),
        Case("the last step again", {"limit": 5}, action={"attempt": 2}, facts={"counters": {"steps": 5}}),
        Case(
            "a decision is a step",
            {"limit": 5},
            action={"kind": "decision"},
            facts={"counters": {"steps": 5}},
            outcome=END,
        ),
    ),
    "tool_call_limit": (
        Case("the last call", {"limit": 3}, facts={"counters": {"tool_calls": 2}}),
        Case("one too many", {"limit": 3}, facts={"counters": {"tool_calls": 3}}, outcome=DENY),
        Case("none at all", {"limit": 0}, outcome=DENY),
        Case(
            "of some tools, together",
            {"limit": 3, "tool": "wire_*"},
            action={"name": "wire_out"},
            facts={"counters": {"tool_calls": 9, "tool_calls:wire_out": 1, "tool_calls:wire_in": 2}},
            outcome=DENY,
        ),
        Case(
            "another tool",
            {"limit": 3, "tool": "wire_*"},
            action={"name": "lookup"},
            facts={"counters": {"tool_calls": 9, "tool_calls:wire_out": 9}},
        ),
    ),
    "wall_clock_limit": (
        Case("in time", {"limit": "2h"}, facts={"started_at": NOW - 2 * HOUR}),
        Case("too late", {"limit": "2h"}, facts={"started_at": NOW - 2 * HOUR - 1}, outcome=END),
        Case("the clock went back", {"limit": "2h"}, facts={"started_at": NOW + HOUR}),
    ),
    "idle_limit": (
        Case("in time", {"limit": "2h"}, facts={"active_at": NOW - 2 * HOUR, "started_at": 1}),
        Case("too late", {"limit": "2h"}, facts={"active_at": NOW - 2 * HOUR - 1}, outcome=END),
    ),
    "loop_detection": (
        Case("often, but not too often", {"max_repeats": 3}, action={"digest": A}, facts={"recent": (A, B, A)}),
        Case("too often", {"max_repeats": 3}, action={"digest": A}, facts={"recent": (A, B, A, A)}, outcome=DENY),
        Case("long ago", {"max_repeats": 3, "window": 4}, action={"digest": A}, facts={"recent": (A, A, B, C, B)}),
        Case(
            "a cycle",
            {"max_repeats": 19, "cycle_repeats": 2},
            action={"digest": B},
            facts={"recent": (C, A, B, A, B, A)},
            outcome=DENY,
        ),
        Case(
            "not yet a cycle",
            {"max_repeats": 19, "cycle_repeats": 2},
            action={"digest": B},
            facts={"recent": (C, A, B, A)},
        ),
        Case(
            "a cycle of three where two are looked for",
            {"max_repeats": 19, "max_cycle": 2, "cycle_repeats": 1},
            action={"digest": C},
            facts={"recent": (A, B, C, A, B)},
        ),
        Case("another attempt", {"max_repeats": 1}, action={"digest": A, "attempt": 2}, facts={"recent": (A, A)}),
    ),
    "kill_switch": (
        Case("in its scope", policy={"scope": {"agent": "fin*"}}, outcome=END),
        Case("beside its scope", policy={"scope": {"agent": "ops"}}),
        Case("says why", {"reason": "audit week"}, outcome=END, reason="audit week"),
    ),
    "require_approval": (
        Case("asks", outcome=ASK),
        Case("anyone", facts={"grants": (grant("bob"),)}),
        Case("not authenticated", facts={"grants": (grant("bob", auth=""),)}, outcome=ASK),
        Case("refused", facts={"grants": (grant("bob", approved=False),)}, outcome=DENY),
        Case(
            "refused, and that ends it",
            policy={"on_breach": "terminate"},
            facts={"grants": (grant("bob", approved=False),)},
            outcome=END,
        ),
        Case("the right role", {"approvers": ["role:controller"]}, facts={"grants": (grant("bob", "controller"),)}),
        Case(
            "the wrong role",
            {"approvers": ["role:controller"]},
            facts={"grants": (grant("bob", "clerk"),), "approval_state": "approved"},
            outcome=ASK,
        ),
        Case("by name", {"approvers": ["user:bob"]}, facts={"grants": (grant("bob"),)}),
        Case("twice the same person", {"quorum": 2}, facts={"grants": (grant("bob"), grant("bob"))}, outcome=ASK),
        Case("two people", {"quorum": 2}, facts={"grants": (grant("bob"), grant("eve"))}),
        Case("expired", facts={"approval_state": "expired"}, outcome=DENY),
        Case("denied", facts={"approval_state": "denied"}, outcome=DENY),
        Case("expired, and so approved", {"on_expiry": "approve"}, facts={"approval_state": "expired"}),
        Case(
            "escalated",
            {"approvers": ["user:bob"], "on_expiry": "escalate", "escalate_to": ["user:eve"]},
            facts={"grants": (grant("eve"),)},
        ),
        Case("soon", {"ttl": "5m"}, outcome=ASK),
    ),
    "four_eyes": (
        Case("asks", outcome=ASK),
        Case("two others", facts={"grants": (grant("bob"), grant("eve"))}),
        Case("the requester is one", facts={"grants": (grant("bob"), grant("ann"))}, outcome=ASK),
        Case("one is enough", {"quorum": 1}, facts={"grants": (grant("bob"),)}),
        Case(
            "of a role", {"quorum": 1, "approvers": ["role:treasury"]}, facts={"grants": (grant("bob"),)}, outcome=ASK
        ),
        Case("nobody asked", facts={"principal": "", "grants": (grant("bob"), grant("eve"))}, outcome=DENY),
        Case("expired, and so approved", {"on_expiry": "approve"}, facts={"approval_state": "expired"}),
        Case(
            "escalated",
            {"quorum": 1, "approvers": ["user:bob"], "on_expiry": "escalate", "escalate_to": ["user:eve"]},
            facts={"grants": (grant("eve"),)},
        ),
        Case("soon", {"ttl": "5m"}, outcome=ASK),
    ),
    "tool_allowlist": (
        Case("listed", {"allow": ["look*", "validate"]}),
        Case("not listed", {"allow": ["look*"]}, outcome=DENY),
        Case("capitals count", {"allow": ["Validate", "VALID*"]}, outcome=DENY),
        Case("denied by a pattern", {"allow": ["*"], "deny": ["valid*"]}, outcome=DENY),
        Case("not denied", {"deny": ["wire_*"]}),
        Case("nothing is allowed", {"allow": []}, outcome=DENY),
    ),
    "model_allowlist": (
        Case("listed", {"allow": ["m-1"]}, action=CALL),
        Case("with its provider", {"allow": ["anthropic/m-*"]}, action=CALL),
        Case("of another provider", {"allow": ["openai/m-*"]}, action=CALL, outcome=DENY),
        Case("denied", {"allow": ["*"], "deny": ["m-1"]}, action=CALL, outcome=DENY),
        Case("not denied", {"deny": ["m-2"]}, action=CALL),
        Case("a floating alias", {"pinned": True, "deny": ["m-2"]}, action={**CALL, "model": "m-latest"}, outcome=DENY),
        Case("a pinned version", {"pinned": True}, action=CALL),
        Case("no model", {"deny": ["m-2"]}, action={**CALL, "model": ""}, outcome=DENY),
        Case("a reviewed prompt", {"prompts": [PROMPT]}, action={**CALL, "args": {"system": "Be brief."}}),
        Case("another prompt", {"prompts": [PROMPT]}, action={**CALL, "args": {"system": "Be bad."}}, outcome=DENY),
        Case("no prompt", {"prompts": [PROMPT]}, action=CALL, outcome=DENY),
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
    "model_allowlist": {"allow": ["zzz"], "deny": ["*"], "pinned": False, "prompts": ["0" * 64]},
}
"""Another value of every parameter."""

for path in sorted(Path(__file__).parent.glob("table_*.py")):
    # Tables of further families: KINDS, OTHER, and CASES as plain dictionaries.
    table = runpy.run_path(str(path))
    KINDS |= table["KINDS"]
    OTHER |= table["OTHER"]
    CASES |= {name: tuple(Case(**case) for case in cases) for name, cases in table["CASES"].items()}

FLAT = [pytest.param(case, id=f"{name}: {case.name}") for name, cases in CASES.items() for case in cases]


def show(verdict: Verdict) -> tuple[Any, ...]:
    """All of a verdict that its bundle does not name."""
    return (
        verdict.outcome,
        verdict.reason,
        verdict.reservations,
        verdict.max_tokens,
        verdict.approval,
        verdict.redactions,
        verdict.hits,
    )


@pytest.mark.parametrize("case", FLAT)
def test_case(case: Case) -> None:
    verdict = case.verdict
    assert verdict.outcome.word == case.outcome, verdict.reason
    assert case.reason in verdict.reason
    assert verdict.max_tokens == case.max_tokens
    kept = tuple(
        f"{getattr(item, 'amount', 1)} of {getattr(item, 'limit', 1)} under {item.key}" for item in verdict.reservations
    )
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
    for phase in CATEGORIES[name].phases:
        monkeypatch.setattr(type(CATEGORIES[name]), phase, lambda self, *_: answer)
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
            bundle = _bundle({**case._policy(), "with": with_})
        except PolicyFileError:  # this value does not go together with the case's others
            continue
        verdicts.append((show(case.judged(bundle)), show(case.verdict)))
    assert any(other != usual for other, usual in verdicts)


@pytest.mark.parametrize("name", CASES)
def test_scope_condition_mode_and_gates_switch_a_rule(name: str) -> None:
    category = CATEGORIES[name]
    case = next(case for case in CASES[name] if case.outcome != "allow" or case.reserves)
    base, action = case._policy(), case._action()

    def outcome(**changes: Any) -> tuple[Any, ...]:
        verdict = case.judged(_bundle({**base, **changes}))
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


def test_denials_never_show_arguments() -> None:
    for cases in CASES.values():
        for case in cases:
            secret = {"args": {"iban": "DE89370400440532013000"}}
            verdict = decide(msgspec.structs.replace(case._action(), **secret), case._facts(), _bundle(case._policy()))
            assert b"DE89370400440532013000" not in msgspec.json.encode(verdict)
