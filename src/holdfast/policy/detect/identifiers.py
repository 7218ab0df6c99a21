"""E-mail and network addresses, bank accounts, and numbers that states and hospitals give to people."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from holdfast.policy.detect.found import Found

# Letters of European alphabets count as well (RFC 6531); those of scripts without spaces would run into the text.
_LETTERS = "A-Za-z0-9\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff"
_LOCAL = re.compile(rf"[{_LETTERS}.!#$%&'*+/=?^_`{{|}}~\-]{{1,64}}$")
_DOMAIN = re.compile(
    rf"@(?:[{_LETTERS}](?:[{_LETTERS}-]{{0,61}}[{_LETTERS}])?\.)+[{_LETTERS[:6]}{_LETTERS[9:]}]{{2,24}}(?![{_LETTERS}-])"
)
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_VERSION = re.compile(r"(?i)(?:\bv|version|release|build)[ :=]*$")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ .-]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![\w-])(\d{3})([- ])(\d{2})\2(\d{4})(?![\w]|-\d)")
_SSN_WORD = re.compile(r"(?i)\bssn\b|social security|soc\.? sec")
_NINE = re.compile(r"(?<![\w-])(\d{3})(\d{2})(\d{4})(?![\w-])")
_REACH = 64

_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
    "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 "
    "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 "
    "NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 "
    "SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}
"""Length of an IBAN by country (the registry that SWIFT keeps for ISO 13616)."""


def emails(text: str, start: int, end: int) -> Iterator[Found]:
    """An e-mail address (the common part of RFC 5322 and RFC 6531) whose ``@`` is at ``start``."""
    domain = _DOMAIN.match(text, start, min(len(text), start + 255))
    local = _LOCAL.search(text[max(0, start - 64) : start])
    if domain is None or local is None:
        return
    name = local[0].lstrip("./'`*{=&?|")
    if not name or name.endswith(".") or ".." in name:
        return
    yield Found("EMAIL_ADDRESS", start - len(name), domain.end(), 0.95)


def ip4(text: str, start: int, end: int) -> Iterator[Found]:
    """Dotted quads."""
    match = _IP4.search(text, start, min(len(text), end + 3))
    if match is None or any(int(part) > 255 for part in match[0].split(".")):
        return
    doubtful = _VERSION.search(text[max(0, match.start() - 12) : match.start()])
    yield Found("IP_ADDRESS", *match.span(), 0.4 if doubtful else 0.95)


def ip6(text: str, start: int, end: int) -> Iterator[Found]:
    """IPv6 addresses (RFC 4291)."""
    match = _IP6.search(text, max(0, start - 40), min(len(text), end + 60))
    while match is not None and match.end() <= start:
        match = _IP6.search(text, match.end() + 1, min(len(text), end + 60))
    if match is None or match.start() > end:
        return
    value = match[0].rstrip(":") if match[0].count("::") == 0 else match[0]
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return
    digits = sum(char not in ":." for char in value)
    yield Found("IP_ADDRESS", match.start(), match.start() + len(value), 0.95 if digits >= 6 else 0.6)


def ibans(text: str, start: int, end: int) -> Iterator[Found]:
    """Account numbers of ISO 13616 with a right length and check digits (ISO 7064, MOD 97-10)."""
    size = IBAN_LENGTHS.get(text[start : start + 2].upper())
    match = _IBAN.match(text, start, min(len(text), start + 64)) if size else None
    if match is None or size is None:
        return
    kept, last = [], start
    for index in range(start, match.end()):
        if text[index].isalnum():
            kept.append(text[index])
            last = index + 1
            if len(kept) == size:
                break
    if len(kept) != size or text[last : last + 1].isalnum():
        return
    number = "".join(kept[4:] + kept[:4]).upper()
    if int("".join(str(int(char, 36)) for char in number)) % 97 == 1:
        yield Found("IBAN_CODE", start, last, 0.98)


def ssns(text: str, start: int, end: int) -> Iterator[Found]:
    """US social security numbers: no area 000, 666 or 9xx, no group 00, no serial 0000 (SSA, since 2011)."""
    match = _SSN.search(text, start, end)
    if match is not None:
        if _ssn(match[1], match[3], match[4]):
            near = _SSN_WORD.search(text, max(0, match.start() - _REACH), match.start())
            confidence = 0.98 if near else 0.85 if match[2] == "-" else 0.5
            yield Found("US_SSN", *match.span(), confidence)
        return
    match = _NINE.search(text, start, end)
    if (
        match is not None
        and _ssn(*match.groups())
        and _SSN_WORD.search(text, max(0, match.start() - _REACH), match.start())
    ):
        yield Found("US_SSN", *match.span(), 0.8)


def _ssn(area: str, group: str, serial: str) -> bool:
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


_LABELLED: tuple[tuple[str, str, str, str], ...] = (
    # words, form of the number, type, module of python-stdnum that checks it
    (r"nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "UK_NHS", "gb.nhs"),
    (r"aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", "IN_AADHAAR", "in_.aadhaar"),
    (r"sin|social insurance", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "CA_SIN", "ca.sin"),
    (r"nif|dni", r"[XYZ]?\d{7,8}-?[A-Z]", "ES_NIF", "es.nif"),
    (r"codice fiscale", r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]", "IT_FISCAL_CODE", "it.codicefiscale"),
    (r"steuer-?id", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "DE_TAX_ID", "de.idnr"),
    (r"bsn", r"\d{4}\.?\d{2}\.?\d{3}", "NL_BSN", "nl.bsn"),
    (r"insee", r"\d(?: ?\d{2}){3}(?: ?\d{3}){2} ?\d{2}", "FR_NIR", "fr.nir"),
    (r"pesel", r"\d{11}", "PL_PESEL", "pl.pesel"),
    (r"cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", "BR_CPF", "br.cpf"),
    (r"npi", r"[12]\d{9}", "US_NPI", ""),
    (r"mrn|medical record", r"(?=[A-Z0-9-]*\d{4})[A-Z0-9][A-Z0-9-]{4,14}", "MEDICAL_RECORD", ""),
    (r"passport", r"(?=[A-Z0-9]*\d{5})[A-Z]{0,3}\d{5,9}[A-Z]?", "PASSPORT", ""),
    (r"driver'?s? licen[cs]e", r"(?=[A-Z0-9-]*\d{4})[A-Z0-9][A-Z0-9-]{5,19}", "DRIVER_LICENSE", ""),
    (
        r"date of birth|dob|born on",
        r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2} [A-Za-z]{3,9} \d{4}|[A-Za-z]{3,9} \d{1,2},? \d{4}",
        "DATE_OF_BIRTH",
        "",
    ),
)
_RULES = tuple(
    (
        re.compile(rf"(?:{words})\b", re.IGNORECASE),
        re.compile(rf"(?<![A-Za-z0-9])(?:{form})(?![A-Za-z0-9])", re.IGNORECASE if module else 0),
        kind,
        module,
    )
    for words, form, kind, module in _LABELLED
)


def labelled(text: str, start: int, end: int) -> Iterator[Found]:
    """A number that the word at ``start`` names, within the next few words, with its check digits where it has any."""
    for words, form, kind, module in _RULES:
        if words.match(text, start) is None:
            continue
        match = form.search(text, end, min(len(text), end + 48))
        if match is not None and (not module or _valid(module, match[0])):
            yield Found(kind, *match.span(), 0.9 if module else 0.7)


def _valid(module: str, value: str) -> bool:
    import importlib

    return bool(importlib.import_module(f"stdnum.{module}").is_valid(value.upper()))
