"""Candidate bundles over recorded decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import NANO, Action, Budget, Facts, Outcome, Price, Refusal
from holdfast.policy.books import Books
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.model import one
from holdfast.policy.recorded import Decided, Deferred, Delta, Done, Recorded, Told, Unreadable
from holdfast.policy.whatif import Refused, Replay, across

NOW = 1_772_445_600_000_000
PRICE = Price(input=1000, output=5000)


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one({"id": f"p{number}", **policy}) for number, policy in enumerate(policies)])


def tool(name: str = "pay", **args: Any) -> Action:
    return Action(kind="tool", name=name, args=args, digest=f"{name} {sorted(args.items())}")


def llm(max_tokens: int = 100) -> Action:
    return Action(kind="llm", name="generate", provider="p", model="m", max_tokens=max_tokens, input_tokens=100)


def recorded(
    actions: Sequence[Action], rules: Bundle, *, run: str = "r", start: int = NOW, cost: int = 0, **more: Any
) -> Recorded:
    """A run that made these actions, one after the other, each decided as the gate does."""
    items: list[Decided | Done] = []
    for number, action in enumerate(actions):
        at = start + number * 1_000_000
        action = msgspec.structs.replace(action, id=f"{action.name}.{number}")
        facts = Facts(now=at, run=run, root=more.get("root", run), price=PRICE if action.kind == "llm" else None)
        verdict = decide(action, facts, rules)
        went = verdict.allowed
        items.append(
            Decided(run=run, seq=2 * number + 1, at=at, action=action, facts=facts, verdict=verdict, went=went)
        )
        if went:
            items.append(Done(run=run, seq=2 * number + 2, at=at + 500_000, id=action.id, cost=cost, output_tokens=100))
    more.pop("root", None)
    return Recorded(run=run, created_at=start, items=items, **more)


def replayed(candidate: Bundle, *runs: Recorded) -> list[Delta]:
    return Replay(candidate).family(runs).deltas


OPEN = bundle({"category": "tool_call_limit", "with": {"limit": 1000}})


def test_the_same_bundle_changes_nothing() -> None:
    rules = bundle({"category": "tool_allowlist", "with": {"allow": ["pay"]}})
    (delta,) = replayed(rules, recorded([tool(), tool("steal"), tool()], rules))
    assert (delta.decisions, delta.same, delta.pinned, delta.differ, delta.changed) == (3, 3, 3, 0, False)


def test_a_verdict_that_does_not_follow_from_its_own_bundle_is_told() -> None:
    run = recorded([tool()], OPEN)
    first: Any = run.items[0]
    first.verdict = msgspec.structs.replace(first.verdict, outcome=Outcome.DENY)
    (delta,) = replayed(OPEN, run)
    assert (delta.pinned, delta.differ) == (1, 1)


def test_a_run_stops_at_the_first_new_denial_and_what_followed_is_saved() -> None:
    run = recorded([tool("pay"), tool("wire"), llm(), llm()], OPEN, cost=7)
    (delta,) = replayed(bundle({"category": "tool_allowlist", "with": {"allow": ["pay"]}}), run)
    assert (delta.denied, delta.stops_at, delta.not_reached, delta.saved) == (1, "wire.1", 2, 21)
    assert [change.effect for change in delta.changes] == ["denied"]


@pytest.mark.parametrize("quorum", [1, 2])
def test_new_approvals_cost_minutes_and_the_run_goes_on(quorum: int) -> None:
    ask = bundle({"category": "require_approval", "gates": ["tool"], "with": {"quorum": quorum}})
    run = recorded([tool(), tool()], OPEN)
    (delta,) = Replay(ask, minutes=3).family([run]).deltas
    assert (delta.asked, delta.minutes, delta.stops_at, delta.not_reached) == (2, 6 * quorum, "", 0)
    (delta,) = Replay(OPEN, minutes=3).family([recorded([tool(), tool()], ask)]).deltas
    assert (delta.unasked, delta.minutes) == (2, -6 * quorum)


def test_what_the_record_refused_and_the_candidate_allows_is_spent_at_most() -> None:
    never = bundle({"category": "model_allowlist", "with": {"deny": ["m"]}})
    (delta,) = replayed(OPEN, recorded([llm(max_tokens=50)], never))
    assert (delta.allowed, delta.spent) == (1, 100 * PRICE.input + 50 * PRICE.output)


def test_redactions_are_counted() -> None:
    hide = bundle({"category": "pan_guard", "gates": ["tool"], "on_breach": "redact"})
    (delta,) = replayed(hide, recorded([tool(card="4111 1111 1111 1111"), tool(card="none")], OPEN))
    assert (delta.redactions, [change.effect for change in delta.changes]) == (1, ["redacted"])


def test_a_lowered_output_limit_saves_what_was_used_beyond_it() -> None:
    worst = 100 * PRICE.input + 40 * PRICE.output
    rules = bundle({"category": "budget_usd", "with": {"limit": f"{worst / NANO:.9f}"}})
    (delta,) = replayed(rules, recorded([llm()], OPEN, cost=1))
    assert [change.effect for change in delta.changes] == ["lowered"]
    assert delta.saved == (100 - 40) * PRICE.output


def test_questions_about_the_record_are_answered_from_it() -> None:
    rules = bundle({"category": "kill_switch", "gates": ["tool"], "when": 'history.count("tool", "pay") >= 2'})
    (delta,) = replayed(rules, recorded([tool(), tool(), tool()], OPEN))
    assert delta.stops_at == "pay.2"


def test_a_budget_of_the_candidate_counts_what_was_really_spent() -> None:
    rules = bundle({"category": "budget_usd", "gates": ["tool"], "with": {"limit": 1, "per_call": "0.5"}})
    (delta,) = replayed(rules, recorded([tool(), tool(), tool()], OPEN, cost=NANO // 10))
    assert not delta.changed
    (delta,) = replayed(rules, recorded([tool(), tool(), tool()], OPEN, cost=NANO // 2))
    assert delta.stops_at == "pay.2"


def test_rates_delay_and_the_run_goes_on() -> None:
    rules = bundle({"category": "rate_limit", "gates": ["tool"], "with": {"limit": 1, "period": "10s", "burst": 1}})
    told = Replay(rules).family([recorded([tool(), tool()], OPEN)])
    found = across({"r": told}, lambda root, refused: Replay(rules).family([recorded([tool(), tool()], OPEN)], refused))
    (delta,) = found["r"].deltas
    assert (delta.delayed, delta.stops_at) == (1, "")


def test_what_many_runs_count_together_is_settled_in_the_order_of_time() -> None:
    rules = bundle(
        {"category": "budget_usd", "gates": ["tool"], "with": {"limit": 1, "per_call": "0.4", "window": "day"}}
    )
    runs = {
        name: recorded([tool(), tool()], OPEN, run=name, start=NOW + offset, cost=4 * NANO // 10)
        for name, offset in (("late", 1_500_000), ("early", 0))
    }
    core = Replay(rules)

    def again(root: str, refused: Refused) -> Told:
        return core.family([runs[root]], refused)

    found = across({name: core.family([run]) for name, run in runs.items()}, again)
    # Both calls of the early run fit; the late one's first comes after them and does not.
    assert [found[name].deltas[0].stops_at for name in ("early", "late")] == ["", "pay.0"]


def test_what_a_stopped_run_would_have_taken_is_left_to_others() -> None:
    limit = {"limit": 1, "per_call": "0.4", "window": "day"}
    rules = bundle(
        {"category": "budget_usd", "gates": ["tool"], "with": limit},
        {"category": "tool_allowlist", "with": {"allow": ["pay"]}},
    )
    one_run = recorded([tool("steal"), tool(), tool()], OPEN, run="a", cost=4 * NANO // 10)
    other = recorded([tool(), tool()], OPEN, run="b", start=NOW + 10**7, cost=4 * NANO // 10)
    core = Replay(rules)
    runs = {"a": one_run, "b": other}
    found = across(
        {name: core.family([run]) for name, run in runs.items()},
        lambda root, refused: core.family([runs[root]], refused),
    )
    assert [found[name].deltas[0].stops_at for name in ("a", "b")] == ["steal.0", ""]


def test_children_of_a_run_that_stops_are_not_reached() -> None:
    parent = recorded([tool("steal"), tool()], OPEN, run="r", cost=1)
    later = recorded([tool()], OPEN, run="c", start=NOW + 5_000_000, cost=5, root="r", parent="r")
    earlier = recorded([tool()], OPEN, run="d", start=NOW - 5_000_000, cost=5, root="r", parent="r")
    rules = bundle({"category": "tool_allowlist", "with": {"allow": ["pay"]}})
    found = {delta.run: delta for delta in replayed(rules, parent, later, earlier)}
    assert (found["c"].not_reached, found["c"].saved) == (1, 5)
    assert (found["d"].not_reached, found["d"].saved) == (0, 0)


def test_arguments_are_fetched_only_when_a_rule_looks_at_them() -> None:
    fetched = []

    def fetch() -> Mapping[str, Any]:
        fetched.append(1)
        return {"amount": 20}

    def run() -> Recorded:
        made = recorded([tool()], OPEN)
        first: Any = made.items[0]
        first.action = msgspec.structs.replace(first.action, args=Deferred(fetch))
        return made

    replayed(OPEN, run())
    assert not fetched
    looks = bundle({"category": "kill_switch", "gates": ["tool"], "when": "action.args.amount > 10"})
    (delta,) = replayed(looks, run())
    assert fetched == [1]
    assert delta.denied == 1


def test_arguments_that_are_gone_are_told_and_not_guessed() -> None:
    def fetch() -> Mapping[str, Any]:
        raise Unreadable("its arguments were erased")

    made = recorded([tool()], OPEN)
    first: Any = made.items[0]
    first.action = msgspec.structs.replace(first.action, args=Deferred(fetch))
    looks = bundle({"category": "kill_switch", "gates": ["tool"], "when": "action.args.amount > 10"})
    (delta,) = replayed(looks, made)
    assert (delta.unknown, delta.decisions, delta.denied) == (["pay.0: its arguments were erased"], 0, 0)


def test_the_records_own_refusal_stands() -> None:
    rules = bundle({"category": "budget_usd", "gates": ["tool"], "with": {"limit": 1, "per_call": "0.5"}})
    run = recorded([tool()], OPEN)
    first: Any = run.items[0]
    wanted = decide(first.action, first.facts, rules).reservations[0]
    assert isinstance(wanted, Budget)
    refusal = Refusal(key=wanted.key, policy="p0", limit=wanted.limit, used=wanted.limit)
    first.facts = msgspec.structs.replace(first.facts, refusals={wanted.key: refusal})
    (delta,) = replayed(rules, run)
    assert delta.denied == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=30), st.integers(1, 12))
def test_books_never_exceed_a_limit(wants: list[tuple[str, int]], limit: int) -> None:
    books, taken = Books(), {"a": 0, "b": 0, "c": 0}
    for key, amount in wants:
        if not books.take([Budget(key=key, amount=amount, limit=limit)], NOW):
            taken[key] += amount
        assert taken[key] <= limit


@given(
    st.lists(st.sampled_from(["pay", "wire", "look"]), min_size=1, max_size=12),
    st.integers(1, 6),
    st.sampled_from(["deny", "require_approval", "warn", "terminate"]),
    st.booleans(),
)
def test_any_bundle_gives_its_own_verdicts_again(names: list[str], limit: int, breach: str, shadow: bool) -> None:
    mode = "shadow" if shadow else "enforce"
    rules = bundle(
        {"category": "tool_allowlist", "with": {"allow": ["pay", "look"]}, "on_breach": breach, "mode": mode},
        {"category": "budget_usd", "gates": ["tool"], "with": {"limit": limit, "per_call": "1"}},
    )
    (delta,) = replayed(rules, recorded([tool(name) for name in names], rules))
    assert (delta.same, delta.differ, delta.changed) == (delta.decisions, 0, False)


def test_what_came_back_is_looked_at_too() -> None:
    hide = bundle({"category": "pan_guard", "gates": ["tool"], "on_breach": "redact", "with": {"phases": ["after"]}})
    block = bundle({"category": "pan_guard", "gates": ["tool"], "on_breach": "deny", "with": {"phases": ["after"]}})

    def run(value: Any) -> Recorded:
        made = recorded([tool(), tool()], OPEN, cost=5)
        first: Any = made.items[1]
        first.value = lambda: value
        return made

    assert not replayed(hide, run("none"))[0].changed
    (delta,) = replayed(hide, run("4111 1111 1111 1111"))
    assert (delta.redactions, delta.not_reached) == (1, 0)
    (delta,) = replayed(block, run(["4111 1111 1111 1111"]))
    assert (delta.denied, delta.stops_at, delta.not_reached, delta.saved) == (1, "pay.0", 1, 5)


def test_what_came_back_and_was_erased_is_told() -> None:
    def gone() -> Any:
        raise Unreadable("what came back was erased")

    made = recorded([tool()], OPEN)
    done: Any = made.items[1]
    done.value = gone
    (delta,) = replayed(bundle({"category": "pan_guard", "gates": ["tool"]}), made)
    assert delta.unknown == ["pay.0: what came back was erased"]
