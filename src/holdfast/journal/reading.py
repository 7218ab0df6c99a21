"""Reading a journal: what both stores share. SQL is written once, with ``?`` for parameters."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import msgspec

from holdfast.action import Kill, Past
from holdfast.errors import StoreError
from holdfast.journal.base import InboxItem, LedgerRow, NodeRow, SecretRow, StreamKind, StreamState, Tenant
from holdfast.journal.columns import (
    EVENT,
    INBOX,
    LEDGER,
    STREAM,
    EventRow,
    PayloadRow,
    as_bytes,
    as_event,
    ledger_row,
    stream_row,
)
from holdfast.journal.event import Event
from holdfast.journal.payloads import Keyring, secret_context

_objects: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_figures: msgspec.json.Decoder[dict[str, int | float]] = msgspec.json.Decoder(dict[str, int | float])
_CHUNK = 400
"""Parameters of one IN list, at most."""
_MOST_PLACES = 100_000
"""Places of payloads kept in memory, at most."""
WALK = """WITH RECURSIVE walk(tenant, stream, seq, place, body) AS (
SELECT tenant, stream, seq + 1, tail, (SELECT body FROM events WHERE 1 = 0) FROM streams WHERE stream {} AND seq >= ?
UNION ALL SELECT e.tenant, e.stream, e.seq, e.before, e.body FROM walk w JOIN events e
ON e.tenant = w.tenant AND e.idx = w.place WHERE w.seq > ? AND e.stream = w.stream AND e.seq = w.seq - 1)"""
"""Streams from their latest event back to a sequence number (given twice). The first row of each is no event: its
``seq`` is that of the event to come."""
_WALK_ONE = WALK.format("= ?") + " SELECT seq, body FROM walk"  # noqa: S608


class Reader(ABC):
    """Everything that only reads."""

    url: str
    keyring: Keyring
    _places: dict[str, int]
    """Commitments of events that were read lately, with the events' places in the log."""

    @abstractmethod
    def now(self) -> int:
        """The database's clock, microseconds."""

    @abstractmethod
    def _query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read, outside any transaction."""

    def tenants(self) -> list[Tenant]:
        """All tenants, by name."""
        rows = self._query("SELECT name, region, created_at, log_size FROM tenants ORDER BY name")
        return [Tenant(name=row[0], region=row[1], created_at=row[2], log_size=row[3]) for row in rows]

    def frontier(self, tenant: str) -> bytes:
        """Where a tenant's log ends (see :mod:`holdfast.journal.frontier`); empty when there is no such tenant."""
        rows = self._query("SELECT frontier FROM tenants WHERE name = ?", (tenant,))
        return bytes(rows[0][0]) if rows else b""

    def stream(self, stream: str) -> StreamState | None:
        """One stream's row."""
        rows = self._query(f"SELECT {STREAM} FROM streams WHERE stream = ?", (stream,))  # noqa: S608
        return stream_row(rows[0]).state() if rows else None

    def streams(
        self,
        *,
        tenant: str | None = None,
        kind: StreamKind | None = None,
        status: str | None = None,
        limit: int | None = None,
    ) -> list[StreamState]:
        """Rows, newest first."""
        wanted = {"tenant": tenant, "kind": kind.value if kind else None, "status": status}
        named = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in named)
        sql = f"SELECT {STREAM} FROM streams {'WHERE ' + where if where else ''} ORDER BY created_at DESC, stream DESC"  # noqa: S608
        params: list[Any] = list(named.values())
        if limit is not None:
            sql += " LIMIT ?"
            params.append(limit)
        return [stream_row(row).state() for row in self._query(sql, params)]

    def asking(self) -> list[StreamState]:
        """Streams that rest with a request for approval or a question, newest first."""
        rows = self._query(f"SELECT {STREAM} FROM streams WHERE asking = 1 ORDER BY created_at DESC, stream DESC")  # noqa: S608
        return [stream_row(row).state() for row in rows]

    def events(self, stream: str, *, start: int = 1) -> list[Event]:
        """A stream's events from sequence number ``start`` on.

        Raises:
            StoreError: one is missing or cannot be read.
        """
        start = max(start, 1)
        found = self._query(_WALK_ONE, (stream, start, start))
        if not found:
            return []
        top, *rows = sorted(found, key=itemgetter(0), reverse=True)
        if len(rows) != top[0] - start:
            raise StoreError(
                f"event {top[0] - len(rows) - 1} of {stream} is missing: the journal was changed. `holdfast audit "
                "verify` says what else was; restore it from a backup."
            )
        events = [as_event(body, f"event {seq} of {stream}") for seq, body in reversed(rows)]
        self._remember(events)
        return events

    def log(self, tenant: str, *, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        """A tenant's log: (index, canonical bytes) in order."""
        rows = self._query(
            "SELECT idx, body FROM events WHERE tenant = ? AND idx >= ? ORDER BY idx LIMIT ?", (tenant, start, limit)
        )
        return [(index, as_bytes(body)) for index, body in rows]

    def event_rows(self, tenant: str, *, start: int = 0, limit: int = 1000) -> list[EventRow]:
        """A tenant's rows of ``events``, by index, with every column."""
        rows = self._query(
            f"SELECT {EVENT} FROM events WHERE tenant = ? AND idx >= ? ORDER BY idx LIMIT ?",  # noqa: S608
            (tenant, start, limit),
        )
        return [EventRow._make((*row[:-1], as_bytes(row[-1]))) for row in rows]

    def event_count(self) -> int:
        """Rows of ``events``, over all tenants."""
        return int(self._query("SELECT count(*) FROM events")[0][0])

    def payload(self, tenant: str, commitment: str) -> bytes | None:
        """A payload; None when it was erased.

        Raises:
            StoreError: it is missing, or cannot be decrypted (another master key, bytes changed).
        """
        return self.payloads(tenant, (commitment,)).get(commitment)

    def payloads(self, tenant: str, commitments: Sequence[str]) -> dict[str, bytes]:
        """Several payloads at once; erased ones are left out.

        Raises:
            StoreError: one is missing, or cannot be decrypted.
        """
        found: dict[str, bytes] = {}
        rows = self._payload_rows(tenant, commitments)
        for commitment in commitments:
            row = rows.get(commitment)
            if row is None:
                raise StoreError(
                    f"payload {commitment[:16]}… of tenant {tenant} is gone, though its key was not destroyed: the "
                    "journal was changed. Restore it from a backup."
                )
            if row.wrapped is not None:
                found[commitment] = self.opened(tenant, row)
        return found

    def opened(self, tenant: str, row: PayloadRow) -> bytes:
        """The payload of a row whose key is there.

        Raises:
            StoreError: it cannot be decrypted (another master key, bytes changed).
        """
        assert row.wrapped is not None
        return self.keyring.key(tenant, row.key_id, as_bytes(row.wrapped)).open(
            row.commitment, as_bytes(row.ciphertext)
        )

    def _payload_rows(self, tenant: str, commitments: Sequence[str]) -> dict[str, PayloadRow]:
        """The rows of payloads: by their events' places where these are known, else by looking at all of them."""
        wanted = set(commitments)
        places = {self._places[name] for name in wanted if name in self._places}
        found = {row.commitment: row for row in self._payloads_in(tenant, "idx", places) if row.commitment in wanted}
        if len(found) < len(wanted):
            rest = self._payloads_in(tenant, "commitment", wanted - found.keys())
            found.update((row.commitment, row) for row in rest)
        return found

    def _payloads_in(self, tenant: str, column: str, values: Collection[int | str]) -> Iterator[PayloadRow]:
        ordered = sorted(values)
        for start in range(0, len(ordered), _CHUNK):
            part = ordered[start : start + _CHUNK]
            marks = ", ".join("?" * len(part))
            rows = self._query(
                "SELECT p.idx, p.role, p.commitment, p.key_id, p.ciphertext, k.wrapped, k.erased_at FROM payloads p "  # noqa: S608
                "LEFT JOIN tenant_keys k ON k.tenant = p.tenant AND k.id = p.key_id "
                f"WHERE p.tenant = ? AND p.{column} IN ({marks})",
                (tenant, *part),
            )
            yield from map(PayloadRow._make, rows)

    def _remember(self, events: Iterable[Event]) -> None:
        """Keep in mind where payloads stand: an event says what it commits to, and a commitment not whose it is."""
        places = self._places
        for event in events:
            for commitment in event.payloads.values():
                places[commitment] = event.index
        if len(places) > _MOST_PLACES:
            for oldest in list(islice(places, len(places) // 2)):
                places.pop(oldest, None)

    def inbox(self, stream: str) -> list[InboxItem]:
        """What waits for the owner, oldest first."""
        rows = self._query(
            f"SELECT id, {INBOX} FROM inbox WHERE stream = ? ORDER BY id",  # noqa: S608
            (stream,),
        )
        return [
            InboxItem(
                id=row[0],
                tenant=row[1],
                stream=row[2],
                kind=row[3],
                data=_objects.decode(row[4]),
                payload=self._open(row[1], row[5], row[6], f"item {row[0]} in the inbox of {stream}") or b"",
                principal=row[7],
                auth=row[8],
                at=row[9],
            )
            for row in rows
        ]

    def kill_generation(self) -> int:
        """Counts kills and lifts, over all tenants."""
        return int(self._query("SELECT value FROM meta WHERE key = 'kill_generation'")[0][0])

    def kills(self) -> list[Kill]:
        """Kills in force, oldest first."""
        rows = self._query(
            "SELECT id, scope, name, tenant, reason, issued_by, at, compensate FROM kills ORDER BY at, id"
        )
        return [
            Kill(
                id=row[0],
                scope=row[1],
                name=row[2],
                tenant=row[3],
                reason=row[4],
                by=row[5],
                at=row[6],
                compensate=bool(row[7]),
            )
            for row in rows
        ]

    def ledger(self, prefix: str = "") -> Iterator[LedgerRow]:
        """Rows whose key starts with ``prefix``, by key."""
        if prefix:
            # The last code point sorts after everything that continues the prefix.
            rows = self._query(
                f"SELECT {LEDGER} FROM ledger WHERE key >= ? AND key < ? ORDER BY key",  # noqa: S608
                (prefix, prefix + "\U0010ffff"),
            )
        else:
            rows = self._query(f"SELECT {LEDGER} FROM ledger ORDER BY key")  # noqa: S608
        return map(ledger_row, rows)

    def blob(self, digest: str) -> bytes | None:
        """Bytes by SHA-256.

        Raises:
            StoreError: they were changed.
        """
        rows = self._query("SELECT data FROM blobs WHERE digest = ?", (digest,))
        if not rows:
            return None
        data = as_bytes(rows[0][0])
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"blob {digest[:16]}… was changed in the journal. Restore it from a backup.")
        return data

    def memory(self, tenant: str, agent: str, key: str) -> bytes | None:
        """A value of an agent's lasting memory; None when there is none, or when it was erased."""
        rows = self._query(
            "SELECT key_id, ciphertext FROM memory WHERE tenant = ? AND agent = ? AND key = ?", (tenant, agent, key)
        )
        return self._open(tenant, rows[0][0], rows[0][1], f"memory {key!r} of {agent}") if rows else None

    def memory_keys(self, tenant: str, agent: str) -> list[str]:
        """Keys of an agent's lasting memory, sorted."""
        rows = self._query("SELECT key FROM memory WHERE tenant = ? AND agent = ? ORDER BY key", (tenant, agent))
        return [row[0] for row in rows]

    def pasts(
        self, tenant: str, *, since: int = 0, agent: str = "", gate: str = "", name: str = "", limit: int
    ) -> list[Past]:
        """The latest actions of a tenant that rules may ask about, oldest first: at most ``limit``. What is empty does
        not matter."""
        where, values = "tenant = ? AND at >= ?", [tenant, since]
        for column, value in (("agent", agent), ("gate", gate), ("name", name)):
            if value:
                where, values = f"{where} AND {column} = ?", [*values, value]
        rows = self._query(
            "SELECT agent, gate, name, at, state, ended_at, figures FROM pasts "  # noqa: S608
            f"WHERE {where} ORDER BY at DESC LIMIT ?",
            (*values, limit),
        )
        return [
            Past(agent=row[0], gate=row[1], name=row[2], at=row[3], state=row[4], ended_at=row[5],
                 figures=_figures.decode(row[6]))
            for row in reversed(rows)
        ]  # fmt: skip

    def secrets(self, tenant: str) -> list[SecretRow]:
        """A tenant's secrets, by name, without their values."""
        rows = self._query(
            "SELECT name, version, binding, created_at FROM secrets WHERE tenant = ? ORDER BY name", (tenant,)
        )
        return [
            SecretRow(tenant=tenant, name=row[0], version=row[1], binding=_objects.decode(row[2]), created_at=row[3])
            for row in rows
        ]

    def secret_versions(self, tenant: str) -> list[tuple[str, int]]:
        """Name and version of a tenant's secrets, by name: whether anything changed, for each request anew."""
        rows = self._query("SELECT name, version FROM secrets WHERE tenant = ? ORDER BY name", (tenant,))
        return [(row[0], row[1]) for row in rows]

    def secret(self, row: SecretRow) -> bytes | None:
        """The value of a secret's version; None when it was changed or destroyed meanwhile.

        Raises:
            StoreError: it cannot be decrypted (another master key, bytes changed), or its key was destroyed.
        """
        found = self._query(
            "SELECT s.ciphertext, s.key_id, k.wrapped FROM secrets s LEFT JOIN tenant_keys k ON k.tenant = s.tenant "
            "AND k.id = s.key_id WHERE s.tenant = ? AND s.name = ? AND s.version = ?",
            (row.tenant, row.name, row.version),
        )
        if not found:
            return None
        ciphertext, key_id, wrapped = found[0]
        if wrapped is None:
            raise StoreError(
                f"the key of the secret {row.name} of tenant {row.tenant} was destroyed. Set the secret again with "
                "`holdfast secrets set`."
            )
        key = self.keyring.key(row.tenant, key_id, bytes(wrapped))
        what = f"the secret {row.name} of tenant {row.tenant}"
        return key.decrypt(as_bytes(ciphertext), what, secret_context(row.name, row.version))

    def nodes(self) -> list[NodeRow]:
        """All registered nodes."""
        rows = self._query("SELECT node, host, boot, pid, pid_start, lease_until FROM nodes ORDER BY node")
        return [
            NodeRow(node=row[0], host=row[1], boot=row[2], pid=row[3], pid_start=row[4], lease_until=row[5])
            for row in rows
        ]

    def ready(self, *, limit: int, tenant: str | None = None, root: str | None = None) -> list[StreamState]:
        """Streams that nobody owns and that want to be driven now, oldest wish first."""
        wanted = {"tenant": tenant, "root": root}
        also = "".join(f"AND {column} = ? " for column, value in wanted.items() if value is not None)
        rows = self._query(
            f"SELECT {STREAM} FROM streams WHERE owner = '' AND ready_at IS NOT NULL AND ready_at <= ? "  # noqa: S608
            f"{also}ORDER BY ready_at LIMIT ?",
            (self.now(), *(value for value in wanted.values() if value is not None), limit),
        )
        return [stream_row(row).state() for row in rows]

    def ready_tenants(self) -> list[str]:
        """Tenants with streams that nobody owns and that want to be driven now or later, by name."""
        # From tenant to tenant by the index: a tenant's many streams are not looked at.
        waits = "FROM streams WHERE owner = '' AND ready_at IS NOT NULL"
        rows = self._query(
            f"WITH RECURSIVE named(tenant) AS (SELECT MIN(tenant) {waits} UNION ALL "  # noqa: S608
            f"SELECT (SELECT MIN(tenant) {waits} AND tenant > named.tenant) FROM named WHERE named.tenant IS NOT NULL) "
            "SELECT tenant FROM named WHERE tenant IS NOT NULL"
        )
        return [row[0] for row in rows]

    def count(self, *, tenant: str, kind: StreamKind, status: str, limit: int) -> int:
        """How many streams of a tenant have this status; counting stops at ``limit``."""
        rows = self._query(
            "SELECT COUNT(*) FROM (SELECT 1 AS one FROM streams WHERE tenant = ? AND kind = ? AND status = ? LIMIT ?) "
            "AS c",
            (tenant, kind, status, limit),
        )
        return int(rows[0][0])

    def owned(self, node: str) -> list[str]:
        """Streams that a node owns, in no order."""
        if not node:
            return []
        return [row[0] for row in self._query("SELECT stream FROM streams WHERE owner = ? AND owner <> ''", (node,))]

    def stirred(self, node: str) -> list[str]:
        """Streams that a node owns and whose inbox is not empty."""
        rows = self._query(
            "SELECT DISTINCT i.stream FROM inbox i JOIN streams s ON s.stream = i.stream WHERE s.owner = ?", (node,)
        )
        return [row[0] for row in rows]

    def _open(self, tenant: str, key_id: str, ciphertext: bytes, what: str) -> bytes | None:
        """Data that no event commits to; None when there is none or its key was destroyed."""
        if not key_id:
            return None
        rows = self._query("SELECT wrapped FROM tenant_keys WHERE tenant = ? AND id = ?", (tenant, key_id))
        if not rows or rows[0][0] is None:
            return None
        return self.keyring.key(tenant, key_id, bytes(rows[0][0])).decrypt(as_bytes(ciphertext), what)
