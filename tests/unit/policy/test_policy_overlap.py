"""Rules that never have a say, and conditions that contradict themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.model import one
from holdfast.policy.overlap import contradiction, overlaps


def found(*policies: dict[str, Any]) -> list[tuple[str, str]]:
    """(rule, key) of each overlap."""
    checked = [one({"id": f"p{number}", **policy}) for number, policy in enumerate(policies)]
    return [(overlap.item.policy.id, overlap.key) for overlap in overlaps(checked)]


def steps(limit: int, **more: Any) -> dict[str, Any]:
    return {"category": "step_limit", "with": {"limit": limit}, **more}


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ((steps(5), steps(9)), [("p1", "id")]),
        ((steps(9), steps(5)), [("p0", "id")]),
        ((steps(5), steps(9, when="facts.depth > 0")), [("p1", "id")]),
        ((steps(5), steps(9, scope={"agent": "a"})), [("p1", "id")]),
        ((steps(5), steps(9, mode="shadow")), [("p1", "id")]),
        ((steps(5), steps(9, mode="off")), []),
        ((steps(5, mode="shadow"), steps(9)), []),
        ((steps(5, scope={"agent": "a"}), steps(9)), []),
        ((steps(5, when="facts.depth > 0"), steps(9)), []),
        ((steps(5, on_breach="warn"), steps(9)), []),
        ((steps(5), {"category": "tool_call_limit", "with": {"limit": 9}}), []),
        (({"category": "kill_switch", "gates": ["step"]}, steps(5)), [("p1", "id")]),
        (({"category": "kill_switch", "gates": ["tool"]}, steps(5)), []),
        (({"category": "kill_switch", "gates": ["step"], "when": "facts.depth > 0"}, steps(5)), []),
        (({"category": "kill_switch", "gates": ["step"], "scope": {"agent": "a"}}, steps(5)), []),
        (({"category": "kill_switch", "gates": ["step"], "scope": {"agent": "a*"}}, steps(5, scope={"agent": "ab"})),
         [("p1", "id")]),
    ],
)  # fmt: skip
def test_rules_that_never_have_a_say(policies: tuple[dict[str, Any], ...], expected: list[tuple[str, str]]) -> None:
    assert found(*policies) == expected


ASK = {"category": "require_approval", "gates": ["tool"]}
ONLY = {"category": "tool_allowlist", "with": {"allow": ["look*"]}}


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (({**ASK, "when": 'action.name == "wire"'}, ONLY), [("p0", "when")]),
        (({**ASK, "when": '"wire" == action.name && facts.depth > 1'}, ONLY), [("p0", "when")]),
        (({**ASK, "when": 'action.name == "look_up"'}, ONLY), []),
        (({**ASK, "when": 'action.name == "wire" || action.name == "look_up"'}, ONLY), []),
        (({**ASK, "when": 'action.name != "wire"'}, ONLY), []),
        (({**ASK, "when": 'action.name == "wire"'}, {**ONLY, "scope": {"agent": "a"}}), []),
        (({**ASK, "when": 'action.name == "wire"'}, {**ONLY, "mode": "shadow"}), []),
        (({"category": "tool_call_limit", "with": {"tool": "wire", "limit": 3}, "on_breach": "deny"}, ONLY),
         [("p0", "with.tool")]),
        (({"category": "tool_call_limit", "with": {"tool": "wi*", "limit": 3}, "on_breach": "deny"}, ONLY), []),
    ],
)  # fmt: skip
def test_rules_about_what_a_list_denies(policies: tuple[dict[str, Any], ...], expected: list[tuple[str, str]]) -> None:
    assert found(*policies) == expected


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ('action.name == "a" && action.name == "b"', 'action.name == "a" and action.name == "b"'),
        ("action.args.n > 10 && action.args.n < 5", "action.args.n > 10 and action.args.n < 5"),
        ("action.args.n > 10 && action.args.n <= 10", "and"),
        ("action.args.n >= 10 && action.args.n <= 10", ""),
        ("action.args.n == 3 && 3 < action.args.n", "and"),
        ("action.args.n > 1 && action.args.m < 1", ""),
        ('action.name == "a" || action.name == "b"', ""),
        ('!(action.name == "a") && action.name == "b"', ""),
        ("action.args.n > -5 && action.args.n < -6.5", "and"),
        ('action.name == "a" && size(action.name) == 2', ""),
    ],
)
def test_conditions_that_contradict_themselves(condition: str, words: str) -> None:
    assert words in contradiction(condition)
    assert bool(contradiction(condition)) is bool(words)
    assert found({**ASK, "when": condition}) == ([("p0", "when")] if words else [])


SIGNS = st.sampled_from(["<", "<=", ">", ">=", "=="])


@given(st.lists(st.tuples(st.sampled_from("nm"), SIGNS, st.integers(-3, 3)), min_size=1, max_size=4))
def test_what_is_called_a_contradiction_never_holds(parts: list[tuple[str, str, int]]) -> None:
    source = " && ".join(f"action.args.{field} {sign} {value}" for field, sign, value in parts)
    if not contradiction(source):
        return
    rules = Bundle([one({"id": "x", "category": "kill_switch", "gates": ["tool"], "when": source})])
    for n in (value / 2 for value in range(-8, 9)):
        for m in range(-4, 5):
            action = Action(kind="tool", name="t", args={"n": n, "m": m})
            assert decide(action, Facts(now=1), rules).outcome is Outcome.ALLOW


LIMITS = st.fixed_dictionaries(
    {"with": st.fixed_dictionaries({"limit": st.integers(1, 4)})},
    optional={
        "scope": st.sampled_from([{"agent": "a"}, {"agent": "*"}]),
        "on_breach": st.sampled_from(["deny", "warn", "terminate"]),
        "when": st.sampled_from(["facts.depth > 0", 'facts.agent == "a"']),
    },
)


@given(st.lists(LIMITS, min_size=1, max_size=4))
def test_without_an_unreachable_rule_every_verdict_is_as_strong(policies: list[dict[str, Any]]) -> None:
    made = [{"id": f"p{number}", "category": "step_limit", **policy} for number, policy in enumerate(policies)]
    unreachable = {overlap.item.policy.id for overlap in overlaps([one(policy) for policy in made])}
    whole = Bundle([one(policy) for policy in made])
    rest = Bundle([one(policy) for policy in made if policy["id"] not in unreachable])
    for agent in ("a", "b"):
        for depth in (0, 1):
            for used in range(6):
                facts = Facts(now=1, agent=agent, depth=depth, counters={"steps": used})
                action = Action(kind="step", name="s")
                assert decide(action, facts, whole).outcome is decide(action, facts, rest).outcome
