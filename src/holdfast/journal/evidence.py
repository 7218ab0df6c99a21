"""What only an auditor asks of a journal: rows as they stand, to be compared with what events say."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.journal.columns import as_bytes
from holdfast.journal.reading import Reader

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
            "SELECT '' AS stream, '' AS status, 0 AS epoch, log_size AS seq, '' AS head, frontier FROM tenants "
            "WHERE name = ? UNION ALL SELECT stream, status, epoch, seq, head, NULL FROM streams WHERE tenant = ?",
            (tenant, tenant),
        )
        size, edge = next(((row[3], as_bytes(row[5])) for row in rows if row[5] is not None), (0, b""))
        return size, edge, [StreamHead(*row[:5]) for row in rows if row[5] is None]

    def bodies(self, streams: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, int, bytes]]:
        """Events of these kinds, by stream and in order: (stream, sequence number, canonical bytes)."""
        found: list[tuple[str, int, bytes]] = []
        for start in range(0, len(streams), _CHUNK):
            part = streams[start : start + _CHUNK]
            marks, wanted = ", ".join("?" * len(part)), ", ".join("?" * len(kinds))
            rows = self._query(
                f"SELECT stream, seq, body FROM events WHERE stream IN ({marks}) AND kind IN ({wanted}) "  # noqa: S608
                "ORDER BY stream, seq",
                (*part, *kinds),
            )
            found += [(row[0], row[1], as_bytes(row[2])) for row in rows]
        return found

    def payload_count(self, tenant: str) -> int:
        """Rows of ``payloads`` of a tenant."""
        return int(self._query("SELECT count(*) FROM payloads WHERE tenant = ?", (tenant,))[0][0])

    def payload_states(self, tenant: str, commitments: Sequence[str]) -> dict[str, str]:
        """How the payloads stand that have a row: ``held``, ``erased`` (by :meth:`erase`), or ``lost`` (their key is
        gone and no erasure is on record).
        """
        found: dict[str, str] = {}
        for start in range(0, len(commitments), _CHUNK):
            part = commitments[start : start + _CHUNK]
            marks = ", ".join("?" * len(part))
            rows = self._query(
                "SELECT p.commitment, CASE WHEN k.wrapped IS NOT NULL THEN 'held' "  # noqa: S608
                "WHEN k.erased_at IS NOT NULL THEN 'erased' ELSE 'lost' END "
                "FROM payloads p LEFT JOIN tenant_keys k ON k.tenant = p.tenant AND k.id = p.key_id "
                f"WHERE p.tenant = ? AND p.commitment IN ({marks})",
                (tenant, *part),
            )
            found.update(rows)
        return found

    def payload_names(self, tenant: str, *, after: str = "", limit: int = 1000) -> list[str]:
        """Commitments that have a row, in order, from the first one after ``after`` on."""
        rows = self._query(
            "SELECT commitment FROM payloads WHERE tenant = ? AND commitment > ? ORDER BY commitment LIMIT ?",
            (tenant, after, limit),
        )
        return [row[0] for row in rows]
