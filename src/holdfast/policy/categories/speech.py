"""What may be said, and in which language."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome, Redaction
from holdfast.policy.categories.base import Breach, Finding, Rule
from holdfast.policy.categories.content import DENY, ContentCategory, ContentParams
from holdfast.policy.detect.dictionary import Dictionary
from holdfast.policy.detect.engine import expression
from holdfast.policy.detect.language import language
from holdfast.policy.scan import readings, strings

Text = Annotated[str, StringConstraints(min_length=2, max_length=512)]
Code = Annotated[str, StringConstraints(pattern="^[a-z]{2}$")]


class BannedContentParams(ContentParams):
    """Parameters of banned_content."""

    words: tuple[Text, ...] = Field(default=(), max_length=50_000, description="words and phrases, whole, in any case")
    patterns: tuple[Text, ...] = Field(
        default=(), max_length=500, description="regular expressions in RE2's syntax (no back-references, linear time)"
    )
    hidden: bool = Field(default=True, description="whether encoded and disguised readings of a text count as well")


class BannedContent(ContentCategory):
    """Words and patterns that nobody may send or get."""

    name = "banned_content"
    family = "content"
    summary = "Refuses or replaces listed phrases and patterns, also when they are encoded or spelt with look-alikes."
    params = BannedContentParams
    verdicts = (Outcome.DENY, Outcome.REDACT, Outcome.WARN, Outcome.REQUIRE_APPROVAL, Outcome.TERMINATE)
    default_gates = ("llm", "output")
    controls = ("soc2:CC1.1", "soc2:CC2.3")
    example = """\
id: no-investment-advice
category: banned_content
gates: [output]
with: {words: [guaranteed return], patterns: ['(?i)you should (buy|sell) \\w+ shares']}
"""

    def check(self, params: Any) -> None:
        """At least one list is needed, and each pattern must compile."""
        if not params.words and not params.patterns:
            raise ValueError("it bans nothing; give words, patterns or both")
        for pattern in params.patterns:
            expression(pattern)

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for words and patterns in every reading."""
        params = rule.params
        redactions, hidden, fixed = [], 0, False
        for path, text, in_key in strings(value):
            spans = list(_banned(text, params))
            fixed = fixed or (in_key and bool(spans))
            redactions += [Redaction(path=path, start=a, end=b, replacement="[BANNED]") for a, b in spans]
            if params.hidden and not spans:
                others = (reading for reading in readings(text) if reading != text)
                if any(next(_banned(reading, params), None) for reading in others):
                    hidden += 1
                    fixed = fixed or in_key
                    redactions.append(Redaction(path=path, start=0, end=len(text), replacement="[BANNED]"))
        if not redactions:
            return None
        return Breach(
            reason=f"{len(redactions)} banned stretches" + (f", {hidden} of them disguised" if hidden else ""),
            facts={"found": len(redactions), "disguised": hidden},
            outcome=Outcome.DENY if fixed and rule.on_breach is Outcome.REDACT else None,
            redactions=tuple(redactions),
        )


def _banned(text: str, params: BannedContentParams) -> Iterator[tuple[int, int]]:
    if params.words:
        yield from _dictionary(params.words).find(text)
    for pattern in params.patterns:
        for match in expression(pattern).finditer(text):
            if match.end() > match.start():
                yield match.span()


@functools.lru_cache(maxsize=64)
def _dictionary(words: tuple[str, ...]) -> Dictionary:
    return Dictionary(words)


class LanguageAllowParams(ContentParams):
    """Parameters of language_allow."""

    languages: tuple[Code, ...] = Field(min_length=1, description="languages that may be used, by their ISO 639-1 code")
    min_letters: int = Field(default=40, ge=1, le=10_000, description="letters below which a text is too short to tell")
    unknown: bool = Field(default=True, description="whether a text passes whose language nothing tells")


class LanguageAllow(ContentCategory):
    """Languages that people here can review."""

    name = "language_allow"
    family = "content"
    summary = "Refuses text in languages that are not listed, told by script and by the small words of each language."
    params = LanguageAllowParams
    verdicts = DENY
    default_gates = ("llm", "output")
    controls = ("soc2:CC2.2",)
    example = """\
id: what-we-can-review
category: language_allow
gates: [output]
with: {languages: [en, de]}
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Tell the language of every longer text."""
        params = rule.params
        for _, text, in_key in strings(value):
            if in_key or sum(char.isalpha() for char in text[:100_000]) < params.min_letters:
                continue
            found = language(text)
            if found in params.languages or (not found and params.unknown):
                continue
            if not found:
                return Breach(reason="nothing tells which language a text is in", facts={"language": ""})
            return Breach(reason=f"a text is in {found}, which is not on the list", facts={"language": found})
        return None
