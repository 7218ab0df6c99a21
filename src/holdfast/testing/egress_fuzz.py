"""Fuzz target of the egress parsers: ``python -m holdfast.testing.egress_fuzz [libFuzzer options]`` (needs atheris).

Whatever is accepted must mean the same to a second parser (h11) after it was written anew, and parsing that again must
change nothing. Anything but a refusal that leaves a parser is a finding.
"""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import h11

from holdfast.egress import coding, http1, messages, target, tls, websocket
from holdfast.egress.base import Refused
from holdfast.egress.messages import Inside

LIMIT = 4096
SEEDS = (
    b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"POST http://a.example:8080/x?y=z HTTP/1.1\r\nHost: a.example:8080\r\nContent-Length: 3\r\nA: b\r\n\r\nabc",
    b"PUT https://[2001:db8::1]/%41 HTTP/1.1\r\nHost: [2001:db8::1]\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
    b"3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nX: y\r\n\r\n",
    b"/a/%2e/b;c/../d?e=f",
    b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"
    + bytes(32)
    + b"\x00\x00\x02\x13\x01\x01\x00\x00\x0c\x00\x00\x00\x08\x00\x06\x00\x00\x03a.b",
    b"\x81\x83abcd\x00\x01\x02",
)


def request(data: bytes) -> None:
    """A request's head, and what follows it."""
    buffer = bytearray(data)
    end = http1.find_head(buffer, LIMIT)
    if end < 0:
        return
    method, where, version, fields = http1.request_head(bytes(buffer[:end]), 64)
    incoming = messages.request(method, where, version, fields)
    head = incoming.head
    if method == "CONNECT":
        assert target.authority(f"{_bracketed(head.host)}:{head.port}", None) == (head.host, head.port)
        return
    again = messages.request_bytes(head)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(again)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    path = f"{head.path}?{head.query}" if head.query else head.path
    assert (event.method.decode(), event.target.decode()) == (head.method, path)
    second = http1.request_head(again[:-4], 80)
    reread = messages.request(*second, inside=Inside(head.host, head.port, head.scheme)).head
    assert (reread.url(), reread.method, reread.length) == (head.url(), head.method, head.length)
    assert [field for field in reread.headers if field[0] != b"accept-encoding"] == list(head.headers)


def response(data: bytes) -> None:
    """A response's head."""
    buffer = bytearray(data)
    end = http1.find_head(buffer, LIMIT)
    if end < 0:
        return
    status, version, fields = http1.response_head(bytes(buffer[:end]), 64)
    answer = messages.response(status, version, fields, "GET")
    if status < 200:
        return
    raw = messages.response_bytes(answer.head, chunked=answer.head.length is None, keep_alive=answer.keep_alive)
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == status


def chunks(data: bytes) -> None:
    """A chunked body, read whole and byte by byte: the same, or refused both times."""
    results = []
    for step in (len(data) or 1, 1):
        reader, buffer, out = http1.Chunked(extensions=True), bytearray(), b""
        try:
            for at in range(0, len(data), step):
                buffer += data[at : at + step]
                out += reader.feed(buffer)
            results.append((out, reader.done, bytes(buffer) if reader.done else b""))
        except Refused:
            results.append((b"", False, b"refused"))
    assert results[0] == results[1]


def path(data: bytes) -> None:
    """A path comes out in a form that it keeps, and without dot segments."""
    text = data.decode("latin-1")
    found, query = target.path_and_query(text)
    assert target.path_and_query(found + ("?" + query if query else "")) == (found, query)
    assert not any(segment in (".", "..") for segment in found.split("/"))


def authority(data: bytes) -> None:
    """An authority comes out in a form that it keeps."""
    host, port = target.authority(data.decode("latin-1"), 80)
    assert target.authority(f"{_bracketed(host)}:{port}", None) == (host, port)


def hello(data: bytes) -> None:
    """A ClientHello."""
    tls.hello_name(data)


def frames(data: bytes) -> None:
    """WebSocket frames, read whole and byte by byte: the same messages, or refused both times."""
    results = []
    for step in (len(data) or 1, 1):
        reader, buffer, found = websocket.Reader(masked=True, limit=LIMIT), bytearray(), []
        try:
            for at in range(0, len(data), step):
                buffer += data[at : at + step]
                while (message := reader.message(buffer)) is not None:
                    found.append(message)
            results.append(found)
        except Refused:
            results.append([*found, (-1, b"")])
    assert results[0] == results[1]


def coded(data: bytes) -> None:
    """A compressed body stays within its bounds."""
    assert len(coding.decoded(data, b"gzip" if data[:1] == b"\x1f" else b"deflate", 20, 1 << 20)) <= 1 << 20


TARGETS: tuple[Callable[[bytes], None], ...] = (request, response, chunks, path, authority, hello, frames, coded)


def one_input(data: bytes) -> None:
    """Give the same bytes to every parser."""
    for parse in TARGETS:
        try:
            parse(data)
        except Refused:
            continue


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main() -> None:
    """Fuzz until libFuzzer's options (``-max_total_time=3600``) or a finding end it."""
    import atheris

    for module in (coding, http1, messages, target, tls, websocket):
        for holder in (module, http1.Chunked, websocket.Reader, coding.Decoder):
            for name, value in list(vars(holder).items()):
                if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
                    setattr(holder, name, atheris.instrument_func(value))
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], one_input)
        # libFuzzer ends the process itself.
        atheris.Fuzz()


if __name__ == "__main__":
    main()
