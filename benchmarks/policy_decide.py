"""What a decision costs: 60 policies of which 15 apply and 5 are CEL; 1,000; questions about the record; Cedar.

Floor: p50 of 60 policies at most 60 µs, p99 at most 300 µs, 1,000 policies at most 3 times 60.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks import common, policy_peers
from holdfast.action import Action, Facts
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.history import past, recall
from holdfast.policy.model import one

ROUNDS = 20_000
NOW = 1_772_445_600_000_000
APPLY: tuple[dict[str, Any], ...] = (
    {"category": "tool_allowlist", "with": {"allow": ["wire_*", "look*"]}},
    {"category": "tool_call_limit", "with": {"limit": 100}},
    {"category": "loop_detection"},
    {"category": "rate_limit", "with": {"limit": 600, "per": "agent"}},
    {"category": "concurrency_limit", "with": {"limit": 4}},
    {"category": "wall_clock_limit", "with": {"limit": "24h"}},
    {"category": "idle_limit", "with": {"limit": "1h"}},
    {"category": "budget_usd", "gates": ["tool"], "with": {"limit": 100, "per_call": "0.01"}},
    {"category": "tool_call_limit", "with": {"limit": 50, "tool": "wire_*"}},
    {"category": "user_suspension"},
    {"category": "require_approval", "when": 'action.name == "wire_transfer" && action.args.amount > 10000'},
    {"category": "kill_switch", "gates": ["tool"], "when": "facts.counters.steps > 5000"},
    {"category": "kill_switch", "gates": ["tool"], "when": 'facts.region == "eu-west" && action.name == "x"'},
    {"category": "kill_switch", "gates": ["tool"], "when": "facts.depth > 8"},
    {"category": "require_approval", "when": "has(action.args.amount) && action.args.amount > 1000000"},
)
RECORD: tuple[dict[str, Any], ...] = (
    {"category": "kill_switch", "gates": ["tool"], "when": 'history.count("tool", "wire_*", within="1h") > 900'},
    {"category": "kill_switch", "gates": ["tool"], "when": 'history.sum("tool", "wire_*", "amount") > 1000000'},
    {"category": "sequence_rule", "with": {"require": ["tool:wire_transfer"]}},
)
CEDAR = 'permit(principal == Agent::"finance", action == Action::"tool", resource == Tool::"wire_transfer");'
FACTS = Facts(
    now=NOW, agent="finance", workflow="run", run="r-1", root="r-1", principal="ann", auth="peer-uid:1000",
    started_at=NOW - 10**6, active_at=NOW - 10**5, recent=tuple(f"{n:064}" for n in range(20)),
    counters={"steps": 4, "tool_calls": 3, "tool_calls:wire_transfer": 2, "cost": 10**7},
)  # fmt: skip
ACTIONS = [
    Action(
        kind="tool", name="wire_transfer", id=f"a.{n}", args={"amount": 50 + n, "iban": "x"}, digest=f"{100 + n:064}"
    )
    for n in range(50)
]


def bundle(count: int, *more: dict[str, Any]) -> Bundle:
    """``APPLY`` and ``more``, filled up to ``count`` with policies of other gates and other agents."""
    policies = [*APPLY, *more]
    for number in range(count - len(policies)):
        scope = {"agent": f"other-{number}"} if number % 3 else {}
        kind = (
            {"category": "step_limit", "with": {"limit": 5}},
            {"category": "model_allowlist", "with": {"deny": ["x"]}},
        )
        policies.append({**kind[number % 2], "scope": scope})
    return Bundle([one({"id": f"p{number:04}", **policy}) for number, policy in enumerate(policies)])


def measured(call: Callable[[int], Any], rounds: int) -> tuple[float, float]:
    """p50 and p99 of a call, in microseconds."""
    for number in range(rounds // 10):
        call(number)
    times = []
    for number in range(rounds):
        began = time.perf_counter_ns()
        call(number)
        times.append(time.perf_counter_ns() - began)
    times.sort()
    return times[rounds // 2] / 1e3, times[rounds * 99 // 100] / 1e3


def deciding(rules: Bundle, facts: Facts = FACTS) -> Callable[[int], Any]:
    """Decides one of many actions."""
    assert decide(ACTIONS[0], facts, rules).allowed, decide(ACTIONS[0], facts, rules).reason
    return lambda number: decide(ACTIONS[number % len(ACTIONS)], facts, rules)


def figures(rounds: int) -> dict[str, tuple[float, float]]:
    """p50 and p99 of everything, by name, in microseconds."""
    sixty, thousand, asking = bundle(60), bundle(1000), bundle(60, *RECORD)
    cedar = bundle(60, {"category": "tool_authz", "with": {"policies": CEDAR}})
    record = [
        msgspec.structs.replace(past(action, NOW - 10**6 * (50 - n), "finance", asking.figures), state="ok")
        for n, action in enumerate(ACTIONS)
    ]
    asked = asking.asks(ACTIONS[0], FACTS)
    known = recall(ACTIONS[0], FACTS, asked, record)
    return {
        "60 policies": measured(deciding(sixty), rounds),
        "1,000 policies": measured(deciding(thousand), rounds),
        "60, 3 of them about the record": measured(deciding(asking, known), rounds),
        "answering 3 questions of 50 calls": measured(lambda _: recall(ACTIONS[0], FACTS, asked, record), rounds // 10),
        "60 and a Cedar policy": measured(deciding(cedar), rounds // 10),
    }


def peers(rounds: int) -> dict[str, tuple[float, float]]:
    """p50 and p99 of the bare question of who may do what, of 60 rules, in other engines."""
    found = {}
    for name, made in (
        ("60 rules in Cedar (cedarpy)", policy_peers.cedar),
        ("60 rules in Rego (regopy)", policy_peers.rego),
    ):
        try:
            found[name] = measured(made(), rounds)
        except ImportError as error:
            print(f"{name}: not measured, {error}")
    return found


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    rounds = ROUNDS // 10 if options.quick else ROUNDS
    found = figures(rounds) | peers(rounds // 10)
    rows: list[tuple[object, ...]] = []
    for name, (p50, p99) in found.items():
        floor, met = "", ""
        if name == "60 policies":
            floor, met = "p50 60 µs, p99 300 µs", common.verdict(p50 <= 60 and p99 <= 300)
        elif name == "1,000 policies":
            floor, met = "3 times 60 policies", common.verdict(p50 <= 3 * found["60 policies"][0])
        rows.append((name, f"p50 {p50:,.1f} µs, p99 {p99:,.1f} µs", floor, met))
    result = {name: {"p50_us": p50, "p99_us": p99} for name, (p50, p99) in found.items()}
    common.report("policy_decide", {"machine": common.machine(), **result}, rows, options.json)


if __name__ == "__main__":
    main()
