"""Passing work on: how deep, how many, with how much authority; and duties that one hand may not unite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from holdfast.action import GATES, Action, Budget, Facts, Once, Outcome
from holdfast.policy.categories.base import (
    Breach,
    Category,
    Deed,
    Finding,
    Params,
    Rule,
    does_any,
    fits,
    is_pattern,
    safe,
)
from holdfast.policy.categories.limits import ACTS
from holdfast.values import digest, dump

REFUSALS = (Outcome.DENY, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)


class DelegationDepthParams(Params):
    """Parameters of delegation_depth."""

    limit: int = Field(ge=0, le=1000, description="levels below the first run; 0: no children at all")


class DelegationDepth(Category):
    """Levels."""

    name = "delegation_depth"
    family = "authority"
    summary = "Limits how deep runs may start runs that start runs."
    params = DelegationDepthParams
    gates = ACTS
    default_gates = ("spawn",)
    verdicts = REFUSALS
    controls = ("soc2:CC6.3", "model-risk:limits")
    tighter: ClassVar[Mapping[str, str]] = {"limit": "lower"}
    example = """\
id: two-levels
category: delegation_depth
with: {limit: 2}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Count the level that the action is at, or would open."""
        depth, limit = facts.depth + (action.kind == "spawn"), rule.params.limit
        if depth <= limit:
            return None
        return Breach(
            reason=f"this is level {depth} below the first run; {limit} are allowed",
            facts={"depth": depth, "limit": limit},
        )


class DelegationAttenuationParams(Params):
    """Parameters of delegation_attenuation."""

    inherit: bool = Field(
        default=True, description="whether a child that is given no authority of its own may have its parent's"
    )
    ceiling: bool = Field(default=False, description="whether each child must be given a budget of its own")


class DelegationAttenuation(Category):
    """Never more than one has."""

    name = "delegation_attenuation"
    family = "authority"
    summary = (
        "Lets a run pass on only authority that it has: each thing that a child may do must be covered by something "
        "that its parent may do."
    )
    params = DelegationAttenuationParams
    gates = ("spawn",)
    default_gates = ("spawn",)
    verdicts = REFUSALS
    controls = ("soc2:CC6.3", "pci-dss:7.2.2", "hipaa:164.308(a)(4)(ii)(B)", "sox:ITGC-access")
    tighter: ClassVar[Mapping[str, str]] = {"inherit": "false", "ceiling": "true"}
    example = """\
id: no-more-than-the-parent
category: delegation_attenuation
with: {inherit: true, ceiling: true}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare what is passed on with what there is."""
        params, own = rule.params, facts.authority
        if params.ceiling and not action.args.get("budget_nano"):
            return Breach(reason="the child is given no budget of its own")
        given = action.args.get("authority")
        if given is None:
            if params.inherit:
                return None
            return Breach(reason="the child is given no authority of its own, and may not have its parent's")
        if not isinstance(given, list | tuple) or not all(isinstance(deed, str) for deed in given):
            return Breach(reason="the child's authority is no list of deeds", outcome=Outcome.DENY)
        if own is None:
            return None
        beyond = [deed for deed in given if not any(covers(mine, deed) for mine in own)]
        if not beyond:
            return None
        return Breach(
            reason=f"the child would have authority that its parent has not ({len(beyond)} of {len(given)} deeds)",
            facts={"given": len(given), "beyond": len(beyond)},
        )


def covers(mine: str, theirs: str) -> bool:
    """Whether everything that ``theirs`` allows is allowed by ``mine``, both ``GATE:NAME`` patterns.

    Says yes only where that is plain: equal names, a name that fits, or a prefix followed by one ``*``.
    """
    (gate, _, name), (other_gate, _, other) = mine.partition(":"), theirs.partition(":")
    if gate not in ("*", other_gate):
        return False
    if name == other or name == "*":
        return True
    if not is_pattern(other):
        return fits(name, other)
    prefix = name[:-1]
    return (
        name.endswith("*")
        and not is_pattern(prefix)
        and not is_pattern(other[: len(prefix)])
        and other.startswith(prefix)
    )


class SpawnLimitParams(Params):
    """Parameters of spawn_limit."""

    per_run: int | None = Field(default=None, ge=0, le=1_000_000, description="children that one run may start")
    per_tree: int | None = Field(
        default=None, ge=0, le=1_000_000, description="runs that may be started below one first run, at all levels"
    )


class SpawnLimit(Category):
    """Children."""

    name = "spawn_limit"
    family = "authority"
    summary = "Limits how many runs a run may start, and how many there may be in the whole tree below the first one."
    params = SpawnLimitParams
    gates = ("spawn",)
    default_gates = ("spawn",)
    verdicts = REFUSALS
    controls = ("soc2:A1.1",)
    tighter: ClassVar[Mapping[str, str]] = {"per_run": "lower", "per_tree": "lower"}
    example = """\
id: a-hundred-children
category: spawn_limit
with: {per_run: 20, per_tree: 100}
"""

    def check(self, params: Any) -> None:
        """At least one limit is needed."""
        if params.per_run is None and params.per_tree is None:
            raise ValueError("there is no limit; give per_run, per_tree or both")

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Count children; another attempt at one is no other child."""
        params = rule.params
        if action.attempt > 1:
            return None
        started = facts.counters.get("spawns", 0)
        if params.per_run is not None and started >= params.per_run:
            reason = f"the run has started {started} others of {params.per_run}"
            return Breach(reason=reason, facts={"used": started, "limit": params.per_run})
        if params.per_tree is None:
            return None
        key = f"spawn_limit/{safe(facts.tenant)}/{rule.id}/tree/{safe(facts.root or facts.run)}"
        return Budget(key=key, amount=1, limit=params.per_tree, policy=rule.id)


class SegregationOfDutiesParams(Params):
    """Parameters of segregation_of_duties."""

    duties: Mapping[str, tuple[Deed, ...]] = Field(
        min_length=2, description="duties and what belongs to each, as `GATE:NAME`; one hand may have one of them"
    )
    object: str | None = Field(
        default=None, max_length=256, description="argument that names what the duties are about; none: the run"
    )
    by: Literal["principal", "on_behalf_of", "agent", "run"] = Field(default="principal", description="whose hands")


class SegregationOfDuties(Category):
    """Two hands."""

    name = "segregation_of_duties"
    family = "authority"
    summary = (
        "Lets nobody perform two duties on the same thing that must lie in different hands, such as creating and "
        "paying an invoice, over all runs and nodes: the first duty is claimed in the ledger."
    )
    params = SegregationOfDutiesParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("sox:ITGC-access", "soc2:CC5.1", "pci-dss:6.5.4")
    example = """\
id: create-or-pay
category: segregation_of_duties
with: {duties: {create: ["tool:create_invoice"], pay: ["tool:pay_invoice"]}, object: invoice_id}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Claim the duty for this pair of hands."""
        params = rule.params
        mine = [duty for duty, deeds in params.duties.items() if does_any(deeds, action)]
        if not mine:
            return None
        if len(mine) > 1:
            return Breach(reason=f"{action.target} belongs to {' and '.join(mine)} at once", facts={"duties": mine})
        who = getattr(facts, params.by)
        if not who:
            return Breach(reason=f"it is not known whose hands these are ({params.by})")
        thing = action.args.get(params.object) if params.object else facts.run
        if thing is None:
            return Breach(reason=f"{action.target} has no {params.object}, so it cannot be told what it is about")
        what = digest(dump([thing]))[:32]
        key = f"segregation_of_duties/{rule.id}/{safe(facts.tenant)}/{params.by}/{safe(who)}/{what}"
        return Once(key=key, holder=mine[0], policy=rule.id)
