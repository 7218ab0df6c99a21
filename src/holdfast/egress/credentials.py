"""Adds the credential that the agent never sees, and takes every secret out of what comes back.

The agent's own ``Authorization`` is dropped where a binding covers the request, and a placeholder is dropped
everywhere. Over plain HTTP nothing is sent but to this machine itself. A redirect is a new request: another host, or
another path, gets what is bound to it and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote_plus

import msgspec

from holdfast.clock import Clock
from holdfast.egress import sigv4
from holdfast.egress.base import Body, Dressed, Headers, Refused, RequestHead
from holdfast.egress.bindings import aws_keys, for_agent, oauth_client, pick
from holdfast.egress.oauth import Tokens, is_loopback
from holdfast.egress.scrub import Secrets
from holdfast.egress.vault import Held, Vault
from holdfast.errors import StoreError

PLACEHOLDER = "holdfast-secret-"
"""How the placeholders begin that agents are given instead of secrets."""
_OWN = frozenset({b"authorization", b"proxy-authorization"})
_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
"""Headers that some servers take for the method: a binding to methods must not be walked around."""
_REMEMBERED = 64


def placeholder(name: str) -> str:
    """What an agent may hold in the place of a secret: for a client that insists on having some key."""
    return PLACEHOLDER + name


class Credentials:
    """The outfitter of one agent's channel: a :class:`holdfast.egress.base.Outfitter`."""

    def __init__(
        self,
        vault: Vault,
        agent: str,
        tokens: Tokens,
        clock: Clock,
        secrets: Callable[[tuple[str, ...]], Secrets] = Secrets,
    ) -> None:
        self._vault = vault
        self._agent = agent
        self._tokens = tokens
        self._clock = clock
        self._build = secrets
        self._seen: tuple[Held, ...] | None = None
        """The vault as it was when the rest of this was worked out."""
        self._mine: dict[str, Held] = {}
        self._texts: tuple[str, ...] | None = None
        """What has to be looked for; None: to be worked out anew."""
        self._built: tuple[tuple[str, ...], Secrets] | None = None
        self._lock = asyncio.Lock()
        self._sent: dict[str, None] = {}
        """Texts that left: they are looked for as long as this lives, also after a rotation."""

    async def dress(self, ticket: Any, head: RequestHead, body: Body) -> Dressed:
        """Dress one request.

        Raises:
            Refused: a credential is bound to it and cannot be had or sent, or two are bound alike.
        """
        held = self._held()
        if head.get(b"range") is not None and any(
            one.binding.kind != "sigv4" and one.binding.reaches(head) for one in held.values()
        ):
            # A server that knows a secret could be asked for it byte by byte; one that ignores a range is in its right.
            head = _without(head, frozenset({b"range", b"if-range"}))
        name = pick(((one.name, one.binding) for one in held.values()), head)
        dressed = _without_placeholders(head) if name is None else await self._add(held[name], head, body)
        scrubber = await self._scrubber()
        return Dressed(
            head=dressed,
            scrub=scrubber.stream() if scrubber else None,
            scrub_headers=scrubber.headers if scrubber else None,
            secret=name is not None,
        )

    def named(self, head: RequestHead) -> str:
        """The name of the secret that a request would get; empty: none.

        Raises:
            Refused: two are bound to it alike, or the secrets cannot be read.
        """
        return pick(((one.name, one.binding) for one in self._held().values()), head) or ""

    def login(self, head: RequestHead) -> tuple[str, str]:
        """User and password for a session with a database: ``head`` has the scheme ``postgres`` and, as its path, the
        database.

        Raises:
            Refused: no secret is bound to it, or two are bound alike.
        """
        held = self._held()
        name = pick(((one.name, one.binding) for one in held.values()), head)
        if name is None:
            raise Refused(
                f"no secret is bound to the database {head.path[1:]} at {head.host}. Set one with "
                "`holdfast secrets set NAME --host HOST --as postgres`.",
                kind="credential",
                rule="secrets:none",
            )
        self._remember(*held[name].sensitive())
        user, _, password = held[name].value.decode().partition(":")
        return user, password

    async def scrubber(self) -> Secrets:
        """What takes this agent's secrets out of anything else that it may see: errors, logs, records."""
        self._held()
        return await self._scrubber()

    async def _scrubber(self) -> Secrets:
        texts = self._texts
        if texts is None:
            texts = self._texts = tuple(
                sorted({*self._sent, *(text for one in self._mine.values() for text in one.sensitive())})
            )
        if self._built is not None and self._built[0] == texts:
            return self._built[1]
        async with self._lock:
            if self._built is None or self._built[0] != texts:
                # Many secrets take a while: not on the event loop.
                try:
                    self._built = (texts, await asyncio.to_thread(self._build, texts))
                except ValueError as error:
                    raise Refused(f"{error}; remove some of them", kind="credential", status=503) from None
            return self._built[1]

    def _held(self) -> dict[str, Held]:
        """The secrets that are for this agent."""
        try:
            current = self._vault.current()
        except StoreError as error:
            raise Refused(f"the secrets cannot be read: {error}", kind="credential", status=503) from None
        if current is not self._seen:
            self._seen, self._texts = current, None
            self._mine = {one.name: one for one in current if for_agent(one.binding, self._agent)}
        return self._mine

    async def _add(self, one: Held, head: RequestHead, body: Body) -> RequestHead:
        bound = one.binding
        if head.scheme != "https" and not is_loopback(head.host):
            raise Refused(
                f"the secret {one.name} is not sent over plain http. Use https://{head.host}.",
                kind="credential",
                rule="secrets:plain-http",
            )
        value = one.value.decode()
        drop = _OWN | (_OVERRIDES if bound.methods else frozenset())
        own = {key.decode("latin-1"): field.decode("latin-1") for key, field in head.headers if key in _OWN}
        bare = _without_placeholders(_without(head, drop))
        self._remember(*one.sensitive())
        if bound.kind == "header":
            return _with(bare, bound.field.encode(), one.value)
        if bound.kind == "query":
            rest = [part for part in bare.query.split("&") if part and unquote_plus(part.split("=")[0]) != bound.field]
            field = f"{quote(bound.field, safe='')}={quote(value, safe='')}"
            return msgspec.structs.replace(bare, query="&".join([*rest, field]))
        if bound.kind == "basic":
            return _with(bare, b"authorization", b"Basic " + base64.b64encode(one.value))
        if bound.kind == "bearer":
            return _with(bare, b"authorization", b"Bearer " + one.value)
        if bound.kind == "sigv4":
            return self._signed(one, bare, body, own.get("authorization", ""))
        token = await self._tokens.token(one.name, one.version, oauth_client(value))
        self._remember(token)
        return _with(bare, b"authorization", f"Bearer {token}".encode())

    def _signed(self, one: Held, head: RequestHead, body: Body, authorization: str) -> RequestHead:
        keys = aws_keys(one.value.decode())
        scope = sigv4.scope_of(keys, head.host, authorization, head.query)
        if scope is None:
            raise _unsigned(one, "nothing names its region and service; add them to the secret")
        announced = (head.get(b"x-amz-content-sha256") or b"").decode("latin-1")
        if announced.startswith("STREAMING-AWS4-"):
            raise _unsigned(one, "its chunks are signed one by one; switch payload signing off")
        if announced.startswith(("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD")):
            payload = announced
        elif body.complete:
            payload = hashlib.sha256(body.data).hexdigest()
        elif announced:
            payload = announced
        else:
            raise _unsigned(one, "its body is too long to be signed; send x-amz-content-sha256 with it")
        if announced != payload:
            head = _without(head, frozenset({b"x-amz-content-sha256"}))
        at = datetime.datetime.fromtimestamp(self._clock.now() / 1e6, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        signed = sigv4.sign(
            keys,
            scope,
            method=head.method,
            authority=head.authority,
            path=head.path,
            query=head.query,
            headers=head.headers,
            payload=payload,
            at=at,
            also=sigv4.signed_names(authorization),
        )
        return msgspec.structs.replace(head, headers=signed.headers, query=signed.query)

    def _remember(self, *texts: str) -> None:
        for text in texts:
            if text not in self._sent:
                self._sent[text] = self._texts = None
        while len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]


def _without(head: RequestHead, names: frozenset[bytes]) -> RequestHead:
    return msgspec.structs.replace(head, headers=tuple(pair for pair in head.headers if pair[0] not in names))


def _with(head: RequestHead, name: bytes, value: bytes) -> RequestHead:
    bare = _without(head, frozenset({name}))
    return msgspec.structs.replace(bare, headers=(*bare.headers, (name, value)))


def _without_placeholders(head: RequestHead) -> RequestHead:
    mark = PLACEHOLDER.encode()
    kept: Headers = tuple(pair for pair in head.headers if mark not in pair[1] and not _hidden(pair[1], mark))
    query = "&".join(part for part in head.query.split("&") if PLACEHOLDER not in part)
    return msgspec.structs.replace(head, headers=kept, query=query)


def _hidden(value: bytes, mark: bytes) -> bool:
    """Whether basic authentication holds a placeholder."""
    scheme, _, coded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        return mark in base64.b64decode(coded, validate=True)
    except ValueError:
        return False


def _unsigned(one: Held, why: str) -> Refused:
    return Refused(
        f"the request cannot be signed with the secret {one.name}: {why}.",
        kind="credential",
        rule=f"secrets:{one.name}",
    )
