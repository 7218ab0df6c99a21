"""What an approval must be worth: bound to what was shown, and fresh; and rules that are lifted in an emergency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from holdfast.action import GATES, Action, Facts, Glass, Outcome
from holdfast.policy.categories.base import (
    Approver,
    Breach,
    Category,
    Duration,
    Finding,
    Lift,
    Params,
    Pattern,
    Rule,
    fits_any,
)
from holdfast.policy.units import format_duration

REFUSALS = (Outcome.DENY, Outcome.TERMINATE)
_HOUR = 3_600_000_000


class ApprovalBindingParams(Params):
    """Parameters of approval_binding."""

    auth: tuple[Pattern, ...] = Field(
        default=(), description="how who approves must be authenticated, as in `oidc:*`; none: anyhow"
    )
    reason: bool = Field(default=False, description="whether an approval must give a reason")


class ApprovalBinding(Category):
    """What was approved is what is done."""

    name = "approval_binding"
    family = "approval"
    summary = (
        "Takes an approval only for the very action that was shown when it was given, by the digest of its arguments, "
        "and only from people authenticated well enough. It asks nobody: use it beside require_approval or four_eyes."
    )
    params = ApprovalBindingParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:CC8.1", "sox:ITGC-approval", "hipaa:164.312(c)(1)")
    tighter: ClassVar[Mapping[str, str]] = {"reason": "true", "auth": "named"}
    example = """\
id: approvals-are-bound
category: approval_binding
with: {auth: ["peer-uid:*", "oidc:*"], reason: true}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at each approval."""
        params = rule.params
        for grant in facts.grants:
            if not grant.approved:
                continue
            if not action.digest or grant.digest != action.digest:
                return Breach(reason=f"{grant.principal} approved something else", facts={"principal": grant.principal})
            if params.auth and not fits_any(params.auth, grant.auth):
                reason = f"{grant.principal} was not authenticated as who approves must be"
                return Breach(reason=reason, facts={"principal": grant.principal, "auth": grant.auth})
            if params.reason and not grant.reason.strip():
                return Breach(reason=f"{grant.principal} gave no reason", facts={"principal": grant.principal})
        return None


class ApprovalExpiryParams(Params):
    """Parameters of approval_expiry."""

    max_age: Annotated[Duration, Field(gt=0, description="how long after it was given an approval may be used")]
    together: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="how far apart several approvals of one action may lie"
    )


class ApprovalExpiry(Category):
    """Approvals go stale."""

    name = "approval_expiry"
    family = "approval"
    summary = (
        "Takes an approval only for a while after it was given, so that what was approved last week is not done today. "
        "How long a request waits for an answer is the `ttl` of the rule that asks."
    )
    params = ApprovalExpiryParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:CC6.3", "sox:ITGC-approval", "soc2:CC8.1")
    tighter: ClassVar[Mapping[str, str]] = {"max_age": "lower", "together": "lower"}
    example = """\
id: approvals-go-stale
category: approval_expiry
with: {max_age: 4h, together: 1h}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at when each approval was given."""
        params = rule.params
        times = [grant.at for grant in facts.grants if grant.approved]
        if not times:
            return None
        if facts.now - min(times) > params.max_age:
            reason = f"an approval was given longer ago than {format_duration(params.max_age)}; ask again"
            return Breach(reason=reason, facts={"max_age": params.max_age, "age": facts.now - min(times)})
        if max(times) > facts.now:
            return Breach(reason="an approval lies in the future, so its age is not known", facts={"at": max(times)})
        if params.together is not None and max(times) - min(times) > params.together:
            reason = f"the approvals lie further apart than {format_duration(params.together)}; ask again"
            return Breach(reason=reason, facts={"together": params.together, "apart": max(times) - min(times)})
        return None


class BreakGlassParams(Params):
    """Parameters of break_glass."""

    lifts: tuple[Pattern, ...] = Field(min_length=1, description="ids or patterns of the rules that may be lifted")
    people: int = Field(default=2, ge=2, le=20, description="how many distinct principals must open it together")
    openers: tuple[Approver, ...] = Field(
        default=(), description="who may: `role:NAME` or `user:NAME`; none: any authenticated principal"
    )
    max: Annotated[Duration, Field(gt=0, description="how long it may stay open")] = 4 * _HOUR
    review_within: Annotated[Duration, Field(gt=0, description="how long after its end the review is due")] = 72 * _HOUR
    min_reason: int = Field(default=20, ge=1, le=1000, description="characters of the reason, at least")


class BreakGlass(Category):
    """An emergency, on the record."""

    name = "break_glass"
    family = "approval"
    summary = (
        "Lifts named rules for a while when several people open the glass together and say why. What they would have "
        "objected to is recorded and allowed. A glass that is not in order lifts nothing and refuses; one whose review "
        "is overdue refuses everything in its scope until it is reviewed. Kills, and rules that fail, are never lifted."
    )
    params = BreakGlassParams
    gates = GATES
    default_gates = GATES
    verdicts = REFUSALS
    first = True
    controls = ("hipaa:164.312(a)(2)(ii)", "soc2:CC7.4", "sox:ITGC-change")
    tighter: ClassVar[Mapping[str, str]] = {
        "lifts": "subset",
        "openers": "named", "people": "higher", "max": "lower", "review_within": "lower", "min_reason": "higher",
    }  # fmt: skip
    example = """\
id: emergency
category: break_glass
with: {lifts: [schedule, "limits/*"], people: 2, openers: ["role:incident-lead"], max: 1h, review_within: 48h}
"""

    def check(self, params: Any) -> None:
        """Enough people must be able to open it."""
        openers = set(params.openers)
        if openers and all(who.startswith("user:") for who in openers) and len(openers) < params.people:
            raise ValueError(
                f"{len(openers)} named opener(s) can never be {params.people} people; name more, or a role"
            )

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look at the glasses that are open, or whose review is."""
        params, found = rule.params, None
        for glass in facts.glasses:
            if not glass.reviewed_at and glass.review_by and facts.now > glass.review_by:
                return Breach(reason=f"the review of glass {glass.id} is overdue; record it", facts={"glass": glass.id})
            if not glass.opened_at <= facts.now < glass.until:
                continue
            if wrong := _wrong(glass, params, facts):
                return Breach(reason=f"glass {glass.id} is open, but {wrong}", facts={"glass": glass.id})
            people = sorted({grant.principal for grant in glass.by})
            found = Lift(
                rules=params.lifts,
                reason=f"lifted by glass {glass.id} ({', '.join(people)})",
                facts={"glass": glass.id, "until": glass.until, "by": people, "lifts": list(params.lifts)},
            )
        return found


def _wrong(glass: Glass, params: BreakGlassParams, facts: Facts) -> str:
    """What is not in order about an open glass; empty when all is."""
    people = {
        grant.principal
        for grant in glass.by
        if grant.approved and grant.principal and grant.auth and grant.principal != facts.principal
        and (
            not params.openers
            or not {f"user:{grant.principal}", *(f"role:{role}" for role in grant.roles)}.isdisjoint(params.openers)
        )
    }  # fmt: skip
    if len(people) < params.people:
        return f"{len(people)} of {params.people} people opened it who may and who did not ask for the run"
    if len(glass.reason.strip()) < params.min_reason:
        return f"its reason has fewer than {params.min_reason} characters"
    if glass.until - glass.opened_at > params.max:
        return f"it stays open longer than {format_duration(params.max)}"
    if not glass.opened_at <= glass.review_by <= glass.until + params.review_within:
        return f"no review is set within {format_duration(params.review_within)} of its end"
    return ""
