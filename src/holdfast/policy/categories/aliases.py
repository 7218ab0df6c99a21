"""Names that other products give to what a category does. A file may use them; the record names the category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from holdfast.policy.categories import CATEGORIES


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """Another name for a category."""

    category: str
    note: str
    """What it comes to here, for people."""
    params: Mapping[str, Any] = {}
    """Parameters that the name implies; those of the policy win."""


_PERSON = {"per": "principal"}

_KNOWN: Mapping[str, Alias] = {
    "grounding": Alias(category="output_contract", note="claims are checked against the sources that they cite"),
    "retrieval": Alias(category="untrusted_taint", note="what was retrieved is labelled, and decided on at sinks"),
    "reasoning": Alias(category="loop_detection", note="what a model thinks is not judged; going round in circles is"),
    "provenance": Alias(category="memory_write_guard", note="what is remembered must say where it came from"),
    "end_user_budget": Alias(
        category="budget_usd", params={**_PERSON, "window": "day"}, note="a budget of each person, a day unless said"
    ),
    "end_user_rate_limit": Alias(category="rate_limit", params=_PERSON, note="a rate of each person"),
    "end_user_suspension": Alias(category="user_suspension", note="people who may not act now"),
    "data_erasure": Alias(
        category="memory_write_guard",
        note="memory is kept for a time only; recorded payloads are erased by destroying their key",
    ),
    "breach_notification": Alias(
        category="canary_leak", note="a planted token that turns up is a verdict in the record, which alerts can follow"
    ),
    "prompt_allowlist": Alias(category="model_allowlist", note="only system prompts that were reviewed, by digest"),
    "recursion_bound": Alias(category="delegation_depth", note="how deep runs may start runs"),
}


class _Aliases(Mapping[str, Alias]):
    """Looked up by name, so that no category is loaded for its alias's sake alone."""

    def __getitem__(self, name: str) -> Alias:
        alias = _KNOWN[name]
        if alias.category not in CATEGORIES:
            raise KeyError(name)
        return alias

    def __iter__(self) -> Iterator[str]:
        return (name for name, alias in _KNOWN.items() if alias.category in CATEGORIES)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ALIASES: Mapping[str, Alias] = _Aliases()
"""Every alias of a category that this version has."""
