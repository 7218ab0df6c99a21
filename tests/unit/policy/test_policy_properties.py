"""What holds for any policies, action and facts."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import GATES, Action, Facts, Grant, Outcome, Price, Refusal
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.model import one

PRICE = Price(input=3_000, output=15_000)


def policy(id_: str, category: str, /, with_: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": id_, "category": category, "with": with_ or {}, **more}


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one(item) for item in policies])


POLICIES = (
    policy("a", "budget_usd", {"limit": "0.001"}, on_breach="terminate"),
    policy("b", "budget_usd", {"limit": "0.002", "window": "call"}, gates=["llm"]),
    policy("c", "budget_tokens", {"limit": 150}),
    policy("d", "rate_limit", {"limit": 2}, gates=["llm", "tool", "step"]),
    policy("e", "concurrency_limit", {"limit": 2}),
    policy("f", "step_limit", {"limit": 3}),
    policy("g", "tool_allowlist", {"allow": ["x*"]}, on_breach="warn"),
    policy("h", "tool_allowlist", {"deny": ["xa"]}),
    policy("i", "require_approval", {"quorum": 1}, when="action.args.n > 3"),
    policy("j", "four_eyes", {"quorum": 1}, scope={"agent": "f*"}),
    policy("k", "kill_switch", when="has(action.args.n) && action.args.n > 8"),
    policy("l", "model_allowlist", {"allow": ["m-1"]}, on_breach="require_approval"),
    policy("m", "wall_clock_limit", {"limit": "1s"}, on_breach="deny"),
    policy("n", "loop_detection", {"max_repeats": 1}),
    policy("o", "model_price_ceiling", {"output_per_mtok": 20}),
    policy("p", "budget_usd", {"limit": "0.0000001"}, on_breach="warn"),
)
CHOICES = st.lists(st.sampled_from(POLICIES), unique_by=lambda item: item["id"], max_size=8)
ACTIONS = st.builds(
    lambda kind, name, args, model, tokens_in, tokens_out, attempt: Action(
        kind=kind,
        name=name,
        id="s.1",
        args=args,
        digest="d",
        model=model,
        input_tokens=tokens_in,
        max_tokens=tokens_out,
        attempt=attempt,
    ),
    st.sampled_from([*GATES, "decision"]),
    st.sampled_from(["x", "xa", "y"]),
    st.dictionaries(st.just("n"), st.integers(0, 10)),
    st.sampled_from(["m-1", "m-2"]),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(1, 2),
)
KEYS = ("budget_usd/bank/a/run/r-1", "budget_tokens/bank/c/run/r-1", "rate_limit/d/bank", "concurrency_limit/e/bank")
SITUATIONS = st.builds(
    lambda agent, steps, late, grants, refusals, priced, recent, state: Facts(
        now=5_000_000,
        tenant="bank",
        agent=agent,
        run="r-1",
        principal="ann",
        started_at=1 if late else 4_900_000,
        counters={"steps": steps},
        grants=grants,
        approval_state=state,
        refusals={key: Refusal(key=key, policy="", limit=150, used=used) for key, used in refusals.items()},
        price=PRICE if priced else None,
        recent=recent,
        kill_generation=3,
    ),
    st.sampled_from(["finance", "ops"]),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([(), (Grant(principal="bob", auth="x"),), (Grant(principal="bob", auth="x", approved=False),)]),
    st.dictionaries(st.sampled_from(KEYS), st.integers(0, 150)),
    st.booleans(),
    st.sampled_from([(), ("d",), ("e", "d")]),
    st.sampled_from(["", "approved", "denied", "expired"]),
)


@settings(deadline=None, max_examples=80)
@given(CHOICES, ACTIONS, SITUATIONS, st.randoms())
def test_order_means_nothing_and_deciding_again_gives_the_same(
    policies: list[dict[str, Any]], action: Action, facts: Facts, random: Any
) -> None:
    verdict = decide(action, facts, bundle(*policies))
    assert decide(action, facts, bundle(*policies)) == verdict
    shuffled = list(policies)
    random.shuffle(shuffled)
    assert decide(action, facts, bundle(*shuffled)) == verdict
    pinned = Bundle.from_bytes(bundle(*policies).to_bytes())
    assert decide(action, facts, pinned) == verdict
    thawed = msgspec.json.decode(msgspec.json.encode(facts), type=Facts)
    assert decide(action, thawed, pinned) == verdict


FLAT = policy("q", "budget_usd", {"limit": "0.0002", "per_call": "0.0001"}, gates=["step", "llm", "tool"])
SHADOW = policy("r", "rate_limit", {"limit": 1}, gates=["step", "tool"], mode="shadow")


@settings(deadline=None, max_examples=80)
@given(CHOICES, ACTIONS, SITUATIONS)
def test_the_short_way_of_what_nobody_objects_to_is_the_verdict_of_the_court(
    policies: list[dict[str, Any]], action: Action, facts: Facts
) -> None:
    rules = bundle(*policies, FLAT, SHADOW)
    short = decide(action, facts, rules)
    with mock.patch("holdfast.policy.decide._clear", return_value=None):
        assert decide(action, facts, rules) == short


@settings(deadline=None, max_examples=80)
@given(CHOICES, ACTIONS, SITUATIONS)
def test_the_verdict_is_its_strongest_hit(policies: list[dict[str, Any]], action: Action, facts: Facts) -> None:
    verdict = decide(action, facts, bundle(*policies))
    assert verdict.outcome == max((hit.outcome for hit in verdict.hits), default=Outcome.ALLOW)
    alone = [decide(action, facts, bundle(item)).outcome for item in policies]
    assert verdict.outcome == max(alone, default=Outcome.ALLOW)
    if not verdict.allowed:
        assert verdict.reservations == ()
        assert (verdict.approval is not None) == (verdict.outcome is Outcome.REQUIRE_APPROVAL)


@settings(deadline=None, max_examples=80)
@given(CHOICES, ACTIONS, SITUATIONS, st.data())
def test_a_shadow_policy_changes_nothing(
    policies: list[dict[str, Any]], action: Action, facts: Facts, data: st.DataObject
) -> None:
    extra = {**data.draw(st.sampled_from(POLICIES)), "id": "zz", "mode": "shadow"}
    before, after = decide(action, facts, bundle(*policies)), decide(action, facts, bundle(*policies, extra))
    assert [hit for hit in after.hits if hit.rule != "zz"] == list(before.hits)
    assert all(hit.mode == "shadow" for hit in after.hits if hit.rule == "zz")
    assert msgspec.structs.replace(after, hits=(), bundle="") == msgspec.structs.replace(before, hits=(), bundle="")


@settings(deadline=None, max_examples=80)
@given(CHOICES, ACTIONS, SITUATIONS, st.data())
def test_another_policy_never_weakens_the_verdict(
    policies: list[dict[str, Any]], action: Action, facts: Facts, data: st.DataObject
) -> None:
    extra = {**data.draw(st.sampled_from(POLICIES)), "id": "zz"}
    before, after = decide(action, facts, bundle(*policies)), decide(action, facts, bundle(*policies, extra))
    assert after.outcome >= before.outcome
    if before.allowed and after.allowed:
        assert (after.max_tokens or action.max_tokens) <= (before.max_tokens or action.max_tokens)
        kept = {item.key for item in after.reservations}
        assert {item.key for item in before.reservations} <= kept
