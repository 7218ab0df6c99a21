"""Categories about conduct: money, operation, identity, authority, approval and order. A part of the registry."""

from __future__ import annotations

from holdfast.policy.categories.approval_terms import ApprovalBinding, ApprovalExpiry, BreakGlass
from holdfast.policy.categories.base import Category
from holdfast.policy.categories.cedar import ToolAuthz
from holdfast.policy.categories.delegation import (
    DelegationAttenuation,
    DelegationDepth,
    SegregationOfDuties,
    SpawnLimit,
)
from holdfast.policy.categories.identity import (
    AgentIdentityRequired,
    CredentialScope,
    OnBehalfOf,
    ServiceAccountScope,
    TenantIsolation,
    UserSuspension,
)
from holdfast.policy.categories.operations import CircuitBreaker, IdempotencyGuard, RetryLimit, ScheduleWindow
from holdfast.policy.categories.sequences import BlastRadius, SequenceRule
from holdfast.policy.categories.spending import BudgetTree, ChargebackTags, CostAnomaly

CONDUCT: tuple[Category, ...] = (
    BudgetTree(),
    CostAnomaly(),
    ChargebackTags(),
    CircuitBreaker(),
    RetryLimit(),
    ScheduleWindow(),
    IdempotencyGuard(),
    AgentIdentityRequired(),
    OnBehalfOf(),
    ServiceAccountScope(),
    TenantIsolation(),
    UserSuspension(),
    CredentialScope(),
    ToolAuthz(),
    DelegationDepth(),
    DelegationAttenuation(),
    SpawnLimit(),
    SegregationOfDuties(),
    ApprovalBinding(),
    ApprovalExpiry(),
    BreakGlass(),
    BlastRadius(),
    SequenceRule(),
)
