"""Redaction: what stands in place of a finding, and putting it there.

A replacement keeps as much of the form as its rule allows, so that what reads the text afterwards still parses it: a
card keeps its issuer number and its last four digits (PCI DSS 3.4.1), separators stay where they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.action import Redaction, Verdict
from holdfast.policy.pseudonyms import Pseudonyms

STAR = "*"


def mask(text: str, *, first: int = 0, last: int = 0) -> str:
    """The text with its letters and digits starred, but for so many of the first and last of them."""
    size = sum(char.isalnum() for char in text)
    if first + last >= size:
        first = last = 0
    result, seen = [], 0
    for char in text:
        if char.isalnum():
            seen += 1
            result.append(char if seen <= first or seen > size - last else STAR)
        else:
            result.append(char)
    return "".join(result)


def replacement(kind: str, text: str, *, hidden: bool = False, style: str = "mask") -> str:
    """What stands in place of a finding.

    Args:
        kind: its type.
        text: the stretch.
        hidden: whether it was found behind an encoding, so that the stretch is not the value itself.
        style: ``mask`` keeps the form; ``label`` is the type's name in brackets; ``remove`` is nothing.
    """
    if style == "remove":
        return ""
    if style == "label" or hidden or kind in ("SECRET", "PROMPT_INJECTION"):
        return f"[{kind}]"
    if kind == "CREDIT_CARD":
        return mask(text, first=6, last=4)
    if kind == "EMAIL_ADDRESS":
        name, _, domain = text.rpartition("@")
        return f"{mask(name, first=1)}@{domain}"
    if kind == "IBAN_CODE":
        return mask(text, first=2, last=4)
    if kind in ("US_SSN", "PHONE_NUMBER"):
        return mask(text, last=4)
    return mask(text)


def apply(value: Any, redactions: Verdict | Iterable[Redaction], pseudonyms: Pseudonyms | None = None) -> Any:
    """The value with every redaction done; what is not touched is shared with the original, which stays as it is.

    Args:
        value: the arguments of an action, a result, or a text.
        pseudonyms: makes those that are asked for; None: the type's name stands there.
        redactions: those of a verdict. Where two overlap, both stretches go and the first replacement stands.

    Raises:
        ValueError: a path leads to no text: the value is not the one that was decided on, and must not be used.
    """
    items = redactions.redactions if isinstance(redactions, Verdict) else tuple(redactions)
    places: dict[tuple[str | int, ...], list[Redaction]] = {}
    for item in items:
        places.setdefault(item.path, []).append(item)
    for path, found in places.items():
        value = _at(value, path, found, pseudonyms)
    return value


def _at(value: Any, path: tuple[str | int, ...], found: Sequence[Redaction], pseudonyms: Pseudonyms | None) -> Any:
    if not path:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("a redaction leads to something that is no text")
        return _text(value if isinstance(value, str) else plain(value), found, pseudonyms)
    key, rest = path[0], path[1:]
    try:
        inner = _at(value[key], rest, found, pseudonyms)
    except (KeyError, IndexError, TypeError):
        raise ValueError("a redaction leads to a place that the value does not have") from None
    if isinstance(value, dict):
        return {**value, key: inner}
    if isinstance(value, list | tuple) and isinstance(key, int):
        return [*value[:key], inner, *value[key + 1 :]]
    return {**dict(value), key: inner}


def plain(number: float) -> str:
    """The digits that a number is scanned as."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _text(text: str, found: Sequence[Redaction], pseudonyms: Pseudonyms | None) -> str:
    parts, at = [], 0
    for item in sorted(found, key=lambda item: (item.start, -item.end)):
        if not 0 <= item.start <= item.end <= len(text):
            raise ValueError("a redaction lies outside its text")
        if item.start >= at:
            token = (
                pseudonyms.token(item.pseudonym, text[item.start : item.end]) if pseudonyms and item.pseudonym else ""
            )
            parts += [text[at : item.start], token or item.replacement]
        at = max(at, item.end)
    return "".join([*parts, text[at:]])
