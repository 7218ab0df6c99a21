"""The contract of a store: streams, the conditional transaction, the inbox, leases.

A store is synchronous; the :class:`~holdfast.journal.writer.Writer` calls ``transact`` from one thread and groups what
waits into one commit. Readers open a store of their own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from holdfast.action import Kill, Past, Refusal, Reservation, Settlement
from holdfast.journal.event import Event, Witness

FLEET = "*"
"""Tenant of what concerns every tenant: the fleet's control stream."""


class StreamKind(enum.StrEnum):
    """What a stream belongs to."""

    RUN = "run"
    SESSION = "session"
    CONTROL = "control"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes about a stream."""

    stream: str
    tenant: str
    region: str
    kind: StreamKind
    agent: str = ""
    workflow: str = ""
    root: str = ""
    parent: str = ""
    depth: int = 0
    principal: str = ""
    auth: str = ""
    deployment: str = ""
    created_at: int = 0


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """A stream's row: a projection of its events, for finding it quickly."""

    header: Header
    status: str
    epoch: int
    owner: str
    """Node that drives it; empty: nobody."""
    seq: int
    ready_at: int | None
    """When it wants to be driven (microseconds); None: not before something arrives in its inbox."""
    replay_from: int
    """Sequence number from which the fold starts (after ``continue_as_new``)."""


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """Change of a stream's row, in the same transaction as the events."""

    status: str | None = None
    ready_at: int | None = None
    set_ready: bool = False
    """Whether ``ready_at`` is to be written (None is a value)."""
    release: bool = False
    """Give the stream up: owner becomes empty."""
    seen: int = 0
    """Highest inbox id that the owner has looked at: when ``ready_at`` is written or the stream released while a later
    item waits, the stream is ready at once. (0: every item that is still there counts as unseen.)"""
    replay_from_here: bool = False
    """The first event of this append becomes the start of the fold."""
    asking: bool = False
    """With ``status``: it rests now with a request for approval or a question that is open."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event to be: the store adds its place, hash and commitments."""

    kind: str
    data: dict[str, Any] = {}
    payloads: dict[str, bytes] = {}
    at: int
    clock_error: int = -1
    witness: str = Witness.NODE
    principal: str = ""
    auth: str = "system"


class InboxItem(msgspec.Struct, frozen=True, kw_only=True):
    """What anyone but the owner says to a stream. ``id`` is given by the store (0: not yet)."""

    id: int = 0
    tenant: str
    stream: str
    kind: str
    """approval, answer, signal, child, resolve, cancel."""
    data: dict[str, Any]
    payload: bytes = b""
    principal: str
    auth: str
    at: int


class MemoryWrite(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an agent's lasting memory (per tenant and agent). ``value`` None deletes."""

    agent: str
    key: str
    value: bytes | None


class SecretWrite(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a tenant's secret (control streams only). ``value`` None destroys it.

    Its version is the sequence number of the append's last event: what changed it.
    """

    name: str
    value: bytes | None
    binding: dict[str, Any] = {}
    """Where it may go (:class:`holdfast.egress.bindings.Binding`)."""


class SecretRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's secret as it stands, still sealed."""

    tenant: str
    name: str
    version: int
    binding: dict[str, Any]
    created_at: int
    """When this version was set, microseconds."""


class PastWrite(msgspec.Struct, frozen=True, kw_only=True):
    """What rules over a whole tenant ask of an action: how it stands now. A later one for the attempt replaces it."""

    step: str
    attempt: int
    past: Past


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """One all-or-nothing write to one stream.

    Commits only if ``epoch`` is the stream's, ``kill_generation`` (when given) is the one in force, every reservation
    fits, and every inbox item to consume is still there. ``create`` makes the stream first (``epoch`` is 0 then).
    """

    stream: str
    epoch: int
    node: str
    drafts: tuple[Draft, ...]
    create: Header | None = None
    kill_generation: int | None = None
    reserve: tuple[Reservation, ...] = ()
    settle: tuple[Settlement, ...] = ()
    consume: tuple[int, ...] = ()
    deliver: tuple[InboxItem, ...] = ()
    """Items for other streams of the same tenant (a child's end, a signal)."""
    memory: tuple[MemoryWrite, ...] = ()
    pasts: tuple[PastWrite, ...] = ()
    secrets: tuple[SecretWrite, ...] = ()
    patch: Patch | None = None
    kills: tuple[Kill, ...] = ()
    """Kills that this append puts in force (control streams only). Raises the generation."""
    lifts: tuple[str, ...] = ()
    """Ids of kills that it lifts. Raises the generation."""


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """It is durable."""

    events: tuple[Event, ...]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of it was written."""

    reason: str
    """epoch, kill, reservation, consumed, exists, missing, tenant; size (an event, payload or item is too large) or
    invalid (it cannot be written as JSON, or does not belong into this stream)."""
    message: str
    kill_generation: int = 0
    refusals: tuple[Refusal, ...] = ()


Result = Appended | Refused


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger, as it stands."""

    key: str
    kind: str
    """budget, rate, hold or once."""
    reserved: int = 0
    settled: int = 0
    limit: int = 0
    tat: int = 0
    """rate: theoretical arrival time, microseconds."""
    holders: dict[str, int] = {}
    """hold: holder to the time at which its place lapses."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's row."""

    name: str
    region: str
    created_at: int
    log_size: int = 0
    """Events in its log."""


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node that registered itself."""

    node: str
    host: str
    boot: str
    """The host's boot id: a pid means something only within it."""
    pid: int
    pid_start: int
    """Start time of the pid in clock ticks (``/proc/PID/stat``, field 22)."""
    lease_until: int
    """By the database's clock, microseconds."""


class Store(Protocol):
    """A journal's database."""

    url: str

    def transact(self, batch: Sequence[Append]) -> list[Result]:
        """Commit a batch: one transaction, one flush; a refused append leaves the others alone.

        Raises:
            StoreError: nothing of the batch is durable (disk full, database gone); says the cure.
        """

    def now(self) -> int:
        """The database's clock, microseconds since the Unix epoch."""

    # reading

    def tenants(self) -> list[Tenant]:
        """All tenants, by name. The fleet's pseudo-tenant ``*`` is among them once it has events."""

    def stream(self, stream: str) -> StreamState | None:
        """One stream's row."""

    def streams(
        self,
        *,
        tenant: str | None = None,
        kind: StreamKind | None = None,
        status: str | None = None,
        limit: int | None = None,
    ) -> list[StreamState]:
        """Rows, newest first."""

    def events(self, stream: str, *, start: int = 1) -> list[Event]:
        """A stream's events from sequence number ``start`` on."""

    def log(self, tenant: str, *, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        """A tenant's log: (index, canonical bytes) in order."""

    def payload(self, tenant: str, commitment: str) -> bytes | None:
        """A payload; None when it was erased.

        Raises:
            StoreError: it cannot be decrypted (key missing, bytes changed).
        """

    def payloads(self, tenant: str, commitments: Sequence[str]) -> dict[str, bytes]:
        """Several payloads at once; erased ones are left out."""

    def inbox(self, stream: str) -> list[InboxItem]:
        """What waits for the owner, oldest first."""

    def kill_generation(self) -> int:
        """Counts kills and lifts, over all tenants."""

    def kills(self) -> list[Kill]:
        """Kills in force."""

    def ledger(self, prefix: str = "") -> Iterator[LedgerRow]:
        """Rows whose key starts with ``prefix``."""

    def blob(self, digest: str) -> bytes | None:
        """Bytes by SHA-256 (a deployment's files, a bundle)."""

    def put_blobs(self, blobs: dict[str, bytes]) -> None:
        """Keep bytes by SHA-256; what is there already is left alone."""

    def memory(self, tenant: str, agent: str, key: str) -> bytes | None:
        """A value of an agent's lasting memory; None when there is none."""

    def memory_keys(self, tenant: str, agent: str) -> list[str]:
        """Keys of an agent's lasting memory, sorted."""

    def secrets(self, tenant: str) -> list[SecretRow]:
        """A tenant's secrets, by name, without their values."""

    def secret_versions(self, tenant: str) -> list[tuple[str, int]]:
        """Name and version of a tenant's secrets, by name."""

    def secret(self, row: SecretRow) -> bytes | None:
        """The value of a secret's version; None when it was changed or destroyed meanwhile."""

    def pasts(
        self, tenant: str, *, since: int = 0, agent: str = "", gate: str = "", name: str = "", limit: int
    ) -> list[Past]:
        """The latest actions of a tenant that rules may ask about, oldest first: at most ``limit``. What is empty does
        not matter."""

    # writing, each a transaction of its own

    def create_tenant(self, tenant: Tenant, draft: Draft, node: str) -> bool:
        """Make a tenant and its control stream ``control:NAME``; False when it is there already."""

    def deliver(self, item: InboxItem) -> int:
        """Put an item into a stream's inbox and make the stream ready; gives the item's id.

        Raises:
            UsageError: there is no such stream.
        """

    def register(self, node: NodeRow) -> None:
        """Make a node known, with its lease."""

    def renew(self, node: str, lease_us: int) -> int | None:
        """Extend a node's lease from the database's now; gives its end, or None when it was taken away."""

    def nodes(self) -> list[NodeRow]:
        """All registered nodes."""

    def unregister(self, node: str) -> None:
        """Forget a node; its streams are free."""

    def ready(self, *, limit: int, tenant: str | None = None, root: str | None = None) -> list[StreamState]:
        """Streams that nobody owns and that want to be driven now, oldest wish first: of all, of a tenant, or of one
        family of runs."""

    def ready_tenants(self) -> list[str]:
        """Tenants with streams that nobody owns and that want to be driven now or later, by name."""

    def asking(self) -> list[StreamState]:
        """Streams that rest with a request for approval or a question, newest first."""

    def count(self, *, tenant: str, kind: StreamKind, status: str, limit: int) -> int:
        """How many streams of a tenant have this status; counting stops at ``limit``."""

    def owned(self, node: str) -> list[str]:
        """Streams that a node owns."""

    def stirred(self, node: str) -> list[str]:
        """Streams that a node owns and whose inbox is not empty."""

    def claim(self, stream: str, node: str, *, free: Sequence[str] = ()) -> int | None:
        """Take a stream that nobody owns, or that one of the nodes ``free`` (dead or lapsed) owns; the new epoch."""

    def close(self) -> None:
        """Close the connection."""
