"""How fast and how many at once: counted in the ledger, over all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from holdfast.action import Action, Facts, Hold, Outcome, Rate
from holdfast.policy.categories.base import Category, Duration, Finding, Params, Rule, subject

SLOWS = (Outcome.THROTTLE, Outcome.WARN, Outcome.DENY, Outcome.TERMINATE)
Per = Literal["run", "agent", "tenant", "principal"]


class RateLimitParams(Params):
    """Parameters of rate_limit."""

    limit: int = Field(ge=1, le=10_000_000, description="actions in a period")
    period: Annotated[Duration, Field(gt=0, description="the period")] = 60_000_000
    burst: int | None = Field(
        default=None, ge=1, le=10_000_000, description="actions that may come at once; left out: as many as `limit`"
    )
    per: Per = Field(default="tenant", description="whose actions are counted together; always within one tenant")


class RateLimit(Category):
    """Actions in a period."""

    name = "rate_limit"
    family = "rates"
    summary = (
        "Limits how many actions happen in a period, by the generic cell rate algorithm (ITU-T I.371): evenly over "
        "time, with a burst. What comes too soon waits (`throttle`) or is refused."
    )
    params = RateLimitParams
    gates = ("llm", "tool", "step", "http", "spawn", "memory", "file")
    default_gates = ("llm", "tool")
    verdicts = SLOWS
    controls = ("soc2:A1.1", "mifid2:RTS6-Art.15(4)")
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower", "burst": "lower"}
    example = """\
id: sixty-calls-a-minute
category: rate_limit
gates: [tool]
with: {limit: 60, period: 1m, per: agent}
"""

    def check(self, params: Any) -> None:
        """The interval between two actions must be at least a microsecond."""
        if params.period < params.limit:
            raise ValueError("more than a million actions in a second; lower limit or lengthen period")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Take one cell."""
        params = rule.params
        return Rate(
            key=f"rate_limit/{rule.id}/{subject(facts, params.per)}",
            limit=params.limit,
            period_us=params.period,
            burst=params.burst or params.limit,
            policy=rule.id,
        )


class ConcurrencyLimitParams(Params):
    """Parameters of concurrency_limit."""

    limit: int = Field(ge=1, le=1_000_000, description="actions under way at once")
    per: Per = Field(default="tenant", description="whose actions are counted together; always within one tenant")
    ttl: Annotated[
        Duration, Field(gt=0, description="after this time a place is free again even if its holder never gave it back")
    ] = 600_000_000


class ConcurrencyLimit(Category):
    """Actions at once."""

    name = "concurrency_limit"
    family = "rates"
    summary = (
        "Limits how many actions are under way at once. Each holds a place until it has ended, "
        "or until `ttl` has passed."
    )
    params = ConcurrencyLimitParams
    gates = ("llm", "tool", "step", "http", "spawn")
    default_gates = ("llm", "tool")
    verdicts = SLOWS
    controls = ("soc2:A1.1",)
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower", "ttl": "higher"}
    example = """\
id: four-model-calls-at-once
category: concurrency_limit
gates: [llm]
with: {limit: 4, per: agent}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Hold a place; the same action holds the same place when it is tried again."""
        params = rule.params
        return Hold(
            key=f"concurrency_limit/{rule.id}/{subject(facts, params.per)}",
            holder=f"{facts.run}/{action.id}",
            limit=params.limit,
            ttl_us=params.ttl,
            policy=rule.id,
        )
