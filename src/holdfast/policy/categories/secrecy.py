"""What must not get out: credentials, planted values, and the words that a model was instructed with."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome
from holdfast.policy.categories.base import Breach, Finding, Pattern, Rule, fits_any
from holdfast.policy.categories.content import DENY, ContentCategory, ContentParams, objection
from holdfast.policy.scan import readings, scan_value, strings


class SecretScanParams(ContentParams):
    """Parameters of secret_scan."""

    threshold: float = Field(default=0.5, ge=0.1, le=1, description="the least confidence of a finding")
    allow: tuple[Pattern, ...] = Field(
        default=(), description="values or patterns that are no secrets, such as a published test key"
    )


class SecretScan(ContentCategory):
    """Credentials in what goes out or comes back."""

    name = "secret_scan"
    family = "secrecy"
    summary = "Refuses or replaces keys, tokens, passwords and private keys by their form, also when encoded."
    params = SecretScanParams
    verdicts = (Outcome.DENY, Outcome.REDACT, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    controls = (
        "soc2:CC6.1",
        "pci-dss:8.3.2",
        "gdpr:Art.32(1)(b)",
        "hipaa:164.312(d)",
        "hipaa:164.312(a)(1)",
        "pci-dss:8.6.2",
        "soc2:CC6.7",
    )
    example = """\
id: no-keys-to-models
category: secret_scan
gates: [llm, http, output]
on_breach: redact
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for credentials."""
        placed = scan_value(value, ("SECRET",), threshold=rule.params.threshold)
        if rule.params.allow:
            placed = tuple(item for item in placed if item.found.via or not fits_any(rule.params.allow, item.text))
        return objection(placed, rule, "secrets", style="label")


class CanaryLeakParams(ContentParams):
    """Parameters of canary_leak."""

    canaries: tuple[Annotated[str, StringConstraints(min_length=8, max_length=256)], ...] = Field(
        min_length=1, max_length=10_000, description="planted values that no honest task ever sends anywhere"
    )


class CanaryLeak(ContentCategory):
    """A planted value turns up where it has no business."""

    name = "canary_leak"
    family = "secrecy"
    summary = (
        "Stops a run that sends a planted value anywhere, plain, encoded or spelt apart: somebody reads and leaks."
    )
    params = CanaryLeakParams
    verdicts = (Outcome.TERMINATE, Outcome.DENY, Outcome.WARN)
    controls = ("soc2:CC7.2", "pci-dss:11.5.1", "hipaa:164.308(a)(1)(ii)(D)")
    example = """\
id: planted-record
category: canary_leak
with: {canaries: [cnry-7f3a9c51e2]}
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for the planted values in every reading of every text."""
        wanted = {_bare(canary): index for index, canary in enumerate(rule.params.canaries)}
        for _, text, _ in strings(value):
            for reading in readings(text):
                bare = _bare(reading)
                backwards = bare[::-1]
                for canary, index in wanted.items():
                    if canary in bare or canary in backwards:
                        return Breach(
                            reason=f"planted value {index + 1} of the list leaves", facts={"canary": index + 1}
                        )
        return None


def _bare(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


class SystemPromptLeakParams(ContentParams):
    """Parameters of system_prompt_leak."""

    prompts: tuple[Annotated[str, StringConstraints(min_length=20, max_length=100_000)], ...] = Field(
        default=(), max_length=100, description="texts that are guarded, beside the `system` of the action itself"
    )
    words: int = Field(default=8, ge=4, le=50, description="how many words in a row make a shingle")
    share: float = Field(
        default=0.2, gt=0, le=1, description="which share of a text's shingles must turn up to count as a leak"
    )


class SystemPromptLeak(ContentCategory):
    """The instructions of a model in what it says."""

    name = "system_prompt_leak"
    family = "secrecy"
    summary = "Refuses an answer or a request that repeats the instructions of the model, by runs of words they share."
    params = SystemPromptLeakParams
    verdicts = DENY
    gates = ("llm", "output", "http", "tool", "memory", "file")
    default_gates = ("llm", "output", "http", "tool")
    controls = ("soc2:C1.1",)
    example = """\
id: keep-the-prompt
category: system_prompt_leak
with: {words: 8, share: 0.2}
"""

    def before(self, action: Action, facts: Facts, rule: Rule) -> Finding:
        """The request of a model holds its instructions by right."""
        return None if action.kind == "llm" else super().before(action, facts, rule)

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare runs of words."""
        params = rule.params
        own = action.args.get("system")
        guarded = [*params.prompts, *([own] if isinstance(own, str) and len(own) >= 20 else [])]
        if not guarded:
            return None
        said: set[tuple[str, ...]] = set()
        for _, text, _ in strings(value):
            for reading in readings(text):
                said |= _shingles(reading, params.words)
        for index, prompt in enumerate(guarded):
            wanted = _guarded(prompt, params.words)
            if wanted and len(wanted & said) >= max(1, params.share * len(wanted)):
                share = round(100 * len(wanted & said) / len(wanted))
                reason = f"{share} % of the runs of words of guarded text {index + 1} turn up"
                return Breach(reason=reason, facts={"share": share, "text": index + 1})
        return None


_WORD = re.compile(r"\w+")


def _shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    words = [match[0].casefold() for match in _WORD.finditer(text)]
    return frozenset(tuple(words[at : at + size]) for at in range(len(words) - size + 1))


@functools.lru_cache(maxsize=256)
def _guarded(text: str, size: int) -> frozenset[tuple[str, ...]]:
    found = _shingles(text, size)
    return found or _shingles(text, max(4, len(_WORD.findall(text))))
