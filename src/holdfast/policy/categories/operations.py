"""Calm operation: what keeps failing is left alone, retries are bounded, times are kept, nothing is done twice."""

from __future__ import annotations

import datetime
import functools
import zoneinfo
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from holdfast.action import Action, Effect, Facts, Hold, Once, Outcome
from holdfast.policy.categories.base import Breach, Category, Duration, Finding, Params, Rule, safe, subject
from holdfast.policy.categories.limits import ACTS
from holdfast.policy.categories.rates import Per
from holdfast.policy.history import SAME, Question, told
from holdfast.values import digest, dump

REFUSALS = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
_MINUTE = 60_000_000


class CircuitBreakerParams(Params):
    """Parameters of circuit_breaker."""

    failures: int = Field(default=5, ge=1, le=1000, description="so many failures in a row open the breaker")
    error_percent: int | None = Field(
        default=None, ge=1, le=100, description="so many failures in a hundred calls within `window` open it as well"
    )
    min_calls: int = Field(
        default=10, ge=2, le=10_000, description="calls within `window` before `error_percent` counts"
    )
    window: Annotated[Duration, Field(gt=0, description="the time that `error_percent` looks at")] = 60_000_000
    cool_down: Annotated[Duration, Field(gt=0, description="the time without calls after the latest failure")] = (
        30_000_000
    )
    over: Literal["run", "agent", "tenant"] = Field(default="tenant", description="whose calls count (per node)")


class CircuitBreaker(Category):
    """Leave alone what fails."""

    name = "circuit_breaker"
    family = "operations"
    summary = (
        "Stops calling a model, tool or host that keeps failing. After a time one call at a time may try again; "
        "a success closes the breaker."
    )
    params = CircuitBreakerParams
    gates = ("llm", "tool", "http")
    default_gates = ("llm", "tool", "http")
    verdicts = (Outcome.DENY, Outcome.THROTTLE, Outcome.WARN, Outcome.TERMINATE)
    controls = ("soc2:A1.2", "mifid2:RTS6-Art.17")
    tighter: ClassVar[Mapping[str, str]] = {"failures": "lower", "error_percent": "lower", "cool_down": "higher"}
    example = """\
id: bank-is-down
category: circuit_breaker
gates: [tool]
with: {failures: 3, cool_down: 1m}
"""

    def asks(self, params: Any) -> tuple[Question, ...]:
        """The latest failures, and how many calls ended well or badly lately."""
        base = {"gate": "*", "name": SAME, "over": params.over}
        asked = (
            Question(op="streak", state="ended", latest=params.failures, **base),
            Question(op="last", state="failed", **base),
        )
        if params.error_percent is None:
            return asked
        return (
            *asked,
            Question(op="count", state="ended", within=params.window, **base),
            Question(op="count", state="failed", within=params.window, **base),
        )

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Open: refuse. Half open: one call at a time."""
        params = rule.params
        streak, last, *rates = (
            told(facts, question.of(action)) for question in rule.asks[: 2 + 2 * bool(params.error_percent)]
        )
        tripped = streak >= params.failures
        if not tripped and rates:
            calls, failed = rates
            tripped = calls >= params.min_calls and failed * 100 >= params.error_percent * calls
        if not tripped:
            return None
        left = int(last) + params.cool_down - facts.now
        if left > 0:
            return Breach(
                reason=f"{action.target} keeps failing; it is left alone for a while",
                facts={"target": action.target, "streak": streak},
                retry_after_us=left,
            )
        return Hold(
            key=f"circuit_breaker/{rule.id}/{subject(facts, 'tenant')}/{safe(action.target)}",
            holder=f"{facts.run}/{action.id}",
            limit=1,
            ttl_us=params.cool_down,
            policy=rule.id,
        )


class RetryLimitParams(Params):
    """Parameters of retry_limit."""

    attempts: int = Field(default=3, ge=1, le=1000, description="attempts at one action, the first included")
    per_run: int | None = Field(default=None, ge=0, le=1_000_000, description="failed attempts of a run, in all")
    irreversible: bool = Field(default=False, description="whether what cannot be undone may be attempted again")


class RetryLimit(Category):
    """Attempts."""

    name = "retry_limit"
    family = "operations"
    summary = (
        "Limits how often a failed action is attempted again, and how many failures a run may have before nothing is "
        "attempted again at all. What cannot be undone is not attempted again unless the rule says so."
    )
    params = RetryLimitParams
    gates = ACTS
    default_gates = ACTS
    verdicts = REFUSALS
    controls = ("soc2:A1.2", "mifid2:RTS6-Art.15(3)", "sox:ITGC-operations")
    tighter: ClassVar[Mapping[str, str]] = {"attempts": "lower", "per_run": "lower", "irreversible": "false"}
    example = """\
id: three-attempts
category: retry_limit
with: {attempts: 3, per_run: 20}
"""

    def asks(self, params: Any) -> tuple[Question, ...]:
        """How many attempts of the run failed."""
        return () if params.per_run is None else (Question(op="count", state="failed"),)

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at which attempt it is."""
        params, attempt = rule.params, action.attempt
        if attempt <= 1:
            return None
        if attempt > params.attempts:
            reason = f"attempt {attempt} at {action.name}; {params.attempts} are allowed"
            return Breach(reason=reason, facts={"attempt": attempt, "limit": params.attempts})
        if action.effect is Effect.IRREVERSIBLE and not params.irreversible:
            reason = f"{action.name} cannot be undone, so it is not attempted again"
            return Breach(reason=reason, facts={"attempt": attempt, "effect": action.effect.value})
        if (
            params.per_run is not None
            and (failed := told(facts, Question(op="count", state="failed"))) > params.per_run
        ):
            reason = f"{failed} attempts of this run have failed; after {params.per_run} nothing is attempted again"
            return Breach(reason=reason, facts={"failed": failed, "limit": params.per_run})
        return None


Clock = Annotated[str, StringConstraints(pattern=r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Dates = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d(/\d{4}-\d\d-\d\d)?$")]


class ScheduleWindowParams(Params):
    """Parameters of schedule_window."""

    tz: str = Field(default="UTC", max_length=64, description="time zone, as in `Europe/Berlin`")
    days: tuple[Day, ...] = Field(default=DAYS, min_length=1, description="days on which the window opens")
    start: Clock = Field(default="00:00", description="when it opens, on the clock of `tz`")
    end: Clock = Field(default="24:00", description="when it closes; at or before `start`: on the next day")
    blackout: tuple[Dates, ...] = Field(
        default=(), description="dates, or ranges as in `2026-12-24/2027-01-02`, on which it stays closed"
    )


class ScheduleWindow(Category):
    """Times."""

    name = "schedule_window"
    family = "operations"
    summary = "Lets things happen only at certain times of certain days, and never on the dates that are blacked out."
    params = ScheduleWindowParams
    gates = ("llm", "tool", "step", "http", "file", "spawn", "approval", "output", "memory")
    default_gates = ("tool", "http")
    verdicts = REFUSALS
    controls = ("sox:ITGC-change", "soc2:CC6.1", "mifid2:RTS6-Art.16")
    tighter: ClassVar[Mapping[str, str]] = {"days": "subset", "blackout": "superset"}
    example = """\
id: payments-in-office-hours
category: schedule_window
gates: [tool]
when: action.name == "wire_transfer"
with: {tz: Europe/Berlin, days: [mon, tue, wed, thu, fri], start: "08:00", end: "18:00", blackout: [2026-12-24]}
"""

    def check(self, params: Any) -> None:
        """The zone must be known, and dates must be dates."""
        _zone(params.tz)
        for dates in params.blackout:
            _range(dates)
        if params.start == "24:00":
            raise ValueError("start: 24:00 is the next day's 00:00; write that")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Read the clock of the zone."""
        params = rule.params
        date, day, clock = _local(params.tz, facts.now // _MINUTE)
        here = {"local": f"{date}T{clock}", "tz": params.tz}
        for dates in params.blackout:
            first, last = _range(dates)
            if first <= date <= last:
                return Breach(reason=f"{date} is blacked out ({dates})", facts=here)
        today, yesterday = DAYS[day], DAYS[day - 1]
        if params.start < params.end:
            is_open = today in params.days and params.start <= clock < params.end
        else:
            is_open = (today in params.days and clock >= params.start) or (
                yesterday in params.days and clock < params.end
            )
        if is_open:
            return None
        return Breach(reason=f"it is {today} {clock} in {params.tz}, outside the window", facts=here)


@functools.lru_cache(maxsize=256)
def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name}; write it as in Europe/Berlin") from None


@functools.lru_cache(maxsize=1024)
def _local(zone: str, minute: int) -> tuple[datetime.date, int, str]:
    """Date, day of the week and clock of a zone, by minutes since the Unix epoch."""
    local = datetime.datetime.fromtimestamp(minute * 60, _zone(zone))
    return local.date(), local.weekday(), local.strftime("%H:%M")


@functools.lru_cache(maxsize=1024)
def _range(dates: str) -> tuple[datetime.date, datetime.date]:
    first, _, last = dates.partition("/")
    try:
        begin, end = datetime.date.fromisoformat(first), datetime.date.fromisoformat(last or first)
    except ValueError:
        raise ValueError(f"{dates} is no date; write 2026-12-24 or 2026-12-24/2027-01-02") from None
    if end < begin:
        raise ValueError(f"{dates} ends before it begins")
    return begin, end


class IdempotencyGuardParams(Params):
    """Parameters of idempotency_guard."""

    key: tuple[str, ...] = Field(
        default=(), description="arguments that name what is done, as `payment_id`; none: all arguments together"
    )
    per: Per = Field(default="tenant", description="within whose actions it may be done once")
    effects: tuple[Literal["pure", "idempotent", "compensable", "irreversible"], ...] = Field(
        default=("irreversible", "compensable"), min_length=1, description="effect classes that it looks at"
    )


class IdempotencyGuard(Category):
    """Once."""

    name = "idempotency_guard"
    family = "operations"
    summary = (
        "Lets the same thing be done only once, ever: a second action with the same key is refused, in whichever run "
        "and on whichever node it comes. Further attempts at the first are not a second action."
    )
    params = IdempotencyGuardParams
    gates = ("tool", "http", "spawn")
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:PI1.3", "sox:ITGC-operations")
    tighter: ClassVar[Mapping[str, str]] = {"effects": "superset"}
    example = """\
id: pay-once
category: idempotency_guard
when: action.name == "release_payment"
with: {key: [payment_id], per: tenant}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Claim the key."""
        params = rule.params
        if action.effect not in params.effects:
            return None
        lacking = [name for name in params.key if action.args.get(name) is None]
        if lacking:
            return Breach(reason=f"{action.name} has no {lacking[0]}, so it cannot be told whether it was done before")
        what = digest(dump([action.args[name] for name in params.key])) if params.key else action.digest
        if not what:
            return Breach(reason="the action has no digest, so it cannot be told whether it was done before")
        return Once(
            key=f"idempotency_guard/{rule.id}/{subject(facts, params.per)}/{safe(action.target)}/{what}",
            holder=f"{facts.run}/{action.id}",
            policy=rule.id,
        )
