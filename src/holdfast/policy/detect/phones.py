"""Telephone numbers: the shapes that countries write, the numbering plans behind ``+``, and the words around them.

A national number without its country is only a few groups of digits. It counts as a telephone number when its form
is one that is used for little else, or when the nearest telling word before it speaks of telephones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from holdfast.policy.detect.found import Found

_CANDIDATE = re.compile(
    r"(?<![\w.,])(?:\+\s?)?\(?\d[\d .\-()/]{4,20}\d(?:\s?(?:x|ext\.?|extension)\s?\d{1,6})?(?![\w%]|[.,]\d)",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])|"
    r"(?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:19|20)?\d\d|"
    r"(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d)(?!\d)"
)
_NEAR = re.compile(
    r"(?i)\b(?:(?P<yes>(?:tele)?phone|tel|mobile|cell(?:ular|phone)?|fax|call(?:s|ed|ing|back)?|text(?:s|ed|ing)?|sms|"
    r"dial(?:led|ing)?|ring|whats ?app|signal|hot ?line|help ?line|voice ?mail|contact|reach(?:able)?|answer(?:ing|s)?|"
    r"messages?|landline|pager|phone number|telefono?|t[eé]l[eé]fono|t[eé]l[eé]phone|t[eé]l|handy|m[oó]vil|celular|"
    r"portable|cellulare|rufnummer|(?:desk|office|home|work|direct|reception)(?= ?(?:line|number|phone)?:))|"
    r"(?P<no>order|invoice|account|acct|iban|card|ref(?:erence)?|ticket|case|policy|serial|isbn|tracking|zip|"
    r"licen[cs]e|passport|ssn|security|id|sku|part|version|amount|total|price|balance|cost|date|born|coordinates|"
    r"lat|lon|page|row|line|port|pid|timestamp|epoch|bytes?|size))\b|(?P<cjk>电话|手机|電話|携帯|전화)"
)
_NANP = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}")
_AFTER = re.compile(r"(?i)\s{0,2}[(\[,]?\s?(?:mobile|cell|tel|fax|phone|office|home|landline|whatsapp|work)\b")
_REGIONS = ("GB", "DE", "FR", "IT", "ES", "NL", "BE", "CH", "AT", "SE", "AU", "JP", "IE", "NZ", "DK", "PL")
_REACH = 48


def phones(text: str, start: int, end: int, taken: list[Found]) -> Iterator[Found]:
    """Telephone numbers within a run of digits and separators, beside what is something else already."""
    at = start
    busy = _merged(taken)
    while at < end:
        match = _CANDIDATE.search(text, at, min(len(text), end + 14))
        if match is None or match.start() >= end:
            return
        first, last = match.span()
        at = last
        for date in _DATE.finditer(text, first, last):
            # A date beside a number parts the two.
            if date.start() - first >= 7:
                last = at = date.start()
                break
            first = date.end()
        piece = text[first:last]
        first += len(piece) - len(piece.lstrip(" .-/"))
        last = first + len(piece.strip(" .-/"))
        while busy and busy[-1][1] <= first:
            busy.pop()
        if last - first < 7 or (busy and busy[-1][0] < last):
            continue
        # Within the run there are no words: what stands deep in it has none near.
        confidence = _weigh(text, first, last, words=first - start < _REACH)
        if confidence:
            yield Found("PHONE_NUMBER", first, last, confidence)


def _merged(taken: list[Found]) -> list[tuple[int, int]]:
    """What is taken, as stretches that do not overlap, the last one first."""
    found: list[tuple[int, int]] = []
    for one in sorted(taken, key=lambda one: one.start):
        if found and one.start < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], one.end))
        else:
            found.append((one.start, one.end))
    found.reverse()
    return found


def _weigh(text: str, start: int, end: int, *, words: bool = True) -> float:
    whole = text[start:end]
    piece = re.split(r"(?i)\s?(?:x|e)", whole, maxsplit=1)[0]
    groups = re.findall(r"\d+", piece)
    sizes = [len(group) for group in groups]
    size = sum(sizes)
    if not 7 <= size <= 15 or piece.count("(") != piece.count(")"):
        return 0.0
    if text[start - 1 : start] in {"$", "€", "£", "#", "¥"}:
        return 0.0
    near = (_near(text, start) if words else 0) or int(_AFTER.match(text, end) is not None)
    if piece.startswith("+"):
        return _international(piece, near)
    if _NANP.fullmatch(piece):
        return 0.4 if near < 0 else 0.85
    if near > 0:
        return 0.75 if len(groups) > 1 or size >= 9 else 0.65
    if near < 0 or len(groups) < 2 or re.fullmatch(r"\d+\.\d+", piece):
        return 0.0
    if piece.startswith(("00", "(0")) or (piece[0] == "0" and size >= 9):
        return 0.6 if _national(piece) else 0.0
    if 8 <= size <= 12 and sizes != [5, 4] and _alone(text, start, end):
        return 0.55
    return 0.0


def _alone(text: str, start: int, end: int) -> bool:
    """Whether nothing else stands on its line, as on cards and below letters."""
    before = text.rfind("\n", max(0, start - 16), start)
    after = text.find("\n", end, end + 16)
    if before < 0 or (after < 0 and len(text) - end > 16):
        return False
    return not text[before + 1 : start].strip() and not text[end : after if after >= 0 else len(text)].strip()


def _near(text: str, start: int) -> int:
    """1 when the nearest telling word before is about telephones, -1 when it is about another kind of number."""
    verdict = 0
    for match in _NEAR.finditer(text, max(0, start - _REACH), start):
        verdict = -1 if match.lastgroup == "no" else 1
    return verdict


def _international(piece: str, near: int) -> float:
    known = _planned(re.sub(r"[^\d+]", "", piece.replace("(0)", "")))
    if known == 2:
        return 0.95
    if known == 1:
        return 0.8 if near > 0 else 0.6
    return 0.6 if near > 0 else 0.0


@functools.lru_cache(maxsize=4096)
def _planned(number: str) -> int:
    """2: its country assigns such numbers; 1: only its length is right; 0: neither."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, None)
    except phonenumbers.NumberParseException:
        return 0
    return 2 if phonenumbers.is_valid_number(parsed) else int(phonenumbers.is_possible_number(parsed))


@functools.lru_cache(maxsize=4096)
def _national(piece: str) -> bool:
    import phonenumbers

    if piece.startswith("00"):
        try:
            return phonenumbers.is_possible_number(phonenumbers.parse("+" + piece[2:], None))
        except phonenumbers.NumberParseException:
            return False
    for region in _REGIONS:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(piece, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
