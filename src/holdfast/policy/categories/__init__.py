"""The registry of categories."""

from __future__ import annotations

from types import MappingProxyType

from holdfast.policy.categories.approvals import FourEyes, RequireApproval
from holdfast.policy.categories.base import Category
from holdfast.policy.categories.cost import BudgetTokens, BudgetUsd, ModelPriceCeiling
from holdfast.policy.categories.limits import KillSwitch, StepLimit
from holdfast.policy.categories.tools import ToolAllowlist

CATEGORIES: MappingProxyType[str, Category] = MappingProxyType(
    {
        category.name: category
        for category in (
            BudgetUsd(),
            BudgetTokens(),
            ModelPriceCeiling(),
            StepLimit(),
            RequireApproval(),
            FourEyes(),
            ToolAllowlist(),
            KillSwitch(),
        )
    }
)
"""Every category by name."""
