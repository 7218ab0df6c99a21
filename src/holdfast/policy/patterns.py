"""Names and patterns: ``*``, ``?`` and ``[…]``, letters as they are written."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable


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
