"""HTTP/1.1 framing (RFC 9112), strictly: what two parsers could read in two ways is refused.

Pure functions and small state machines over bytes. Both directions parse with this module and are written anew with
it, so nothing of a peer's own framing reaches the other side.
"""

from __future__ import annotations

import re
from typing import Final

from holdfast.egress.base import Headers, Refused

TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
"""Never part of a line: all controls but the tab."""
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"\r\n([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+((?:[^\r\n]*[^\r\n \t])?)")
"""A field after the line before it; as many are found as there are lines, or one of them is no field."""
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,15}")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e]*)?")
_MAX_LINE: Final = 512
"""Bytes of a chunk's size line, extensions included."""
_MAX_TRAILERS: Final = 16_384

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade", b"te"})
_LOOKALIKES: Final = frozenset(name.replace(b"-", b"_") for name in _FRAMING if b"-" in name)
"""What servers that map ``-`` to ``_`` cannot tell from the field that frames."""

_known: dict[bytes, bytes] = {}
"""Field names as seen to their lower case, once they were found valid. Bounded: peers choose the names."""
_MAX_KNOWN: Final = 512


def malformed(what: str, *, status: int = 400) -> Refused:
    """The refusal of an ambiguous or broken message."""
    return Refused(f"malformed HTTP: {what}", kind="framing", status=status)


def find_head(buffer: bytearray, limit: int) -> int:
    """Offset of the empty line that ends a head, or -1 when more bytes are needed.

    Raises:
        Refused: the head is too long, or a line in it ends in a bare LF.
    """
    end = buffer.find(b"\r\n\r\n", 0, limit)
    if end >= 0:
        return end
    if len(buffer) >= limit:
        raise malformed(f"a head of more than {limit} bytes", status=431)
    # Whoever ends lines with LF alone would otherwise be waited for until the time-out.
    if buffer.count(b"\n") != buffer.count(b"\r\n"):
        raise malformed("a line that ends in LF without CR")
    return -1


def request_head(head: bytes, max_fields: int) -> tuple[str, str, str, Headers]:
    """Method, target, version (``1.0``, ``1.1``) and fields of a head without its empty line.

    Raises:
        Refused: it is malformed.
    """
    line, _, _ = head.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if line.startswith(b"PRI * HTTP/2"):
            raise malformed("HTTP/2 without TLS is not carried; use https", status=505)
        raise malformed("the request line")
    method, target, minor = match.groups()
    version = "1.1" if minor == b"1" else "1.0"
    return method.decode(), target.decode(), version, _fields(head, len(line), max_fields)


def response_head(head: bytes, max_fields: int) -> tuple[int, str, Headers]:
    """Status, version and fields of a head without its empty line.

    Raises:
        Refused: it is malformed.
    """
    line, _, _ = head.partition(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise malformed("the status line")
    return int(match[2]), "1.1" if match[1] == b"1" else "1.0", _fields(head, len(line), max_fields)


def _fields(head: bytes, start: int, most: int) -> Headers:
    count = head.count(b"\r\n")
    if count > most:
        raise malformed(f"more than {most} fields", status=431)
    # What is left of CR and LF is bare: this check finds it together with NUL and its like.
    if len(head.translate(None, _CONTROLS)) != len(head) - 2 * count:
        raise malformed("a control character, a bare CR or a bare LF in the head")
    found = _FIELD.findall(head, start)
    if len(found) != count:
        raise malformed("a field: a name that is no token, a folded line, or a line without a colon")
    try:
        return tuple([(_known[name], value) for name, value in found])
    except KeyError:
        return tuple([(field_name(name), value) for name, value in found])


def field_name(name: bytes) -> bytes:
    """A valid field name in lower case.

    Raises:
        Refused: not a token (so also: white space before the colon, a folded line), or a look-alike of a framing field.
    """
    if not name or name.translate(None, TOKEN):
        raise malformed("a field name")
    lower = name.lower()
    if lower in _LOOKALIKES:
        raise malformed(f"the field {lower.decode()}, which some servers take for another")
    if len(_known) < _MAX_KNOWN and len(name) <= 64:
        _known[name] = lower
    return lower


def body_length(headers: Headers, version: str) -> int | None:
    """The length that a head announces: bytes, None for chunked, -1 where it says nothing.

    Raises:
        Refused: both or several are given, or a coding other than ``chunked``.
    """
    length = coding = None
    for name, value in headers:
        if name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise malformed("Content-Length")
            length = int(value)
        elif name == b"transfer-encoding":
            if coding is not None or value.lower() != b"chunked" or version != "1.1":
                raise malformed("Transfer-Encoding other than a single chunked")
            coding = value
    if coding is not None:
        if length is not None:
            raise malformed("both Content-Length and Transfer-Encoding")
        return None
    return -1 if length is None else length


class Chunked:
    """Decodes a chunked body (RFC 9112, 7.1) as it comes. Trailers are checked and dropped."""

    def __init__(self, *, extensions: bool) -> None:
        self._left = 0
        self._state = _SIZE
        self._extensions = extensions
        self._trailers = 0
        self.done = False

    def feed(self, buffer: bytearray) -> bytes:
        """Take what can be taken off the front of ``buffer``; empty when more bytes are needed or it is done.

        Raises:
            Refused: the coding is malformed.
        """
        taken = []
        while not self.done:
            if self._state == _DATA:
                piece = bytes(buffer[: self._left])
                if not piece:
                    break
                del buffer[: len(piece)]
                self._left -= len(piece)
                taken.append(piece)
                if self._left == 0:
                    self._state = _END
            elif self._state == _END:
                if len(buffer) < 2:
                    if buffer and buffer[0] != 0x0D:
                        raise malformed("a chunk that is longer than its size")
                    break
                if not buffer.startswith(b"\r\n"):
                    raise malformed("a chunk that is longer than its size")
                del buffer[:2]
                self._state = _SIZE
            else:
                line = self._line(buffer)
                if line is None:
                    break
                if self._state == _SIZE:
                    self._size(line)
                else:
                    self._trailer(line)
        return b"".join(taken)

    def _line(self, buffer: bytearray) -> bytes | None:
        end = buffer.find(b"\n", 0, _MAX_LINE if self._state == _SIZE else _MAX_TRAILERS)
        if end < 0:
            if len(buffer) >= (_MAX_LINE if self._state == _SIZE else _MAX_TRAILERS):
                raise malformed("a chunk's size line or trailer that is too long")
            return None
        if end == 0 or buffer[end - 1] != 0x0D:
            raise malformed("a line of the chunked coding that ends in LF without CR")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        return line

    def _size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or (not self._extensions and len(match[1]) != len(line)):
            raise malformed("a chunk's size")
        self._left = int(match[1], 16)
        self._state = _DATA if self._left else _TRAILERS

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailers += len(line) + 2
        if self._trailers > _MAX_TRAILERS:
            raise malformed("trailers that are too long", status=431)
        if line.translate(None, _CONTROLS) != line:
            raise malformed("a control character in a trailer")
        name, colon, _ = line.partition(b":")
        if not colon:
            raise malformed("a trailer without a colon")
        field_name(name)


_SIZE, _DATA, _END, _TRAILERS = range(4)


def write_head(line: bytes, headers: Headers) -> bytes:
    """A head with its empty line."""
    return b"%b\r\n%b\r\n" % (line, b"".join([b"%b: %b\r\n" % field for field in headers]))


def write_chunk(data: bytes) -> bytes:
    """One chunk. Empty data gives nothing, for an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK: Final = b"0\r\n\r\n"
