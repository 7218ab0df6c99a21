from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import (
    GATES,
    Action,
    Budget,
    Facts,
    Grant,
    Hold,
    Kill,
    Once,
    Outcome,
    Price,
    Rate,
    Refusal,
    Release,
    Settle,
)
from holdfast.policy.bundle import Bundle, builtin
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.decide import ceilings, deadlines, decide, settlements
from holdfast.policy.kills import SCOPES, matches
from holdfast.policy.model import one

PRICE = Price(input=3_000, output=15_000)
CALL = Action(kind="llm", name="generate", id="a/llm.1", model="m-1", input_tokens=100, max_tokens=200)
FACTS = Facts(now=10, tenant="bank", agent="finance", workflow="run", run="r-1", session="s-1", price=PRICE)


def policy(id_: str, category: str, /, with_: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": id_, "category": category, "with": with_ or {}, **more}


def bundle(*policies: dict[str, Any]) -> Bundle:
    return Bundle([one(item) for item in policies])


def refusing(key: str, limit: int, used: int) -> Facts:
    return msgspec.structs.replace(FACTS, refusals={key: Refusal(key=key, policy="", limit=limit, used=used)})


def kill(scope: str, name: str, tenant: str = "bank") -> Kill:
    return Kill(id="k1", scope=scope, name=name, tenant=tenant, reason="drill", by="ann", at=1)


@pytest.mark.parametrize(
    ("standing", "hit"),
    [
        (kill("fleet", "", ""), True),
        (kill("fleet", "*", "*"), True),
        (kill("tenant", "bank"), True),
        (kill("tenant", "shop", "shop"), False),
        (kill("agent", "finance"), True),
        (kill("agent", "finance", "shop"), False),
        (kill("agent", "finance", ""), True),
        (kill("agent", "ops"), False),
        (kill("workflow", "finance.run"), True),
        (kill("workflow", "run"), False),
        (kill("workflow", "finance.run", "shop"), False),
        (kill("session", "s-1"), True),
        (kill("session", "s-2"), False),
        (kill("run", "r-1"), True),
        (kill("run", "r-2"), False),
        (kill("galaxy", "x"), True),
    ],
)
def test_standing_kills_are_decided_whatever_the_bundle_says(standing: Kill, hit: bool) -> None:
    facts = msgspec.structs.replace(FACTS, kills=(standing,), kill_generation=7)
    assert matches(standing, facts) is hit
    for gate in GATES:
        verdict = decide(Action(kind=gate, name="x"), facts, bundle())
        assert verdict.kill_generation == 7
        assert (verdict.outcome is Outcome.TERMINATE) is hit
        if hit:
            assert verdict.rule == "kill:k1"
            assert verdict.category == "kill_switch"
            assert "drill" in verdict.reason


@pytest.mark.parametrize("scope", SCOPES[1:])
def test_a_kill_without_a_name_stops_nothing_that_has_none(scope: str) -> None:
    facts = Facts(now=1, tenant="bank")
    assert matches(kill(scope, ""), facts) is False


def test_an_action_of_no_gate_is_denied() -> None:
    verdict = decide(Action(kind="teleport", name="x"), FACTS, bundle())
    assert (verdict.outcome, verdict.rule) == (Outcome.DENY, "gate")


@pytest.mark.parametrize("on_breach", ["warn", "deny", "terminate"])
def test_a_rule_that_raises_denies_and_keeps_the_payload_to_itself(
    on_breach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: Any) -> None:
        raise ValueError("secret 4111111111111111")

    monkeypatch.setattr(type(CATEGORIES["tool_allowlist"]), "before", raising)
    rules = bundle(policy("r", "tool_allowlist", {"deny": ["x"]}, on_breach=on_breach))
    verdict = decide(Action(kind="tool", name="y"), FACTS, rules)
    assert verdict.outcome is Outcome.DENY
    assert "ValueError" in verdict.reason
    assert b"4111" not in msgspec.json.encode(verdict)


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_a_condition_without_an_answer_denies(mode: str) -> None:
    rules = bundle(policy("r", "kill_switch", when="action.args.amount > 5", mode=mode))
    verdict = decide(Action(kind="tool", name="y"), FACTS, rules)
    assert [hit.outcome for hit in verdict.hits] == [Outcome.DENY]
    assert "guard it with has()" in verdict.hits[0].reason
    assert verdict.outcome is (Outcome.DENY if mode == "enforce" else Outcome.ALLOW)


def test_a_scene_that_cannot_be_set_denies() -> None:
    rules = bundle(policy("r", "kill_switch", when="action.name == 'x' && 'a' in facts.roles"))
    broken = msgspec.structs.replace(FACTS, roles=["a"])  # type: ignore[arg-type]
    verdict = decide(Action(kind="tool", name="y"), broken, rules)
    assert (verdict.outcome, verdict.rule) == (Outcome.DENY, "r")


def test_the_strongest_wins_and_every_hit_is_recorded() -> None:
    rules = bundle(
        policy("a", "tool_allowlist", {"deny": ["x"]}, on_breach="warn"),
        policy("b", "tool_allowlist", {"deny": ["x"]}, on_breach="deny"),
        policy("c", "tool_allowlist", {"deny": ["x"]}, on_breach="terminate", mode="shadow"),
        policy("d", "tool_allowlist", {"deny": ["x"]}, on_breach="deny"),
        policy("e", "tool_allowlist", {"deny": ["z"]}, on_breach="terminate"),
        policy("f", "tool_allowlist", {"deny": ["x"]}, on_breach="terminate", mode="off"),
    )
    verdict = decide(Action(kind="tool", name="x"), FACTS, rules)
    assert (verdict.outcome, verdict.rule, verdict.category) == (Outcome.DENY, "b", "tool_allowlist")
    assert [(hit.rule, hit.mode) for hit in verdict.hits] == [
        ("a", "enforce"),
        ("b", "enforce"),
        ("c", "shadow"),
        ("d", "enforce"),
    ]
    assert verdict.hits[0].facts == {"tool": "x"}
    assert verdict.bundle == rules.digest


def test_a_warning_lets_the_action_go_and_says_so() -> None:
    rules = bundle(
        policy("a", "tool_allowlist", {"deny": ["x"]}, on_breach="warn"), policy("b", "rate_limit", {"limit": 3})
    )
    verdict = decide(Action(kind="tool", name="x"), FACTS, rules)
    assert (verdict.outcome, verdict.rule) == (Outcome.WARN, "a")
    assert verdict.allowed
    assert len(verdict.reservations) == 1


def test_each_budget_lowers_the_call_for_all_of_them() -> None:
    rules = bundle(
        policy("a", "budget_usd", {"limit": "1", "window": "run"}),
        policy("b", "budget_tokens", {"limit": 150, "window": "run"}),
        policy("c", "budget_usd", {"limit": "1", "window": "day"}),
    )
    verdict = decide(CALL, FACTS, rules)
    assert verdict.max_tokens == 50
    assert [item.amount for item in verdict.reservations if isinstance(item, Budget)] == [1_050_000, 150, 1_050_000]
    assert {hit.rule for hit in verdict.hits} == {"a", "b", "c"}


def test_nothing_is_reserved_for_what_may_not_happen() -> None:
    rules = bundle(
        policy("a", "budget_usd", {"limit": "1"}),
        policy("b", "rate_limit", {"limit": 1}),
        policy("c", "model_allowlist", {"deny": ["*"]}),
    )
    verdict = decide(CALL, FACTS, rules)
    assert verdict.outcome is Outcome.DENY
    assert verdict.reservations == ()
    assert verdict.max_tokens == 0


def test_a_refused_budget_names_limit_used_and_amount() -> None:
    rules = bundle(policy("a", "budget_usd", {"limit": "0.01"}, on_breach="terminate"))
    verdict = decide(CALL, refusing("budget_usd/bank/a/run/r-1", 10_000_000, 9_999_999), rules)
    assert verdict.outcome is Outcome.TERMINATE
    assert "$0.009999999 of $0.01" in verdict.reason
    assert verdict.hits[0].facts == {"limit": 10_000_000, "used": 9_999_999, "amount": 3_300_000}


def test_a_budget_that_only_warns_lets_the_call_go_without_a_reservation() -> None:
    rules = bundle(policy("a", "budget_usd", {"limit": "0.0001"}, on_breach="warn"))
    verdict = decide(CALL, FACTS, rules)
    assert verdict.outcome is Outcome.WARN
    assert verdict.reservations == ()


def test_people_can_let_a_call_go_over_its_budget() -> None:
    rules = bundle(
        policy(
            "a",
            "budget_usd",
            {"limit": "0.0001"},
            on_breach="require_approval",
            approval={"approvers": ["role:cfo"], "quorum": 1, "ttl": "1h"},
        )
    )
    verdict = decide(CALL, FACTS, rules)
    assert verdict.outcome is Outcome.REQUIRE_APPROVAL
    assert verdict.approval is not None
    assert (verdict.approval.approvers, verdict.approval.ttl_us) == (("role:cfo",), 3_600_000_000)

    def answered(**grant: Any) -> Outcome:
        given_ = Grant(principal="zoe", auth="peer-uid:9", **grant)
        return decide(CALL, msgspec.structs.replace(FACTS, grants=(given_,)), rules).outcome

    assert answered(roles=("cfo",)) is Outcome.ALLOW
    assert answered(roles=("clerk",)) is Outcome.REQUIRE_APPROVAL
    assert answered(roles=("cfo",), approved=False) is Outcome.DENY


def test_two_rules_that_ask_are_both_heard() -> None:
    rules = bundle(
        policy("a", "require_approval", {"approvers": ["role:one"]}),
        policy("b", "require_approval", {"approvers": ["role:two"], "quorum": 2}),
    )
    action = Action(kind="tool", name="x")
    verdict = decide(action, FACTS, rules)
    assert verdict.approval is not None
    assert verdict.approval.quorum == 2
    two = tuple(Grant(principal=name, auth="x", roles=("two",)) for name in ("p", "q"))
    verdict = decide(action, msgspec.structs.replace(FACTS, grants=two, approval_state="approved"), rules)
    assert verdict.outcome is Outcome.REQUIRE_APPROVAL
    assert verdict.approval is not None
    assert verdict.approval.approvers == ("role:one",)
    every = (*two, Grant(principal="o", auth="x", roles=("one",)))
    assert decide(action, msgspec.structs.replace(FACTS, grants=every, approval_state="approved"), rules).allowed


def test_a_rate_says_when_to_come_again() -> None:
    rules = bundle(policy("a", "rate_limit", {"limit": 5, "period": "1s"}))
    key = "rate_limit/a/bank"
    refusal = Refusal(key=key, policy="a", limit=5, used=5, retry_after_us=123)
    verdict = decide(Action(kind="tool", name="x"), msgspec.structs.replace(FACTS, refusals={key: refusal}), rules)
    assert (verdict.outcome, verdict.retry_after_us) == (Outcome.THROTTLE, 123)
    assert verdict.reason == "more than 5 in 1s"


def test_a_shadow_budget_goes_by_what_its_run_has_spent() -> None:
    rules = bundle(policy("a", "budget_usd", {"limit": "0.01"}, mode="shadow"))
    fits = decide(CALL, FACTS, rules)
    assert (fits.hits, fits.reservations) == ((), ())
    spent = msgspec.structs.replace(FACTS, counters={"cost": 9_900_000})
    over = decide(CALL, spent, rules)
    assert [hit.mode for hit in over.hits] == ["shadow"]
    assert (over.outcome, over.max_tokens) == (Outcome.ALLOW, 0)


def test_names_cannot_forge_another_s_ledger_key() -> None:
    rules = bundle(policy("a", "budget_usd", {"limit": "1", "window": "day", "per": "agent"}))
    keys = set()
    for tenant, agent in [("t", "a/agent/b"), ("t/agent/a", "b"), ("t", "a%2Fagent%2Fb")]:
        facts = msgspec.structs.replace(FACTS, tenant=tenant, agent=agent)
        keys.add(decide(CALL, facts, rules).reservations[0].key)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("window", "part"),
    [
        ("hour", "hour/2026-03-01T12"),
        ("day", "day/2026-03-01"),
        ("month", "month/2026-03"),
        ("total", "total"),
    ],
)
def test_windows_are_utc_calendar_windows(window: str, part: str) -> None:
    rules = bundle(policy("a", "budget_usd", {"limit": "1", "window": window}))
    last = msgspec.structs.replace(FACTS, now=1_772_369_999_999_999)
    assert decide(CALL, last, rules).reservations[0].key == f"budget_usd/bank/a/{part}"
    after = msgspec.structs.replace(FACTS, now=1_772_370_000_000_000)
    changed = decide(CALL, after, rules).reservations[0].key != f"budget_usd/bank/a/{part}"
    assert changed is (window == "hour")


def test_settlements() -> None:
    usd = Budget(key="budget_usd/t/a/run/r", amount=100, limit=1000)
    tokens = Budget(key="budget_tokens/t/a/run/r", amount=50, limit=1000)
    hold = Hold(key="h", holder="r/a", limit=1, ttl_us=5)
    rest = (Rate(key="x", limit=1, period_us=1, burst=1), Once(key="o", holder="r"))
    every = (usd, tokens, hold, *rest)
    released = Release(key="h", holder="r/a")
    assert settlements(every, cost=70, tokens=20) == (
        Settle(key=usd.key, reserved=100, actual=70),
        Settle(key=tokens.key, reserved=50, actual=20),
        released,
    )
    assert settlements(every) == (
        Settle(key=usd.key, reserved=100, actual=100),
        Settle(key=tokens.key, reserved=50, actual=50),
        released,
    )
    assert settlements(every, cost=70, tokens=20, sent=False) == (
        Settle(key=usd.key, reserved=100, actual=0),
        Settle(key=tokens.key, reserved=50, actual=0),
        released,
    )
    assert settlements((usd,), cost=170) == (Settle(key=usd.key, reserved=100, actual=170),)


@settings(deadline=None)
@given(
    st.integers(1, 50_000_000),
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500), st.integers(0, 100)), max_size=12),
)
def test_no_row_ever_exceeds_its_limit(limit: int, calls: list[tuple[int, int, int]]) -> None:
    """A ledger as the store keeps it: refuse what does not fit, decide again, settle at most what was reserved."""
    rules = bundle(policy("a", "budget_usd", {"limit": f"{limit / 1e9:.9f}", "floor_tokens": 1}))
    used = 0
    for tokens_in, tokens_out, percent in calls:
        call = msgspec.structs.replace(CALL, input_tokens=tokens_in, max_tokens=tokens_out)
        facts = FACTS
        for _ in range(3):
            verdict = decide(call, facts, rules)
            if not verdict.allowed:
                break
            (wanted,) = verdict.reservations
            assert isinstance(wanted, Budget)
            output = verdict.max_tokens or call.max_tokens
            assert wanted.amount == tokens_in * PRICE.input + output * PRICE.output
            if used + wanted.amount <= limit:
                (settled,) = settlements(verdict.reservations, cost=wanted.amount * percent // 100)
                used += settled.actual if isinstance(settled, Settle) else 0
                break
            facts = refusing(wanted.key, limit, used)
        else:
            pytest.fail("a second decision on the same refusal did not fit either")
        assert used <= limit


def test_deadlines() -> None:
    rules = bundle(
        policy("a", "wall_clock_limit", {"limit": "10s"}),
        policy("b", "idle_limit", {"limit": "2s"}, on_breach="deny"),
        policy("c", "wall_clock_limit", {"limit": "1s"}, mode="shadow"),
        policy("d", "wall_clock_limit", {"limit": "1s"}, scope={"agent": "ops"}),
        policy("e", "wall_clock_limit", {"limit": "1s"}, when="facts.depth > 2"),
        policy("f", "step_limit", {"limit": 1}),
    )
    facts = msgspec.structs.replace(FACTS, started_at=1_000_000, active_at=5_000_000)
    assert [(item.at, item.rule, item.outcome) for item in deadlines(facts, rules)] == [
        (7_000_000, "b", Outcome.DENY),
        (11_000_000, "a", Outcome.TERMINATE),
    ]
    for item in deadlines(facts, rules):
        late = msgspec.structs.replace(facts, now=item.at + 1)
        assert item.rule in {hit.rule for hit in decide(Action(kind="step", name="x"), late, rules).hits}
    assert deadlines(FACTS, rules) == ()


def test_ceilings() -> None:
    rules = bundle(
        policy("a", "budget_usd", {"limit": "1"}),
        policy("b", "budget_tokens", {"limit": 5, "window": "total"}),
        policy("c", "budget_usd", {"limit": "1", "window": "call"}),
        policy("d", "budget_usd", {"limit": "1"}, mode="shadow"),
        policy("e", "budget_usd", {"limit": "1"}, scope={"agent": "ops"}),
    )
    assert [(item.policy, item.unit, item.key, item.limit) for item in ceilings(FACTS, rules)] == [
        ("a", "usd", "budget_usd/bank/a/run/r-1", 10**9),
        ("b", "tokens", "budget_tokens/bank/b/total", 5),
    ]


def test_the_built_in_bundle_only_bounds_what_never_ends() -> None:
    for gate in GATES:
        verdict = decide(Action(kind=gate, name="x", model="m", max_tokens=10), FACTS, builtin())
        if gate == "http":
            assert (verdict.outcome, verdict.category) == (Outcome.DENY, "egress_allowlist")
        else:
            assert (verdict.outcome, verdict.reservations, verdict.hits) == (Outcome.ALLOW, (), ())
    long = msgspec.structs.replace(FACTS, counters={"steps": 10_000})
    assert decide(Action(kind="step", name="x"), long, builtin()).outcome is Outcome.TERMINATE


@pytest.mark.parametrize(
    ("rules", "reachable"),
    [
        ([], False),
        ([{}], True),
        ([{"with": {"hosts": ["else.example"]}}], False),
        ([{"mode": "shadow"}], False),
        ([{"scope": {"agent": "nobody"}}], False),
        ([{"when": "action.method == 'POST'"}], False),
        ([{"when": "action.method == 'GET'"}], True),
        ([{"when": "action.args.absent > 1"}], False),
        ([{"with": {"hosts": ["else.example"]}, "on_breach": "warn"}], True),
        ([{}, {"with": {"hosts": ["else.example"]}}], False),
        ([{"scope": {"agent": "nobody"}}, {}], True),
    ],
)
def test_nothing_is_reachable_unless_a_list_says_so(rules: list[dict[str, Any]], reachable: bool) -> None:
    action = Action(kind="http", name="GET api.example", host="api.example", method="GET", path="/")
    base = {"category": "egress_allowlist", "with": {"hosts": ["api.example"]}}
    verdict = decide(action, FACTS, Bundle([one({"id": f"r{at}", **base, **rule}) for at, rule in enumerate(rules)]))
    assert verdict.allowed is reachable


def test_every_pair_of_verdicts_is_ordered() -> None:
    words = [outcome.word for outcome in Outcome]
    assert words == ["allow", "warn", "redact", "throttle", "require_approval", "deny", "terminate"]
    for low, high in itertools.pairwise(Outcome):
        assert low < high
