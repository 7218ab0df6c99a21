"""Access tokens of OAuth clients (RFC 6749, 4.4: client credentials), fetched by the node and renewed before they end.

The token endpoint is dialled like any other host: its name is resolved once, every address is checked by the tenant's
guard, and the checked address is the one that is dialled. The answer is bounded, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from holdfast.egress.base import Guard, Refused
from holdfast.egress.bindings import OAuthClient

EARLY = 60.0
"""Seconds before its end at which a token is renewed."""
SHORT = 300.0
"""Seconds that a token counts as good for when the server does not say."""
MAX_ANSWER = 65_536
TIMEOUT = 15.0


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An access token. ``until`` is monotonic time."""

    value: str
    until: float

    def __repr__(self) -> str:
        return "Token(…)"


class _Answer(msgspec.Struct, kw_only=True):
    access_token: str
    token_type: str = "bearer"  # noqa: S105 - a word of the protocol
    expires_in: int | float | str | None = None


class Tokens:
    """The tokens of one tenant's clients, each asked for once at a time."""

    def __init__(
        self,
        guard: Guard,
        *,
        clock: Callable[[], float] = time.monotonic,
        verify: Any = True,
    ) -> None:
        self._guard = guard
        self._clock = clock
        self._verify = verify
        self._tokens: dict[tuple[str, int], Token] = {}
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}

    async def token(self, name: str, version: int, client: OAuthClient) -> str:
        """A token that is good for some time yet. ``name`` and ``version`` are the secret's.

        Raises:
            Refused: the server refuses, cannot be reached, or may not be dialled.
        """
        key = (name, version)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            kept = self._tokens.get(key)
            if kept is None or kept.until <= self._clock():
                kept = self._tokens[key] = await self._fetch(name, client)
                for old in [one for one in self._tokens if one[0] == name and one != key]:
                    del self._tokens[old]
            return kept.value

    async def _fetch(self, name: str, client: OAuthClient) -> Token:
        import httpx

        where = urlsplit(client.token_url)
        host = where.hostname or ""
        port = where.port or (443 if where.scheme == "https" else 80)
        if where.scheme != "https" and not is_loopback(host):
            raise _refused(name, "its token_url is not https; correct it and set the secret again")
        address = (await self._guard.addresses(host, port))[0]
        netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        headers = {"Host": where.netloc.rpartition("@")[2], "Accept": "application/json"}
        form = {"grant_type": "client_credentials", "scope": client.scope, "audience": client.audience}
        if client.auth == "basic":
            pair = f"{quote(client.client_id, safe='')}:{quote(client.client_secret, safe='')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form |= {"client_id": client.client_id, "client_secret": client.client_secret}
        try:
            async with (
                httpx.AsyncClient(verify=self._verify, trust_env=False, timeout=TIMEOUT) as http,
                http.stream(
                    "POST",
                    where._replace(netloc=netloc, fragment="").geturl(),
                    data={key: value for key, value in form.items() if value},
                    headers=headers,
                    extensions={"sni_hostname": host},
                ) as answer,
            ):
                body = b""
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise _refused(name, "its token server sent too long an answer")
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _refused(name, f"its token server cannot be reached ({type(error).__name__})") from None
        if status != 200:
            raise _refused(name, f"its token server answered {status}; check client_id, client_secret and scope")
        return self._token(name, body)

    def _token(self, name: str, body: bytes) -> Token:
        try:
            said = msgspec.json.decode(body, type=_Answer)
            lasts = SHORT if said.expires_in is None else float(said.expires_in)
        except (msgspec.DecodeError, ValueError):
            raise _refused(name, "its token server sent something else than a token") from None
        token = said.access_token
        if said.token_type.lower() != "bearer" or not (token.isascii() and token.isprintable() and token):
            raise _refused(name, "its token server sent a token of another kind than bearer")
        early = min(EARLY, lasts / 10)
        return Token(value=token, until=self._clock() + lasts - early)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def _refused(name: str, why: str) -> Refused:
    return Refused(f"the secret {name} cannot be used: {why}.", kind="credential", rule=f"secrets:{name}", status=502)
