"""Money and tokens: a worst case is reserved before a call and settled after it."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Category, Finding, Params, Rule, Spend, Usd, safe
from holdfast.policy.units import format_usd

Window = Literal["call", "run", "tree", "hour", "day", "month", "total"]
Per = Literal["tenant", "agent", "principal"]
LIMITS = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
PER_MILLION = 1_000_000
_HOUR = 3_600_000_000

_WINDOW = (
    "what is counted together: one call, a run, a run with all its descendants (tree), "
    "a calendar hour, day or month (UTC), or everything (total)"
)
_PER = "whose spending a calendar window or `total` counts; always within one tenant"
_FLOOR = "the least output limit (tokens) that a call may be lowered to; below it the rule breaches"


class BudgetParams(Params):
    """What every budget has."""

    window: Window = Field(default="run", description=_WINDOW)
    per: Per = Field(default="tenant", description=_PER)
    floor_tokens: int = Field(default=16, ge=1, le=1_000_000, description=_FLOOR)


class BudgetUsdParams(BudgetParams):
    """Parameters of budget_usd."""

    limit: Annotated[Usd, Field(gt=0, description="what may be spent, in USD")]
    per_call: Usd = Field(default=0, description="what one action costs at gates other than `llm`, in USD")


class BudgetTokensParams(BudgetParams):
    """Parameters of budget_tokens."""

    limit: int = Field(gt=0, le=10**15, description="input and output tokens together")


class BudgetUsd(Category):
    """Money."""

    name = "budget_usd"
    family = "cost"
    summary = (
        "Limits what is spent. The worst case of a call (its input and its whole output limit at the model's price) "
        "is reserved before it is made; where it does not fit, the output limit is lowered to what fits. Denies a "
        "model whose price is not known."
    )
    params = BudgetUsdParams
    gates = ("llm", "tool", "step", "http", "spawn")
    default_gates = ("llm",)
    verdicts = LIMITS
    controls = ("soc2:CC5.2", "model-risk:limits")
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower", "floor_tokens": "higher", "per_call": "higher"}
    example = """\
id: cost-ceiling
category: budget_usd
scope: {agent: financial-reconciliation}
with: {limit: 0.10, window: run}
on_breach: terminate
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Reserve the worst case of the call."""
        params = rule.params
        if action.kind != "llm":
            return _flat(params, facts, rule)
        price = facts.price
        if price is None:
            return Breach(
                reason=f"unknown price for model {action.model or '(none)'}: add it to [llm.prices]",
                facts={"model": action.model},
                outcome=Outcome.DENY,
            )
        return Spend(
            key=key(self.name, rule, facts),
            limit=params.limit,
            fixed=action.input_tokens * price.input,
            per_token=price.output,
            used=_known(params, facts, "cost", rule),
            floor_tokens=params.floor_tokens,
            render=_dollars,
        )


class BudgetTokens(Category):
    """Tokens."""

    name = "budget_tokens"
    family = "cost"
    summary = (
        "Limits the tokens of LLM calls, input and output together, reserved and settled as money is. "
        "Lowers a call's output limit to what fits."
    )
    params = BudgetTokensParams
    gates = ("llm",)
    default_gates = ("llm",)
    verdicts = LIMITS
    controls = ("soc2:A1.1", "model-risk:limits")
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower", "floor_tokens": "higher"}
    example = """\
id: tokens-a-day
category: budget_tokens
with: {limit: 2000000, window: day, per: agent}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Reserve the estimated input and the whole output limit."""
        params = rule.params
        return Spend(
            key=key(self.name, rule, facts),
            limit=params.limit,
            fixed=action.input_tokens,
            per_token=1,
            used=_known(params, facts, "tokens", rule),
            floor_tokens=params.floor_tokens,
            render=_tokens,
        )


class PriceCeilingParams(Params):
    """Parameters of model_price_ceiling."""

    input_per_mtok: Usd | None = Field(default=None, description="USD for a million input tokens, at most")
    output_per_mtok: Usd | None = Field(default=None, description="USD for a million output tokens, at most")


class ModelPriceCeiling(Category):
    """The dearest model that may be called."""

    name = "model_price_ceiling"
    family = "cost"
    summary = "Refuses models that cost more per token than the ceiling, and models whose price is not known."
    params = PriceCeilingParams
    gates = ("llm",)
    default_gates = ("llm",)
    verdicts = LIMITS
    controls = ("soc2:CC5.2",)
    tighter: ClassVar[Mapping[str, str]] = {"input_per_mtok": "lower", "output_per_mtok": "lower"}
    example = """\
id: no-dear-models
category: model_price_ceiling
with: {input_per_mtok: 3, output_per_mtok: 15}
"""

    def check(self, params: Any) -> None:
        """At least one ceiling is needed."""
        if params.input_per_mtok is None and params.output_per_mtok is None:
            raise ValueError("there is no ceiling; give input_per_mtok, output_per_mtok or both")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare the price with the ceilings."""
        price, params = facts.price, rule.params
        if price is None:
            return Breach(
                reason=f"unknown price for model {action.model or '(none)'}: add it to [llm.prices]",
                facts={"model": action.model},
                outcome=Outcome.DENY,
            )
        for side, ceiling, actual in (
            ("input", params.input_per_mtok, price.input),
            ("output", params.output_per_mtok, price.output),
        ):
            if ceiling is not None and actual * PER_MILLION > ceiling:
                return Breach(
                    reason=f"model {action.model} costs {_dollars(actual * PER_MILLION)} for a million {side} tokens; "
                    f"the ceiling is {_dollars(ceiling)}",
                    facts={"model": action.model, side: actual},
                )
        return None


def key(category: str, rule: Rule, facts: Facts) -> str:
    """The ledger key of a budget now; empty for the window ``call``, which keeps no count. Starts with the tenant."""
    params = rule.params
    window = params.window
    if window == "run":
        return f"{category}/{safe(facts.tenant)}/{rule.id}/run/{safe(facts.run)}"
    if window == "call":
        return ""
    if window == "tree":
        return f"{category}/{safe(facts.tenant)}/{rule.id}/tree/{safe(facts.root or facts.run)}"
    whose = "" if params.per == "tenant" else f"/{params.per}/{safe(getattr(facts, params.per))}"
    return f"{category}/{safe(facts.tenant)}/{rule.id}/{span(window, facts.now)}{whose}"


def span(window: str, now: int) -> str:
    """The calendar window (UTC) that holds a time, as part of a key: ``day/2026-03-01``."""
    return "total" if window == "total" else _span(window, now // _HOUR)


@functools.lru_cache(maxsize=64)
def _span(window: str, hour: int) -> str:
    at = datetime.datetime.fromtimestamp(hour * 3600, datetime.UTC)
    form = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}[window]
    return f"{window}/{at.strftime(form)}"


def _flat(params: BudgetUsdParams, facts: Facts, rule: Rule) -> Finding:
    if params.per_call:
        return Spend(
            key=key("budget_usd", rule, facts),
            limit=params.limit,
            fixed=params.per_call,
            per_token=0,
            used=_known(params, facts, "cost", rule),
            render=_dollars,
        )
    spent = facts.counters.get("cost", 0)
    if params.window == "run" and spent >= params.limit:
        return Breach(
            reason=f"{_dollars(spent)} of {_dollars(params.limit)} is spent",
            facts={"limit": params.limit, "used": spent},
        )
    return None


def _known(params: BudgetParams, facts: Facts, counter: str, rule: Rule) -> int:
    """A rule in shadow reserves nothing, so that all it can go by is what its run has spent."""
    if rule.enforced or params.window != "run":
        return 0
    return facts.counters.get(counter, 0)


def _dollars(nano: int) -> str:
    return f"${format_usd(nano)}"


def _tokens(count: int) -> str:
    return f"{count} tokens"
