"""What text hides: base64, hex, percent and backslash escapes, entities, gzip and zlib, and tricks of Unicode.

Decoding is bounded in depth and size. What is encoded and cannot be read, or not within the bounds, is reported as
such, so that a rule can refuse it: a scanner that skips what it cannot read can be talked past.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import html
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator

MAX_DEPTH = 3
MAX_BYTES = 1 << 20
"""Decoded bytes that one text may lead to."""

_TOKEN = re.compile(r"[A-Za-z0-9+/_\-]+(?:\r?\n[A-Za-z0-9+/_\-]{4,})*={0,2}")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_WORDY = re.compile(r"[a-z]{2,}|[A-Z][a-z]+|[A-Z]+")
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+|(?:\\x[0-9A-Fa-f]{2})+|(?:\\u[0-9A-Fa-f]{4})+|&#[xX]?[0-9A-Fa-f]{1,6};")
_KNOWN_BINARY = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"%PDF", "pdf"),
    (b"PK\x03\x04", "zip"),
    (b"RIFF", "riff"),
    (b"\x7fELF", "elf"),
    (b"OggS", "ogg"),
    (b"wOF", "woff"),
)
_SHORTEST = 16
"""Characters from which a token may be code."""
_OPAQUE_FROM = 48
"""Encoded bytes from which what is no text is worth a report; below it is a hash or an id."""


class Budget:
    """What may still be decoded of one text."""

    __slots__ = ("left",)

    def __init__(self, size: int = MAX_BYTES) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        """Whether so many bytes fit, counting them."""
        if size > self.left:
            return False
        self.left -= size
        return True


def token(text: str, start: int, end: int) -> tuple[int, int]:
    """The whole token of the alphabet of base64 around a stretch."""
    first = start
    while first and (text[first - 1].isalnum() or text[first - 1] in "+/_-") and text[first - 1].isascii():
        first -= 1
    match = _TOKEN.match(text, first)
    return first, match.end() if match is not None else end


def open_token(value: str, budget: Budget) -> tuple[str, str] | None:
    """What a token of base64 or hex says and how, ``("", why)`` when it is not readable; None when it is no code."""
    compact = value.replace("\r", "").replace("\n", "")
    if _HEX.fullmatch(compact):
        raw = bytes.fromhex(compact)
        found = _read(raw, "hex", budget)
        # A digest in hex is no text and nobody hides anything in it.
        return found if found is None or found[0] or len(raw) > 64 else None
    body = compact.rstrip("=")
    if len(body) < _SHORTEST or len(body) % 4 == 1 or _prose(body):
        return None
    try:
        raw = base64.b64decode(body.replace("-", "+").replace("_", "/") + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return _read(raw, "base64", budget)


_PARTS = re.compile(r"[A-Za-z0-9+]{16,}={0,2}")


def parts(value: str) -> Iterator[tuple[int, int]]:
    """Other stretches of a token that may be the code: lines, parts of a path, and what follows a stray character."""
    if "\n" in value:
        at = 0
        for line in value.splitlines(keepends=True):
            if len(line) >= _SHORTEST:
                yield at, at + len(line.rstrip("\r\n"))
            at += len(line)
    if any(mark in value for mark in "/-_"):
        for match in _PARTS.finditer(value):
            if match.end() - match.start() < len(value):
                yield match.span()
    for shift in (1, 2, 3):
        if len(value) - shift >= _SHORTEST:
            yield shift, len(value)


def _prose(body: str) -> bool:
    """Whether it reads as words, a path or a name of a program rather than as code."""
    if body.islower() or (body.isupper() and not any(char.isdigit() for char in body)):
        return True
    parts = [part for part in re.split(r"[_/+\-]", body) if part]
    return len(parts) > 1 and all(
        part.isalpha() and (part.islower() or part.isupper() or part.istitle()) for part in parts
    )


def _read(raw: bytes, how: str, budget: Budget) -> tuple[str, str] | None:
    if raw[:2] == b"\x1f\x8b" or (raw[:1] == b"\x78" and raw[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda")):
        return _inflate(raw, how, budget)
    text = _text(raw)
    if text is not None:
        return (text, how) if budget.take(len(raw)) else ("", f"{how}: more than {MAX_BYTES} bytes to decode")
    for magic, name in _KNOWN_BINARY:
        if raw.startswith(magic):
            return "", f"{how}: {name}"
    return ("", f"{how}: not text") if len(raw) >= _OPAQUE_FROM else None


def _inflate(raw: bytes, how: str, budget: Budget) -> tuple[str, str] | None:
    kind = "gzip" if raw[:2] == b"\x1f\x8b" else "zlib"
    engine = zlib.decompressobj(wbits=47)
    try:
        plain = engine.decompress(raw, min(MAX_BYTES, budget.left) + 1)
    except zlib.error:
        return ("", f"{how}>{kind}: damaged") if len(raw) >= _OPAQUE_FROM else None
    if engine.unconsumed_tail or not budget.take(len(plain)):
        return "", f"{how}>{kind}: more than {MAX_BYTES} bytes to decode"
    text = _text(plain)
    return (text, f"{how}>{kind}") if text is not None else ("", f"{how}>{kind}: not text")


def _text(raw: bytes) -> str | None:
    if len(raw) < 8:
        return None
    for encoding in ("utf-8", "utf-16-le"):
        if encoding == "utf-16-le" and (len(raw) % 2 or raw[1::2].count(0) < len(raw) // 4):
            continue
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        good = sum(char.isprintable() or char in "\r\n\t" for char in text)
        if good == len(text) and (
            text.isascii() or sum(char.isascii() for char in text) * 2 > len(text) or len(text) > 16
        ):
            return text
    return None


Folded = tuple[str, Callable[[int, int], tuple[int, int]]]
"""A reading of a text, and what a stretch of the reading is in the text."""


class _Builder:
    """Puts a reading together and remembers where each part came from."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._at: list[int] = []
        self._from: list[tuple[int, int, bool]] = []

    def add(self, part: str, start: int, end: int, *, same: bool) -> None:
        """``part`` stands for ``text[start:end]``; ``same``: character by character."""
        if part:
            self._at.append(self._size)
            self._from.append((start, end, same))
            self._parts.append(part)
            self._size += len(part)

    def build(self) -> Folded:
        """The reading."""
        return "".join(self._parts), self._place

    def _place(self, start: int, end: int) -> tuple[int, int]:
        return self._one(start)[0], self._one(end - 1)[1]

    def _one(self, index: int) -> tuple[int, int]:
        position = bisect.bisect_right(self._at, index) - 1
        start, end, same = self._from[position]
        if same:
            start += index - self._at[position]
            return start, start + 1
        return start, end


def unescape(text: str) -> Folded | None:
    """The text with percent, backslash and entity escapes resolved; None when it has none."""
    builder, at, changed = _Builder(), 0, False
    for match in _ESCAPES.finditer(text):
        code = match[0]
        plain = _escape(code)
        if plain is None or not plain:
            continue
        changed = True
        builder.add(text[at : match.start()], at, match.start(), same=True)
        width, rest = divmod(len(code), len(plain))
        if rest == 0:
            for index, char in enumerate(plain):
                builder.add(char, match.start() + index * width, match.start() + (index + 1) * width, same=False)
        else:
            builder.add(plain, *match.span(), same=False)
        at = match.end()
    if not changed:
        return None
    builder.add(text[at:], at, len(text), same=True)
    return builder.build()


def _escape(code: str) -> str | None:
    if code[0] == "&":
        return html.unescape(code)
    try:
        if code[0] == "%":
            return bytes.fromhex(code.replace("%", "")).decode("utf-8")
        if code[1] == "x":
            return bytes.fromhex(code.replace("\\x", "")).decode("utf-8")
        return "".join(chr(int(part, 16)) for part in code.split("\\u")[1:])
    except UnicodeDecodeError:
        return None


INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff"
    "\u3164\uffa0"
)
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
TAGS = "\U000e0000-\U000e007f"
VARIANTS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_ODD = re.compile(
    f"[{INVISIBLE}{BIDI}{TAGS}{VARIANTS}]|\\d[\u2010-\u2015\u2212\u00a0\u2000-\u200a\u202f\u3000]\\d|"
    "[A-Za-z][\u0370-\u03ff\u0400-\u04ff]|[\u0370-\u03ff\u0400-\u04ff][A-Za-z]"
)
_DROPPED = re.compile(f"[{INVISIBLE}{BIDI}{VARIANTS}]")
_LOOKALIKE = dict(
    zip(
        "аеорсухіјѕԁһԛԝАВЕКМНОРСТХІЈЅαοριντυχκΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
        "aeopcyxijsdhqwABEKMHOPCTXIJSaopivtuxkABEZHIKMNOPTYX",
        strict=True,
    )
)
_OTHER = re.compile(r"[^\x00-\x7f]+")


def fold(text: str) -> Folded | None:
    """The text as a reader takes it: invisible characters gone, look-alikes and compatibility forms plain.

    Tag characters (U+E0020 to U+E007E), which show as nothing and which models read, become the ASCII that they copy.
    None when there is nothing to fold.
    """
    if text.isascii() or (_ODD.search(text) is None and unicodedata.is_normalized("NFKC", text)):
        return None
    builder, at = _Builder(), 0
    for match in _OTHER.finditer(text):
        builder.add(text[at : match.start()], at, match.start(), same=True)
        for index in range(match.start(), match.end()):
            builder.add(_plain(text[index]), index, index + 1, same=False)
        at = match.end()
    builder.add(text[at:], at, len(text), same=True)
    return builder.build()


def _plain(char: str) -> str:
    code = ord(char)
    if 0xE0020 <= code <= 0xE007E:
        return chr(code - 0xE0000)
    if (code >= 0xE0000 and code <= 0xE007F) or _DROPPED.match(char):
        return ""
    if 0x2010 <= code <= 0x2015 or code == 0x2212:
        return "-"
    if digit := unicodedata.decimal(char, None):
        return str(digit)
    if unicodedata.category(char) == "Nd":
        return "0"
    return _LOOKALIKE.get(char) or unicodedata.normalize("NFKC", char)
