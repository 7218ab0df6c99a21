"""Who may call what, in Cedar (https://docs.cedarpolicy.com): default deny, ``forbid`` wins over ``permit``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from holdfast.action import GATES, Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Rule

MISSING = "tool_authz needs the package cedarpy; install it with: pip install 'holdfast[cedar]'"
TYPES = {
    "llm": "Model", "tool": "Tool", "step": "Step", "http": "Host", "file": "File", "spawn": "Agent",
    "approval": "Approval", "output": "Output", "memory": "Memory",
}  # fmt: skip
"""Entity type of what an action reaches, by gate."""
_MAX_INT = 2**63


class ToolAuthzParams(Params):
    """Parameters of tool_authz."""

    policies: str = Field(min_length=1, max_length=200_000, description="policies in Cedar's own language")
    entities: tuple[dict[str, Any], ...] = Field(
        default=(), description="entities as Cedar's JSON has them: groups of agents, people and tools"
    )
    subject: Literal["agent", "principal"] = Field(
        default="agent", description="who is the principal of the policies: `Agent::NAME`, or `User::NAME`"
    )


class ToolAuthz(Category):
    """Who may call what."""

    name = "tool_authz"
    family = "authority"
    summary = (
        "Decides by Cedar policies who may do what: the principal is an `Agent` (or `User`), the action is "
        '`Action::"GATE"`, the resource a `Tool`, `Model`, `Host`, …, and `context` has `args`, `tenant`, `region`, '
        "`agent`, `workflow`, `principal`, `roles`, `on_behalf_of`, `labels` and `depth`. What no policy permits is "
        "denied, and so is everything when a policy fails. Costs about a hundred microseconds a decision."
    )
    params = ToolAuthzParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    controls = ("soc2:CC6.3", "pci-dss:7.2.1", "hipaa:164.308(a)(4)(ii)(B)")
    example = """\
id: who-may-call-what
category: tool_authz
with:
  policies: |
    permit(principal == Agent::"finance", action == Action::"tool", resource == Tool::"ledger_lookup");
    permit(principal == Agent::"finance", action == Action::"tool", resource == Tool::"wire_transfer")
    when { context.roles.contains("controller") && context.args.amount < 10000 };
"""

    def check(self, params: Any) -> None:
        """Parse once: what Cedar does not understand is refused here."""
        _parsed(params.policies, json.dumps(params.entities))

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Ask Cedar."""
        params = rule.params
        who = facts.agent if params.subject == "agent" else facts.principal
        if not who:
            return Breach(reason=f"it is not known who acts ({params.subject})", outcome=Outcome.DENY)
        cedar, policies, entities = _parsed(params.policies, json.dumps(params.entities))
        request = {
            "principal": {"type": "Agent" if params.subject == "agent" else "User", "id": who},
            "action": {"type": "Action", "id": action.gate},
            "resource": {"type": TYPES[action.gate], "id": action.target},
            "context": json.dumps(_context(action, facts)),
        }
        result = cedar.is_authorized(request, policies, entities)
        if result.diagnostics.errors:
            # Cedar leaves a policy out that fails, a forbidding one too.
            return Breach(reason="a Cedar policy failed on this action; guard it with `has`", outcome=Outcome.DENY)
        if result.allowed:
            return None
        by = (
            f"forbidden by {', '.join(result.diagnostics.reasons)}"
            if result.diagnostics.reasons
            else "no policy permits"
        )
        return Breach(
            reason=f"{by}: {who} may not do {action.gate} {action.target}",
            facts={"subject": who, "target": action.target, "policies": list(result.diagnostics.reasons)},
        )


@functools.lru_cache(maxsize=64)
def _parsed(policies: str, entities: str) -> tuple[Any, Any, Any]:
    try:
        import cedarpy
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        return cedarpy, cedarpy.PolicySet.from_str(policies), cedarpy.Entities.from_json_str(entities)
    except ValueError as error:
        raise ValueError(f"not Cedar: {' '.join(str(error).split())[:200]}") from None


def _context(action: Action, facts: Facts) -> dict[str, Any]:
    return {
        "args": _plain(action.args),
        "tenant": facts.tenant,
        "region": facts.region,
        "agent": facts.agent,
        "workflow": facts.workflow,
        "principal": facts.principal,
        "roles": list(facts.roles),
        "on_behalf_of": facts.on_behalf_of,
        "labels": list(facts.labels),
        "depth": facts.depth,
        "attempt": action.attempt,
    }


def _plain(value: Any) -> Any:
    """A value as Cedar knows values: no null, and fractions as decimals with four places.

    A key such as ``__entity`` would be read as more than a value; what an agent sends is never more than that.
    """
    if isinstance(value, Mapping):
        return {
            f".{key}" if str(key).startswith("__") else str(key): _plain(item)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if item is not None]
    if isinstance(value, float):
        if value.is_integer() and abs(value) < _MAX_INT:
            return int(value)
        return {"__extn": {"fn": "decimal", "arg": f"{value:.4f}"}}
    if isinstance(value, int) and not isinstance(value, bool) and not -_MAX_INT <= value < _MAX_INT:
        return str(value)
    return value
