from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import Action, Ended, Facts, Kill, Outcome, Price
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.explain import explain
from holdfast.policy.model import one

FACTS = Facts(now=10, tenant="bank", agent="finance", run="r-1", price=Price(input=3_000, output=15_000))


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one(item) for item in policies])


RULES = bundle(
    {"id": "a", "category": "tool_allowlist", "with": {"allow": ["look*"]}},
    {"id": "b", "category": "step_limit", "with": {"limit": 5}},
    {"id": "c", "category": "kill_switch", "scope": {"agent": "ops"}},
    {"id": "d", "category": "kill_switch", "when": 'action.name == "other"'},
    {"id": "e", "category": "kill_switch", "mode": "off"},
    {"id": "f", "category": "rate_limit", "with": {"limit": 5}},
    {"id": "g", "category": "require_approval", "when": "action.args.amount > 5"},
    {"id": "h", "category": "kill_switch", "mode": "shadow"},
)


def test_each_rule_accounts_for_itself() -> None:
    account = explain(Action(kind="tool", name="wire", args={"memo": "x"}), FACTS, RULES)
    by_rule = {item.rule: item for item in account.accounts}
    assert list(by_rule) == list("abcdefgh")
    assert account.verdict.rule == "a"
    told = {name: (item.applies, item.outcome.word) for name, item in by_rule.items()}
    assert told == {
        "a": (True, "deny"),
        "b": (False, "allow"),
        "c": (False, "allow"),
        "d": (False, "allow"),
        "e": (False, "allow"),
        "f": (True, "allow"),
        "g": (True, "deny"),
        "h": (True, "terminate"),
    }
    assert "not on the list" in by_rule["a"].why
    assert "stands at step" in by_rule["b"].why
    assert "scope is agent ops, and this is finance" in by_rule["c"].why
    assert 'does not hold: action.name == "other"' in by_rule["d"].why
    assert by_rule["e"].why == "it is off"
    assert by_rule["f"].reserves == ("1 of 5 under rate_limit/f/bank",)
    assert "has()" in by_rule["g"].why
    assert by_rule["h"].mode == "shadow"


def test_a_kill_comes_first() -> None:
    kill = Kill(id="k1", scope="fleet", name="*", tenant="", reason="drill", by="ann", at=1)
    account = explain(Action(kind="step", name="x"), Facts(now=1, kills=(kill,)), RULES)
    assert account.accounts[0].rule == "kill:k1"
    assert account.verdict.outcome is Outcome.TERMINATE


def test_a_budget_says_what_it_reserves_and_lowers() -> None:
    rules = bundle({"id": "a", "category": "budget_usd", "with": {"limit": "0.002"}})
    call = Action(kind="llm", name="generate", model="m", input_tokens=100, max_tokens=200)
    (account,) = explain(call, FACTS, rules).accounts
    assert account.reserves == ("1995000 of 2000000 under budget_usd/bank/a/run/r-1",)
    assert "lowered from 200 to 113" in account.why


def test_it_is_plain_json() -> None:
    account = explain(Action(kind="tool", name="wire", args={"amount": 9}), FACTS, RULES)
    value = json.loads(json.dumps(account.to_json_value()))
    assert value["verdict"]["outcome"] == "deny"
    assert {rule["outcome"] for rule in value["rules"]} >= {"deny", "allow", "terminate"}
    assert all(isinstance(hit["outcome"], str) for hit in value["verdict"]["hits"])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["tool", "step", "llm", "nowhere"]),
    st.sampled_from(["wire", "lookup", "other"]),
    st.dictionaries(st.just("amount"), st.integers(0, 10)),
    st.sampled_from(["finance", "ops"]),
)
def test_the_account_is_the_verdict(kind: str, name: str, args: dict[str, int], agent: str) -> None:
    action, facts = Action(kind=kind, name=name, args=args), Facts(now=1, agent=agent)
    account = explain(action, facts, RULES)
    assert account.verdict == decide(action, facts, RULES)
    told = {(item.rule, item.outcome, item.why) for item in account.accounts if item.outcome is not Outcome.ALLOW}
    assert told == {
        (hit.rule, hit.outcome, hit.reason) for hit in account.verdict.hits if hit.outcome is not Outcome.ALLOW
    }


def test_what_came_back_is_accounted_for_too() -> None:
    rules = Bundle(
        [
            one({"id": "cards", "category": "pan_guard", "gates": ["tool"], "on_breach": "redact"}),
            one({"id": "steps", "category": "step_limit", "gates": ["step"], "with": {"limit": 1}}),
            one({"id": "calls", "category": "tool_call_limit", "with": {"limit": 1}}),
        ]
    )
    action = Action(kind="tool", name="pay")
    found = explain(action, Facts(now=1, counters={"tool_calls": 5}), rules, Ended(value="4111 1111 1111 1111"))
    assert found.verdict.outcome is Outcome.REDACT
    told = {account.rule: account for account in found.accounts}
    assert told["cards"].applies
    assert told["cards"].outcome is Outcome.REDACT
    assert told["calls"].why == "it does not look at what comes back"
    assert not told["steps"].applies
