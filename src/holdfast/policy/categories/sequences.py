"""How much one action or many may touch, and in which order things happen."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from holdfast.action import GATES, NANO, Action, Budget, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Deed, Duration, Finding, Params, Rule, safe
from holdfast.policy.categories.cost import span
from holdfast.policy.history import Question, told
from holdfast.policy.units import format_duration, format_usd, parse_usd

REFUSALS = (Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.WARN, Outcome.TERMINATE)


def _amount(value: object) -> int:
    try:
        return parse_usd(value)
    except ValueError:
        raise ValueError("a number from 0 to 1000000000 with at most nine places is needed") from None


Amount = Annotated[
    int,
    BeforeValidator(_amount),
    PlainSerializer(format_usd, return_type=str),
    WithJsonSchema({"type": ["number", "string"], "minimum": 0, "format": "amount"}),
]
"""A number in the file, a billion times as much here, so that it is whole."""


class BlastRadiusParams(Params):
    """Parameters of blast_radius."""

    argument: str = Field(
        min_length=1, max_length=256, description="argument that says how much: a number, or a list, whose items count"
    )
    each: Amount | None = Field(default=None, description="how much one action may have")
    total: Amount | None = Field(default=None, description="how much all together may have within `window`")
    window: Literal["run", "tree", "hour", "day", "month", "total"] = Field(
        default="run", description="what is added up: a run, its whole tree, a calendar span (UTC), or everything"
    )
    per: Literal["tenant", "agent", "principal"] = Field(
        default="tenant", description="whose, in calendar spans and total"
    )


class BlastRadius(Category):
    """How much at once, how much in all."""

    name = "blast_radius"
    family = "tools"
    summary = (
        "Limits how much one action touches (rows, files, recipients, an amount) and how much all of them touch "
        "together. The sum is reserved in the ledger before each action, so that it holds over runs and nodes, "
        "with calls under way included; what never left is given back."
    )
    params = BlastRadiusParams
    gates = ("tool", "http", "file", "memory", "spawn")
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:CC6.8", "sox:ITGC-approval", "mifid2:RTS6-Art.15(2)", "sox:ITGC-operations")
    tighter: ClassVar[Mapping[str, str]] = {"each": "lower", "total": "lower"}
    example = """\
id: at-most-50000-a-day
category: blast_radius
when: action.name == "wire_transfer"
with: {argument: amount, each: 10000, total: 50000, window: day}
"""

    def check(self, params: Any) -> None:
        """At least one limit is needed."""
        if params.each is None and params.total is None:
            raise ValueError("there is no limit; give each, total or both")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Measure the action, and add it up."""
        params = rule.params
        much = _measure(action.args.get(params.argument))
        if much is None:
            reason = (
                f"{params.argument} of {action.target} is no number and no list, so it cannot be told how much it is"
            )
            return Breach(reason=reason, facts={"argument": params.argument})
        if params.each is not None and much > params.each:
            reason = f"{params.argument} is more than {format_usd(params.each)}"
            return Breach(reason=reason, facts={"argument": params.argument, "limit": format_usd(params.each)})
        if params.total is None:
            return None
        if much > params.total:
            reason = f"{params.argument} alone is more than {format_usd(params.total)}, which is all that may be"
            return Breach(reason=reason, facts={"argument": params.argument, "limit": format_usd(params.total)})
        return Budget(key=_key(params, facts, rule), amount=much, limit=params.total, policy=rule.id)


def _key(params: BlastRadiusParams, facts: Facts, rule: Rule) -> str:
    base = f"blast_radius/{safe(facts.tenant)}/{rule.id}"
    if params.window == "run":
        return f"{base}/run/{safe(facts.run)}"
    if params.window == "tree":
        return f"{base}/tree/{safe(facts.root or facts.run)}"
    whose = "" if params.per == "tenant" else f"/{params.per}/{safe(getattr(facts, params.per))}"
    return f"{base}/{span(params.window, facts.now)}{whose}"


def _measure(value: Any) -> int | None:
    """How much a value is, a billion times; None when that cannot be told. Rounds up."""
    if isinstance(value, list | tuple):
        return len(value) * NANO
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    amount = Decimal(str(value)) * NANO
    if not amount.is_finite() or amount < 0:
        return None
    return int(amount.to_integral_value(rounding="ROUND_CEILING"))


class SequenceRuleParams(Params):
    """Parameters of sequence_rule."""

    require: tuple[Deed, ...] = Field(
        default=(), description="what must have been done before in this run, each of them, as `GATE:NAME`"
    )
    forbid_after: tuple[Deed, ...] = Field(
        default=(), description="what must not have been begun before in this run, none of them, as `GATE:NAME`"
    )
    within: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="how far back it looks; left out: to the run's start"
    )


class SequenceRule(Category):
    """What comes first."""

    name = "sequence_rule"
    family = "tools"
    summary = (
        "Lets an action happen only after others were done in the same run (a check before a payment), or only as long "
        "as others were not even begun (nothing leaves after secrets were read)."
    )
    params = SequenceRuleParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("sox:ITGC-operations", "soc2:PI1.3")
    tighter: ClassVar[Mapping[str, str]] = {"require": "superset", "forbid_after": "superset"}
    example = """\
id: check-before-paying
category: sequence_rule
when: action.name == "release_payment"
with: {require: ["tool:sanctions_check"], within: 1h}
"""

    def check(self, params: Any) -> None:
        """At least one list is needed."""
        if not params.require and not params.forbid_after:
            raise ValueError("it allows everything; give require, forbid_after or both")

    def asks(self, params: Any) -> tuple[Question, ...]:
        """How often each was done, or begun."""
        within = params.within or 0
        done = [_count(deed, "ok", within) for deed in params.require]
        return (*done, *(_count(deed, "", within) for deed in params.forbid_after))

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at what came before."""
        params = rule.params
        span_ = f" within {format_duration(params.within)}" if params.within else ""
        for deed, question in zip((*params.require, *params.forbid_after), rule.asks, strict=False):
            times = told(facts, question)
            if question.state == "ok" and not times:
                return Breach(reason=f"{deed} has not been done before{span_}", facts={"deed": deed})
            if question.state != "ok" and times:
                return Breach(reason=f"{deed} came before{span_}", facts={"deed": deed, "times": times})
        return None


def _count(deed: str, state: str, within: int) -> Question:
    gate, _, name = deed.partition(":")
    return Question(op="count", gate=gate, name=name, state=state, within=within)
