"""When a request for approval is settled. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.action import ApprovalSpec, Grant


def eligible(spec: ApprovalSpec, grant: Grant, requester: str) -> str:
    """Why an answer does not count; empty when it does."""
    if spec.distinct_from_requester and grant.principal == requester:
        return f"{grant.principal} asked for it, and someone else must approve"
    if not spec.approvers:
        return ""
    allowed = {f"user:{grant.principal}", *(f"role:{role}" for role in grant.roles)}
    if allowed.isdisjoint(spec.approvers):
        return f"{grant.principal} is not among the approvers ({', '.join(spec.approvers)})"
    return ""


def settled(spec: ApprovalSpec, grants: Sequence[Grant], requester: str) -> str:
    """``approved``, ``denied``, or empty while it is open. One refusal by an approver denies.

    A quorum counts distinct principals, however often one of them answers.
    """
    counted = [grant for grant in grants if not eligible(spec, grant, requester)]
    if any(not grant.approved for grant in counted):
        return "denied"
    return "approved" if len({grant.principal for grant in counted}) >= spec.quorum else ""
