"""The categories that look at the matter of an action: what it says, where it comes from, what it would run."""

from __future__ import annotations

from holdfast.policy.categories.base import Category
from holdfast.policy.categories.carddata import PanGuard, SadBlock
from holdfast.policy.categories.personal import DictionaryMatch, PhiMinimumNecessary, PiiRedact, Pseudonymise
from holdfast.policy.categories.secrecy import CanaryLeak, SecretScan, SystemPromptLeak

MATTER: tuple[Category, ...] = (
    PiiRedact(),
    PhiMinimumNecessary(),
    PanGuard(),
    SadBlock(),
    Pseudonymise(),
    DictionaryMatch(),
    SecretScan(),
    CanaryLeak(),
    SystemPromptLeak(),
)
"""One of each, by family."""
