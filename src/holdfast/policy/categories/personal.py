"""Personal data: found by form and check digits, allowed by name, replaced by pseudonyms, or listed by the operator."""

from __future__ import annotations

import fnmatch
import functools
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, StringConstraints

from holdfast.action import Action, Facts, Outcome, Redaction
from holdfast.policy.categories.base import Breach, Finding, Pattern, Rule, fits_any
from holdfast.policy.categories.content import REDACT, ContentCategory, ContentParams, objection
from holdfast.policy.detect.dictionary import Dictionary
from holdfast.policy.scan import PII, scan_value, strings

Kind = Annotated[str, StringConstraints(pattern="^[A-Z][A-Z0-9_]{1,39}$")]


class PiiRedactParams(ContentParams):
    """Parameters of pii_redact."""

    types: tuple[Kind, ...] = Field(default=PII, min_length=1, description="which types of personal data")
    allow: tuple[Pattern, ...] = Field(
        default=(), description="values or patterns that may stay, such as `*@ourcompany.example`"
    )
    threshold: float = Field(default=0.5, ge=0.1, le=1, description="the least confidence of a finding")
    style: Literal["mask", "label", "remove"] = Field(
        default="mask", description="`mask` keeps the form and what identifies nobody, `label` names the type"
    )


class PiiRedact(ContentCategory):
    """Personal data with a form of its own."""

    name = "pii_redact"
    family = "personal"
    summary = "Replaces personal data (cards, accounts, phone numbers, addresses, national ids), also when encoded."
    params = PiiRedactParams
    verdicts = REDACT
    controls = ("gdpr:Art.5(1)(c)", "gdpr:Art.25", "hipaa:164.514(b)", "soc2:CC6.7", "soc2:P4.1", "hipaa:164.502(b)")
    example = """\
id: no-personal-data-to-models
category: pii_redact
gates: [llm]
with: {types: [EMAIL_ADDRESS, PHONE_NUMBER, US_SSN], allow: ["*@ourcompany.example"]}
"""

    def check(self, params: Any) -> None:
        """Types that are not known find nothing."""
        unknown = sorted(set(params.types) - set(PII))
        if unknown:
            raise ValueError(f"types: nothing finds {unknown[0]}; there are {', '.join(PII)}")

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for personal data."""
        params = rule.params
        placed = scan_value(value, params.types, threshold=params.threshold)
        if params.allow:
            placed = tuple(item for item in placed if item.found.via or not fits_any(params.allow, item.text))
        return objection(placed, rule, "personal data", style=params.style)


class PhiMinimumNecessaryParams(ContentParams):
    """Parameters of phi_minimum_necessary."""

    fields: tuple[Pattern, ...] = Field(
        description="fields that may pass, as dotted paths or patterns: `patient.id`, `visit.*.date`; lists add no part"
    )
    under: str = Field(
        default="", max_length=128, description="only what stands under this field is limited; empty: everything"
    )


class PhiMinimumNecessary(ContentCategory):
    """Only the fields that the task needs."""

    name = "phi_minimum_necessary"
    family = "personal"
    summary = "Lets only named fields of health records pass; every other field is removed or refused."
    params = PhiMinimumNecessaryParams
    verdicts = REDACT
    gates = ("tool", "llm", "http", "output", "memory", "file", "spawn")
    default_gates = ("tool", "http", "output")
    controls = ("hipaa:164.502(b)", "hipaa:164.514(d)", "gdpr:Art.5(1)(c)")
    example = """\
id: scheduling-needs-no-diagnosis
category: phi_minimum_necessary
gates: [tool]
with: {under: patient, fields: [patient.id, patient.phone, patient.appointments.date]}
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Compare every field with the list."""
        params = rule.params
        redactions, names = [], set()
        for path, text, in_key in strings(value):
            if in_key:
                continue
            dotted = ".".join(part for part in path if isinstance(part, str))
            if params.under and dotted != params.under and not dotted.startswith(f"{params.under}."):
                continue
            if dotted and not _permitted(dotted, params.fields):
                names.add(dotted)
                redactions.append(Redaction(path=path, start=0, end=len(text), replacement=""))
        if not names:
            return None
        shown = sorted(names)
        listed = ", ".join(shown[:5]) + (" and others" if len(shown) > 5 else "")
        return Breach(
            reason=f"fields that are not on the list: {listed}",
            facts={"fields": shown[:50]},
            redactions=tuple(redactions),
        )


def _permitted(dotted: str, fields: tuple[str, ...]) -> bool:
    return any(
        dotted == field or dotted.startswith(f"{field}.") or ("*" in field and fnmatch.fnmatchcase(dotted, field))
        for field in fields
    )


class PseudonymiseParams(ContentParams):
    """Parameters of pseudonymise."""

    types: tuple[Kind, ...] = Field(
        default=("EMAIL_ADDRESS", "PHONE_NUMBER", "US_SSN", "IBAN_CODE", "CREDIT_CARD"),
        min_length=1,
        description="which types of personal data",
    )


class Pseudonymise(ContentCategory):
    """Personal data replaced by tokens that stay the same."""

    name = "pseudonymise"
    family = "personal"
    summary = "Replaces personal data by tokens that are the same each time for one tenant and mean nothing elsewhere."
    params = PseudonymiseParams
    verdicts = (Outcome.REDACT, Outcome.WARN)
    default_gates = ("llm",)
    controls = ("gdpr:Art.4(5)", "gdpr:Art.32(1)(a)", "hipaa:164.514(c)")
    example = """\
id: pseudonyms-for-models
category: pseudonymise
gates: [llm]
with: {types: [EMAIL_ADDRESS, IBAN_CODE]}
"""

    def check(self, params: Any) -> None:
        """Types that are not known find nothing."""
        unknown = sorted(set(params.types) - set(PII))
        if unknown:
            raise ValueError(f"types: nothing finds {unknown[0]}; there are {', '.join(PII)}")

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for personal data and name a token for each."""
        placed = scan_value(value, rule.params.types)
        if not placed:
            return None
        breach = objection(placed, rule, "personal data", style="label")
        if breach is None or breach.outcome is not None:
            return breach
        redactions = tuple(
            msgspec.structs.replace(one, pseudonym=item.found.type)
            for one, item in zip(breach.redactions, placed, strict=True)
        )
        return msgspec.structs.replace(breach, redactions=redactions)


class DictionaryMatchParams(ContentParams):
    """Parameters of dictionary_match."""

    words: tuple[Annotated[str, StringConstraints(min_length=2, max_length=256)], ...] = Field(
        min_length=1, max_length=100_000, description="words and phrases; white space counts as one space"
    )
    whole: bool = Field(default=True, description="only whole words: a longer word that holds one does not count")
    case_sensitive: bool = Field(default=False, description="whether capitals must match")


class DictionaryMatch(ContentCategory):
    """The operator's own list."""

    name = "dictionary_match"
    family = "personal"
    summary = (
        "Replaces or refuses words of a list (customers, projects, drugs): all of them in one pass (Aho-Corasick)."
    )
    params = DictionaryMatchParams
    verdicts = REDACT
    controls = ("soc2:C1.1", "gdpr:Art.25", "hipaa:164.514(b)")
    example = """\
id: secret-projects
category: dictionary_match
gates: [llm, http]
with: {words: [Project Nightjar, Bluebird]}
on_breach: deny
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for the words."""
        params = rule.params
        book = _dictionary(params.words, params.whole, params.case_sensitive)
        redactions, fixed = [], False
        for path, text, in_key in strings(value):
            for start, end in book.find(text):
                fixed = fixed or in_key
                redactions.append(Redaction(path=path, start=start, end=end, replacement="[LISTED]"))
        if not redactions:
            return None
        return Breach(
            reason=f"{len(redactions)} words of the list",
            facts={"found": len(redactions)},
            outcome=Outcome.DENY if fixed and rule.on_breach is Outcome.REDACT else None,
            redactions=tuple(redactions),
        )


@functools.lru_cache(maxsize=64)
def _dictionary(words: tuple[str, ...], whole: bool, case_sensitive: bool) -> Dictionary:
    return Dictionary(words, whole=whole, case_sensitive=case_sensitive)
