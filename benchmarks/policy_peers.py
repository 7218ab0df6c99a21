"""The same 60 rules, of which 15 apply and 5 look at arguments or facts, in Cedar and in Rego: engines that are ready.

Both are given all that they can keep between decisions (parsed policies, a built query). Neither counts, reserves, asks
people or explains: what is measured is the bare question of who may do what.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

LOOKS = (
    ("context.amount > 10000", "input.amount > 10000"),
    ("context.steps > 5000", "input.steps > 5000"),
    ('context.region == "eu-west"', 'input.region == "eu-west"'),
    ("context.depth > 8", "input.depth > 8"),
    ("context.amount > 1000000", "input.amount > 1000000"),
)
INPUT: dict[str, Any] = {"steps": 4, "region": "us-east", "depth": 0}


def cedar(count: int = 60) -> Callable[[int], Any]:
    """Decides one of many calls with cedarpy."""
    import cedarpy

    rules = ['permit(principal == Agent::"finance", action == Action::"tool", resource == Tool::"wire_transfer");']
    rules += [f'forbid(principal == Agent::"finance", action, resource) when {{ {look} }};' for look, _ in LOOKS]
    rules += [f'forbid(principal == Agent::"finance", action, resource == Tool::"other-{n}");' for n in range(9)]
    rules += [f'forbid(principal == Agent::"other-{n}", action, resource);' for n in range(count - len(rules))]
    policies = cedarpy.PolicySet.from_str("\n".join(rules))
    entities = cedarpy.Entities.from_json_str("[]")

    def decide(number: int) -> Any:
        request = {
            "principal": {"type": "Agent", "id": "finance"},
            "action": {"type": "Action", "id": "tool"},
            "resource": {"type": "Tool", "id": "wire_transfer"},
            "context": json.dumps({**INPUT, "amount": 50 + number % 50}),
        }
        return cedarpy.is_authorized(request, policies, entities).allowed

    assert decide(0) is True
    assert (
        decide(0)
        is not cedarpy.is_authorized(
            {
                "principal": {"type": "Agent", "id": "finance"},
                "action": {"type": "Action", "id": "tool"},
                "resource": {"type": "Tool", "id": "wire_transfer"},
                "context": json.dumps({**INPUT, "amount": 20_000}),
            },
            policies,
            entities,
        ).allowed
    )
    return decide


def rego(count: int = 60) -> Callable[[int], Any]:
    """Decides one of many calls with regopy (rego-cpp).

    Raises:
        ImportError: it is not installed.
    """
    from regopy import Interpreter

    rules = [f'deny contains "l{n}" if {{ input.agent == "finance"; {look} }}' for n, (_, look) in enumerate(LOOKS)]
    rules += [f'deny contains "t{n}" if {{ input.agent == "finance"; input.tool == "other-{n}" }}' for n in range(10)]
    rules += [f'deny contains "o{n}" if {{ input.agent == "other-{n}" }}' for n in range(count - len(rules))]
    engine = Interpreter()
    engine.add_module("peer", "package peer\n\n" + "\n".join(rules) + "\n")
    bundle = engine.build("data.peer.deny")

    def answer(amount: int) -> list[Any]:
        engine.set_input({**INPUT, "agent": "finance", "tool": "wire_transfer", "amount": amount})
        return json.loads(str(engine.query_bundle(bundle)))["expressions"][0]

    assert answer(50) == []
    assert answer(20_000) == ["l0"]
    return lambda number: answer(50 + number % 50)
