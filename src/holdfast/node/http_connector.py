"""Connectors that are HTTP endpoints: an operator's ``url``, called from the node's side through its own proxy.

The URL is the operator's word, so it may be private; what fills its path is the agent's, and is quoted. A credential
that is bound to the endpoint is added on the way, and taken out of whatever comes back.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from holdfast.config import ConnectorSettings
from holdfast.egress.base import Deny, Go, Outcome, Refused, Request
from holdfast.errors import HoldfastError
from holdfast.node.connector_process import BeforeDial, ConnectorFailure
from holdfast.node.egress import Egress
from holdfast.values import dump, load

MOST = 8 << 20
"""Bytes of an answer, at most."""
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same call can succeed."""
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_IN_QUERY = frozenset({"GET", "HEAD", "DELETE"})


class _Through:
    """The door of one call: what it is for was decided where the tool was called."""

    def __init__(self, before_dial: BeforeDial, dial: float) -> None:
        self._before_dial = before_dial
        self._dial = dial
        self.outcome_: Outcome | None = None

    async def decide(self, request: Request) -> Go | Deny:
        """See :class:`holdfast.egress.base.Door`."""
        return Go(ticket=self, deadline_s=self._dial)

    def rejected(self, deny: Deny) -> None:
        """See :class:`holdfast.egress.base.Door`."""

    async def before_dial(self, ticket: Any) -> None:
        """See :class:`holdfast.egress.base.Door`."""
        try:
            self._before_dial(self._dial)
        except HoldfastError as error:
            raise Refused(str(error), kind="lease", status=503) from error

    async def outcome(self, ticket: Any, outcome: Outcome) -> None:
        """See :class:`holdfast.egress.base.Door`."""
        self.outcome_ = outcome


class HttpConnectors:
    """The endpoints of a node's tenants."""

    def __init__(self, egress: Egress, dial: float) -> None:
        self._egress = egress
        self._dial = dial

    async def call(
        self,
        tenant: str,
        name: str,
        connector: ConnectorSettings,
        args: dict[str, Any],
        key: str,
        timeout: float,
        before_dial: BeforeDial,
        undoes: bytes = b"",
    ) -> bytes:
        """Make one attempt; the canonical JSON of the answer: of its JSON, else its text, null where it is empty.

        Raises:
            ConnectorFailure: it failed, or cannot be made.
        """
        given = {**args, "result": load(undoes)} if undoes else args
        _check(name, connector, given)
        head, body = _request(connector, given, key)
        door = _Through(before_dial, min(self._dial, timeout))
        try:
            async with asyncio.timeout(timeout):
                status, answer = await self._exchange(tenant, door, head, body)
        except TimeoutError:
            sent = door.outcome_ is None or door.outcome_.dialled
            raise ConnectorFailure(
                f"{name} did not answer within {timeout:g} s", sent=sent, retryable=True, timeout=True
            ) from None
        outcome = door.outcome_
        if outcome is None or outcome.aborted or len(answer) > MOST:
            why = outcome.aborted if outcome is not None and outcome.aborted else _why(answer)
            sent = outcome is not None and outcome.dialled
            raise ConnectorFailure(f"{name} could not be called: {why}", sent=sent, retryable=True)
        if not 200 <= status < 300:
            raise ConnectorFailure(
                f"{name} answered {status}", sent=True, retryable=status in AGAIN, answered=status < 500
            )
        return _value(answer)

    async def _exchange(self, tenant: str, door: _Through, head: bytes, body: bytes) -> tuple[int, bytes]:
        from holdfast.egress.proxy import Client

        outlet = self._egress.operators(tenant, door)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: Client(outlet), theirs)
            await loop.sock_sendall(ours, head + body)
            answer = bytearray()
            while data := await loop.sock_recv(ours, 1 << 16):
                answer += data
                if len(answer) > MOST + (1 << 16):
                    break
        finally:
            ours.close()
            outlet.stop()
        first, _, rest = bytes(answer).partition(b"\r\n\r\n")
        status = int(first[9:12]) if first[:5] == b"HTTP/" and first[9:12].isdigit() else 0
        chunked = b"\r\ntransfer-encoding: chunked" in first.lower()
        return status, _joined(rest) if chunked else rest


def _joined(data: bytes) -> bytes:
    """The body of chunks, as this node's own proxy writes them (RFC 9112, 7.1)."""
    parts, at = [], 0
    while (end := data.find(b"\r\n", at)) > 0 and (size := int(data[at:end], 16)):
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(parts)


def _request(connector: ConnectorSettings, args: dict[str, Any], key: str) -> tuple[bytes, bytes]:
    """The request in absolute form: this node's proxy speaks TLS with whom it is for."""
    used: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        used.add(match[1])
        value = args.get(match[1], "")
        return quote(value if isinstance(value, str) else json.dumps(value), safe="")

    url = _FIELD.sub(fill, connector.url)
    rest = {name: value for name, value in args.items() if name not in used}
    fields = [f"host: {urlsplit(url).netloc}", "accept: application/json", "accept-encoding: identity"]
    body = b""
    if connector.method not in _IN_QUERY:
        body = dump(rest, "the arguments")
        fields += ["content-type: application/json", f"content-length: {len(body)}"]
    elif rest:
        plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in rest.items()}
        url += ("&" if "?" in url else "?") + urlencode(plain)
    fields += [f"idempotency-key: {key}", "connection: close"]
    return "\r\n".join([f"{connector.method} {url} HTTP/1.1", *fields, "", ""]).encode(), body


def fields(url: str) -> list[str]:
    """The names that stand in the path of an endpoint."""
    return _FIELD.findall(url)


def _check(name: str, connector: ConnectorSettings, args: dict[str, Any]) -> None:
    missing = [field for field in fields(connector.url) if args.get(field) in (None, "")]
    if missing:
        raise ConnectorFailure(f"{name} needs {' and '.join(missing)}", sent=False, retryable=False)
    if connector.schema is None:
        return
    problem = next(iter(_validator(connector.schema).iter_errors(args)), None)
    if problem is not None:
        where = "/".join(map(str, problem.absolute_path)) or "its arguments"
        raise ConnectorFailure(
            f"{name}: {where} breaks the rule {problem.validator} of {connector.schema.name}",
            sent=False,
            retryable=False,
        )


@functools.lru_cache(64)
def _validator(path: Path) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(path.read_bytes())
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        raise ConnectorFailure(
            f"the schema {path.name} cannot be used ({type(error).__name__}); correct it", sent=False, retryable=False
        ) from None
    return Draft202012Validator(schema)


def _why(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer)["error"]["reason"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return "no answer came"


def _value(answer: bytes) -> bytes:
    if not answer:
        return b"null"
    try:
        return dump(msgspec.json.decode(answer), "the answer")
    except msgspec.DecodeError:
        return dump(answer.decode("utf-8", "replace"), "the answer")
