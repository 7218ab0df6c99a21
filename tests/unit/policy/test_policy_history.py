from __future__ import annotations

import builtins
import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import (
    Action,
    Budget,
    Effect,
    Ended,
    Facts,
    Glass,
    Grant,
    Kill,
    Outcome,
    Past,
    Refusal,
)
from holdfast.errors import PolicyFileError
from holdfast.policy.bundle import Bundle
from holdfast.policy.categories import CATEGORIES, cedar
from holdfast.policy.categories.delegation import covers
from holdfast.policy.cel import ConditionError
from holdfast.policy.conditions import Condition, check
from holdfast.policy.decide import decide, decide_after, decide_during, settlements
from holdfast.policy.explain import explain
from holdfast.policy.history import COST, SAME, Question, answers, past, recall
from holdfast.policy.model import one
from holdfast.policy.patterns import fits

SECOND, MINUTE, HOUR = 10**6, 60 * 10**6, 3600 * 10**6
NOW = 1_772_366_400_000_000
CALL = Action(kind="tool", name="wire_transfer", id="a.1", args={"amount": 50}, effect=Effect.IRREVERSIBLE)
FACTS = Facts(now=NOW, agent="finance", run="r-1", principal="ann", auth="x")


def did(name: str, ago: int, state: str = "ok", gate: str = "tool", **figures: Any) -> Past:
    at = NOW - ago
    return Past(gate=gate, name=name, at=at, state=state, ended_at=at, agent="finance", figures=figures)


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one(item) for item in policies])


def asks(when: str) -> Bundle:
    return bundle({"id": "r", "category": "kill_switch", "gates": ["tool"], "when": when, "on_breach": "deny"})


def outcome(rules: Bundle, record: tuple[Past, ...], action: Action = CALL) -> Outcome:
    return decide(action, recall(action, FACTS, rules.asks(action, FACTS), record, record), rules).outcome


@pytest.mark.parametrize(
    ("when", "record", "hit"),
    [
        ('history.count("tool", "wire_transfer") >= 2', (did("wire_transfer", 1), did("wire_transfer", 9)), True),
        ('history.count("tool", "wire_transfer") >= 2', (did("wire_transfer", 1), did("look", 9)), False),
        ('history.count("tool", "wire_*", within="1h") >= 2', (did("wire_a", 1), did("wire_b", HOUR)), True),
        ('history.count("tool", "wire_*", within="1h") >= 2', (did("wire_a", 1), did("wire_b", HOUR + 1)), False),
        ('history.count("tool", "wire_*", state="open") == 1', (did("wire_a", 1, "open"), did("wire_b", 1)), True),
        (
            'history.count("*", "*", state="ended") == 2',
            (did("a", 1, "open"), did("b", 1), did("c", 1, "failed")),
            True,
        ),
        ('history.formerly("http", "*")', (did("api.example", 1, gate="http"),), True),
        ('history.formerly("http", "*")', (did("api.example", 1),), False),
        ('!history.formerly("http", "*") && action.name == "wire_transfer"', (), True),
        ('history.sum("tool", "wire_*", "amount") + action.args.amount > 100', (did("wire_a", 1, amount=51),), True),
        ('history.sum("tool", "wire_*", "amount") + action.args.amount > 100', (did("wire_a", 1, amount=50),), False),
        ('history.sum("tool", "wire_*", "amount", over="tenant") > 1', (did("wire_a", 1, amount=2),), True),
        ('action.name == "history" || facts.agent == "finance"', (), True),
    ],
)
def test_conditions_over_the_record(when: str, record: tuple[Past, ...], hit: bool) -> None:
    assert (outcome(asks(when), record) is Outcome.DENY) is hit


def test_what_is_under_way_counts_and_what_cannot_be_added_denies() -> None:
    rules = asks('history.sum("tool", "wire_*", "amount", within="1h") > 100')
    assert outcome(rules, (did("wire_a", 1, "open", amount=101),)) is Outcome.DENY
    assert outcome(rules, (did("wire_a", 1, amount=1),)) is Outcome.ALLOW
    verdict = decide(CALL, recall(CALL, FACTS, rules.asks(CALL, FACTS), (did("wire_a", 1),)), rules)
    assert verdict.outcome is Outcome.DENY
    assert "no answer" in verdict.reason


def test_without_the_record_a_rule_that_asks_denies() -> None:
    rules = asks('history.count("tool", "x") > 5')
    assert decide(CALL, FACTS, rules).outcome is Outcome.DENY
    assert "no answer" in decide(CALL, FACTS, rules).reason
    assert outcome(rules, ()) is Outcome.ALLOW


@pytest.mark.parametrize(
    ("when", "cure"),
    [
        ('history.count("tool") > 1', "takes gate, name"),
        ('history.count("tool", "x", "y") > 1', "takes gate, name"),
        ('history.sum("tool", "x") > 1', "takes gate, name, figure"),
        ('history.often("tool", "x")', "knows count, formerly, sum"),
        ("history > 1", "knows count"),
        ('history.count("tools", "x") > 1', "no gate tools"),
        ('history.count("tool", "x", within="1 hour") > 1', "duration with its unit"),
        ('history.count("tool", "x", state="done") > 1', "state is one of"),
        ('history.count("tool", "x", over="world") > 1', "over is one of"),
        ('history.count("tool", action.name) > 1', "plain text"),
        ('history.count("tool", within="1h", "x") > 1', "plain text"),
        ('history.count("tool", "a\\"b") > 1', "plain text"),
        ('history.count("tool", "x"', "not closed"),
    ],
)
def test_a_call_that_cannot_be_asked_says_how_to_write_it(when: str, cure: str) -> None:
    with pytest.raises(ConditionError, match=cure):
        Condition(when)


def test_an_answer_must_be_compared() -> None:
    with pytest.raises(ConditionError, match="compare it"):
        check('history.count("tool", "x")')
    check('history.count("tool", "x") > 3 && history.formerly("llm", "*")')


def test_the_same_question_has_the_same_key_and_is_asked_once() -> None:
    when = 'history.count("tool", "x") > 3 || history.count("tool", "x") == 1 || history.count("tool", "y") > 9'
    rules = asks(when)
    asked = rules.asks(CALL, FACTS)
    assert len(asked) == 2
    assert len({question.key for question in asked}) == 2
    assert all(question.key.isidentifier() for question in asked)
    assert Bundle.from_bytes(rules.to_bytes()).asks(CALL, FACTS) == asked
    assert bundle({"id": "r", "category": "kill_switch"}).asks(CALL, FACTS) == ()


def test_the_record_keeps_the_numbers_that_rules_add_up_and_nothing_else() -> None:
    rules = asks('history.sum("tool", "wire_*", "amount") > 100')
    assert rules.figures == {"amount"}
    action = msgspec.structs.replace(CALL, args={"amount": 5, "iban": "DE89", "flag": True})
    assert past(action, 7, "finance", rules.figures) == Past(
        gate="tool", name="wire_transfer", at=7, agent="finance", figures={"amount": 5}
    )
    assert rules.remembers(action)
    assert not rules.remembers(msgspec.structs.replace(action, name="look"))
    assert not rules.remembers(msgspec.structs.replace(action, kind="llm"))
    assert not bundle({"id": "r", "category": "kill_switch"}).remembers(action)
    assert bundle({"id": "r", "category": "circuit_breaker"}).remembers(action)
    assert past(action, 7, "", {"iban", "flag", "none"}).figures == {}
    llm = Action(kind="llm", name="generate", model="m", provider="p")
    assert past(llm, 1, "", ()).name == "p/m"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda gate, name, ago, state, amount: did(name, ago, state, gate, n=amount),
            st.sampled_from(["tool", "llm"]),
            st.sampled_from(["a", "ab", "b"]),
            st.integers(0, 100),
            st.sampled_from(["open", "ok", "failed"]),
            st.integers(-5, 50),
        ),
        max_size=12,
    ).map(lambda record: sorted(record, key=lambda item: item.at)),
    st.sampled_from(["a", "a*", "*", "b"]),
    st.sampled_from(["tool", "*"]),
    st.sampled_from([0, 10, 50]),
    st.sampled_from(["", "open", "ok", "failed", "ended"]),
)
def test_answers_are_what_a_plain_fold_finds(record: list[Past], name: str, gate: str, within: int, state: str) -> None:
    fitting = [
        item
        for item in record
        if fits(name, item.name)
        and gate in ("*", item.gate)
        and (not within or NOW - item.at <= within)
        and (not state or item.state == state or (state == "ended" and item.state != "open"))
    ]
    base: dict[str, Any] = {"gate": gate, "name": name, "within": within, "state": state}
    asked = {op: Question(op=op, figure="n", **base) for op in ("count", "sum", "median", "mad", "last")}
    found = answers(asked.values(), FACTS, record)
    values = [item.figures["n"] for item in fitting]
    assert found[asked["count"].key] == len(fitting)
    assert found[asked["sum"].key] == sum(values)
    assert found[asked["median"].key] == (statistics.median(values) if values else 0)
    assert found[asked["last"].key] == max([item.at for item in fitting], default=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["ok", "failed"]), max_size=8))
def test_a_streak_is_the_failures_at_the_end(states: list[str]) -> None:
    record = [did("a", 100 - at, state) for at, state in enumerate(states)]
    question = Question(op="streak", name="a")
    tail = 0
    for state in reversed(states):
        if state != "failed":
            break
        tail += 1
    assert answers([question], FACTS, record)[question.key] == tail


def test_a_question_about_the_same_target() -> None:
    question = Question(op="count", name=SAME).of(CALL)
    record = [did("wire_transfer", 1), did("other", 1)]
    assert answers([question], FACTS, record) == {question.key: 1}
    other = Question(op="count", over="agent")
    assert answers([other], FACTS, [], [did("a", 1), msgspec.structs.replace(did("a", 1), agent="ops")]) == {
        other.key: 1
    }


def glass(**more: Any) -> Facts:
    people = tuple(Grant(principal=who, auth="x") for who in ("bob", "eve"))
    held = Glass(
        id="g", reason="the bank is down today", opened_at=NOW, until=NOW + HOUR, by=people, review_by=NOW + HOUR
    )
    return msgspec.structs.replace(FACTS, glasses=(msgspec.structs.replace(held, **more),))


BREAK = {"id": "z-glass", "category": "break_glass", "with": {"lifts": ["limit*"]}}
LIMIT = {"id": "limit-a", "category": "tool_allowlist", "with": {"allow": []}, "on_breach": "terminate"}


def test_a_glass_lifts_the_rules_that_it_names_and_records_what_they_say() -> None:
    rules = bundle(LIMIT, BREAK)
    assert decide(CALL, FACTS, rules).outcome is Outcome.TERMINATE
    verdict = decide(CALL, glass(), rules)
    assert verdict.outcome is Outcome.ALLOW
    assert {hit.rule: hit.outcome for hit in verdict.hits} == {"z-glass": Outcome.ALLOW, "limit-a": Outcome.ALLOW}
    assert "lifted by glass g (bob, eve)" in next(hit.reason for hit in verdict.hits if hit.rule == "limit-a")
    accounts = {item.rule: item for item in explain(CALL, glass(), rules).accounts}
    assert accounts["z-glass"].applies
    assert accounts["limit-a"].outcome is Outcome.ALLOW
    assert "lifted" in accounts["limit-a"].why


@pytest.mark.parametrize(
    "policies",
    [
        ({**LIMIT, "id": "other"}, BREAK),
        (LIMIT, {**BREAK, "mode": "shadow"}),
        (LIMIT, {**BREAK, "gates": ["llm"]}),
        ({**LIMIT, "id": "limit-b", "when": "action.args.missing == 1"}, BREAK),
        ({"id": "limit-c", "category": "sequence_rule", "with": {"require": ["tool:x"]}}, BREAK),
    ],
    ids=["another rule", "in shadow", "elsewhere", "a rule that fails", "a rule without its record"],
)
def test_a_glass_lifts_nothing_else(policies: tuple[dict[str, Any], ...]) -> None:
    assert decide(CALL, glass(), bundle(*policies)).outcome >= Outcome.DENY


def test_a_glass_lifts_no_kill_and_a_broken_one_refuses() -> None:
    kill = Kill(id="k", scope="fleet", name="", tenant="", reason="drill", by="ann", at=1)
    killed = msgspec.structs.replace(glass(), kills=(kill,))
    assert decide(CALL, killed, bundle(BREAK)).outcome is Outcome.TERMINATE
    assert decide(CALL, glass(reason="x"), bundle(LIMIT, BREAK)).outcome is Outcome.TERMINATE
    assert decide(CALL, glass(until=NOW), bundle(LIMIT, BREAK)).outcome is Outcome.TERMINATE


def test_a_glass_lifts_budgets_and_rates_too() -> None:
    rules = bundle({"id": "limit-r", "category": "rate_limit", "with": {"limit": 1}}, BREAK)
    key = "rate_limit/limit-r/default"
    full = {"refusals": {key: Refusal(key=key, policy="limit-r", limit=1, used=1)}}
    assert decide(CALL, msgspec.structs.replace(FACTS, **full), rules).outcome is Outcome.THROTTLE
    assert decide(CALL, msgspec.structs.replace(glass(), **full), rules).outcome is Outcome.ALLOW


def test_what_comes_later_is_decided_by_rules_of_that_phase_alone() -> None:
    before = {"id": "b", "category": "kill_switch", "gates": ["llm"]}
    after = {"id": "a", "category": "cost_anomaly"}
    rules = bundle(before, after)
    call = Action(kind="llm", name="generate", provider="p", model="m")
    asked = rules.asks(call, FACTS, "after")
    assert [question.op for question in asked] == ["count", "median", "mad"]
    assert rules.asks(call, FACTS) == ()
    record = tuple(did("p/m", n, gate="llm", **{COST: 10**7}) for n in range(20))
    facts = recall(call, FACTS, asked, (), record)
    assert decide(call, facts, rules).rule == "b"
    assert decide_after(call, Ended(cost=10**9), facts, rules).rule == "a"
    assert decide_after(call, Ended(cost=10**7), facts, rules).outcome is Outcome.ALLOW
    assert decide_during(call, "text", facts, rules).outcome is Outcome.ALLOW
    assert decide_after(call, Ended(cost=1), FACTS, rules).outcome is Outcome.DENY
    assert decide_after(Action(kind="teleport", name="x"), Ended(), FACTS, rules).outcome is Outcome.DENY


@pytest.mark.parametrize("phase", ["during", "after"])
def test_a_rule_that_fails_later_or_reserves_denies(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(CATEGORIES["kill_switch"])
    monkeypatch.setattr(kind, "phases", frozenset({phase}))
    rules = bundle({"id": "r", "category": "kill_switch"})

    def later() -> Outcome:
        if phase == "during":
            return decide_during(CALL, "x", FACTS, rules).outcome
        return decide_after(CALL, Ended(), FACTS, rules).outcome

    assert later() is Outcome.ALLOW

    def raising(*_: Any) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(kind, phase, raising)
    assert later() is Outcome.DENY
    monkeypatch.setattr(kind, phase, lambda *_: Budget(key="k", amount=1, limit=5))
    assert later() is Outcome.DENY
    conditional = bundle({"id": "r", "category": "kill_switch", "when": 'action.name == "other"'})
    rules = conditional
    assert later() is Outcome.ALLOW


def test_what_counts_something_else_than_money_is_settled_as_it_was_reserved() -> None:
    reserved = [Budget(key=f"{kind}/x", amount=7, limit=9) for kind in ("blast_radius", "spawn_limit", "budget_tree")]
    assert [item.actual for item in settlements(reserved, cost=3)] == [7, 7, 3]  # type: ignore[union-attr]
    assert [item.actual for item in settlements(reserved, cost=3, sent=False)] == [0, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mine", "theirs", "all_"),
    [
        ("tool:*", "tool:x", True),
        ("*:*", "llm:a*", True),
        ("tool:a*", "tool:ab*", True),
        ("tool:ab*", "tool:a*", False),
        ("tool:a*", "tool:*", False),
        ("tool:a?", "tool:a*", False),
        ("tool:a*c", "tool:abc", True),
        ("tool:a*c", "tool:a*c", True),
        ("tool:a*c", "tool:a*", False),
        ("llm:*", "tool:x", False),
        ("tool:a*", "*:a", False),
        ("tool:ab*", "tool:a[b]*", False),
    ],
)
def test_authority_that_covers_other_authority(mine: str, theirs: str, all_: bool) -> None:
    assert covers(mine, theirs) is all_


WORDS = st.text(alphabet="ab*?", min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, st.text(alphabet="ab", max_size=5))
def test_what_is_covered_never_lets_more_through(mine: str, theirs: str, name: str) -> None:
    if covers(f"tool:{mine}", f"tool:{theirs}") and fits(theirs, name):
        assert fits(mine, name)


def test_cedar_is_parsed_once_and_refused_when_it_is_not_cedar(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyFileError, match="not Cedar"):
        one({"id": "c", "category": "tool_authz", "with": {"policies": "permit everything"}})
    rules = bundle({"id": "c", "category": "tool_authz", "with": {"policies": "permit(principal, action, resource);"}})
    before = cedar._parsed.cache_info().misses
    for _ in range(3):
        assert decide(CALL, FACTS, rules).outcome is Outcome.ALLOW
    assert cedar._parsed.cache_info().misses == before


def test_without_cedar_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "cedarpy":
            raise ImportError(name)
        return usual(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    cedar._parsed.cache_clear()
    with pytest.raises(PolicyFileError, match=r"pip install 'holdfast\[cedar\]'"):
        one({"id": "c", "category": "tool_authz", "with": {"policies": "permit(principal, action, resource);"}})


@pytest.mark.parametrize(
    ("category", "with_", "cure"),
    [
        ("budget_tree", {"limit": 1, "spawn_floor": 1}, "no room"),
        ("cost_anomaly", {"window": 5, "min_calls": 6}, "never reached"),
        ("schedule_window", {"tz": "Europe/Berlyn"}, "no time zone"),
        ("schedule_window", {"tz": "../etc/passwd"}, "no time zone"),
        ("schedule_window", {"blackout": ["2026-02-30"]}, "no date"),
        ("schedule_window", {"blackout": ["2026-02-03/2026-02-01"]}, "before it begins"),
        ("schedule_window", {"start": "24:00"}, "next day"),
        ("credential_scope", {"grants": [{"credential": "x"}]}, "neither hosts nor tools"),
        ("spawn_limit", {}, "no limit"),
        ("blast_radius", {"argument": "n"}, "no limit"),
        ("blast_radius", {"argument": "n", "each": "many"}, "a number from 0"),
        ("sequence_rule", {}, "allows everything"),
        ("sequence_rule", {"require": ["wire"]}, "does not have the form"),
        ("break_glass", {"lifts": ["x"], "people": 3, "openers": ["user:a", "user:b"]}, "can never be"),
        ("segregation_of_duties", {"duties": {"a": ["tool:x"]}}, "at least 2"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(category: str, with_: dict[str, Any], cure: str) -> None:
    with pytest.raises(PolicyFileError, match=cure):
        one({"id": "r", "category": category, "with": with_})


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 14 * 24 * 60 - 1),
    st.integers(0, 1439),
    st.integers(0, 1439),
    st.sets(st.sampled_from(["mon", "tue", "wed", "thu", "fri", "sat", "sun"]), min_size=1),
)
def test_a_window_is_open_in_the_minutes_that_begin_in_it(at: int, start: int, end: int, days: set[str]) -> None:
    # Every minute of a fortnight that starts on a Monday, marked by walking through each opening.
    names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    length = (end - start) % 1440 or 1440
    is_open = any(0 <= at - (day * 1440 + start) < length for day in range(-1, 14) if names[day % 7] in days)
    clock = [f"{minute // 60:02d}:{minute % 60:02d}" for minute in (start, end)]
    rules = bundle({
        "id": "r", "category": "schedule_window", "with": {"start": clock[0], "end": clock[1], "days": sorted(days)},
    })  # fmt: skip
    monday = 1_772_409_600_000_000  # 2026-03-02 00:00:00 UTC
    verdict = decide(CALL, msgspec.structs.replace(FACTS, now=monday + at * MINUTE), rules)
    assert (verdict.outcome is Outcome.ALLOW) is is_open


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2000).map(lambda cents: cents / 100), min_size=1, max_size=12))
def test_reserved_amounts_never_exceed_the_total(amounts: list[float]) -> None:
    """The ledger's rule, reserved + amount ≤ limit, applied to what the category reserves."""
    rules = bundle({"id": "r", "category": "blast_radius", "with": {"argument": "amount", "total": 30}})
    used, passed = 0, 0.0
    for amount in amounts:
        verdict = decide(msgspec.structs.replace(CALL, args={"amount": amount}), FACTS, rules)
        for item in verdict.reservations:
            assert isinstance(item, Budget)
            if used + item.amount <= item.limit:
                used += item.amount
                passed += amount
    assert passed <= 30 + 1e-6
    assert used == pytest.approx(passed * 1e9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=10, max_size=30), st.integers(1, 10**10), st.integers(0, 10**9))
def test_what_costs_more_is_never_less_odd(costs: list[int], cost: int, more: int) -> None:
    call = Action(kind="llm", name="generate", provider="p", model="m")
    rules = bundle({"id": "a", "category": "cost_anomaly", "with": {"min_cost": 0}})
    record = tuple(did("p/m", len(costs) - n, gate="llm", **{COST: value}) for n, value in enumerate(costs))
    facts = recall(call, FACTS, rules.asks(call, FACTS, "after"), (), record)
    odd = [decide_after(call, Ended(cost=value), facts, rules).outcome is Outcome.WARN for value in (cost, cost + more)]
    assert odd[0] <= odd[1]
    assert decide_after(call, Ended(cost=int(statistics.median(costs))), facts, rules).outcome is Outcome.ALLOW
