"""No ambiguous or malformed message passes the proxy in a changed meaning, in either direction.

What reaches the other side is read by two more parsers, h11 and httptools (llhttp): both must read just what the door
was asked about.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import httptools
import pytest

from holdfast.egress.base import Limits
from holdfast.egress.tls import Authority
from holdfast.testing.egress import Rig, Upstream, in_loop, rig

SHORT = Limits(head=8192, headers=64, head_s=0.3, idle_s=0.3, body_s=0.3, hold=65_536)
H = b"{host}"
"""Stands for the upstream's authority."""


def request(
    *fields: bytes, line: bytes = b"POST http://{host}/in HTTP/1.1", body: bytes = b"", host: bool = True
) -> bytes:
    lines = [line, *([b"Host: " + H] if host else []), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(target: bytes, *fields: bytes) -> bytes:
    return request(*fields, line=b"GET http://{host}" + target + b" HTTP/1.1")


EVIL = b"GET http://{host}/evil HTTP/1.1\r\nHost: {host}\r\n\r\n"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"

LENGTHS = [
    request(b"Content-Length: " + value, body=b"abcde" + EVIL)
    for value in (
        b"+5",
        b"-5",
        b"5 5",
        b"5,5",
        b"5, 5",
        b"0x5",
        b"5;",
        b"05",
        b"5.0",
        b"5e0",
        b"",
        b" ",
        b"\x0b5",
        b"5\x0c",
        b"'5'",
        b'"5"',
        b"\xb25",
        b"5\xa0",
        b"five",
        b"99999999999999999999",
        b"1_0",
        b"5\t5",
        b"0b101",
        b"5\x00",
        b"\xef\xbc\x95",
    )
]
CODINGS = [
    request(b"Transfer-Encoding: " + value, body=CHUNKS + EVIL)
    for value in (
        b"xchunked",
        b"chunked, chunked",
        b"gzip, chunked",
        b"chunked, gzip",
        b"identity",
        b"chunked;",
        b"chunked;q=1",
        b"",
        b"\x0bchunked",
        b"chunked\x0b",
        b"\x00chunked",
        b"'chunked'",
        b'"chunked"',
        b"chunked,",
        b",chunked",
        b"chunke",
        b"gzip",
        b"chunked chunked",
        b"\xffchunked",
        b"chunked\xa0",
        b"identity, chunked",
        b"chunked, identity",
        b"cow",
        b"x\tchunked",
    )
]
BOTH = [
    request(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=CHUNKS + EVIL),
    request(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=CHUNKS + EVIL),
    request(b"Content-Length: 5", b"Content-Length: 5", body=b"abcde" + EVIL),
    request(b"Content-Length: 5", b"Content-Length: 6", body=b"abcde" + EVIL),
    request(b"Content-Length: 0", b"Content-Length: 44", body=EVIL),
    request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKS + EVIL),
    request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=CHUNKS + EVIL),
    request(b"Transfer-Encoding: identity", b"Content-Length: 5", body=b"abcde" + EVIL),
    request(b"Transfer-Encoding : chunked", b"Content-Length: 5", body=CHUNKS + EVIL),
    request(b"Transfer-Encoding\t: chunked", body=CHUNKS + EVIL),
    request(b"Content-Length : 5", body=b"abcde" + EVIL),
    request(b" Transfer-Encoding: chunked", body=CHUNKS + EVIL),
    request(b"X: y\r\n Transfer-Encoding: chunked", body=CHUNKS + EVIL),
    request(b"Transfer-Encoding:\r\n chunked", body=CHUNKS + EVIL),
    request(b"Transfer_Encoding: chunked", body=CHUNKS + EVIL),
    request(b"Content_Length: 5", body=b"abcde" + EVIL),
    request(b"content_length: 5", b"Content-Length: 0", body=EVIL),
    request(b"\xefTransfer-Encoding: chunked", body=CHUNKS + EVIL),
    request(b"Transfer-Encoding\x00: chunked", body=CHUNKS + EVIL),
    request(b"Content-Length\xa0: 5", body=b"abcde" + EVIL),
    request(b"Connection: content-length", b"Content-Length: 44", body=EVIL),
    request(b"Connection: close, Host"),
    request(b"Connection: Authorization", b"Authorization: x"),
    request(b"Connection: Content-Type", b"Content-Type: text/plain"),
    request(line=b"POST http://{host}/in HTTP/1.0", body=CHUNKS).replace(
        b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1
    ),
]
CHUNKED = [
    request(b"Transfer-Encoding: chunked", body=body)
    for body in (
        b"3\nabc\n0\n\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nab\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3;ext\r\nabc\r\n0\r\n\r\n",
        b"3;a=b\r\nabc\r\n0\r\n\r\n",
        b"3;\n\r\nabc\r\n0\r\n\r\n",
        b"3\r\r\nabc\r\n0\r\n\r\n",
        b"\r\n3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"g\r\nabc\r\n0\r\n\r\n",
        b"3_0\r\nabc\r\n0\r\n\r\n",
        b"\r\n",
        b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        b"10000000000000003\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        b"3\r\nabc\r\n0\r\nTransfer_Encoding: y\r\n\r\n",
        b"3\r\nabc\r\n0\r\n X: y\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: a\x00b\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: a\rb\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\n",
        b"3\r\nabc\r\n00\n\r\n",
        b"3" + b" " * 600 + b"\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"\xef\xbc\x93\r\nabc\r\n0\r\n\r\n",
        b"3\x00\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n",
    )
]
LINES = [
    line + b"\r\nHost: {host}\r\n\r\n"
    for line in (
        b"GET  http://{host}/ HTTP/1.1",
        b"GET http://{host}/  HTTP/1.1",
        b"GET\thttp://{host}/\tHTTP/1.1",
        b"GET http://{host}/",
        b" GET http://{host}/ HTTP/1.1",
        b"GET http://{host}/ HTTP/1.1 ",
        b"GET http://{host}/ http/1.1",
        b"GET http://{host}/ HTTP/1",
        b"GET http://{host}/ HTTP/2.0",
        b"GET http://{host}/ HTTP/1.2",
        b"GET http://{host}/ HTTP/01.1",
        b"GET http://{host}/ HTTP/1.1\x00",
        b"GET http://{host}/ HTTP/1.10",
        b"GET http://{host}/ HTTP /1.1",
        b"G\x00T http://{host}/ HTTP/1.1",
        b"GE(T http://{host}/ HTTP/1.1",
        b"GET http://{host}/a b HTTP/1.1",
        b"GET http://{host}/\x7f HTTP/1.1",
        b"GET http://{host}/\xc3\xa4 HTTP/1.1",
        b"HTTP/1.1 200 OK",
        b"GET http://{host}/#f HTTP/1.1",
        b"GET http://{host}/?a#f HTTP/1.1",
        b"GET ftp://{host}/ HTTP/1.1",
        b"GET //{host}/ HTTP/1.1",
        b"GET http:///{host}/ HTTP/1.1",
        b"GET http:/{host}/ HTTP/1.1",
        b"GET http:{host}/ HTTP/1.1",
        b"GET / HTTP/1.1",
        b"GET * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET {host} HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"\r\nGET http://{host}/ HTTP/1.1",
        b"\nGET http://{host}/ HTTP/1.1",
        b"GET http://{host}\r/ HTTP/1.1",
        b"GET http://{host}/\r HTTP/1.1",
        b"GET http://u:p@{host}/ HTTP/1.1",
        b"GET http://@{host}/ HTTP/1.1",
        b"GET http://{host}@evil.example/ HTTP/1.1",
        b"GET http://evil.example@{host}/ HTTP/1.1",
        b"GET http://[{host}]/ HTTP/1.1",
        b"GET http://{host}:/ HTTP/1.1",
        b"GET http://{host}:80:80/ HTTP/1.1",
        b"GET http://{host}\\/ HTTP/1.1",
        b"GET http://{host}%00/ HTTP/1.1",
        b"GET http://127.0.0.1:0/ HTTP/1.1",
        b"GET http://127.0.0.1:65536/ HTTP/1.1",
        b"GET http://127.0.0.1:080/ HTTP/1.1",
        b"GET http://127.0.0.1:+80/ HTTP/1.1",
        b"A" * 40 + b" http://{host}/ HTTP/1.1",
        b"GET http://{host}/" + b"a" * 9000 + b" HTTP/1.1",
    )
]
PATHS = [
    get(path)
    for path in (
        b"/../a",
        b"/a/../b",
        b"/a/./b",
        b"/..",
        b"/.",
        b"/a/..",
        b"/%2e%2e/a",
        b"/a/%2E%2e",
        b"/.%2e/a",
        b"/%2e/",
        b"/a%2fb",
        b"/a%2F..%2Fb",
        b"/a%5cb",
        b"/a\\b",
        b"/%5c..%5ca",
        b"/a%00b",
        b"/a%0ab",
        b"/a%0d%0ab",
        b"/%7f",
        b"/a/..;/b",
        b"/..;a/b",
        b"/;/../a",
        b"/a%252e%252e/b/%252e%252e/c",
        b"/%252e%252e%252fa",
        b"//a",
        b"//evil.example/",
        b"/a%",
        b"/a%2",
        b"/a%zz",
        b"/a%u002f",
        b"/a^b",
        b"/a`b",
        b"/a{b}",
        b'/a"b',
        b"/a<b>",
        b"/a?x=%zz",
        b"/a?\\x%",
        b"/%25%32%65%25%32%65/a",
        b"/%c0%ae%c0%ae/%2e%2e/",
    )
]
FIELDS = [
    request(*fields, **more)  # type: ignore[arg-type]
    for fields, more in (
        ((b"Host: other.example",), {"host": False}),
        ((b"Host: {host}",), {}),
        ((b"Host: other.example",), {}),
        ((), {"host": False}),
        ((b"Host:",), {"host": False}),
        ((b"Host: {host}, {host}",), {"host": False}),
        ((b"Host: {host} ",), {"line": b"GET http://other.example/ HTTP/1.1", "host": False}),
        ((b"Host: http://{host}",), {"host": False}),
        ((b"Host: {host}/",), {"host": False}),
        ((b"Host: u@{host}",), {"host": False}),
        ((b"Host: {host}\x00",), {"host": False}),
        ((b"Host\x00: {host}",), {"host": False}),
        ((b"Host : {host}",), {"host": False}),
        ((b"Host: 127.0.0.1",), {"host": False}),
        ((b"Host: 127.1",), {"host": False}),
        ((b"X-A: b\x00c",), {}),
        ((b"X-A: b\rc",), {}),
        ((b"X-A: b\nc",), {}),
        ((b"X-A: b\r\n\tc",), {}),
        ((b"X-A: b\r\n c",), {}),
        ((b"X-A: b\x0bc",), {}),
        ((b"X-A: b\x7fc",), {}),
        ((b"X-A: b\x1bc",), {}),
        ((b"X A: b",), {}),
        ((b"X-A",), {}),
        ((b": b",), {}),
        ((b"X-A(): b",), {}),
        ((b"X\xe4: b",), {}),
        ((b"\tX-A: b",), {}),
        ((b"X-A : b",), {}),
        ((b"X@A: b",), {}),
        ((b"Expect: 200-ok",), {}),
        ((b"Expect: 100-continue, x",), {}),
        ((b"X-HTTP-Method-Override: DELETE",), {}),
        ((b"X-HTTP-Method: PUT",), {}),
        ((b"X-Method-Override: PATCH",), {}),
        ((b"Upgrade: websocket", b"Connection: upgrade", b"Content-Length: 44"), {"body": EVIL}),
        (tuple(b"X-%d: y" % n for n in range(80)), {}),
        ((b"X-A: " + b"y" * 9000,), {}),
    )
]
TUNNELS = [
    b"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 44\r\n\r\n" + EVIL,
    b"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    b"CONNECT {host} HTTP/1.1\r\nHost: other.example:1\r\n\r\n",
    b"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n" + EVIL,
    b"CONNECT {host} HTTP/1.1\r\n\r\n",
    b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"CONNECT http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT http://{host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT /{host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT {host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT {host}?a HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT u@{host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT 127.0.0.1: HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT [127.0.0.1]:80 HTTP/1.1\r\nHost: [127.0.0.1]:80\r\n\r\n",
    b"CONNECT {host}, other.example:1 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT  HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"connect {host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"CONNECT * HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"TRACE http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 44\r\n\r\n" + EVIL,
]
PARTS = [
    b"",
    b"\r\n",
    b"\r\n\r\n",
    b"GET",
    b"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n",
    b"\x00" * 100,
    b"\x16\x03\x01\x02\x00\x01",
    b"GET http://{host}/ HTTP/1.1\nHost: {host}\n\n",
    b"GET http://{host}/ HTTP/1.1\r\nHost: {host}\n\r\n",
    b"A" * 10_000,
    b"GET http://{host}/ HTTP/1.1\r\rHost: {host}\r\r",
    b"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\n",
    b"SSH-2.0-x\r\n\r\n",
    request(b"Content-Length: 50", body=b"short"),
    b"X-A: y\r\n" * 2000,
    b"\xff\xfe" + EVIL,
    b"\xef\xbb\xbf" + EVIL,
]

REFUSED = [*LENGTHS, *CODINGS, *BOTH, *CHUNKED, *LINES, *PATHS, *FIELDS, *TUNNELS, *PARTS]
"""Nothing of these reaches an upstream."""

CARRIED: list[tuple[bytes, int]] = [
    (EVIL * 3, 3),
    (request(b"Content-Length: 5", body=b"abcde") + EVIL, 2),
    (request(b"Transfer-Encoding: Chunked", body=CHUNKS) + EVIL, 2),
    (request(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n") + EVIL, 2),
    (request(b"Content-Length: 5", body=b"abcde" + b"GARBAGE\r\n\r\n"), 1),
    (request(b"Content-Length: 44", body=EVIL.replace(H, b"x" * 6)[:44]), 1),
    (request(b"Connection: close, X-Drop", b"X-Drop: 1") + EVIL, 1),
    (request(b"TE: trailers", b"Trailer: x", b"Keep-Alive: 5", b"Proxy-Connection: close", b"Upgrade: h2c"), 1),
    (request(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), 1),
    (request(b"X-Raw: \xe4\xf6\xfc"), 1),
    (get(b"/%7Euser/%41?q=%20&b=[]|"), 1),
    (get(b"/@scope%2fname"), 1),
    (request(line=b"GET http://{host}?a=b HTTP/1.1"), 1),
    (request(line=b"GET HTTP://{host}/ HTTP/1.1"), 1),
    (request(line=b"GET http://{host}/ HTTP/1.0", host=False), 1),
    (request(b"Connection: keep-alive", line=b"GET http://{host}/ HTTP/1.0") + EVIL, 2),
    (request(b"X-HTTP-Method-Override: GET", body=b""), 1),
]


def meaning(door: Any) -> list[tuple[str, str, str, bytes]]:
    """What the door was asked about."""
    return [
        (asked.head.method, asked.head.url(), asked.head.authority, asked.body.data)
        for asked in door.requests
        if asked.head.method != "CONNECT"
    ]


def by_h11(upstream: Upstream) -> list[tuple[str, str, str, bytes]]:
    assert upstream.errors == []
    found = []
    for seen in upstream.requests:
        host = (seen.get(b"host") or b"").decode()
        found.append((seen.method.decode(), f"http://{host}{seen.target.decode()}", host, seen.body))
    return found


class Second:
    """Reads a stream of requests with llhttp."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str, bytes]] = []
        self._parser: Any = httptools.HttpRequestParser(self)

    def read(self, raw: bytes) -> list[tuple[str, str, str, bytes]]:
        self._parser.feed_data(raw)
        return self.found

    def on_message_begin(self) -> None:
        self._url = self._host = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._host = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        host = self._host.decode()
        method = self._parser.get_method().decode()
        self.found.append((method, f"http://{host}{self._url.decode()}", host, self._body))


async def outcome_of(raw: bytes) -> tuple[Rig, bytes]:
    async with rig(limits=SHORT, authority=Authority.__new__(Authority)) as r:
        answer = await r.send(raw.replace(H, r.upstream.authority.encode()))
        # Everything has ended when the proxy closed the connection.
        asked, seen = meaning(r.door), by_h11(r.upstream)
        assert seen == asked[: len(seen)], (raw, seen, asked)
        assert Second().read(bytes(r.upstream.raw)) == seen, raw
        return r, answer


async def batched(cases: list[bytes]) -> list[tuple[Rig, bytes]]:
    limit = asyncio.Semaphore(24)

    async def one(raw: bytes) -> tuple[Rig, bytes]:
        async with limit:
            return await outcome_of(raw)

    return await asyncio.gather(*[one(raw) for raw in cases])


def test_corpus_is_large_enough() -> None:
    assert len(set(REFUSED)) + len(CARRIED) + len(RESPONSES) >= 200


@in_loop
async def test_what_is_ambiguous_never_reaches_an_upstream() -> None:
    for raw, (r, answer) in zip(REFUSED, await batched(REFUSED), strict=True):
        assert r.upstream.requests == [], raw
        assert r.upstream.raw == b"", raw
        assert not answer or answer[9:10] in b"45" or answer.startswith(b"HTTP/1.1 200 Connection Est"), (raw, answer)


@in_loop
async def test_what_is_clear_is_carried_in_its_one_meaning() -> None:
    results = await batched([raw for raw, _ in CARRIED])
    for (raw, count), (r, answer) in zip(CARRIED, results, strict=True):
        assert len(r.upstream.requests) == count, (raw, answer)
        assert answer.count(b"\r\n\r\nok") == count, (raw, answer)


OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES = [
    OK + rest
    for rest in (
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"Content-Length: +5\r\n\r\nabcde",
        b"Content-Length: 5, 5\r\n\r\nabcde",
        b"Content-Length: -1\r\n\r\nabcde",
        b"Content-Length: 0x5\r\n\r\nabcde",
        b"Content-Length: \r\n\r\nabcde",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding: cow\r\n\r\nx",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"Transfer_Encoding: chunked\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
        b" Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"X: y\r\n z\r\n\r\n",
        b"X: y\x00z\r\n\r\n",
        b"X: y\rz\r\nContent-Length: 0\r\n\r\n",
        b"X: y\nContent-Length: 0\r\n\r\n",
        b"X\r\n\r\n",
        b": y\r\n\r\n",
        b"X y: z\r\n\r\n",
        b"X\x80: z\r\n\r\n",
        b"Set-Cookie: a\x01\r\n\r\n",
        b"X: " + b"y" * 9000 + b"\r\n\r\n",
        b"X: y\r\n" * 80 + b"\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3" + b"0" * 600,
        b"Content-Length: 10\r\n\r\nabc",
        b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
        b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"Content-Encoding: gzip, gzip\r\nContent-Length: 3\r\n\r\nabc",
    )
] + [
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 099 x\r\n\r\n",
    b"HTTP/1.1 abc x\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 O\x00K\r\n\r\n",
    b"HTTP/1.1 200 O\rK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    b"",
    b"\x00" * 50,
    b"A" * 10_000,
    b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + OK + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX: y",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    b"\x15\x03\x03\x00\x02\x02\x28",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 +200 OK\r\n\r\n",
    b"HTTP/1.1\t200 OK\r\n\r\n",
]
"""Answers that no client may get as they are."""


def replying(raw: bytes) -> Upstream:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    return Upstream(handler)


async def answered(raw: bytes) -> tuple[Rig, bytes]:
    async with rig(upstream=replying(raw), limits=SHORT) as r:
        return r, await r.send(
            EVIL.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n").replace(H, r.upstream.authority.encode())
        )


def response_by_h11(raw: bytes, *, ended: bool = True) -> tuple[int, bytes] | None:
    """Status and body of one complete response; None where it is not complete or not valid."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        connection.receive_data(raw)
        if ended:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError:
        return None


@in_loop
async def test_malformed_answers_become_an_error_or_a_cut() -> None:
    results = await asyncio.gather(*[answered(raw) for raw in RESPONSES])
    for raw, (r, answer) in zip(RESPONSES, results, strict=True):
        read = response_by_h11(answer)
        assert read is None or read[0] == 502, (raw, answer)
        (outcome,) = r.door.outcomes
        assert outcome.aborted in {"upstream_framing", "upstream_closed", "undecodable", "upstream_timeout"}, (
            raw,
            outcome,
        )
        assert outcome.dialled


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
        (OK + b"\r\nabc", b"abc"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abc"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n0\r\nX: y\r\n\r\n", b"abc"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    ],
)
@in_loop
async def test_valid_answers_keep_their_meaning(raw: bytes, body: bytes) -> None:
    r, answer = await answered(raw)
    assert response_by_h11(answer) == (200, body)
    assert r.door.outcomes[0].body == body


@in_loop
async def test_answer_with_something_after_it_ends_the_connection() -> None:
    evil = OK + b"Content-Length: 4\r\n\r\nevil"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"Content-Length: 4\r\n\r\ngood" + evil)

    async with rig(handler=handler, limits=SHORT) as r:
        answer = await r.send((EVIL * 3).replace(H, r.upstream.authority.encode()))
        assert b"evil" not in answer
        assert answer.count(b"good") == 3
        assert r.upstream.connections == 3


@in_loop
async def test_answers_to_head_have_no_body() -> None:
    upstream = replying(OK + b"Content-Length: 4\r\n\r\n")
    async with rig(upstream=upstream, limits=SHORT) as r:
        raw = b"HEAD http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = await r.send(raw.replace(H, r.upstream.authority.encode()))
        assert b"content-length: 4\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")
