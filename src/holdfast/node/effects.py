"""Requests of a run by what they are: which recorded one a request repeats, and what doing it twice would mean. Pure.

A step that is run again after a crash makes its requests again. Each is known by the step that makes it, its method,
URL and body, and its ordinal among equals; what had an answer is answered from the record, and nothing is sent twice
that must not be.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from holdfast.action import Effect
from holdfast.egress.base import Body, RequestHead, ResponseHead, Served
from holdfast.journal.fold import Record
from holdfast.values import digest, dump, load

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"})
"""Methods that change nothing (RFC 9110, 9.2.1); a tunnel is judged by what it carried."""
REPEATABLE = frozenset({"PUT", "DELETE"})
"""Methods that may be sent again (RFC 9110, 9.2.2)."""
MEDIUM = "http"
"""Last part of the place under which a step's requests are kept, apart from its calls."""
_OPERATION = re.compile(r"^\s*(?:query|mutation|subscription)\s+([_A-Za-z][_0-9A-Za-z]*)", re.MULTILINE)
_SECRET = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"x-api-key"})
"""Fields that are not shown to rules and not recorded: their value is nobody's business."""


class Ledger:
    """The requests that one process of a run has made, by the step that makes them and its attempt."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int, str], int] = {}
        self._made: dict[tuple[str, int], set[str]] = {}
        self._places: dict[str, int] = {}

    def next(self, parent: str, attempt: int, sha: str) -> str:
        """The id of the next request that looks like this."""
        key = (parent, attempt, sha)
        ordinal = self._counts[key] = self._counts.get(key, 0) + 1
        name = f"{MEDIUM}@{sha[:16]}.{ordinal}"
        id_ = f"{parent}/{name}" if parent else name
        self._made.setdefault((parent, attempt), set()).add(id_)
        return id_

    def place(self, parent: str, known: int) -> int:
        """A number for a new request of a step, of which ``known`` are on record."""
        place = self._places[parent] = max(self._places.get(parent, -1) + 1, known)
        return place

    def left(self, parent: str, attempt: int, recorded: Iterable[Record]) -> Record | None:
        """A recorded request that changed something and that this attempt has not made again; None when there is
        none."""
        made = self._made.get((parent, attempt), set())
        for record in recorded:
            if record.state == "done" and record.id not in made and record.action.method not in SAFE:
                return record
        return None


def place_of(parent: str) -> str:
    """Where the requests of a step are kept."""
    return f"{parent}/{MEDIUM}" if parent else MEDIUM


def sha_of(head: RequestHead, body: Body) -> str:
    """What a request is known by: method, URL and body."""
    return digest(MEDIUM, head.method, head.url(), body.digest())


def effect_of(head: RequestHead, enclosing: Effect | None, keyed: bool) -> Effect:
    """What sending a request twice means.

    Args:
        enclosing: the class that the author gave the tool that makes it; None: there is no such tool.
        keyed: whether it carries an idempotency key that its receiver heeds.
    """
    if head.upgrade:
        return Effect.IRREVERSIBLE
    if head.method in SAFE:
        return Effect.PURE
    if head.method in REPEATABLE or keyed or enclosing in (Effect.PURE, Effect.IDEMPOTENT):
        return Effect.IDEMPOTENT
    return Effect.IRREVERSIBLE


def arguments(head: RequestHead, body: Body) -> dict[str, Any]:
    """What rules and detectors look at: query, fields and body, as text where that is what it is."""
    found: dict[str, Any] = {"url": head.url()}
    fields = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers if name not in _SECRET}
    if fields:
        found["headers"] = fields
    if not body.decoded:
        return found
    kind = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    value = value_of(body.decoded, kind)
    found["body"] = value
    if operation := _operation(value):
        found["operation"] = operation
    return found


def value_of(data: bytes, kind: bytes = b"") -> Any:
    """A body as rules look at it: what its media type ``kind`` says it is, else text."""
    if kind == b"application/json" or kind.endswith(b"+json"):
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError:
            pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        # Every byte is kept: what is text within it is still found.
        return data.decode("latin-1")


def _operation(value: Any) -> str:
    """The name that JSON-RPC and GraphQL give to what is asked for."""
    if not isinstance(value, Mapping):
        return ""
    if "jsonrpc" in value and isinstance(value.get("method"), str):
        return str(value["method"])
    query = value.get("query")
    if not isinstance(query, str):
        return ""
    if isinstance(value.get("operationName"), str):
        return str(value["operationName"])
    match = _OPERATION.search(query)
    return match[1] if match else ""


class _Answer(msgspec.Struct):
    status: int
    headers: list[tuple[str, str]] = []
    body: str = ""


def keep(head: ResponseHead, body: bytes) -> bytes:
    """A response as it is recorded."""
    fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers]
    return dump({"status": head.status, "headers": fields, "body": base64.b64encode(body).decode()}, "a response")


def recorded(data: bytes) -> Served:
    """A recorded response; what a person settled a request with is answered as JSON."""
    try:
        answer = msgspec.json.decode(data, type=_Answer)
        body = base64.b64decode(answer.body, validate=True)
    except (msgspec.DecodeError, ValueError):
        body = dump(load(data), "the answer")
        kind = ((b"content-type", b"application/json"),)
        return Served(head=ResponseHead(status=200, headers=kind, length=len(body)), body=body)
    headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers)
    return Served(head=ResponseHead(status=answer.status, headers=headers, length=len(body)), body=body)
