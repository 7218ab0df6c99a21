"""Where a secret may go, and how: (tenant, agent, host, method, path) to an injection. Pure.

A binding covers one host name (or ``*.example.com``) and, unless it names a port, the scheme's own port. The most
specific binding of those that cover a request wins; two that are equally specific are ambiguous, and nothing is sent.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from holdfast.egress.base import PORTS, Refused, RequestHead
from holdfast.egress.sigv4 import Keys
from holdfast.errors import UsageError
from holdfast.policy.patterns import fits, is_pattern

KINDS = ("header:NAME", "query:NAME", "basic", "bearer", "sigv4", "oauth", "postgres")
"""How a secret is added."""
POSTGRES = 5432
"""The port of a database that names none."""
SHORTEST, LONGEST = 8, 8192
"""Bytes of a secret. A shorter one could not be told from ordinary text when it comes back."""
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::([1-9]\d{0,4}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_UNSET = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive"}
)
"""Headers that decide how a request is read, and are no credential."""


class OAuthClient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The secret of an ``oauth`` binding, as JSON: a client of RFC 6749, 4.4 (client credentials)."""

    token_url: str
    client_id: str
    client_secret: str
    scope: str = ""
    audience: str = ""
    auth: str = "basic"
    """``basic`` or ``post``: how the client proves itself (RFC 6749, 2.3.1)."""


class Binding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one secret may go."""

    inject: str
    """One of :data:`KINDS`."""
    host: str
    """``api.example.com``, ``*.example.com``, either with ``:port``."""
    methods: tuple[str, ...] = ()
    """In capitals; empty: every method."""
    path: str = ""
    """A path or pattern, in which ``*`` also stands for slashes; empty: every path."""
    agent: str = ""
    """A name or pattern; empty: every agent of the tenant."""

    @property
    def kind(self) -> str:
        """The injection without its name."""
        return self.inject.partition(":")[0]

    @property
    def field(self) -> str:
        """Name of the header or query parameter."""
        return self.inject.partition(":")[2]

    def reaches(self, head: RequestHead) -> bool:
        """Whether a request goes to the server that the secret may go to, whatever it asks there."""
        name, port = _split(self.host)
        return (
            head.port == (port or PORTS.get(head.scheme, POSTGRES))
            and (head.scheme == "postgres") == (self.kind == "postgres")
            and _same(name, head.host)
        )

    def covers(self, head: RequestHead) -> bool:
        """Whether a request of an agent that it is for goes where the secret may go."""
        return (
            self.reaches(head)
            and (not self.methods or head.method in self.methods)
            and (not self.path or fits(self.path, head.path))
        )

    def rank(self) -> tuple[int, ...]:
        """How specific it is: host, path, method, agent, in this order."""
        return (
            not self.host.startswith("*."),
            len(self.host),
            bool(self.path) and not is_pattern(self.path),
            len(re.split(r"[*?\[]", self.path)[0]),
            bool(self.methods),
            bool(self.agent) and not is_pattern(self.agent),
            bool(self.agent),
        )


def binding(inject: str, host: str, *, methods: Sequence[str] = (), path: str = "", agent: str = "") -> Binding:
    """A binding from what an operator wrote.

    Raises:
        UsageError: it cannot be meant; names the part and the cure.
    """
    kind, colon, field = inject.partition(":")
    if inject not in KINDS and not (kind in ("header", "query") and _TOKEN.fullmatch(field)):
        raise UsageError(f"--as {inject!r} is no way to add a secret; use one of {', '.join(KINDS)}")
    if inject in ("header:NAME", "query:NAME"):
        raise UsageError(f"--as {inject}: write the name of the {kind}, as in --as header:X-Api-Key")
    if kind == "header" and field.lower() in _UNSET:
        raise UsageError(f"--as {inject}: {field} says how a request is read; a secret goes into another header")
    name, port = _split(host.lower().rstrip("."))
    bare = name.removeprefix("*.")
    if not _is_host(bare) or (name != bare and "." not in bare) or port > 65535:
        raise UsageError(
            f"--host {host!r} is no host; write api.example.com, *.example.com or api.example.com:8443, without scheme "
            "and path"
        )
    if kind == "postgres" and name != bare:
        raise UsageError(f"--host {host!r}: a database is one host, not a pattern")
    if path and not path.startswith(("/", "*")):
        raise UsageError(f"--path {path!r} does not begin with /")
    wrong = [method for method in methods if not _TOKEN.fullmatch(method)]
    if wrong:
        raise UsageError(f"--method {wrong[0]!r} is no method; write GET, POST, …")
    return Binding(
        inject=kind + colon + (field.lower() if kind == "header" else field),
        host=(f"[{name}]" if ":" in name else name) + (f":{port}" if port else ""),
        methods=tuple(method.upper() for method in methods),
        path=path,
        agent=agent,
    )


def check_name(name: str) -> str:
    """The name of a secret.

    Raises:
        UsageError: it cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a secret's name: letters, digits, dot, dash, underscore; at most 63")
    return name


def check_value(bound: Binding, value: bytes) -> bytes:
    """A secret in the form in which it is kept; the line end that ``echo`` adds is not part of it.

    Raises:
        UsageError: it is no secret of this kind. Never repeats it.
    """
    value = value.rstrip(b"\r\n")
    if not SHORTEST <= len(value) <= LONGEST:
        raise UsageError(f"the secret on stdin has {len(value)} bytes; {SHORTEST} to {LONGEST} are taken")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise UsageError(
            "the secret on stdin is not UTF-8 text; give it as base64, as its service expects it"
        ) from None
    if bound.kind == "sigv4":
        return msgspec.json.encode(aws_keys(text))
    if bound.kind == "oauth":
        return msgspec.json.encode(oauth_client(text))
    if not text.isprintable():
        raise UsageError("the secret on stdin holds a control character; give it as one line")
    if bound.kind in ("basic", "postgres") and not all(text.partition(":")[::2]):
        raise UsageError(f"a secret for --as {bound.kind} is user:password, on one line of stdin")
    if bound.kind in ("header", "bearer") and not text.isascii():
        raise UsageError("the secret on stdin holds a character that no header can: give it as its service shows it")
    return value


def aws_keys(text: str) -> Keys:
    """The keys of a ``sigv4`` secret: JSON, or ``ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN]``.

    Raises:
        UsageError: it is neither.
    """
    parts = text.split(":", 2)
    try:
        if text.lstrip().startswith("{"):
            keys = msgspec.json.decode(text, type=Keys)
        else:
            keys = Keys(access_key_id=parts[0], secret_access_key=parts[1], session_token="".join(parts[2:]))
    except (msgspec.DecodeError, IndexError):
        keys = None
    if keys is None or not re.fullmatch(r"\w{4,128}", keys.access_key_id) or len(keys.secret_access_key) < SHORTEST:
        raise UsageError(
            "a secret for --as sigv4 is ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN], or JSON with access_key_id, "
            "secret_access_key, and session_token, region, service where needed"
        )
    return keys


def oauth_client(text: str) -> OAuthClient:
    """The client of an ``oauth`` secret.

    Raises:
        UsageError: it is none.
    """
    try:
        client = msgspec.json.decode(text, type=OAuthClient)
    except msgspec.DecodeError:
        client = None
    if client is None or len(client.client_secret) < SHORTEST or client.auth not in ("basic", "post"):
        raise UsageError(
            "a secret for --as oauth is JSON with token_url, client_id, client_secret, and scope, audience, auth "
            "(basic or post) where needed"
        )
    return client


def sensitive(bound: Binding, value: bytes) -> tuple[str, ...]:
    """What of a secret must not come back: itself and the parts and forms in which it leaves."""
    text = value.decode()
    if bound.kind == "sigv4":
        keys = aws_keys(text)
        return tuple(filter(None, (keys.secret_access_key, keys.session_token)))
    if bound.kind == "oauth":
        client = oauth_client(text)
        pair = base64.b64encode(f"{client.client_id}:{client.client_secret}".encode()).decode()
        return client.client_secret, pair
    if bound.kind in ("basic", "postgres"):
        return text, text.partition(":")[2], base64.b64encode(value).decode()
    return (text,)


def pick(held: Iterable[tuple[str, Binding]], head: RequestHead) -> str | None:
    """The name of the secret that a request gets; None when no binding covers it.

    Raises:
        Refused: two bindings are equally specific.
    """
    ranked = sorted(((bound.rank(), name) for name, bound in held if bound.covers(head)), reverse=True)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        names = " and ".join(sorted(name for rank, name in ranked if rank == ranked[0][0]))
        raise Refused(
            f"the secrets {names} are bound to this request alike, so none is sent. Narrow one with --path, --method "
            "or --agent, or remove it.",
            kind="credential",
            rule="secrets:ambiguous",
        )
    return ranked[0][1] if ranked else None


def for_agent(bound: Binding, agent: str) -> bool:
    """Whether a secret is for an agent."""
    return not bound.agent or fits(bound.agent, agent)


def shown(bound: Binding) -> dict[str, Any]:
    """A binding as records and ``--json`` show it."""
    return {
        "as": bound.inject,
        "host": bound.host,
        "methods": list(bound.methods),
        "path": bound.path,
        "agent": bound.agent,
    }


def of_record(shown_binding: dict[str, Any]) -> Binding:
    """The binding of a record."""
    fields = dict(shown_binding)
    return msgspec.convert({**fields, "inject": fields.pop("as")}, Binding)


@functools.lru_cache(maxsize=4096)
def _split(host: str) -> tuple[str, int]:
    """Name and port (0: the scheme's own); an empty name where it is written wrongly."""
    found = _HOST.fullmatch(host)
    return (found[1].strip("[]"), int(found[2] or 0)) if found else ("", 0)


def _is_host(name: str) -> bool:
    if ":" in name:
        import ipaddress

        try:
            return str(ipaddress.ip_address(name)) == name
        except ValueError:
            return False
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


def _same(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host
