"""``scan``: everything in a text that looks like personal data, a secret or an injected instruction.

One automaton passes over the whole text, whatever its length; detectors look only where it fired, and each finding has
passed a check of its own (Luhn, MOD 97, number plans, structure). Encoded stretches are decoded and scanned as well;
what cannot be decoded is listed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from holdfast.policy.detect import cards, decode, gate, identifiers, injection, phones, secrets
from holdfast.policy.detect.found import Blob, Found
from holdfast.policy.redact import plain

THRESHOLD = 0.5
"""Findings below this confidence are left out."""

PII = (
    "CREDIT_CARD",
    "IBAN_CODE",
    "US_SSN",
    "PHONE_NUMBER",
    "EMAIL_ADDRESS",
    "IP_ADDRESS",
    "UK_NHS",
    "IN_AADHAAR",
    "CA_SIN",
    "ES_NIF",
    "IT_FISCAL_CODE",
    "DE_TAX_ID",
    "NL_BSN",
    "FR_NIR",
    "PL_PESEL",
    "BR_CPF",
    "US_NPI",
    "MEDICAL_RECORD",
    "PASSPORT",
    "DRIVER_LICENSE",
    "DATE_OF_BIRTH",
)
"""Types of personal data."""
TYPES = (*PII, "SECRET", "PROMPT_INJECTION")
"""Every type that there is."""

_SIMPLE = {
    gate.EMAIL: identifiers.emails,
    gate.IP6: identifiers.ip6,
    gate.IBAN: identifiers.ibans,
    gate.NAMED: secrets.issued,
    gate.BLOCK: secrets.blocks,
    gate.KEYED: secrets.keyed,
    gate.LABELLED: identifiers.labelled,
    gate.LOGIN: secrets.logins,
}
_WHOLE = frozenset({gate.IBAN, gate.NAMED})
_RUN = frozenset("0123456789 .-()/+")
_BARE = 7
"""Length of a trigger of digits without a separator among them."""
_CODE = 16
"""Length from which a token may be code."""
_DIGITS = re.compile(r"\d(?:[ .\-/()]{0,3}\d){6}")


class Scan(msgspec.Struct, frozen=True, gc=False):
    """What was found in a text."""

    findings: tuple[Found, ...]
    """In order; stretches of one kind of finding do not overlap."""
    decoded: tuple[Blob, ...] = ()
    """Encoded stretches that were read as well."""
    opaque: tuple[Blob, ...] = ()
    """Encoded stretches that could not be read: what they hold is unknown."""


_NOTHING = Scan(())


def scan(text: str, types: Collection[str] | None = None, *, threshold: float = THRESHOLD) -> Scan:
    """Scan a text.

    Args:
        types: which types of finding; None: all.
        threshold: the least confidence.
    """
    found, decoded, opaque = _scan(text, decode.Budget(), 0)
    if not found and not decoded and not opaque:
        return _NOTHING
    kept = [one for one in found if one.confidence >= threshold and (types is None or one.type in types)]
    return Scan(tuple(_settle(kept)), tuple(decoded), tuple(opaque))


class Placed(msgspec.Struct, frozen=True):
    """A finding in a value."""

    path: tuple[str | int, ...]
    """Keys and indexes that lead to the text."""
    text: str
    """The stretch itself."""
    found: Found
    in_key: bool = False
    """It stands in the key at the end of the path, which nothing can replace."""


def strings(value: Any) -> Iterator[tuple[tuple[str | int, ...], str, bool]]:
    """Every text in a value, in order: the keys and indexes that lead to it, the text, whether it is a key itself.

    A whole number counts as its digits: a card number that was written as a number is one all the same.
    """
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str):
            yield path, item, False
        elif isinstance(item, Mapping):
            for key in item:
                if isinstance(key, str):
                    yield (*path, key), key, True
            stack += [((*path, key), inner) for key, inner in reversed(list(item.items()))]
        elif isinstance(item, list | tuple):
            stack += [((*path, index), item[index]) for index in range(len(item) - 1, -1, -1)]
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield path, plain(item), False


def scan_value(value: Any, types: Collection[str] | None = None, *, threshold: float = THRESHOLD) -> tuple[Placed, ...]:
    """Scan every text in a value. The key that a text stands under counts as the words before it."""
    placed = []
    for path, text, in_key in strings(value):
        if len(text) < _SHORTEST:
            continue
        key = path[-1] if path and not in_key else None
        prefix = f"{key}: " if isinstance(key, str) and len(key) <= _MAX_KEY else ""
        for one in _read(prefix + text):
            if one.end <= len(prefix) or one.confidence < threshold or (types is not None and one.type not in types):
                continue
            start, end = max(0, one.start - len(prefix)), one.end - len(prefix)
            placed.append(Placed(path, text[start:end], msgspec.structs.replace(one, start=start, end=end), in_key))
    return tuple(placed)


def read_ahead(value: Any) -> None:
    """Scan a value now, so that rules that look at it in a moment find it done: for a thread of its own."""
    scan_value(value)


LARGE = 65_536
"""Code points above which a text is worth a thread of its own: hostile text costs up to 10 µs a character."""
_SHORTEST = 4
"""Code points below which a text holds nothing that any detector knows."""
_MAX_KEY = 64


def _read(text: str) -> tuple[Found, ...]:
    return _remembered(text) if len(text) <= LARGE else _remembered_large(text)


@functools.lru_cache(maxsize=256)
def _remembered(text: str) -> tuple[Found, ...]:
    # Several rules look at one action; each text is scanned once for all of them.
    return scan(text, threshold=0.0).findings


@functools.lru_cache(maxsize=8)
def _remembered_large(text: str) -> tuple[Found, ...]:
    return scan(text, threshold=0.0).findings


def readings(text: str) -> Iterator[str]:
    """A text in every way in which it can be read: as it stands, unescaped, folded, and what its codes decode to."""
    budget = decode.Budget()
    stack = [(text, 0)]
    seen = set()
    while stack:
        current, depth = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        if depth >= decode.MAX_DEPTH:
            continue
        for folded in (decode.unescape(current), decode.fold(current)):
            if folded is not None and budget.take(len(folded[0])):
                stack.append((folded[0], depth + 1))
        done = 0
        for kind, start, end in gate.spots(current):
            if kind == gate.TOKEN and start >= done:
                first, done = decode.token(current, start, end)
                value = current[first:done]
                for low, high in ((0, len(value)), *decode.parts(value)):
                    opened = decode.open_token(value[low:high], budget)
                    if opened is not None and opened[0]:
                        stack.append((opened[0], depth + 1))
                        break


def _scan(text: str, budget: decode.Budget, depth: int) -> tuple[list[Found], list[Blob], list[Blob]]:
    found: list[Found] = []
    decoded: list[Blob] = []
    opaque: list[Blob] = []
    seen = dict.fromkeys((gate.NUMBER, gate.TOKEN, gate.ORDER), 0)
    escaped = False
    for kind, start, end in gate.spots(text):
        simple = _SIMPLE.get(kind)
        if simple is not None:
            known = list(simple(text, start, end))
            found += known
            if known and kind in _WHOLE:
                # What is known as a whole is not taken apart again.
                seen[gate.NUMBER] = max(seen[gate.NUMBER], known[-1].end)
                seen[gate.TOKEN] = max(seen[gate.TOKEN], known[-1].end)
        elif kind in (gate.NUMBER, gate.IP4):
            addresses = list(identifiers.ip4(text, start, end)) if kind == gate.IP4 else []
            if addresses:
                found += addresses
                seen[gate.NUMBER] = max(seen[gate.NUMBER], addresses[0].end)
            elif start >= seen[gate.NUMBER]:
                seen[gate.NUMBER] = _numbers(text, start, end, found)
            # Hexadecimal and base64 may begin with digits, or be hardly anything else.
            if end - start == _BARE and start >= seen[gate.TOKEN]:
                first, last = decode.token(text, start, end)
                if last - first >= _CODE:
                    seen[gate.TOKEN] = last
                    _token(text, first, last, budget, depth, (found, decoded, opaque))
        elif kind == gate.ORDER:
            if start >= seen[gate.ORDER]:
                more, seen[gate.ORDER] = injection.injections(text, start, end)
                found += more
        elif kind == gate.TOKEN:
            if start >= seen[gate.TOKEN]:
                first, last = decode.token(text, start, end)
                seen[gate.TOKEN] = last
                _token(text, first, last, budget, depth, (found, decoded, opaque))
        elif kind == gate.ESCAPED:
            escaped = True
    if escaped and depth < decode.MAX_DEPTH:
        _reading(decode.unescape(text), "escape", len(text), budget, depth, (found, decoded, opaque))
    if depth < decode.MAX_DEPTH and not text.isascii():
        _reading(decode.fold(text), "unicode", len(text), budget, depth, (found, decoded, opaque))
    return found, decoded, opaque


def _numbers(text: str, start: int, end: int, found: list[Found]) -> int:
    """Cards, social security and telephone numbers in the run of digits around a stretch; gives the run's end."""
    size = len(text)
    first, last = start, end
    while first and text[first - 1] in _RUN and start - first < 24:
        first -= 1
    while last < size and text[last] in _RUN:
        last += 1
    taken = [one for one in found[-8:] if one.start < last and first < one.end]
    new = list(cards.cards(text, first, last))
    new += identifiers.ssns(text, first, last)
    found += new
    if not new or len(text[first:last].strip()) - (new[-1].end - new[0].start) >= _BARE:
        found += phones.phones(text, first, last, taken + new)
    return last


_Into = tuple[list[Found], list[Blob], list[Blob]]


def _token(text: str, start: int, end: int, budget: decode.Budget, depth: int, into: _Into) -> None:
    value = text[start:end]
    result = decode.open_token(value, budget)
    found, decoded, opaque = into
    if result is None or not result[0]:
        for first, last in decode.parts(value):
            other = decode.open_token(value[first:last], budget)
            if other is not None and other[0]:
                result, start, end = other, start + first, start + last
                break
    if result is None:
        _inside(text, start, end, found)
        return
    plain, how = result
    if plain and depth >= decode.MAX_DEPTH:
        plain, how = "", f"{how}: nested deeper than {decode.MAX_DEPTH}"
    if not plain:
        opaque.append(Blob(start, end, how))
        found += secrets.random_tokens(text, start, end)
        return
    decoded.append(Blob(start, end, how))
    inner, _, hidden = _scan(plain, budget, depth + 1)
    found += [Found(one.type, start, end, one.confidence, f"{how}>{one.via}" if one.via else how) for one in inner]
    opaque += [Blob(start, end, f"{how}>{blob.how}") for blob in hidden]


def _inside(text: str, start: int, end: int, found: list[Found]) -> None:
    """What a token that is no code holds: it hid its own triggers from the automaton."""
    found += secrets.random_tokens(text, start, end)
    for match in secrets.TELLING.finditer(text, start, end):
        found += secrets.keyed(text, *match.span()) if match.lastindex == 1 else secrets.issued(text, *match.span())
    run = _DIGITS.search(text, start, end)
    while run is not None:
        run = _DIGITS.search(text, max(run.end(), _numbers(text, *run.span(), found)), end)


def _reading(folded: decode.Folded | None, how: str, size: int, budget: decode.Budget, depth: int, into: _Into) -> None:
    if folded is None:
        return
    found, _, opaque = into
    plain, place = folded
    if not budget.take(len(plain)):
        opaque.append(Blob(0, size, f"{how}: more than {decode.MAX_BYTES} bytes to decode"))
        return
    inner, _, hidden = _scan(plain, budget, depth + 1)
    for one in inner:
        start, end = place(one.start, one.end)
        if not any(old.type == one.type and old.start < end and start < old.end for old in found):
            found.append(Found(one.type, start, end, one.confidence, f"{how}>{one.via}" if one.via else how))
    opaque += [Blob(*place(blob.start, blob.end), f"{how}>{blob.how}") for blob in hidden]


def _settle(found: list[Found]) -> list[Found]:
    """Of findings that overlap the surest stays; orders to a model stand beside everything else."""
    kept: list[Found] = []
    for order in (False, True):
        last: list[Found] = []
        some = [one for one in found if (one.type == "PROMPT_INJECTION") is order]
        for one in sorted(some, key=lambda one: (one.start, -one.confidence, -one.end)):
            if last and one.start < last[-1].end:
                if one.confidence > last[-1].confidence:
                    last[-1] = one
                continue
            last.append(one)
        kept += last
    return sorted(kept, key=lambda one: (one.start, one.end, one.type))
