"""Money over a whole tree of runs, costs out of the ordinary, and who pays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from holdfast.action import Action, Ended, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Pattern, Rule, Spend, Usd, fits_any, safe
from holdfast.policy.categories.cost import LIMITS
from holdfast.policy.history import COST, SAME, Question, told
from holdfast.policy.units import format_usd

_MAD_SCALE = 1.4826
"""Makes the median absolute deviation an estimate of the standard deviation (Iglewicz and Hoaglin, 1993)."""


class BudgetTreeParams(Params):
    """Parameters of budget_tree."""

    limit: Annotated[Usd, Field(gt=0, description="what a run and all its descendants may spend together, in USD")]
    floor_tokens: int = Field(
        default=16, ge=1, le=1_000_000, description="the least output limit (tokens) that a call may be lowered to"
    )
    spawn_floor: Usd = Field(default=0, description="what must be left in the tree for another child to start, in USD")
    max_child: Usd | None = Field(
        default=None, description="each child must be given a ceiling of its own, of at most so much, in USD"
    )


class BudgetTree(Category):
    """Money of a tree."""

    name = "budget_tree"
    family = "cost"
    summary = (
        "Limits what a run spends together with all its descendants, however deep, and starts no child that could not "
        "do anything with what is left. The count is the root's, so that no run escapes it by starting others."
    )
    params = BudgetTreeParams
    gates = ("llm", "spawn")
    default_gates = ("llm", "spawn")
    verdicts = LIMITS
    controls = ("soc2:CC5.2", "model-risk:limits")
    tighter: ClassVar[Mapping[str, str]] = {
        "limit": "lower",
        "floor_tokens": "higher",
        "spawn_floor": "higher",
        "max_child": "lower",
    }
    example = """\
id: five-dollars-for-all
category: budget_tree
with: {limit: 5, spawn_floor: 0.10, max_child: 1}
on_breach: terminate
"""

    def check(self, params: Any) -> None:
        """What must be left cannot be more than what there is."""
        if params.spawn_floor >= params.limit:
            raise ValueError("spawn_floor leaves no room within limit; lower it")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Reserve a call's worst case under the root's count; see that enough is left for a child."""
        params = rule.params
        key = f"budget_tree/{safe(facts.tenant)}/{rule.id}/{safe(facts.root or facts.run)}"
        if action.kind == "spawn":
            given = action.args.get("budget_nano") or 0
            if params.max_child is not None and not (type(given) is int and 0 < given <= params.max_child):
                reason = f"a child needs a ceiling of at most ${format_usd(params.max_child)}"
                return Breach(reason=reason, facts={"limit": params.max_child})
            # Nothing is reserved for a child: it reserves what it needs itself, under the same count.
            limit = params.limit - params.spawn_floor
            return Spend(key=key, limit=limit, fixed=0, per_token=0, render=_dollars)
        price = facts.price
        if price is None:
            reason = f"unknown price for model {action.model or '(none)'}: add it to [llm.prices]"
            return Breach(reason=reason, facts={"model": action.model}, outcome=Outcome.DENY)
        return Spend(
            key=key,
            limit=params.limit,
            fixed=action.input_tokens * price.input,
            per_token=price.output,
            floor_tokens=params.floor_tokens,
            render=_dollars,
        )


class CostAnomalyParams(Params):
    """Parameters of cost_anomaly."""

    deviations: int = Field(default=6, ge=2, le=1000, description="how many standard deviations from the usual are odd")
    window: int = Field(default=50, ge=5, le=1000, description="how many of the latest calls are the usual")
    min_calls: int = Field(default=10, ge=3, le=1000, description="nothing is odd before so many calls are known")
    min_cost: Usd = Field(default=10_000_000, description="what costs less than this is never odd, in USD")
    over: Literal["run", "agent", "tenant"] = Field(default="agent", description="whose calls are the usual")


class CostAnomaly(Category):
    """Costs out of the ordinary."""

    name = "cost_anomaly"
    family = "cost"
    summary = (
        "Notices a call that cost far more than the latest calls of the same model or tool: further from their rolling "
        "median than so many standard deviations, estimated by the median absolute deviation. Looks after the call."
    )
    params = CostAnomalyParams
    gates = ("llm", "tool", "http")
    default_gates = ("llm",)
    verdicts = (Outcome.WARN, Outcome.DENY, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    phases = frozenset({"after"})
    controls = ("soc2:CC7.2", "model-risk:monitoring")
    tighter: ClassVar[Mapping[str, str]] = {"deviations": "lower", "min_calls": "lower", "min_cost": "lower"}
    example = """\
id: odd-costs
category: cost_anomaly
with: {deviations: 6, window: 50, min_cost: 0.05}
"""

    def check(self, params: Any) -> None:
        """The usual must be known from what is looked at."""
        if params.min_calls > params.window:
            raise ValueError("min_calls is never reached within window; make window larger")

    def asks(self, params: Any) -> tuple[Question, ...]:
        """How many calls there were, what they usually cost, and how much that varies."""
        return tuple(
            Question(op=op, gate="*", name=SAME, figure=figure, state="ended", over=params.over, latest=params.window)
            for op, figure in (("count", ""), ("median", COST), ("mad", COST))
        )

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Nothing is known yet."""
        return None

    def after(self, action: Action, ended: Ended, facts: Facts, rule: Rule) -> Finding:
        """Compare what it cost with the usual."""
        params = rule.params
        calls, median, mad = (told(facts, question.of(action)) for question in rule.asks[:3])
        if ended.cost is None:
            reason = "what the call cost is not known, so it cannot be told from the usual"
            return Breach(reason=reason) if ended.ok else None
        if calls < params.min_calls or ended.cost < params.min_cost:
            return None
        # Where all calls cost the same, a tenth of the usual counts as its spread: no cost is odd for a rounding.
        spread = max(_MAD_SCALE * mad, median / 10)
        if ended.cost <= median + params.deviations * spread:
            return None
        return Breach(
            reason=f"it cost {_dollars(ended.cost)}; {_dollars(int(median))} is usual ({int(calls)} calls)",
            facts={"cost": ended.cost, "median": median, "mad": mad, "deviations": params.deviations},
        )


Tag = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]


class ChargebackTagsParams(Params):
    """Parameters of chargeback_tags."""

    required: tuple[Tag, ...] = Field(min_length=1, description="tags that a run must carry")
    allowed: Mapping[Tag, tuple[Pattern, ...]] = Field(
        default={}, description="values or patterns that a tag may have; what is not named may have any"
    )


class ChargebackTags(Category):
    """Who pays."""

    name = "chargeback_tags"
    family = "cost"
    summary = "Lets nothing that costs happen in a run that does not say what its cost is booked under."
    params = ChargebackTagsParams
    gates = ("llm", "step", "tool", "http", "spawn")
    default_gates = ("llm", "step")
    verdicts = (Outcome.DENY, Outcome.WARN, Outcome.TERMINATE)
    controls = ("soc2:CC5.2",)
    tighter: ClassVar[Mapping[str, str]] = {"required": "superset"}
    example = """\
id: a-cost-centre-each
category: chargeback_tags
with: {required: [cost-centre], allowed: {cost-centre: ["cc-*"]}}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at the run's tags."""
        tags = facts.tags
        for name in rule.params.required:
            if not tags.get(name):
                return Breach(reason=f"the run carries no {name}; start it with one", facts={"tag": name})
        for name, patterns in rule.params.allowed.items():
            value = tags.get(name)
            if value is not None and not fits_any(patterns, value):
                return Breach(reason=f"the run's {name} is none of those that are allowed", facts={"tag": name})
        return None


def _dollars(nano: int) -> str:
    return f"${format_usd(nano)}"
