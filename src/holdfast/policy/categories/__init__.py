"""The registry of categories.

The categories that most bundles are made of are there at once. The others read content, code and contracts, and what
they need takes longer to load than a run takes to start: they come with the first name that is none of the former.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from holdfast.policy.categories.approvals import FourEyes, RequireApproval
from holdfast.policy.categories.base import Category
from holdfast.policy.categories.cost import BudgetTokens, BudgetUsd, ModelPriceCeiling
from holdfast.policy.categories.limits import (
    IdleLimit,
    KillSwitch,
    LoopDetection,
    StepLimit,
    ToolCallLimit,
    WallClockLimit,
)
from holdfast.policy.categories.models import ModelAllowlist
from holdfast.policy.categories.rates import ConcurrencyLimit, RateLimit
from holdfast.policy.categories.tools import ToolAllowlist


class Registry(Mapping[str, Category]):
    """Categories by name. Unchangeable; whatever looks at all of them loads them all."""

    def __init__(self, first: tuple[Category, ...]) -> None:
        self._first = {category.name: category for category in first}
        self._all: dict[str, Category] | None = None

    def __getitem__(self, name: str) -> Category:
        found = self._first.get(name)
        return self._whole()[name] if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def _whole(self) -> dict[str, Category]:
        if self._all is None:
            from holdfast.policy.categories.conduct import CONDUCT
            from holdfast.policy.categories.matter import MATTER

            self._all = {**self._first, **{category.name: category for category in (*CONDUCT, *MATTER)}}
        return self._all


CATEGORIES = Registry(
    (
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
    )
)
"""Every category by name."""
