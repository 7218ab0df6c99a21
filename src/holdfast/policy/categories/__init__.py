"""The registry of categories."""

from __future__ import annotations

from types import MappingProxyType

from holdfast.policy.categories.approvals import FourEyes, RequireApproval
from holdfast.policy.categories.base import Category
from holdfast.policy.categories.conduct import CONDUCT
from holdfast.policy.categories.cost import BudgetTokens, BudgetUsd, ModelPriceCeiling
from holdfast.policy.categories.limits import (
    IdleLimit,
    KillSwitch,
    LoopDetection,
    StepLimit,
    ToolCallLimit,
    WallClockLimit,
)
from holdfast.policy.categories.matter import MATTER
from holdfast.policy.categories.models import ModelAllowlist
from holdfast.policy.categories.rates import ConcurrencyLimit, RateLimit
from holdfast.policy.categories.tools import ToolAllowlist

CATEGORIES: MappingProxyType[str, Category] = MappingProxyType(
    {
        category.name: category
        for category in (
            BudgetUsd(),
            BudgetTokens(),
            ModelPriceCeiling(),
            RateLimit(),
            ConcurrencyLimit(),
            StepLimit(),
            ToolCallLimit(),
            WallClockLimit(),
            IdleLimit(),
            LoopDetection(),
            KillSwitch(),
            RequireApproval(),
            FourEyes(),
            ToolAllowlist(),
            ModelAllowlist(),
            *CONDUCT,
            *MATTER,
        )
    }
)
"""Every category by name."""
