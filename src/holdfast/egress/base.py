"""What the engine asks of its owner, and what it hands over: the contract of the room.

The engine (:mod:`holdfast.egress.proxy`) parses and rebuilds HTTP and moves bytes. It decides nothing. Per request it
calls, in this order:

1. :meth:`Door.decide`, with the head and the body; nothing has left, no name has been resolved;
2. the guard (:class:`Guard`), unless the door already asked for the addresses;
3. :meth:`Outfitter.dress`, which adds what the agent must not see;
4. :meth:`Door.before_dial`, right before the first byte leaves;
5. :meth:`Meter` states and :class:`Transform` over the response as it streams;
6. :meth:`Door.outcome`, exactly once for each :class:`Go`, before the end of the response is handed to the agent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

import msgspec

from holdfast.action import Price
from holdfast.errors import HoldfastError

Headers = tuple[tuple[bytes, bytes], ...]
"""Names in lower case, values without surrounding white space, in the order in which they came."""

PORTS = {"http": 80, "https": 443}
"""Each scheme's own port."""


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it will be sent on: unambiguous, hop-by-hop fields removed.

    ``host`` is a lower-case ASCII name (A-labels) or a canonical address without brackets. ``path`` begins with ``/``
    (``*`` for OPTIONS, empty for CONNECT) and holds no dot segment and no control character, encoded or not; what is
    percent-encoded without need is decoded (RFC 3986, 6.2.2.2), and the rest is as the agent wrote it.
    """

    method: str
    scheme: str
    """http or https. A WebSocket is an http(s) request with ``upgrade``."""
    host: str
    port: int
    path: str = "/"
    query: str = ""
    headers: Headers = ()
    version: str = "1.1"
    """1.0, 1.1 or 2: how the agent spoke."""
    upgrade: str = ""
    """``websocket``, or empty."""
    length: int | None = 0
    """Bytes of the body as announced; None: chunked, not known yet."""

    @property
    def authority(self) -> str:
        """The ``Host`` that is sent: brackets around IPv6, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if PORTS.get(self.scheme) == self.port else f"{host}:{self.port}"

    def url(self) -> str:
        """The one spelling of where it goes, query included."""
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.authority}{self.path}{query}"

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field (lower-case name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """A response as it is handed to the agent: hop-by-hop fields and content coding removed."""

    status: int
    headers: Headers = ()
    length: int | None = None
    """Bytes of the body as announced; None: not known until it ends."""

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field (lower-case name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A request's body, as far as it was read before the decision."""

    data: bytes = b""
    """As it will be sent."""
    decoded: bytes = b""
    """Without its content coding: what rules and detectors look at. The same object as ``data`` where it has none."""
    complete: bool = True
    """False: ``data`` is a prefix (:attr:`Limits.hold` bytes) of a body that is longer."""

    def digest(self) -> str:
        """SHA-256 (hex) of ``data``."""
        return hashlib.sha256(self.data).hexdigest()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`Door.decide` is asked about."""

    head: RequestHead
    body: Body
    resolve: Callable[[], Awaitable[tuple[str, ...]]]
    """Resolves the host and checks every address (:meth:`Guard.addresses`), once however often it is called. A name
    that the policy would not let through anyway should never be resolved: a look-up is a message to a stranger.
    Raises :class:`Refused`."""


class Refused(HoldfastError):
    """The engine or the guard will not carry a request. ``kind`` and ``rule`` are machine-readable."""

    code = "egress_refused"

    def __init__(self, message: str, *, kind: str, rule: str = "", status: int = 403) -> None:
        super().__init__(message)
        self.kind = kind
        self.rule = rule or kind
        self.status = status


class Deny(msgspec.Struct, frozen=True, kw_only=True):
    """The answer no. Rendered as ``{"error": {type, rule, reason, allowed, approval_id, retry: false}}``."""

    type: str
    """denied, approval_required, killed, over_budget, framing, ssrf, …"""
    rule: str
    reason: str
    allowed: tuple[str, ...] = ()
    """What would be let through instead, where that helps: hosts, methods."""
    approval_id: str = ""
    status: int = 403
    retry_after_s: float = 0.0
    """Seconds for ``Retry-After``; 0: none."""
    retry: bool = False
    """Whether sending the same again can help: an upstream that failed. Never after a denial."""

    @classmethod
    def of(cls, refused: Refused) -> Deny:
        """A refusal as an answer."""
        return cls(type=refused.kind, rule=refused.rule, reason=str(refused), status=refused.status)


class Transform(Protocol):
    """An incremental change of a stream of bytes: a scrubber, a redaction. May hold back what it cannot judge yet, but
    no longer than its longest pattern."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; give what may go on."""
        ...

    def finish(self) -> bytes:
        """No more comes: give what was held back."""
        ...


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one exchange used, as the provider returned it."""

    provider: str
    model: str
    input_tokens: int = 0
    """Not counting those read from or written to a cache."""
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    detail: dict[str, int] = {}
    """Provider's own counts beyond these: tool calls, reasoning, audio, …"""
    cost: int | None = None
    """Nano-dollars; None: no price is known."""
    prices: str = ""
    """Version of the price table."""
    settled_at_worst: bool = False
    """The provider returned no usage (aborted, missing): the reserved worst case is what it counts as."""


class MeterState(Protocol):
    """Meters one exchange. Fed with the response without its content coding, before scrubbing."""

    provider: str
    model: str
    max_tokens: int
    """Output limit that the request asks for, 0: none."""
    input_tokens: int
    """Upper bound of the input."""
    price: Price | None
    """Nano-dollars for a token at most, whatever kind of token it is; None: no price is known."""
    worst_cost: int | None
    """Nano-dollars at most; None: no price is known."""

    def limited(self, max_tokens: int) -> bytes | None:
        """The request's body with a lower output limit and usage in streams switched on, without content coding; None:
        as it was."""
        ...

    def response(self, head: ResponseHead) -> None:
        """The response begins."""
        ...

    def feed(self, data: bytes) -> None:
        """The next bytes of it."""
        ...

    def finish(self, aborted: str) -> Usage:
        """It ended; ``aborted`` is empty when it ended well."""
        ...


class Meter(Protocol):
    """Knows which requests are calls of a model, and what they cost at most."""

    def begin(self, head: RequestHead, body: Body) -> MeterState | None:
        """The state for one exchange; None: not a metered call."""
        ...


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A response from the record (invariant 12)."""

    head: ResponseHead
    body: bytes = b""


Tls = Literal["inspect", "passthrough"]


class Go(msgspec.Struct, frozen=True, kw_only=True):
    """The answer yes; the intent is durable."""

    ticket: Any
    """The owner's handle of the exchange: handed back, never looked at."""
    served: Served | None = None
    """Answered from the record: nothing leaves, and no outcome is reported."""
    tls: Tls = "inspect"
    """For CONNECT only. ``inspect``: each request inside is decided for itself, and the CONNECT has no outcome.
    ``passthrough``: bytes are relayed unseen once the ClientHello names the same host; one outcome at the end."""
    deadline_s: float = 30.0
    """The dial (connect, TLS and the sending of the head) is given up after this; bounded by the lease."""
    idempotency_key: str = ""
    """Sent as ``Idempotency-Key`` where the agent sent none; empty: not sent."""
    head: RequestHead | None = None
    """Sent instead of the request's own head: what a redaction left."""
    body: bytes | None = None
    """Sent instead of the request's own body: a redaction, a lowered output limit."""
    meter: MeterState | None = None
    tap: Transform | None = None
    """Over the response's body, after scrubbing: what the response rules redact."""
    frames: Callable[[bool, int, bytes], bool] | None = None
    """For WebSockets: called with (from the agent, opcode, payload) per message; False ends the connection."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one exchange."""

    status: int = 0
    """0: no response."""
    head: ResponseHead | None = None
    length: int = 0
    """Bytes of the response's body that the agent got, or is about to get."""
    digest: str = ""
    """SHA-256 (hex) of them."""
    body: bytes = b""
    """They themselves, up to :attr:`Limits.keep`; empty where there are more."""
    text: bytes = b""
    """``body`` without its content coding: what detectors look at. The same object where it has none."""
    truncated: bool = False
    """``body`` was longer than what is kept."""
    sent_length: int = 0
    """Bytes of the request's body (of the tunnel, of the WebSocket's frames) that were sent."""
    usage: Usage | None = None
    dialled: bool = False
    """Whether any byte may have reached the upstream. False: nothing happened out there."""
    address: str = ""
    """The address that was dialled."""
    aborted: str = ""
    """Empty: ended well. Otherwise client_gone, client_framing, body_too_large, connect_failed, tls_failed,
    upstream_reset, upstream_closed, upstream_timeout, upstream_framing, response_too_large, undecodable, frame_refused,
    stopped; or, before anything left, the kind of what refused it (ssrf, unresolved, lease, …)."""
    took_s: float = 0.0


class Door(Protocol):
    """The owner of a channel: a run, or a client of the forward proxy."""

    async def decide(self, request: Request) -> Go | Deny:
        """Take the request through the gate. Returns :class:`Go` only once its intent is durable."""
        ...

    def rejected(self, deny: Deny) -> None:
        """Note that a request was turned away unread: malformed, or too large. Must not raise or block."""
        ...

    async def before_dial(self, ticket: Any) -> None:
        """The last word before bytes leave.

        Raises:
            Refused: the lease, or the news of kills, is too old (invariants 9 and 10).
        """
        ...

    async def outcome(self, ticket: Any, outcome: Outcome) -> None:
        """Record it. Must have taken its place in the journal's order when it returns; must not raise because of what
        the outcome says. The end of the response goes to the agent only afterwards."""
        ...


class Dressed(msgspec.Struct, frozen=True, kw_only=True):
    """A request with what the agent must not see."""

    head: RequestHead
    body: bytes | None = None
    """Instead of the body; None: as it was."""
    scrub: Transform | None = None
    """Over the response's body: no secret comes back."""
    scrub_headers: Callable[[Headers], Headers] | None = None
    secret: bool = False
    """A credential was added: refused over plain http unless to a loopback address that the tenant allows."""


class Outfitter(Protocol):
    """Adds credentials on the way out, and strips the agent's own and placeholders."""

    async def dress(self, ticket: Any, head: RequestHead, body: Body) -> Dressed:
        """Dress one request.

        Raises:
            Refused: a credential is bound to it and cannot be had, or the binding does not cover it.
        """
        ...


class Guard(Protocol):
    """Which addresses may be dialled for a name. One for each tenant."""

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Resolve once and check every address: if one is not allowed, none is.

        Raises:
            Refused: no such name, or an address that is not to be reached.
        """
        ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one channel. Bytes and seconds."""

    head: int = 65_536
    headers: int = 200
    hold: int = 1_048_576
    """What of a request's body is read before the decision."""
    body: int = 1_073_741_824
    response: int = 10_737_418_240
    keep: int = 1_048_576
    """What of a response's body is kept for its outcome."""
    ratio: int = 200
    """How many times larger than it came a compressed body may become (beyond 1 MiB)."""
    connections: int = 256
    idle_s: float = 75.0
    head_s: float = 30.0
    """From a request's first byte to the end of its head."""
    body_s: float = 60.0
    """Between two reads of a body."""
    first_byte_s: float = 600.0
    """Until the upstream's response begins."""
    stream_s: float = 600.0
    """Between two reads of a response."""
