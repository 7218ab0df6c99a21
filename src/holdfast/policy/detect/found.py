"""What a detector reports."""

from __future__ import annotations

import msgspec


class Found(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A stretch of text. Offsets count code points of the text that was given, the end is exclusive."""

    type: str
    start: int
    end: int
    confidence: float
    """0 to 1: how much speaks for it. Below 0.5 it is a guess that nothing around it supports."""
    via: str = ""
    """How it was hidden: base64, hex, url, gzip, unicode …, joined by ``>``. The offsets are those of the wrapping."""


class Blob(msgspec.Struct, frozen=True, gc=False):
    """A stretch that is encoded: what it was decoded by, or why it could not be."""

    start: int
    end: int
    how: str


def overlaps(one: Found, start: int, end: int) -> bool:
    """Whether a finding and a stretch share a code point."""
    return one.start < end and start < one.end
