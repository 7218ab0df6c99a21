"""Content codings, undone within bounds (RFC 9110, 8.4.1)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from holdfast.egress.base import Refused

PIECE: Final = 65_536
"""Bytes that are decoded at a time: what is held of a bomb."""
FREE: Final = 1_048_576
"""Below this a body may be as much larger than it came as it likes."""
_KNOWN: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class Decoder:
    """Undoes one coding as the bytes come."""

    def __init__(self, coding: bytes, ratio: int, limit: int) -> None:
        """``ratio``: how many times larger than it came the body may become beyond :data:`FREE`; ``limit``: how large.

        Raises:
            Refused: the coding is not known (also: several).
        """
        bits = _KNOWN.get(coding.lower())
        if bits is None:
            raise _refused(f"the content coding {coding[:40].decode('latin-1')} is not known; ask for identity or gzip")
        self._bits = bits
        self._zlib = zlib.decompressobj(bits)
        self._ratio = ratio
        self._limit = limit
        self._in = 0
        self._out = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decoded pieces, each at most :data:`PIECE`.

        Raises:
            Refused: it is not what it says, or grows beyond the bounds.
        """
        if self._in == 0 and self._bits == 15 and data and (data[0] & 0x0F != 8):
            # Half of the servers that say deflate send it bare, and browsers have always taken both.
            self._zlib = zlib.decompressobj(-15)
        self._in += len(data)
        held = False
        while data or held:
            if self._zlib.eof:
                if self._bits != 31:
                    raise _refused("bytes after the end of the coded body")
                self._zlib = zlib.decompressobj(self._bits)
            try:
                piece = self._zlib.decompress(data, PIECE)
            except zlib.error:
                raise _refused("the coded body is damaged") from None
            data = self._zlib.unconsumed_tail or self._zlib.unused_data
            # Output that did not fit the piece waits inside even where all input was taken.
            held = len(piece) == PIECE and not data and not self._zlib.eof
            self._out += len(piece)
            if self._out > self._limit or (self._out > FREE and self._out > self._in * self._ratio):
                raise _refused("the coded body grows beyond bounds")
            if piece:
                yield piece

    def finish(self) -> None:
        """The body ended.

        Raises:
            Refused: in the middle.
        """
        if self._in and not self._zlib.eof:
            raise _refused("the coded body is cut short")


def decoded(data: bytes, coding: bytes, ratio: int, limit: int) -> bytes:
    """A whole body without its coding.

    Raises:
        Refused: as :class:`Decoder`.
    """
    decoder = Decoder(coding, ratio, limit)
    whole = b"".join(decoder.feed(data))
    decoder.finish()
    return whole


def _refused(what: str) -> Refused:
    return Refused(what, kind="undecodable", status=415)
