"""From what was parsed to what is meant, and back: heads are understood, then written anew.

What belongs to one hop ends here (RFC 9110, 7.6.1): ``Connection`` and what it names, ``TE``, ``Trailer``, proxy
credentials, upgrades other than WebSocket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from holdfast.egress import http1, target
from holdfast.egress.base import Headers, Refused, RequestHead, ResponseHead

NO_BODY: Final = -1
_KEEP_ALIVE: Final = frozenset({b"keep-alive"})

_HOP: Final = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
    }
)
_FRAMING: Final = frozenset({b"host", b"content-length", b"expect"})
_REWRITTEN: Final = _HOP | _FRAMING | {b"accept-encoding"}
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
"""Fields by which some servers take a request for one of another method: past a rule on methods."""
_ANSWER_ONLY: Final = _HOP | {b"content-length", b"alt-svc"}
"""``Alt-Svc`` would send the agent round the proxy."""
_UNNAMEABLE: Final = frozenset(
    {b"host", b"content-length", b"content-type", b"authorization", b"cookie", b"content-encoding", b"cache-control"}
)
"""What ``Connection`` must not name: making a proxy drop these changes what a request means."""
_SPECIAL: Final = _REWRITTEN | _OVERRIDES


Place = tuple[str, str, int, str, str]
"""Scheme, host, port, path and query."""
_PLACES: Final = 64


class Inside(msgspec.Struct, frozen=True):
    """An intercepted tunnel: whatever is asked in it is asked of this host."""

    host: str
    port: int
    scheme: str = "https"


class Incoming(msgspec.Struct, frozen=True):
    """A request, and what concerns the connection that it came by."""

    head: RequestHead
    keep_alive: bool
    expects: bool
    """It waits for ``100 Continue``."""


def request(
    method: str,
    where: str,
    version: str,
    headers: Headers,
    *,
    inside: Inside | None = None,
    bases: Mapping[str, str] | None = None,
    encoded_slashes: bool = False,
    places: dict[tuple[str, str, bytes | None], Place] | None = None,
) -> Incoming:
    """What a parsed request means.

    ``bases`` are base URLs by the first path segment, for clients that take one instead of a proxy: ``/NAME/rest``
    becomes ``BASE/rest``. ``places`` is a memory of one connection's targets, for they repeat.

    Raises:
        Refused: it is ambiguous, not for a proxy, or wants an upgrade or expectation that is not known.
    """
    kept: list[tuple[bytes, bytes]] = []
    host: bytes | None = None
    connection = upgrade = b""
    expects = False
    for field in headers:
        name = field[0]
        if name not in _SPECIAL:
            kept.append(field)
        elif name == b"host":
            if host is not None:
                raise http1.malformed("more than one Host")
            host = field[1]
        elif name == b"connection":
            connection += b"," + field[1].lower()
        elif name == b"upgrade":
            upgrade = field[1].lower()
        elif name == b"expect":
            if field[1].lower() != b"100-continue":
                raise http1.malformed("an expectation other than 100-continue", status=417)
            expects = version == "1.1"
        elif name in _OVERRIDES:
            if field[1].upper() not in (b"GET", method.encode()):
                raise http1.malformed(f"{name.decode()}: say what you mean in the method")
            kept.append(field)
    if host is None and version != "1.0":
        raise http1.malformed("no Host")
    length = http1.body_length(headers, version)
    named = _named(connection)
    if named:
        kept = [field for field in kept if field[0] not in named]
    place = places.get((method, where, host)) if places is not None else None
    if place is None:
        place = _place(method, where, host, inside, bases, encoded_slashes)
        if places is not None and len(places) < _PLACES:
            places[method, where, host] = place
    scheme, site, port, path, query = place
    websocket = upgrade == b"websocket" and b"upgrade" in named
    if websocket and (method != "GET" or version != "1.1" or length not in (NO_BODY, 0)):
        raise http1.malformed("a WebSocket that is asked for by anything but a bare GET")
    if method in ("CONNECT", "TRACE") and length not in (NO_BODY, 0):
        raise http1.malformed(f"{method} with a body")
    if expects and length in (NO_BODY, 0):
        expects = False
    keep_alive = b"close" not in named if version == "1.1" else b"keep-alive" in named
    head = RequestHead(
        method=method,
        scheme=scheme,
        host=site,
        port=port,
        path=path,
        query=query,
        headers=tuple(kept),
        version=version,
        upgrade="websocket" if websocket else "",
        length=0 if length == NO_BODY else length,
    )
    return Incoming(head, keep_alive, expects)


def _named(connection: bytes) -> frozenset[bytes]:
    if not connection:
        return frozenset()
    if connection == b",keep-alive":
        return _KEEP_ALIVE
    named = frozenset(option.strip() for option in connection.split(b",")) - {b""}
    if named & _UNNAMEABLE:
        raise http1.malformed("a Connection field that names what must not be dropped")
    return named


def _place(
    method: str,
    where: str,
    host: bytes | None,
    inside: Inside | None,
    bases: Mapping[str, str] | None,
    encoded_slashes: bool,
) -> Place:
    if method == "CONNECT":
        if inside is not None:
            raise http1.malformed("CONNECT within a tunnel")
        name, port = target.authority(where, None)
        _same(host, name, port, port)
        return "https", name, port, "", ""
    if where.startswith("/") or where == "*":
        if where == "*":
            if method != "OPTIONS" or inside is None:
                raise http1.malformed("the target *")
            path, query = "*", ""
        elif inside is None:
            return _based(where, bases or {}, encoded_slashes)
        else:
            path, query = target.path_and_query(where, encoded_slashes=encoded_slashes)
        _same(host, inside.host, inside.port, 443 if inside.scheme == "https" else 80)
        return inside.scheme, inside.host, inside.port, path, query
    scheme, name, port, path, query = target.absolute(where, encoded_slashes=encoded_slashes)
    if inside is not None and (scheme, name, port) != (inside.scheme, inside.host, inside.port):
        raise http1.malformed("a target that is not the tunnel's")
    _same(host, name, port, 443 if scheme == "https" else 80)
    return scheme, name, port, path, query


def _same(host: bytes | None, name: str, port: int, default: int) -> None:
    """Hold a ``Host`` field against where the request goes: it must say the same."""
    if host is not None and target.authority(host.decode("latin-1"), default) != (name, port):
        raise Refused("the Host field names another host than the target", kind="framing", status=400)


def _based(where: str, bases: Mapping[str, str], encoded_slashes: bool) -> Place:
    path, query = target.path_and_query(where, encoded_slashes=encoded_slashes)
    name, slash, rest = path[1:].partition("/")
    base = bases.get(name)
    if base is None:
        raise http1.malformed("this is a proxy; set HTTP_PROXY and HTTPS_PROXY to it instead of sending it paths")
    scheme, host, port, start, _ = target.absolute(base)
    return scheme, host, port, start.rstrip("/") + slash + rest or "/", query


def request_bytes(head: RequestHead) -> bytes:
    """The head of a request to an upstream that speaks HTTP/1.1."""
    where = f"{head.path}?{head.query}" if head.query else head.path
    fields = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method.encode(), where.encode(), head.authority.encode())]
    fields += [b"%b: %b\r\n" % field for field in head.headers]
    if head.upgrade:
        fields.append(b"connection: upgrade\r\nupgrade: %b\r\n" % head.upgrade.encode())
    else:
        # A coded body cannot be scrubbed or metered as it streams; what is coded all the same is decoded here.
        fields.append(b"accept-encoding: identity\r\n")
        if head.length is None:
            fields.append(b"transfer-encoding: chunked\r\n")
        elif head.length or head.method not in ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE"):
            fields.append(b"content-length: %d\r\n" % head.length)
    fields.append(b"\r\n")
    return b"".join(fields)


class Answer(msgspec.Struct, frozen=True):
    """A response's head, and how its body is framed."""

    head: ResponseHead
    length: int | None
    """Bytes; None: chunked; ``-1``: until the connection ends."""
    keep_alive: bool


def response(status: int, version: str, headers: Headers, method: str) -> Answer:
    """What a parsed response to ``method`` means.

    Raises:
        Refused: its framing is ambiguous.
    """
    length = http1.body_length(headers, version)
    kept = [field for field in headers if field[0] not in _ANSWER_ONLY]
    named: frozenset[bytes] = frozenset()
    if len(kept) < len(headers):
        connection = b",".join([value.lower() for name, value in headers if name == b"connection"])
        if connection and connection != b"keep-alive":
            named = frozenset([option.strip() for option in connection.split(b",")])
            kept = [field for field in kept if field[0] not in named]
        elif connection:
            named = _KEEP_ALIVE
    bare = method == "HEAD" or status in (204, 304) or status < 200
    keep_alive = b"close" not in named if version == "1.1" else b"keep-alive" in named
    if bare:
        announced = length if method == "HEAD" and length != NO_BODY else None
        return Answer(ResponseHead(status=status, headers=tuple(kept), length=announced), 0, keep_alive)
    if length == NO_BODY:
        keep_alive = False
    return Answer(
        ResponseHead(status=status, headers=tuple(kept), length=None if length == NO_BODY else length),
        length,
        keep_alive,
    )


_REASONS: Final = {
    100: b"Continue", 101: b"Switching Protocols", 200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content",
    206: b"Partial Content", 301: b"Moved Permanently", 302: b"Found", 303: b"See Other", 304: b"Not Modified",
    307: b"Temporary Redirect", 308: b"Permanent Redirect", 400: b"Bad Request", 401: b"Unauthorized",
    403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed", 409: b"Conflict", 413: b"Content Too Large",
    429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


def response_bytes(head: ResponseHead, *, chunked: bool, keep_alive: bool, announce: bool = True) -> bytes:
    """The head of a response to the agent. The body's length is written where it is known and ``announce`` is set."""
    fields = [b"HTTP/1.1 %d %b\r\n" % (head.status, _REASONS.get(head.status, b""))]
    fields += [b"%b: %b\r\n" % field for field in head.headers]
    if chunked:
        fields.append(b"transfer-encoding: chunked\r\n")
    elif announce and head.length is not None and head.status >= 200 and head.status != 204:
        fields.append(b"content-length: %d\r\n" % head.length)
    fields.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(fields)
