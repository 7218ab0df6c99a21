"""People decide: approval by a quorum, bound to the digest of the action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from holdfast.action import GATES, Action, ApprovalSpec, Facts, Grant, Outcome
from holdfast.policy.categories.base import ApprovalParams, Breach, Category, Finding, Granted, Rule

REFUSALS = (Outcome.DENY, Outcome.TERMINATE)


class RequireApproval(Category):
    """Ask first."""

    name = "require_approval"
    family = "approval"
    summary = (
        "Lets an action go ahead only after enough distinct authenticated people approved this very action, "
        "by its digest. "
        "`on_breach` is what a refusal, or the end of the time allowed, leads to."
    )
    params = ApprovalParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:CC8.1", "sox:ITGC-approval", "gdpr:Art.22")
    tighter: ClassVar[Mapping[str, str]] = {"approvers": "named", "quorum": "higher", "ttl": "lower"}
    example = """\
id: wire-approval
category: require_approval
gates: [tool]
when: action.name == "wire_transfer" && action.args.amount > 10000
with: {approvers: ["role:controller"], quorum: 2, ttl: 24h}
"""

    def check(self, params: Any) -> None:
        """Escalation needs someone to escalate to, and enough named people for the quorum."""
        check_people(params)

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Ask, or look at the answers."""
        return asked(rule.params.spec(), facts)


class FourEyesParams(ApprovalParams):
    """Parameters of four_eyes."""

    quorum: int = Field(
        default=2, ge=1, le=20, description="how many distinct principals besides the requester must approve"
    )


class FourEyes(Category):
    """Ask others."""

    name = "four_eyes"
    family = "approval"
    summary = (
        "As require_approval, by several distinct principals, none of whom may be the one who asked. "
        "Denies when it is not known who asked."
    )
    params = FourEyesParams
    gates = GATES
    default_gates = ("tool",)
    verdicts = REFUSALS
    controls = ("soc2:CC5.1", "sox:ITGC-access", "sox:ITGC-approval")
    tighter: ClassVar[Mapping[str, str]] = {"approvers": "named", "quorum": "higher", "ttl": "lower"}
    example = """\
id: two-others-release-payments
category: four_eyes
when: action.name == "release_payment"
with: {approvers: ["role:treasury"], quorum: 2, ttl: 8h}
"""

    def check(self, params: Any) -> None:
        """As for require_approval."""
        check_people(params)

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Ask, or look at the answers of others than the requester."""
        if not facts.principal:
            return Breach(reason="it is not known who asked, so nobody can be told apart from the requester")
        return asked(rule.params.spec(distinct_from_requester=True), facts)


def check_people(params: ApprovalParams) -> None:
    """Refuse a request that could never be answered as it says.

    Raises:
        ValueError: says which keys do not go together.
    """
    if params.on_expiry == "escalate" and not params.escalate_to:
        raise ValueError("on_expiry: escalate needs escalate_to")
    if params.escalate_to and params.on_expiry != "escalate":
        raise ValueError("escalate_to is used only with on_expiry: escalate")
    named = {*params.approvers, *params.escalate_to}
    if named and all(who.startswith("user:") for who in named) and len(named) < params.quorum:
        raise ValueError(
            f"{len(named)} named approver(s) can never make a quorum of {params.quorum}; name more, or a role"
        )


def asked(spec: ApprovalSpec, facts: Facts) -> Breach | Granted:
    """What the answers so far come to: agreed, refused, expired, or still to be asked.

    A refusal by anyone who may answer decides. Approvals count once for each principal; a principal who may not answer
    does not count. Who is named in ``escalate_to`` may answer as well.
    """
    eligible = [grant for grant in facts.grants if _may_answer(grant, spec, facts)]
    refusal = next((grant for grant in eligible if not grant.approved), None)
    if refusal is not None:
        return Breach(reason=f"denied by {refusal.principal}", facts={"denied_by": refusal.principal})
    people = sorted({grant.principal for grant in eligible})
    if len(people) >= spec.quorum:
        return Granted(reason=f"approved by {', '.join(people)}", facts={"approved_by": people, "quorum": spec.quorum})
    if facts.approval_state == "denied":
        return Breach(reason="the request for approval was denied")
    if facts.approval_state and spec.on_expiry == "approve":
        return Granted(reason="nobody answered in time, and the policy then approves", facts={"quorum": spec.quorum})
    if facts.approval_state == "expired":
        return Breach(reason="nobody answered the request for approval in time")
    who = " or ".join(spec.approvers) or "any authenticated principal"
    return Breach(
        reason=f"needs approval by {spec.quorum} of {who}; {len(people)} given",
        facts={"quorum": spec.quorum, "given": len(people)},
        outcome=Outcome.REQUIRE_APPROVAL,
        approval=spec,
    )


def _may_answer(grant: Grant, spec: ApprovalSpec, facts: Facts) -> bool:
    if not grant.principal or not grant.auth:
        return False
    if spec.distinct_from_requester and grant.principal == facts.principal:
        return False
    if not spec.approvers:
        return True
    held = {f"user:{grant.principal}", *(f"role:{role}" for role in grant.roles)}
    return not held.isdisjoint(spec.approvers) or not held.isdisjoint(spec.escalate_to)
