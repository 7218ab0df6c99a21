"""AWS Signature Version 4 (https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html). Pure.

An agent's SDK signs with a placeholder; the same request is signed anew with the real key, and the agent's own
signature is dropped. Region and service are those that the agent signed for, unless the secret pins them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = b"UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()

Pairs = tuple[tuple[bytes, bytes], ...]

_SCOPE = re.compile(r"Credential=[^/,\s]+/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
_SIGNED = re.compile(r"SignedHeaders=([a-z0-9;_-]+)", re.IGNORECASE)
_REGION = re.compile(r"^[a-z]{2}(-[a-z]+)+-\d$")
_HOST = re.compile(r"\.amazonaws\.com(\.cn)?$")
_SIGNING_NAMES = {"bedrock-runtime": "bedrock", "bedrock-agent-runtime": "bedrock", "email": "ses"}
"""Services whose name in a signature is not the one in their address."""
_OWN_QUERY = frozenset(
    name.lower()
    for name in (
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
    )
)


class Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The secret of a binding, as JSON. ``region`` and ``service`` pin what the agent may sign for."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""
    region: str = ""
    service: str = ""


class Scope(NamedTuple):
    """What a signature is for."""

    region: str
    service: str


class Signed(NamedTuple):
    """A request with its signature."""

    headers: Pairs
    query: str
    signature: str


def scope_of(keys: Keys, host: str, authorization: str, query: str) -> Scope | None:
    """Region and service: the secret's, else the agent's own signature's, else the host's; None when none tells."""
    found = _SCOPE.search(authorization) or _SCOPE.search(unquote_to_bytes(query).decode("utf-8", "replace"))
    if found is None and (match := re.search(r"X-Amz-Credential=([^&]+)", query, re.IGNORECASE)):
        found = _SCOPE.search("Credential=" + unquote_to_bytes(match[1]).decode("utf-8", "replace"))
    region, service = (found[1], found[2]) if found else _by_host(host)
    region, service = keys.region or region, keys.service or service
    return Scope(region, service) if region and service else None


def _by_host(host: str) -> tuple[str, str]:
    if not _HOST.search(host):
        return "", ""
    labels = _HOST.sub("", host).split(".")
    region = next((label for label in reversed(labels) if _REGION.match(label)), "us-east-1")
    names = [label for label in labels if label != region and label != "dualstack"]
    name = names[-1] if names else ""
    return region, _SIGNING_NAMES.get(name, name)


def signed_names(authorization: str) -> frozenset[str]:
    """Names of the headers that the agent signed."""
    found = _SIGNED.search(authorization)
    return frozenset(found[1].lower().split(";")) if found else frozenset()


def sign(
    keys: Keys,
    scope: Scope,
    *,
    method: str,
    authority: str,
    path: str,
    query: str,
    headers: Pairs,
    payload: str,
    at: str,
    also: frozenset[str] = frozenset(),
) -> Signed:
    """Sign a request.

    Args:
        authority: the value of ``Host``. path: as it is sent, escapes included. headers: names in lower case; an
        ``authorization`` and dates among them are replaced. payload: hex SHA-256 of the body, or what stands for it.
        at: ``YYYYMMDDTHHMMSSZ``. also: names to sign beside host, content-type and ``x-amz-*``.
    """
    kept = [
        (name, value)
        for name, value in headers
        if name not in (b"authorization", b"x-amz-date", b"date", b"x-amz-security-token", b"host")
    ]
    kept.append((b"x-amz-date", at.encode()))
    if keys.session_token:
        kept.append((b"x-amz-security-token", keys.session_token.encode()))
    if scope.service == "s3" and not any(name == b"x-amz-content-sha256" for name, _ in kept):
        kept.append((b"x-amz-content-sha256", payload.encode()))
    query = "&".join(part for part in query.split("&") if part and _name(part) not in _OWN_QUERY)
    lines: dict[str, list[str]] = {"host": [authority]}
    for raw, value in kept:
        name = raw.decode("latin-1")
        if name.startswith("x-amz-") or name == "content-type" or name in also:
            lines.setdefault(name, []).append(" ".join(value.decode("latin-1").split()))
    names = ";".join(sorted(lines))
    canonical = "\n".join(
        (
            method,
            _path(path, scope.service),
            _query(query),
            *(f"{name}:{','.join(lines[name])}" for name in sorted(lines)),
            "",
            names,
            payload,
        )
    )
    day = at[:8]
    where = f"{day}/{scope.region}/{scope.service}/aws4_request"
    digest = hashlib.sha256(canonical.encode("latin-1", "replace")).hexdigest()
    signature = hmac.new(
        _key(keys.secret_access_key, day, scope), f"{ALGORITHM}\n{at}\n{where}\n{digest}".encode(), hashlib.sha256
    ).hexdigest()
    line = f"{ALGORITHM} Credential={keys.access_key_id}/{where}, SignedHeaders={names}, Signature={signature}"
    return Signed((*kept, (b"authorization", line.encode())), query, signature)


def _key(secret: str, day: str, scope: Scope) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (day, scope.region, scope.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _name(part: str) -> str:
    return unquote_to_bytes(part.partition("=")[0]).decode("utf-8", "replace").lower()


def _path(path: str, service: str) -> str:
    """S3 signs a path escaped once, every other service the escaped path escaped again."""
    if service == "s3":
        return quote(unquote_to_bytes(path), safe="/~") or "/"
    return quote(path, safe="/~") or "/"


def _query(query: str) -> str:
    pairs = []
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((quote(unquote_to_bytes(name), safe="~"), quote(unquote_to_bytes(value), safe="~")))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))
