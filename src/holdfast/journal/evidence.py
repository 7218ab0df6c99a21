"""What only an auditor asks of a journal: rows as they stand, to be compared with what events say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import msgspec

from holdfast.journal.columns import PayloadRow, as_bytes
from holdfast.journal.event import Event
from holdfast.journal.reading import WALK, Reader

_CHUNK = 400
"""Parameters of one IN list, at most."""


class StreamHead(msgspec.Struct, frozen=True):
    """What a stream's row says of its events."""

    stream: str
    status: str
    epoch: int
    seq: int
    head: str
    """Leaf (hex) of the latest event."""
    tail: int
    """Place of the latest event in the log."""


class Evidence(Reader):
    """Reads for verification."""

    def log_tenants(self) -> list[str]:
        """Every tenant that has a row, an event or a payload, sorted: also one whose row was removed."""
        # One look at the index for each tenant, instead of a pass over all rows.
        names = "SELECT name FROM tenants"
        for table in ("events", "payloads"):
            names += (
                f" UNION SELECT name FROM (WITH RECURSIVE seen(name) AS (SELECT min(tenant) FROM {table} UNION ALL "  # noqa: S608
                f"SELECT (SELECT min(tenant) FROM {table} WHERE tenant > name) FROM seen WHERE name IS NOT NULL) "
                "SELECT name FROM seen WHERE name IS NOT NULL) AS found"
            )
        return sorted(row[0] for row in self._query(names))

    def log_extent(self, tenant: str) -> tuple[int, bytes, list[StreamHead]]:
        """Size and frontier of a tenant's log, and what its streams' rows say, all as of one moment."""
        # One statement sees one state of the database, whatever is committed meanwhile.
        rows = self._query(
            "SELECT '' AS stream, '' AS status, 0 AS epoch, log_size AS seq, '' AS head, 0 AS tail, frontier "
            "FROM tenants WHERE name = ? "
            "UNION ALL SELECT stream, status, epoch, seq, head, tail, NULL FROM streams WHERE tenant = ?",
            (tenant, tenant),
        )
        size, edge = next(((row[3], as_bytes(row[6])) for row in rows if row[6] is not None), (0, b""))
        return size, edge, [StreamHead(*row[:6]) for row in rows if row[6] is None]

    def bodies(self, streams: Sequence[str]) -> list[tuple[str, int, bytes]]:
        """The events of some streams, in the order of their numbers: (stream, sequence number, canonical bytes)."""
        found: list[tuple[str, int, bytes]] = []
        for start in range(0, len(streams), _CHUNK):
            part = streams[start : start + _CHUNK]
            walk = WALK.format(f"IN ({', '.join('?' * len(part))})")
            rows = self._query(f"{walk} SELECT stream, seq, body FROM walk WHERE body IS NOT NULL", (*part, 1, 1))  # noqa: S608
            found += [(row[0], row[1], as_bytes(row[2])) for row in rows]
        return sorted(found, key=itemgetter(1))

    def payloads_at(self, tenant: str, places: Mapping[str, int]) -> dict[str, bytes]:
        """Payloads by commitment, given the index of the event that commits to each; what was erased is left out.

        Raises:
            StoreError: one cannot be decrypted.
        """
        rows = self._payloads_in(tenant, "idx", set(places.values()))
        return {row.commitment: self.opened(tenant, row) for row in rows if row.wrapped and row.commitment in places}

    def payload_count(self, tenant: str) -> int:
        """Rows of ``payloads`` of a tenant."""
        return int(self._query("SELECT count(*) FROM payloads WHERE tenant = ?", (tenant,))[0][0])

    def sealed(self, tenant: str, events: Sequence[Event]) -> dict[str, PayloadRow]:
        """The rows of what these events commit to, by commitment, wherever they stand; what has no row is left out."""
        self._remember(events)
        return self._payload_rows(tenant, [name for event in events for name in event.payloads.values()])

    def payload_names(
        self, tenant: str, *, after: tuple[int, str] = (-(1 << 63), ""), limit: int = 1000
    ) -> list[tuple[int, str, str]]:
        """(index of the event, role, commitment) of the rows of ``payloads``, in order, from after ``after`` on."""
        return self._query(
            "SELECT idx, role, commitment FROM payloads WHERE tenant = ? AND (idx, role) > (?, ?) "
            "ORDER BY idx, role LIMIT ?",
            (tenant, *after, limit),
        )
