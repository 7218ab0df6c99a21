"""Where a request goes: authorities and paths in one spelling, or refused (RFC 3986, RFC 9110 section 4)."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote_to_bytes

from holdfast.egress.base import PORTS, Refused

_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PATH = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/\[\]|]|%[0-9A-Fa-f]{2})*")
_PLAIN_PATH = re.compile(
    r"/(?:[A-Za-z0-9\-_~!$&'()*+,=:@][A-Za-z0-9\-._~!$&'()*+,=:@]*/)*(?:[A-Za-z0-9\-_~!$&'()*+,=:@][A-Za-z0-9\-._~!$&'()*+,=:@]*)?"
)
"""A path with nothing in it that needs a second look."""
_QUERY = re.compile(r"(?:[\x21\x22\x24\x26-\x7e]|%[0-9A-Fa-f]{2})*")
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NPM_SCOPE = re.compile(r"@[^/%]+%2[Ff][^/%]+")
"""npm asks for ``/@scope%2fname``: the one encoded slash that is everyday traffic."""
_ROUNDS = 3
"""How often servers are known to decode a path over again."""


def _bad(what: str, cure: str = "") -> Refused:
    return Refused(f"the request's target is refused: {what}{'; ' + cure if cure else ''}", kind="target", status=400)


def host_name(text: str) -> str:
    """A host in its one spelling: a lower-case ASCII name, or a canonical address (IPv6 without brackets).

    Raises:
        Refused: anything that two parsers could take for two hosts: octal, hexadecimal, short or decimal IPv4, a name
            in brackets, a zone, a trailing dot, a percent sign, non-ASCII.
    """
    if text.startswith("["):
        if not text.endswith("]"):
            raise _bad("an unfinished address in brackets")
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise _bad("brackets around what is not an IPv6 address") from None
        if address.scope_id is not None:
            raise _bad("an address with a zone")
        return address.compressed
    lower = text.lower()
    if not lower.isascii() or not _NAME.fullmatch(lower):
        raise _bad(
            "a host that is no plain ASCII name", "write international names as xn-- labels, without a final dot"
        )
    if _NUMBER.fullmatch(lower.rpartition(".")[2]):
        try:
            return ipaddress.IPv4Address(lower).compressed
        except ValueError:
            raise _bad("an IPv4 address in an unusual spelling", "write four decimal numbers") from None
    return lower


def authority(text: str, default_port: int | None) -> tuple[str, int]:
    """Host and port of ``host[:port]``.

    Raises:
        Refused: as :func:`host_name`; user information; an empty, missing or impossible port.
    """
    if "@" in text:
        raise _bad("user information in the authority", "send an Authorization field")
    end = text.rfind("]")
    host, colon, port = text[end + 1 :].partition(":")
    host = text[: end + 1] + host
    if not colon:
        if default_port is None:
            raise _bad("an authority without a port")
        return host_name(host), default_port
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise _bad("a port that is none")
    return host_name(host), int(port)


def absolute(target: str, *, encoded_slashes: bool = False) -> tuple[str, str, int, str, str]:
    """Scheme, host, port, path and query of an absolute URL.

    Raises:
        Refused: another scheme, or as :func:`authority` and :func:`path_and_query`.
    """
    scheme, separator, rest = target.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in PORTS:
        raise _bad("neither a path nor an http(s) URL")
    cut = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    host, port = authority(rest[:cut], PORTS[scheme])
    tail = rest[cut:] if rest[cut : cut + 1] == "/" else "/" + rest[cut:]
    path, query = path_and_query(tail, encoded_slashes=encoded_slashes)
    return scheme, host, port, path, query


def path_and_query(text: str, *, encoded_slashes: bool = False) -> tuple[str, str]:
    """Path and query of an origin-form target, the path in one spelling.

    Raises:
        Refused: characters that do not belong there, a fragment, dot segments in any coding, a backslash, control
            characters, an encoded slash (unless ``encoded_slashes``), a leading double slash.
    """
    path, mark, query = text.partition("?")
    if mark and not _QUERY.fullmatch(query):
        raise _bad("a query with a character that must be percent-encoded")
    if not _PLAIN_PATH.fullmatch(path):
        path = _checked(path, encoded_slashes)
    return path, query


def _checked(path: str, encoded_slashes: bool) -> str:
    if path.startswith("//"):
        raise _bad("a path that begins with two slashes")
    if not _PATH.fullmatch(path):
        raise _bad("a path with a character that must be percent-encoded")
    path = _ENCODED.sub(_unreserved, path)
    if (
        "%2F" in path
        and not encoded_slashes
        and not all(_NPM_SCOPE.fullmatch(segment) for segment in path.split("/") if "%2F" in segment)
    ):
        raise _bad("an encoded slash in the path", "the operator can allow it for this agent")
    decoded = path.encode()
    for _ in range(_ROUNDS):
        if any(segment.partition(b";")[0] in (b".", b"..") for segment in decoded.split(b"/")):
            raise _bad("a dot segment in the path", "send the path that you mean")
        if b"\\" in decoded or any(byte < 0x20 or byte == 0x7F for byte in decoded):
            raise _bad("a backslash or control character in the path")
        if b"%" not in decoded:
            break
        decoded = unquote_to_bytes(decoded)
    return path


def _unreserved(match: re.Match[str]) -> str:
    character = chr(int(match[0][1:], 16))
    return character if character in _UNRESERVED else match[0].upper()
