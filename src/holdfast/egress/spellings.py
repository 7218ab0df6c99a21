"""The spellings in which a server may hand a secret back. Pure.

A secret becomes *forms* (as it is, reversed, in base64, …), a form is a sequence of *units*, and a unit is the ways in
which one character may be written. :func:`follow` tells how far a text goes along a form.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence

Piece = tuple[bytes, ...]
"""One way to write a unit: for each byte of it, the bytes that it may be."""
Unit = tuple[Piece, ...]
Form = tuple[Unit, ...]
Steps = tuple[dict[int, tuple[Piece, ...]], ...]
"""For each unit, the rest of its pieces by the byte with which they begin."""

WINDOW = 96
"""Units of a form, at most: a longer one is cut into several, one after the other."""
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NAMED = {'"': b"quot", "&": b"amp", "<": b"lt", ">": b"gt", "'": b"apos"}
_SHORT = {"\n": b"n", "\r": b"r", "\t": b"t", "\b": b"b", "\f": b"f"}


def _byte(value: int) -> bytes:
    """The bytes that may stand for one; letters in either case."""
    char = bytes([value])
    return char.lower() + char.upper() if char.isalpha() else char


def _seq(text: bytes) -> Piece:
    return tuple(map(_byte, text))


# How one character of a text may be escaped. Each gives further ways beside the character itself.


def _percent(char: str) -> Iterable[Piece]:
    """RFC 3986 and forms, also escaped twice."""
    data = char.encode()
    yield _seq(b"".join(b"%%%02x" % byte for byte in data))
    yield _seq(b"".join(b"%%25%02x" % byte for byte in data))
    if char == " ":
        yield _seq(b"+")


def _backslash(char: str) -> Iterable[Piece]:
    """JSON, JavaScript, Python and C: ``\\uXXXX``, ``\\xXX``, and a backslash before the character; also twice."""
    units = char.encode("utf-16-be")
    longs = b"".join(b"\\u%02x%02x" % (units[at], units[at + 1]) for at in range(0, len(units), 2))
    yield _seq(longs)
    yield _seq(longs.replace(b"\\", b"\\\\"))
    yield _seq(b"".join(b"\\x%02x" % byte for byte in char.encode()))
    if char in _SHORT:
        yield _seq(b"\\" + _SHORT[char])
    elif not char.isalnum() and ord(char) < 128:
        yield _seq(b"\\" + char.encode())
        yield _seq(b"\\\\" + char.encode())
        yield _seq(b"\\\\\\" + char.encode())


def _entity(char: str) -> Iterable[Piece]:
    """HTML and XML references."""
    for zeros in (b"", b"0", b"00", b"000"):
        yield _seq(b"&#%b%d;" % (zeros, ord(char)))
        yield _seq(b"&#x%b%x;" % (zeros, ord(char)))
    if char in _NAMED:
        yield _seq(b"&" + _NAMED[char] + b";")


def _quoted(char: str) -> Iterable[Piece]:
    """Quoted-printable (RFC 2045, 6.7)."""
    yield _seq(b"".join(b"=%02x" % byte for byte in char.encode()))


ESCAPES: dict[str, Callable[[str], Iterable[Piece]]] = {
    "url": _percent,
    "json": _backslash,
    "html": _entity,
    "quoted-printable": _quoted,
}
"""By encoding."""


def _plain(secret: str, escapes: Sequence[str]) -> list[list[Unit]]:
    """As it is, in either case, any character escaped."""
    form: list[Unit] = []
    for char in secret:
        ways = [_seq(char.encode())]
        for name in escapes:
            ways += ESCAPES[name](char)
        form.append(tuple(dict.fromkeys(ways)))
    return [form]


def _reversed(secret: str, escapes: Sequence[str]) -> list[list[Unit]]:
    return [[(_seq(char.encode()),) for char in reversed(secret)]]


def _hex(secret: str, escapes: Sequence[str]) -> list[list[Unit]]:
    """Two digits a byte, with or without a colon, blank or dash between them."""
    form: list[Unit] = []
    for byte in secret.encode():
        digits = _seq(b"%02x" % byte)
        form.append((digits, (b": -", *digits)) if form else (digits,))
    return [form]


def _decimal(secret: str, escapes: Sequence[str]) -> list[list[Unit]]:
    """A list of numbers, as a buffer is written in JSON."""
    form: list[Unit] = []
    for byte in secret.encode():
        digits = _seq(b"%d" % byte)
        between = ((b", ",), (b",", b" \n\r\t"))
        form.append(tuple((*gap, *digits) for gap in between) if form else (digits,))
    return [form]


def _utf16(secret: str, escapes: Sequence[str]) -> list[list[Unit]]:
    """Either byte order: they differ in where the first and the last zero byte stand."""
    data = secret.encode("utf-16-le")
    return [[((_byte(byte),),) for byte in data[: len(data) - (data[-1:] == b"\0")]]]


def _base64(secret: str, escapes: Sequence[str]) -> list[list[Unit]]:
    """Both alphabets, at each of the three places that it may have within a longer text, with or without line breaks.

    The characters at the ends also hold bits of what stands beside the secret: there, each that is possible.
    """
    forms = []
    for before in range(3):
        lowest = base64.b64encode(b"\0" * before + secret.encode() + b"\0" * 3)
        highest = base64.b64encode(b"\xff" * before + secret.encode() + b"\xff" * 3)
        first, last = before * 8 // 6, (before + len(secret.encode())) * 8
        form: list[Unit] = []
        for at in range(first, -(-last // 6)):
            low, high = _STANDARD.index(lowest[at]), _STANDARD.index(highest[at])
            # Unknown bits are those in which the two differ.
            chars = [code for code in range(64) if code & ~(low ^ high) == low & ~(low ^ high)]
            form.append(_digit(chars, escapes, first=not form))
        forms.append(form)
    return forms


def _digit(codes: Sequence[int], escapes: Sequence[str], *, first: bool) -> Unit:
    chars = {_STANDARD[code : code + 1] for code in codes}
    for standard, other in ((b"+", b"-"), (b"/", b"_")):
        if standard in chars:
            chars.add(other)
    ways: list[Piece] = [(b"".join(sorted(chars)),)]
    for char in sorted(chars & {b"+", b"/"}):
        for name in escapes:
            ways += ESCAPES[name](char.decode())
    if first:
        return tuple(ways)
    wraps: tuple[Piece, ...] = ((), (b"\n",), (b"\r", b"\n"), (b"\\", b"n"))
    return tuple((*wrap, *way) for wrap in wraps for way in ways)


FORMS: dict[str, Callable[[str, Sequence[str]], list[list[Unit]]]] = {
    "plain": _plain,
    "reversed": _reversed,
    "base64": _base64,
    "hex": _hex,
    "decimal": _decimal,
    "utf-16": _utf16,
}
"""By encoding."""
ENCODINGS = (*FORMS, *ESCAPES)
"""Every encoding that is recognised."""


def forms(secret: str, encodings: Sequence[str] = ENCODINGS) -> list[Form]:
    """A secret in every encoding."""
    escapes = [name for name in encodings if name in ESCAPES]
    return [
        tuple(window)
        for name in encodings
        for form in (FORMS[name](secret, escapes) if name in FORMS else ())
        for window in _windows(form)
    ]


def _windows(form: list[Unit]) -> list[list[Unit]]:
    count = max(1, -(-len(form) // WINDOW))
    size = -(-len(form) // count)
    return [form[at : at + size] for at in range(0, len(form), size)]


def longest(form: Form) -> int:
    """Bytes that a form may take, at most."""
    return sum(max(map(len, unit)) for unit in form)


def steps(form: Form) -> Steps:
    """A form, ready to be followed."""
    found = []
    for unit in form:
        step: dict[int, tuple[Piece, ...]] = {}
        for piece in unit:
            for byte in piece[0]:
                step[byte] = (*step.get(byte, ()), piece[1:])
        found.append(step)
    return tuple(found)


def follow(steps: Steps, data: bytes, start: int) -> tuple[int, bool]:
    """How a text goes along a form from a place on: where its longest match ends (-1: none), and whether the text ends
    in the middle of one."""
    places = {start}
    unfinished = False
    size = len(data)
    for step in steps:
        reached = set()
        for place in places:
            if place == size:
                unfinished = True
                continue
            for piece in step.get(data[place], ()):
                end = place + 1
                for allowed in piece:
                    if end == size:
                        unfinished = True
                        break
                    if data[end] not in allowed:
                        break
                    end += 1
                else:
                    reached.add(end)
        places = reached
        if not places:
            return -1, unfinished
    return max(places), unfinished


def opening(form: Form, count: int) -> bytes:
    """A regular expression of a form's first units."""
    return b"".join(map(_either, form[:count]))


def opening_begun(form: Form, count: int) -> bytes:
    """A regular expression of every true beginning of them; empty when there is none."""
    found = b""
    count = min(count, len(form))
    for number, unit in reversed(list(enumerate(form[:count]))):
        ways = [_begun(piece) for piece in unit if len(piece) > 1]
        if number < count - 1:
            ways.append(_either(unit) + b"(?:" + found + b")?")
        found = b"(?:" + b"|".join(dict.fromkeys(ways)) + b")" if ways else b""
    return found


def _either(unit: Unit) -> bytes:
    ways = [b"".join(map(_class, piece)) for piece in unit]
    return ways[0] if len(ways) == 1 else b"(?:" + b"|".join(ways) + b")"


def _begun(piece: Piece) -> bytes:
    found = b""
    for allowed in reversed(piece[:-1]):
        found = _class(allowed) + (b"(?:" + found + b")?" if found else b"")
    return found


def _class(allowed: bytes) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % byte for byte in allowed) + b"]"
