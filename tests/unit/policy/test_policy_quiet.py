from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import Action, Facts
from holdfast.policy.conditions import Condition, Conditions, Unanswered
from holdfast.policy.quiet import MOST, Quiet

SOURCES = [
    "action.args.a > 1",
    "action.args.a",
    "has(action.args.b) && action.args.b > 2",
    "action.name == 'n' && action.args.missing > 1",
    "facts.counters.steps > 1",
    "'r' in facts.roles // the end of the line",
    "facts.roles.exists(x, x == 'q')",
    "action.args.c.d == 'z' || action.name == 'm'",
]
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.sampled_from(["", "z"]))
ARGS = st.fixed_dictionaries({}, optional={"a": VALUES, "b": VALUES, "c": st.dictionaries(st.just("d"), VALUES)})


def answers(conditions: list[Condition], action: Action, facts: Facts) -> list[Any]:
    scene = Conditions(conditions).bind(action, facts)
    found: list[Any] = []
    for condition in conditions:
        try:
            found.append(condition(scene))
        except Unanswered:
            found.append("unanswered")
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(SOURCES), min_size=1, max_size=2 * MOST + 3),
    ARGS,
    st.sampled_from(["n", "m", "o"]),
    st.integers(0, 3),
    st.sampled_from([(), ("r",), ("q", "r")]),
)
def test_it_is_quiet_only_when_each_condition_is_false(
    sources: list[str], args: dict[str, Any], name: str, steps: int, roles: tuple[str, ...]
) -> None:
    conditions = [Condition(source) for source in sources]
    action, facts = Action(kind="tool", name=name, args=args), Facts(now=1, counters={"steps": steps}, roles=roles)
    quiet = Quiet(conditions)(Conditions(conditions).bind(action, facts))
    found = answers(conditions, action, facts)
    assert not quiet or found == [False] * len(found)


def test_it_is_quiet_when_nothing_holds_and_nothing_is_missing() -> None:
    conditions = [Condition(source) for source in SOURCES[2:7]]
    action, facts = Action(kind="tool", name="o", args={"b": 1}), Facts(now=1)
    assert Quiet(conditions)(Conditions(conditions).bind(action, facts))


@pytest.mark.parametrize("at", range(2 * MOST))
def test_one_that_holds_among_many_is_heard(at: int) -> None:
    conditions = [Condition(f"action.attempt == {number + 2}") for number in range(2 * MOST)]
    scene = Conditions(conditions).bind(Action(kind="step", name="s", attempt=at + 2), Facts(now=1))
    assert not Quiet(conditions)(scene)
