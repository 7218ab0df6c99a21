from __future__ import annotations

import contextlib
import itertools
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import Action, Effect, Facts, Price
from holdfast.policy.cel import ConditionError
from holdfast.policy.conditions import FUNCTIONS, Condition, Conditions, Unanswered, check
from holdfast.policy.fields import ACTION_FIELDS, FACTS_FIELDS
from holdfast.policy.lexemes import paths, tokens

ACTION = Action(
    kind="tool",
    name="wire_transfer",
    id="pay.1",
    args={"amount": 12_000.5, "to": {"iban": "X1", "tags": ["a", "b"]}, "memo": None, "n": 3, "urgent": True},
    effect=Effect.IRREVERSIBLE,
    provider="bank",
)
FACTS = Facts(
    now=2_000,
    started_at=500,
    agent="finance",
    principal="ann",
    roles=("clerk", "controller"),
    labels=("private",),
    counters={"steps": 7, "tool_calls:wire_transfer": 2},
    price=Price(input=3, output=15),
)


def ask(source: str, action: Action = ACTION, facts: Facts = FACTS) -> bool:
    condition = Condition(source)
    return condition(Conditions([condition]).bind(action, facts))


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ('action.name == "wire_transfer" && action.args.amount > 10000', True),
        ('action.name == "other" && action.args.missing > 10000', False),
        ("action.args.amount > 12000", True),
        ("action.args.n == 3", True),
        ('action.args.to.iban == "X1"', True),
        ('"b" in action.args.to.tags', True),
        ("action.args.to.tags.size() == 2", True),
        ('action.args.to.tags[0] == "a"', True),
        ("action.args.memo == null", True),
        ("action.args.urgent", True),
        ("!action.args.urgent", False),
        ("has(action.args.amount)", True),
        ("has(action.args.missing)", False),
        ("has(action.args.missing) && action.args.missing > 3", False),
        ("has(action.args.memo)", True),
        ("has(action.args.to.iban) && action.args.to.iban == 'X1'", True),
        ("has(action.args.to.none) || action.args.n == 3", True),
        ("has(facts.counters.steps) && !has(facts.counters.other)", True),
        ('action.effect == "irreversible"', True),
        ('action.gate == "tool" && action.kind == "tool"', True),
        ("facts.counters.steps == 7", True),
        ("facts.counters.llm_calls == 0", True),
        ('facts.counters["tool_calls:wire_transfer"] >= 2', True),
        ('"tool_calls:other" in facts.counters', False),
        ("facts.now - facts.started_at > 1000", True),
        ('"controller" in facts.roles', True),
        ('facts.labels.exists(x, x.startsWith("priv"))', True),
        ("facts.price.output > 10", True),
        ('facts.agent.matches("^fin")', True),
        ("size(facts) > 3", True),
        ("// only a remark about facts.nonsense\n action.attempt == 1", True),
        ('action.name != "facts.nonsense"', True),
        ("action . args . n == 3", True),
        ("action.args.n > 2 ? action.args.urgent : false", True),
        ("action.args.missing > 3 || true", True),
    ],
)
def test_answers(source: str, answer: bool) -> None:
    assert ask(source) is answer
    check(source)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("action.args.missing > 3", "missing"),
        ("action.args.to.missing > 3", "missing"),
        ('facts.counters["other"] > 3', "missing"),
        ('action.args.amount > "many"', "TypeError"),
        ("action.args.memo > 3", "TypeError"),
        ("1 / (action.args.n - 3) > 0", "ZeroDivisionError"),
        ("action.args.n", "gave a int"),
        ("action.args.memo", "gave a NoneType"),
        ("action.args.n + 9223372036854775807 > 0", "OverflowError"),
        ("action.args.n == 3 && action.args.missing == 1", "missing"),
    ],
)
def test_no_answer(source: str, part: str) -> None:
    with pytest.raises(Unanswered, match=part):
        ask(source)


def test_the_reason_never_holds_what_the_action_carries() -> None:
    with pytest.raises(Unanswered) as caught:
        ask('action.args[action.args.to.iban] == "X"')
    assert "X1" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("x" * 5000, "longer"),
        ("action.nam == 'x'", "did you mean name"),
        ("facts.counter.steps > 1", "did you mean counters"),
        ("actoin.name == 'x'", "there is no actoin"),
        ("has(facts.nope)", "there is no facts.nope"),
        ("action.name ==", "not CEL"),
        ("action.name.startswith('x')", "did you mean startsWith"),
        ("launch(action)", "no function launch"),
        ("action.args.exists(action, true)", "variable of a macro"),
        ("facts.roles.all(v_x, true)", "variable of a macro"),
        ("1", "not true or false"),
        ("action.name", "compare it with something"),
        ("facts.counters.steps", "compare it with something"),
        ("action.args.n + 1", "compare it with something"),
        ("facts", "compare it with something"),
    ],
)
def test_refused_at_loading(source: str, part: str) -> None:
    with pytest.raises(ConditionError, match=part):
        check(source)


def test_every_documented_field_can_be_asked_for() -> None:
    for root, fields in (("action", ACTION_FIELDS), ("facts", FACTS_FIELDS)):
        for field in fields:
            assert ask(f"{root}.{field} == {root}.{field}")
            assert ask(f"has({root}.{field})")


def test_every_documented_function_is_there() -> None:
    for name in ("contains", "startsWith", "endsWith", "matches"):
        assert ask(f'action.name.{name}("wire_transfer")')
    for source in (
        "size(facts.roles) == 2",
        "facts.roles.all(x, x != '')",
        "facts.roles.exists_one(x, x == 'clerk')",
        "facts.roles.map(x, x + '!').size() == 2",
        "facts.roles.filter(x, x == 'clerk').size() == 1",
        "int('3') == action.args.n",
        "uint(3) == 3u",
        "double(action.args.n) < action.args.amount",
        "string(action.args.n) == '3'",
        "bytes('a') == b'a'",
        "type(action.name) == type('')",
        "dyn(action.args.n) == 3",
        "duration('1h') > duration('1m')",
        "timestamp('2026-01-01T00:00:00Z') < timestamp('2026-01-02T00:00:00Z')",
    ):
        check(source)
        assert ask(source)
    tried = {"contains", "startsWith", "endsWith", "matches", "has", "size", "all", "exists", "exists_one", "map"}
    tried |= {"filter", "int", "uint", "double", "string", "bytes", "type", "dyn", "duration", "timestamp"}
    assert set(FUNCTIONS) == tried


def test_paths() -> None:
    found, views = paths(
        "has(action.args.x) && has(facts.region) && "
        'size(facts) > 1 || facts.roles.size() > 2 // action.no\n || "facts.q" == x.facts.y'
    )
    assert views
    assert [(path.names, path.plain, path.presence) for path in found] == [
        (("action", "args", "x"), True, True),
        (("facts", "region"), True, False),
        (("facts",), False, False),
        (("facts", "roles"), True, False),
    ]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_character_is_lost_in_tokens(source: str) -> None:
    found = tokens(source)
    assert all(source[token.start : token.end] == token.text for token in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_refused_or_accepted_without_another_error(source: str) -> None:
    with contextlib.suppress(ConditionError):
        check(source)


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["", "a", "b"]), st.floats(-2, 2))
TERMS = st.sampled_from(
    [
        "action.args.a > 1",
        "action.args.a == null",
        "action.args.b == 'a'",
        "action.args.b != action.args.a",
        "action.args.c.d < 3",
        "action.args.c == null",
        "action.name == 'n'",
        "facts.counters.steps > 1",
        "facts.counters.other > 1",
        "'r' in facts.roles",
        "action.args.b in ['a', 'b']",
        "action.args.a",
        "!(action.args.a == 1)",
        "has(action.args.a)",
        "has(action.args.c.d)",
        "!has(action.args.b) || action.args.b == 'a'",
        "has(facts.counters.steps)",
        "has(facts.counters.other)",
    ]
)
SOURCES = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} ? {parts[1]} : {parts[2]})"),
    ),
    max_leaves=6,
)
ARGS = st.fixed_dictionaries(
    {}, optional={"a": LEAVES, "b": LEAVES, "c": st.one_of(LEAVES, st.dictionaries(st.sampled_from("de"), LEAVES))}
)


@settings(max_examples=150, deadline=None)
@given(
    SOURCES,
    st.lists(
        st.tuples(
            ARGS, st.sampled_from(["n", "m"]), st.dictionaries(st.sampled_from(["steps", "other"]), st.integers(0, 3))
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_the_fast_way_gives_the_language_s_own_answer(
    source: str, scenes: list[tuple[dict[str, Any], str, Any]]
) -> None:
    condition = Condition(source)
    assert condition._fast is not None
    plain = Condition(source)
    plain._fast = None
    bundle = Conditions([condition])
    for args, name, counters in scenes:
        action, facts = Action(kind="tool", name=name, args=args), Facts(now=1, counters=counters, roles=("r",))
        assert outcome(condition, bundle, action, facts) == outcome(plain, bundle, action, facts)


def outcome(condition: Condition, bundle: Conditions, action: Action, facts: Facts) -> Any:
    try:
        return condition(bundle.bind(action, facts))
    except Unanswered as error:
        return str(error)


def test_threads_do_not_see_each_other() -> None:
    condition = Condition("facts.counters.steps == facts.now && action.name == facts.agent")
    bundle = Conditions([condition])
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait(30)
        for turn in range(300):
            value = number * 1000 + turn
            facts = Facts(now=value, agent=f"a{value}", counters={"steps": value})
            if not condition(bundle.bind(Action(kind="step", name=f"a{value}"), facts)):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
