"""Tokens of OAuth clients, against a server that speaks RFC 6749."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from holdfast.egress.base import Refused
from holdfast.egress.bindings import OAuthClient
from holdfast.egress.oauth import Tokens


class LoopbackGuard:
    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        self.asked.append((host, port))
        if host not in ("localhost", "127.0.0.1"):
            raise Refused(f"{host} is not to be reached", kind="ssrf")
        return ("127.0.0.1",)


class TokenServer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, list[str]], str]] = []
        self.answer: tuple[int, Any] | None = None
        self.location = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                outer.seen.append((self.path, form, self.headers.get("authorization", "")))
                good = {"access_token": f"token-{len(outer.seen)}-abcdefgh", "token_type": "Bearer", "expires_in": 3600}
                status, said = outer.answer or (200, good)
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                if outer.location:
                    self.send_header("location", outer.location)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}/oauth/token"


@pytest.fixture
def server() -> Iterator[TokenServer]:
    found = TokenServer()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(30)


class Hands:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(server: TokenServer, **more: str) -> OAuthClient:
    return OAuthClient(token_url=server.url, client_id="me & you", client_secret="a-client-secret", **more)


def test_a_token_is_kept_until_shortly_before_its_end(server: TokenServer) -> None:
    hands, guard = Hands(), LoopbackGuard()
    tokens = Tokens(guard, clock=hands)

    async def main() -> list[str]:
        found = await asyncio.gather(*(tokens.token("crm", 1, client(server, scope="read")) for _ in range(5)))
        hands.now += 3600 - 61
        found.append(await tokens.token("crm", 1, client(server)))
        hands.now += 2
        found.append(await tokens.token("crm", 1, client(server)))
        return found

    assert asyncio.run(main()) == ["token-1-abcdefgh"] * 6 + ["token-2-abcdefgh"]
    path, form, authorization = server.seen[0]
    assert (path, form) == ("/oauth/token", {"grant_type": ["client_credentials"], "scope": ["read"]})
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"me%20%26%20you:a-client-secret"
    assert guard.asked == [("localhost", server.server.server_port)] * 2


def test_a_rotated_client_gets_a_token_of_its_own(server: TokenServer) -> None:
    async def main() -> list[str]:
        tokens = Tokens(LoopbackGuard())
        return [await tokens.token("crm", version, client(server)) for version in (1, 2, 2)]

    assert asyncio.run(main()) == ["token-1-abcdefgh", "token-2-abcdefgh", "token-2-abcdefgh"]


def test_the_client_may_prove_itself_in_the_form(server: TokenServer) -> None:
    asyncio.run(Tokens(LoopbackGuard()).token("crm", 1, client(server, auth="post", audience="crm")))
    _, form, authorization = server.seen[0]
    assert authorization == ""
    assert form["client_id"] == ["me & you"]
    assert form["client_secret"] == ["a-client-secret"]
    assert form["audience"] == ["crm"]


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (401, {"error": "invalid_client"}, "answered 401"),
        (302, b"", "answered 302"),
        (200, b"<html>", "something else"),
        (200, {"token_type": "Bearer"}, "something else"),
        (200, {"access_token": "x", "expires_in": "soon"}, "something else"),
        (200, {"access_token": "x", "token_type": "mac"}, "another kind"),
        (200, {"access_token": "a\r\nb"}, "another kind"),
        (200, {"access_token": ""}, "another kind"),
        (200, b" " * 70_000, "too long"),
    ],
)
def test_what_is_no_token_is_refused(server: TokenServer, status: int, said: Any, reason: str) -> None:
    server.answer = (status, said)
    server.location = server.url + "/elsewhere"
    with pytest.raises(Refused, match=reason) as caught:
        asyncio.run(Tokens(LoopbackGuard()).token("crm", 1, client(server)))
    assert "a-client-secret" not in str(caught.value)
    assert len(server.seen) == 1


def test_the_token_server_is_dialled_through_the_guard() -> None:
    inner = OAuthClient(token_url="https://metadata.internal/t", client_id="a", client_secret="a-client-secret")
    with pytest.raises(Refused, match="not to be reached"):
        asyncio.run(Tokens(LoopbackGuard()).token("crm", 1, inner))


def test_plain_http_is_refused() -> None:
    plain = OAuthClient(token_url="http://login.example.com/t", client_id="a", client_secret="a-client-secret")
    guard = LoopbackGuard()
    with pytest.raises(Refused, match="not https"):
        asyncio.run(Tokens(guard).token("crm", 1, plain))
    assert guard.asked == []


def test_a_server_that_is_gone(server: TokenServer) -> None:
    gone = OAuthClient(token_url="http://127.0.0.1:1/t", client_id="a", client_secret="a-client-secret")
    with pytest.raises(Refused, match="cannot be reached"):
        asyncio.run(Tokens(LoopbackGuard()).token("crm", 1, gone))
