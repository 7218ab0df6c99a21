"""Account data of payment cards (PCI DSS 4.0, requirement 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from pydantic import Field

from holdfast.action import Action, Facts, Outcome, Redaction
from holdfast.policy.categories.base import Breach, Finding, Rule
from holdfast.policy.categories.content import REDACT, ContentCategory, ContentParams, objection
from holdfast.policy.redact import mask
from holdfast.policy.scan import scan_value, strings


class PanGuardParams(ContentParams):
    """Parameters of pan_guard."""

    keep: Literal["first6_last4", "last4", "nothing"] = Field(
        default="first6_last4", description="digits that stay readable: at most the issuer number and the last four"
    )
    threshold: float = Field(default=0.5, ge=0.1, le=1, description="the least confidence of a finding")


class PanGuard(ContentCategory):
    """Primary account numbers."""

    name = "pan_guard"
    family = "personal"
    summary = "Masks or refuses card numbers that pass the Luhn check and lie in an issuer's range, also when encoded."
    params = PanGuardParams
    verdicts = REDACT
    controls = ("pci-dss:3.4.1", "pci-dss:3.5.1", "pci-dss:4.2.2")
    example = """\
id: mask-cards
category: pan_guard
gates: [llm, tool, output]
with: {keep: first6_last4}
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for cards."""
        placed = scan_value(value, ("CREDIT_CARD",), threshold=rule.params.threshold)
        breach = objection(placed, rule, "card numbers")
        if breach is None or rule.params.keep == "first6_last4":
            return breach
        last = 4 if rule.params.keep == "last4" else 0
        redactions = tuple(
            one if item.found.via else msgspec.structs.replace(one, replacement=mask(item.text, last=last))
            for one, item in zip(breach.redactions, placed, strict=False)
        )
        return msgspec.structs.replace(breach, redactions=redactions)


_TRACK1 = re.compile(r"%?B\d{12,19}\^[^^\n]{2,26}\^\d{4}[^\n?]{0,80}\??")
_TRACK2 = re.compile(r"(?<!\d);?\d{12,19}[=D]\d{4}\d{3}\d{0,20}\??(?![\w])")
_CODE = re.compile(
    r"(?i)(?<![A-Za-z0-9])(?:cvv2?|cvc2?|cid|csc|cav2?|card (?:verification|security) (?:value|code|number)|"
    r"security code)(?![A-Za-z0-9])[\s\"':=#(is]{1,12}(\d{3,4})(?!\d)"
)
_PIN = re.compile(
    r"(?i)(?<![A-Za-z0-9])(?:card )?pin(?:[ _]?(?:code|block|number))?[\s\"':=#(is]{1,12}(\d{4,6}|[0-9A-F]{16})(?![\w])"
)
_CODE_KEY = re.compile(r"(?i)^(?:card)?[_-]?(?:cvv2?|cvc2?|cid|csc|security[_-]?code|verification[_-]?(?:value|code))$")
_PIN_KEY = re.compile(r"(?i)^(?:card)?[_-]?pin(?:[_-]?(?:block|code))?$")


class SadBlockParams(ContentParams):
    """Parameters of sad_block."""

    pins: bool = Field(default=True, description="whether PINs and PIN blocks count, beside codes and tracks")


class SadBlock(ContentCategory):
    """Sensitive authentication data, which nobody may keep."""

    name = "sad_block"
    family = "personal"
    summary = "Refuses verification codes, magnetic-stripe tracks and PINs of cards, wherever they would go."
    params = SadBlockParams
    verdicts = (Outcome.DENY, Outcome.REDACT, Outcome.WARN, Outcome.TERMINATE)
    controls = ("pci-dss:3.3.1", "pci-dss:3.3.1.1", "pci-dss:3.3.1.2", "pci-dss:3.3.1.3")
    example = """\
id: no-verification-codes
category: sad_block
with: {pins: true}
"""

    def look(self, value: Any, action: Action, facts: Facts, rule: Rule) -> Finding:
        """Look for codes, tracks and PINs."""
        redactions, kinds, fixed = [], set(), False
        for path, text, in_key in strings(value):
            for kind, start, end in _sensitive(path, text, in_key, pins=rule.params.pins):
                kinds.add(kind)
                fixed = fixed or in_key
                redactions.append(Redaction(path=path, start=start, end=end, replacement=f"[{kind}]"))
        if not kinds:
            return None
        outcome = Outcome.DENY if fixed and rule.on_breach is Outcome.REDACT else None
        reason = f"sensitive authentication data of cards: {', '.join(sorted(kinds))}"
        return Breach(reason=reason, facts={"found": sorted(kinds)}, outcome=outcome, redactions=tuple(redactions))


def _sensitive(path: tuple[str | int, ...], text: str, in_key: bool, *, pins: bool) -> Iterator[tuple[str, int, int]]:
    key = next((part for part in reversed(path) if isinstance(part, str)), "") if not in_key else ""
    if key and re.fullmatch(r"\d{3,4}", text) and _CODE_KEY.match(key):
        yield "CODE", 0, len(text)
    if pins and key and re.fullmatch(r"\d{4,6}|[0-9A-Fa-f]{16}", text) and _PIN_KEY.match(key):
        yield "PIN", 0, len(text)
    for rule, kind, group in ((_TRACK1, "TRACK", 0), (_TRACK2, "TRACK", 0), (_CODE, "CODE", 1), (_PIN, "PIN", 1)):
        if kind != "PIN" or pins:
            for match in rule.finditer(text):
                yield kind, *match.span(group)
