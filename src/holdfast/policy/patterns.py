"""Names and patterns: ``*``, ``?`` and ``[…]``, letters as they are written."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence


@functools.lru_cache(maxsize=4096)
def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None] | None:
    return re.compile(fnmatch.translate(pattern)).match if is_pattern(pattern) else None


def is_pattern(text: str) -> bool:
    """Whether the text has wildcards."""
    return any(mark in text for mark in "*?[")


def fits(pattern: str, name: str) -> bool:
    """Whether a name is the one given, or matches its wildcards."""
    if pattern in (name, "*"):
        return True
    match = _matcher(pattern)
    return match is not None and match(name) is not None


def fits_any(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a name fits one of the patterns."""
    return any(fits(pattern, name) for pattern in patterns)


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """`` (did you mean X?)`` or the words there are, for the end of an error."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(sorted(known))}" if known else ""
