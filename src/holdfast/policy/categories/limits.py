"""How far one run may go: steps, tool calls, time, repetition; and a stop by policy."""

from __future__ import annotations

from pydantic import Field

from holdfast.action import GATES, Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Rule

ENDS = (Outcome.TERMINATE, Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN)


class StepLimitParams(Params):
    """Parameters of step_limit."""

    limit: int = Field(ge=1, le=10_000_000, description="steps of a run")


class StepLimit(Category):
    """Steps of a run."""

    name = "step_limit"
    family = "limits"
    summary = "Ends a run that takes more steps than it may: a bound for recursion and for loops that never end."
    params = StepLimitParams
    gates = ("step",)
    default_gates = ("step",)
    verdicts = ENDS
    example = """\
id: at-most-500-steps
category: step_limit
with: {limit: 500}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Count this step; another attempt at a step is the same step."""
        limit = rule.params.limit
        taken = facts.counters.get("steps", 0)
        if taken + (action.attempt <= 1) <= limit:
            return None
        return Breach(
            reason=f"the run has taken {taken} steps of {limit}; raise the limit of {rule.id} if it needs more",
            facts={"limit": limit, "used": taken},
        )


class KillSwitchParams(Params):
    """Parameters of kill_switch."""

    reason: str = Field(
        default="stopped by policy", min_length=1, max_length=256, description="what the record and the run say"
    )


class KillSwitch(Category):
    """Stop by policy."""

    name = "kill_switch"
    family = "limits"
    summary = (
        "Stops everything in its scope. For an emergency use `holdfast kill`, which also ends what is running: "
        "its standing kills are decided on always, whatever the bundle says."
    )
    params = KillSwitchParams
    gates = GATES
    default_gates = GATES
    verdicts = (Outcome.TERMINATE, Outcome.DENY)
    example = """\
id: experiments-are-off
category: kill_switch
scope: {agent: "experiment-*"}
with: {reason: no experiments during the audit}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Object."""
        return Breach(reason=rule.params.reason)
