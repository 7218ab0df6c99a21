"""Payment cards: issuer ranges and lengths (ISO/IEC 7812-1 and the schemes' own tables), and the Luhn digit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from holdfast.policy.detect.found import Found

_PLAIN = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLED = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
_GROUPS = re.compile(r"\d+")
_CONTEXT = re.compile(
    r"(?i)\b(?:card|cc|credit|debit|visa|master ?card|amex|american express|maestro|discover|jcb|diners|pan|karte|"
    r"tarjeta|carte|carta|cart[aã]o|kort|atm|cvv|cvc|expir(?:y|es|ation))\b|卡"
)
_GAPS = frozenset((" ", "  ", "-", " - ", ".", "/", "\u2013"))
"""What stands between the groups of a card number: the same throughout."""
_BRANDS: tuple[tuple[int, int, int, frozenset[int], float], ...] = (
    # first six digits from, to, their width, lengths, confidence without any word near it
    (4, 4, 1, frozenset({16}), 0.9),
    (4, 4, 1, frozenset({13, 19}), 0.6),
    (51, 55, 2, frozenset({16}), 0.9),
    (222100, 272099, 6, frozenset({16}), 0.85),
    (34, 34, 2, frozenset({15}), 0.9),
    (37, 37, 2, frozenset({15}), 0.9),
    (6011, 6011, 4, frozenset(range(16, 20)), 0.85),
    (644, 659, 3, frozenset(range(16, 20)), 0.85),
    (622126, 622925, 6, frozenset(range(16, 20)), 0.85),
    (3528, 3589, 4, frozenset(range(16, 20)), 0.85),
    (1800, 1800, 4, frozenset({15}), 0.6),
    (2131, 2131, 4, frozenset({15}), 0.6),
    (300, 305, 3, frozenset({14, 16}), 0.7),
    (3095, 3095, 4, frozenset({14}), 0.7),
    (36, 36, 2, frozenset({14, 16}), 0.7),
    (38, 39, 2, frozenset({14, 16}), 0.7),
    (62, 62, 2, frozenset(range(16, 20)), 0.7),
    (60, 60, 2, frozenset({16}), 0.7),
    (2200, 2204, 4, frozenset(range(16, 20)), 0.7),
    (35, 35, 2, frozenset({16}), 0.5),
    *((iin, iin, 4, frozenset(range(12, 20)), 0.55) for iin in (5018, 5020, 5038, 5612, 5893, 6304, 6390)),
    (6759, 6763, 4, frozenset(range(12, 20)), 0.55),
    (50, 50, 2, frozenset(range(12, 20)), 0.4),
    (56, 58, 2, frozenset(range(12, 20)), 0.4),
    (61, 69, 2, frozenset(range(12, 20)), 0.4),
)
_FIRST = "123456"
_REACH = 64
"""Code points before a number in which a word counts as near it."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    data = digits.encode()
    return (sum(data[-1::-2].translate(_PLAIN)) + sum(data[-2::-2].translate(_DOUBLED))) % 10 == 0


def issuer(digits: str) -> float:
    """How much a number of this range and length looks like a card; 0: no issuer has it."""
    size = len(digits)
    head = digits[:6]
    best = 0.0
    for low, high, width, lengths, confidence in _BRANDS:
        if size in lengths and low <= int(head[:width]) <= high and confidence > best:
            best = confidence
    return best


def cards(text: str, start: int, end: int) -> Iterator[Found]:
    """Card numbers within a run of digits and separators."""
    groups = [match.span() for match in _GROUPS.finditer(text, start, end)]
    index = 0
    context: bool | None = None
    while index < len(groups):
        if index and _strewn(groups[index - 1], groups[index]):
            # Single digits in a row are one number from the first on: a table of them is not tried anew at each.
            index += 1
            continue
        if text[groups[index][0]] not in _FIRST:
            index += 1
            continue
        best = None
        for last in _ends(text, groups, index):
            digits = "".join(text[a:b] for a, b in groups[index : last + 1])
            if not luhn(digits) or _inside_word(text, groups[index][0], groups[last][1]):
                continue
            if context is None:
                context = _CONTEXT.search(text, max(0, start - _REACH), min(len(text), end + 24)) is not None
            # Issuers get new ranges; where the text speaks of a card, a payment card's first digit is enough.
            confidence = issuer(digits) or (0.2 if context and digits[0] in "23456" else 0.0)
            if not confidence:
                continue
            if not context and not _regular([b - a for a, b in groups[index : last + 1]]):
                continue
            best = (last, min(0.99, confidence + (0.4 if context else 0)))
        if best is None:
            index += 1
            continue
        yield Found("CREDIT_CARD", groups[index][0], groups[best[0]][1], best[1])
        index = best[0] + 1


def _strewn(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] - one[0] == other[1] - other[0] == 1 and other[0] - one[1] == 1


def _ends(text: str, groups: list[tuple[int, int]], first: int) -> Iterator[int]:
    """Groups at which a number of 12 to 19 digits can end: one separator between any two, the same throughout."""
    size, separator = 0, ""
    for index in range(first, len(groups)):
        if index > first:
            gap = text[groups[index - 1][1] : groups[index][0]]
            if gap not in _GAPS or (separator and gap != separator):
                return
            separator = gap
        size += groups[index][1] - groups[index][0]
        if size > 19:
            return
        if size >= 12:
            yield index


def _regular(sizes: list[int]) -> bool:
    """Whether digits are grouped as on cards."""
    if len(sizes) == 1 or sizes in ([4, 6, 5], [4, 6, 4]):
        return True
    if all(size == 1 for size in sizes):
        return True
    return all(size == 4 for size in sizes[:-1]) and sizes[-1] <= 4


def _inside_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return (before.isalnum() and before.isascii()) or (after.isalnum() and after.isascii())
