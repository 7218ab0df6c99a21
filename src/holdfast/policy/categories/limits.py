"""How far one run may go: steps, tool calls, time, repetition; and a stop by policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from holdfast.action import GATES, Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Duration, Finding, Params, Pattern, Rule, fits
from holdfast.policy.units import format_duration

RECENT = 64
"""Digests of tool calls that facts hold, at most."""
ACTS = ("step", "llm", "tool", "http", "spawn")
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
    controls = ("soc2:A1.1", "model-risk:limits")
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower"}
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


class ToolCallLimitParams(Params):
    """Parameters of tool_call_limit."""

    limit: int = Field(ge=0, le=10_000_000, description="tool calls of a run")
    tool: Pattern | None = Field(default=None, description="count only tools of this name or pattern; left out: all")


class ToolCallLimit(Category):
    """Tool calls of a run."""

    name = "tool_call_limit"
    family = "limits"
    summary = "Limits how many tool calls a run makes, over all tools or of those that fit a name."
    params = ToolCallLimitParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    controls = ("soc2:A1.1",)
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower"}
    example = """\
id: three-transfers-a-run
category: tool_call_limit
with: {tool: "wire_*", limit: 3}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Count this call; another attempt at a call is the same call."""
        limit, tool = rule.params.limit, rule.params.tool
        counters = facts.counters
        if tool is None:
            made = counters.get("tool_calls", 0)
        elif not fits(tool, action.name):
            return None
        else:
            mark = "tool_calls:"
            made = sum(
                count for name, count in counters.items() if name.startswith(mark) and fits(tool, name[len(mark) :])
            )
        if made + (action.attempt <= 1) <= limit:
            return None
        return Breach(
            reason=f"the run has made {made} calls of {tool or 'tools'}; {limit} are allowed",
            facts={"limit": limit, "used": made, "tool": tool or "*"},
        )


class WallClockLimitParams(Params):
    """Parameters of wall_clock_limit."""

    limit: Annotated[Duration, Field(gt=0, description="time from the run's start, waiting included")]


class WallClockLimit(Category):
    """Time since the start."""

    name = "wall_clock_limit"
    family = "limits"
    summary = "Limits how long a run may take from its start, the time that it waits for people and timers included."
    params = WallClockLimitParams
    gates = GATES
    default_gates = ACTS
    verdicts = ENDS
    controls = ("soc2:A1.1",)
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower"}
    example = """\
id: done-within-a-day
category: wall_clock_limit
with: {limit: 24h}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare the time since the start."""
        limit = rule.params.limit
        elapsed = facts.now - facts.started_at if facts.started_at else 0
        if elapsed <= limit:
            return None
        return Breach(
            reason=f"the run started longer ago than {format_duration(limit)}",
            facts={"limit": limit, "elapsed": elapsed},
        )

    def deadline(self, facts: Facts, rule: Rule) -> int | None:
        """The run ends even if it does nothing."""
        return facts.started_at + rule.params.limit if facts.started_at else None


class IdleLimitParams(Params):
    """Parameters of idle_limit."""

    limit: Annotated[Duration, Field(gt=0, description="time since the run last made progress")]


class IdleLimit(Category):
    """Time without progress."""

    name = "idle_limit"
    family = "limits"
    summary = "Limits how long a run may be without progress: without a step, call or answer that ended."
    params = IdleLimitParams
    gates = GATES
    default_gates = ACTS
    verdicts = ENDS
    controls = ("soc2:A1.1", "hipaa:164.312(a)(2)(iii)")
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower"}
    example = """\
id: stalled-for-an-hour
category: idle_limit
with: {limit: 1h}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare the time since the last progress."""
        limit = rule.params.limit
        idle = facts.now - facts.active_at if facts.active_at else 0
        if idle <= limit:
            return None
        return Breach(
            reason=f"the run has made no progress for longer than {format_duration(limit)}",
            facts={"limit": limit, "idle": idle},
        )

    def deadline(self, facts: Facts, rule: Rule) -> int | None:
        """The run ends even if it does nothing."""
        return facts.active_at + rule.params.limit if facts.active_at else None


class LoopDetectionParams(Params):
    """Parameters of loop_detection."""

    max_repeats: int = Field(
        default=5, ge=1, le=RECENT, description="identical calls among the latest `window`, at most"
    )
    window: int = Field(default=20, ge=2, le=RECENT, description="how many of the latest tool calls are looked at")
    max_cycle: int = Field(
        default=4, ge=0, le=16, description="longest sequence of calls that is recognised when it repeats; 0: none"
    )
    cycle_repeats: int = Field(default=3, ge=1, le=16, description="how often in a row a sequence may occur")


class LoopDetection(Category):
    """Repetition."""

    name = "loop_detection"
    family = "limits"
    summary = (
        "Notices an agent that goes round in circles: the same tool call with the same arguments too often, or a short "
        "sequence of calls over and over. Another attempt at a failed call is not a repetition."
    )
    params = LoopDetectionParams
    gates = ("tool",)
    default_gates = ("tool",)
    verdicts = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    controls = ("soc2:CC7.2", "mifid2:RTS6-Art.15(1)", "model-risk:monitoring")
    tighter: ClassVar[Mapping[str, str]] = {
        "max_repeats": "lower",
        "window": "higher",
        "max_cycle": "higher",
        "cycle_repeats": "lower",
    }
    example = """\
id: going-round-in-circles
category: loop_detection
with: {max_repeats: 5, window: 20, max_cycle: 4, cycle_repeats: 3}
on_breach: terminate
"""

    def check(self, params: Any) -> None:
        """A cycle must fit into what is remembered, and the repeats into the window."""
        if params.max_cycle * (params.cycle_repeats + 1) > RECENT + 1:
            raise ValueError(
                f"max_cycle times cycle_repeats + 1 is more than the {RECENT + 1} calls that are remembered"
            )
        if params.max_repeats >= params.window:
            raise ValueError("max_repeats can never be exceeded within window; make window larger")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for this call, and for a cycle that it completes, in the latest calls."""
        if action.attempt > 1 or not action.digest:
            return None
        params, recent = rule.params, facts.recent
        times = recent[-(params.window - 1) :].count(action.digest) + 1
        if times > params.max_repeats:
            return Breach(
                reason=f"{action.name} is called with the same arguments {times} times in {params.window} calls",
                facts={"repeats": times, "limit": params.max_repeats},
            )
        rounds = params.cycle_repeats + 1
        for length in range(2, params.max_cycle + 1):
            tail = (*recent[1 - length * rounds :], action.digest)
            if len(tail) == length * rounds and tail[length:] == tail[:-length]:
                return Breach(
                    reason=f"the same {length} calls follow each other {rounds} times in a row",
                    facts={"cycle": length, "repeats": rounds, "limit": params.cycle_repeats},
                )
        return None


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
    controls = ("soc2:CC7.4", "mifid2:RTS6-Art.12")
    example = """\
id: experiments-are-off
category: kill_switch
scope: {agent: "experiment-*"}
with: {reason: no experiments during the audit}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Object."""
        return Breach(reason=rule.params.reason)
