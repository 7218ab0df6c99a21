"""An automaton over many patterns at once: RE2 where there is a wheel of it, otherwise Python's ``re``.

Both take the leftmost match and of several the first alternative, so that both find the same; RE2 needs linear time
whatever the text. Patterns are bytes, keep to what both understand (no look-around, no group of their own, nothing
but ASCII under ``(?i:…)``), and are matched against UTF-8.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_MEMORY = 64 << 20
"""Bytes that RE2 may keep of an automaton's states; far more than these patterns need."""

Spot = tuple[int, int, int]
"""Which pattern (from 1), start, end in code points."""


def _python(pattern: bytes) -> Any:
    return re.compile(pattern)


def _re2(pattern: bytes) -> Any:
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = _MEMORY
    options.log_errors = False
    return re2.compile(pattern, options)


def _fastest(pattern: bytes) -> Any:
    try:
        return _re2(pattern)
    except ImportError:
        return _python(pattern)


@functools.lru_cache(maxsize=1024)
def expression(pattern: str) -> Any:
    """An operator's own expression in RE2's syntax, over text: linear time whatever it is given.

    Raises:
        ValueError: it does not compile: RE2 has no look-around and no back-references.
    """
    try:
        import re2
    except ImportError:
        return re.compile(pattern)
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        raise ValueError(f"{pattern!r} is no expression of RE2, which has no look-around") from None


class Automaton:
    """Patterns, compiled when they are first used."""

    __slots__ = ("_finder", "_make", "_parts", "_which")

    def __init__(self, patterns: Sequence[bytes], make: Callable[[bytes], Any] = _fastest) -> None:
        """``make``: compiles; what it gives has ``finditer`` over bytes."""
        self._parts = tuple(patterns)
        self._make = make
        self._finder: Any = None
        self._which: Any = None

    def in_python(self) -> Automaton:
        """The same with Python's own engine."""
        return Automaton(self._parts, _python)

    def spots(self, text: str) -> Iterator[Spot]:
        """Matches in order, without overlaps."""
        if self._finder is None:
            # Finding needs no groups, which cost RE2 a second pass of each match; which alternative it was is then
            # asked of Python at the one place.
            self._which = _python(b"|".join(b"(" + part + b")" for part in self._parts))
            self._finder = self._make(b"|".join(b"(?:" + part + b")" for part in self._parts))
        which = self._which.match
        if text.isascii():
            data = text.encode("ascii")
            for match in self._finder.finditer(data):
                start, end = match.span()
                yield which(data, start).lastindex, start, end
            return
        # A lone surrogate takes three bytes of which one begins a code point, as any other character does.
        data = text.encode("utf-8", "surrogatepass")
        place = _counter(data)
        for match in self._finder.finditer(data):
            start, end = match.span()
            yield which(data, start).lastindex, place(start), place(end)


_CONTINUING = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that go on with a code point."""


def _counter(data: bytes) -> Callable[[int], int]:
    """Turns rising byte offsets into code points."""
    at = count = 0

    def place(offset: int) -> int:
        nonlocal at, count
        count += len(data[at:offset].translate(None, _CONTINUING))
        at = offset
        return count

    return place
