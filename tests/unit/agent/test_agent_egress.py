"""The way out from inside: dialling, the relay, and what ``ctx.http`` sends and makes of the answer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from holdfast.agent import egress, relay
from holdfast.agent.http import DENIED, HTTP, Headers, HTTPStatusError
from holdfast.errors import DeniedError, StepError, UsageError

Serve = Callable[[socket.socket], None]


class Node:
    """The node's side of an egress channel: gives connections and serves each in a thread."""

    def __init__(self, serve: Serve, refuse: bool = False) -> None:
        self.outer, inner = socket.socketpair()
        self.way = egress.Way(inner.detach())
        self.scopes: list[int] = []
        self._serve = serve
        self._refuse = refuse
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        while len(request := self.outer.recv(4)) == 4:
            self.scopes.append(int.from_bytes(request, "big"))
            if self._refuse:
                self.outer.sendall(egress.REFUSED)
                continue
            mine, theirs = socket.socketpair()
            socket.send_fds(self.outer, [egress.GIVEN], [theirs.fileno()])
            theirs.close()
            thread = threading.Thread(target=self._serve, args=(mine,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        self.outer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self.outer.close()


@contextlib.contextmanager
def node(serve: Serve, *, refuse: bool = False) -> Iterator[Node]:
    one = Node(serve, refuse)
    try:
        yield one
    finally:
        one.close()


def echo(sock: socket.socket) -> None:
    """Everything back, once the other side has said all."""
    with sock:
        said = bytearray()
        while data := sock.recv(1 << 16):
            said += data
        sock.sendall(said)


def answering(answer: bytes, heard: list[bytes]) -> Serve:
    def serve(sock: socket.socket) -> None:
        with sock:
            heard.append(whole_request(sock))
            sock.sendall(answer)

    return serve


def whole_request(sock: socket.socket) -> bytes:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def http_through(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], tuple[HTTP, list[bytes], Node]]]:
    with contextlib.ExitStack() as stack:

        def make(answer: bytes) -> tuple[HTTP, list[bytes], Node]:
            heard: list[bytes] = []
            one = stack.enter_context(node(answering(answer, heard)))
            monkeypatch.setattr(egress, "_way", one.way)
            return HTTP(), heard, one

        yield make


def ok(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"HTTP/1.1 {status}\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def test_a_connection_is_given_for_the_scope_that_asks() -> None:
    with node(echo) as one, socket.socket(fileno=one.way.dial(7)) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(16) == b"hello"
        assert one.scopes == [7]


def test_a_refusal_and_an_ended_channel_are_errors() -> None:
    with node(echo, refuse=True) as one:
        with pytest.raises(StepError, match="too many connections"):
            one.way.dial()
        one.outer.shutdown(socket.SHUT_RDWR)
        with pytest.raises(StepError, match="has ended"):
            one.way.dial()


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_the_relay_carries_both_ways_and_half_closes(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    with node(echo) as one:
        port = relay.start(one.way)
        clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3)]
        for client in clients:
            with client:
                threading.Thread(target=send_all, args=(client, data), daemon=True).start()
                got = bytearray()
                while piece := client.recv(1 << 16):
                    got += piece
                assert bytes(got) == data
        assert one.scopes == [egress.ANY] * 3


def send_all(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def test_the_relay_closes_a_connection_that_the_node_refuses() -> None:
    with node(echo, refuse=True) as one:
        port = relay.start(one.way)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            assert client.recv(1) == b""


def test_a_request_is_sent_in_absolute_form(http_through: Callable[[bytes], tuple[HTTP, list[bytes], Node]]) -> None:
    http, heard, _ = http_through(ok(b'{"a": 1}', "content-type: application/json", "x-a: 1", "X-A: 2"))
    response = http.post("https://api.example/v1?x=1#part", params={"y": "ü"}, json={"b": "é"}, headers={"X-Key": "k"})
    head, _, body = heard[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST https://api.example/v1?x=1&y=%C3%BC HTTP/1.1"
    assert "Host: api.example" in lines
    assert "x-key: k" in lines
    assert "content-type: application/json" in lines
    assert json.loads(body) == {"b": "é"}
    assert (response.status_code, response.json(), response.headers["X-a"]) == (200, {"a": 1}, "1, 2")
    assert response.headers.get_list("x-a") == ["1", "2"]


def test_a_denial_is_raised_with_its_rule(http_through: Callable[[bytes], tuple[HTTP, list[bytes], Node]]) -> None:
    body = json.dumps({"error": {"type": "denied", "rule": "where-to", "reason": "not on the list"}}).encode()
    http, _, _ = http_through(ok(body, f"{DENIED}: where-to", status="403 Forbidden"))
    with pytest.raises(DeniedError, match="not on the list") as caught:
        http.get("http://else.example/")
    assert caught.value.rule == "where-to"


def test_another_servers_403_is_an_answer(http_through: Callable[[bytes], tuple[HTTP, list[bytes], Node]]) -> None:
    http, _, _ = http_through(ok(b"no", status="403 Forbidden"))
    response = http.get("http://api.example/")
    assert (response.status_code, response.text, response.is_error) == (403, "no", True)
    with pytest.raises(HTTPStatusError, match="403 Forbidden"):
        response.raise_for_status()


def test_redirects_are_followed_when_asked(http_through: Callable[[bytes], tuple[HTTP, list[bytes], Node]]) -> None:
    http, heard, _ = http_through(ok(b"", "location: /b", status="302 Found"))
    assert http.post("http://api.example/a", content=b"x").is_redirect
    with pytest.raises(StepError, match="20 redirects"):
        http.post("http://api.example/a", content=b"x", follow_redirects=True)
    assert heard[-1].startswith(b"GET http://api.example/b HTTP/1.1")


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("ftp://api.example/", {}, "no http or https URL"),
        ("/relative", {}, "no http or https URL"),
        ("http://api.example/", {"json": 1, "content": b"x"}, "one body"),
        ("http://api.example/\r\nx: y", {}, "cannot be sent|no http"),
        ("http://api.example/", {"headers": {"x": "a\r\nb: c"}}, "cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_said(
    http_through: Callable[[bytes], tuple[HTTP, list[bytes], Node]], url: str, options: dict[str, object], match: str
) -> None:
    http, _, _ = http_through(ok(b""))
    with pytest.raises((UsageError, StepError), match=match):
        http.post(url, **options)


def test_an_answer_that_breaks_off_is_a_step_error(
    http_through: Callable[[bytes], tuple[HTTP, list[bytes], Node]],
) -> None:
    http, _, _ = http_through(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
    with pytest.raises(StepError, match="broke off"):
        http.get("http://api.example/secret?token=abc")


def test_headers_are_a_mapping_without_case() -> None:
    headers = Headers([("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("X", "y")])
    assert dict(headers) == {"set-cookie": "a=1, b=2", "x": "y"}
    assert "SET-COOKIE" in headers
    assert headers.get("absent") is None
