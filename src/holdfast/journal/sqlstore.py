"""What both stores share beside reading: the small transactions off the hot path."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from holdfast.errors import UsageError
from holdfast.journal.base import Append, Draft, InboxItem, NodeRow, Refused, Result, Tenant
from holdfast.journal.columns import INBOX
from holdfast.journal.evidence import Evidence
from holdfast.journal.payloads import TenantKey
from holdfast.journal.rows import FINAL
from holdfast.journal.transaction import control, inbox_line, oversized

Execute = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Runs one statement and gives its rows."""
_T = TypeVar("_T")


class SqlStore(Evidence):
    """Everything of a store but its connection and its hot path."""

    heads: Mapping[str, bytes]
    """Frontier of each log that the latest :meth:`transact` wrote to (see :mod:`holdfast.journal.frontier`)."""

    @abstractmethod
    def transact(self, batch: Sequence[Append]) -> list[Result]:
        """Commit a batch."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def _write(self, work: Callable[[Execute], _T]) -> _T:
        """Do ``work`` in one transaction, again when the database asks for it."""

    @abstractmethod
    def _create_tenant(self, tenant: Tenant, item: Append) -> bool:
        """Add the tenant and append, in one transaction; False when the tenant is there."""

    @property
    def _lock(self) -> str:
        """Clause that locks the rows that a statement reads."""
        return ""

    def _clock(self, run: Execute) -> int:
        """The database's clock, within a transaction."""
        return self.now()

    def create_tenant(self, tenant: Tenant, draft: Draft, node: str) -> bool:
        """Make a tenant and its control stream; False when it is there already."""
        item = Append(stream=control(tenant.name), epoch=0, node=node, drafts=(draft,))
        return self._create_tenant(tenant, item)

    def put_blobs(self, blobs: dict[str, bytes]) -> None:
        """Keep bytes by SHA-256; what is there already is left alone.

        Raises:
            UsageError: a digest is not that of its bytes.
        """
        for digest, data in blobs.items():
            if hashlib.sha256(data).hexdigest() != digest:
                raise UsageError(f"{digest[:16]}… is not the SHA-256 of its {len(data)} bytes")

        def work(run: Execute) -> None:
            for digest in sorted(blobs):
                run(
                    "INSERT INTO blobs (digest, data) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING",
                    (digest, blobs[digest]),
                )

        if blobs:
            self._write(work)

    def deliver(self, item: InboxItem) -> int:
        """Put an item into a stream's inbox and make the stream ready; gives the item's id.

        Raises:
            UsageError: there is no such stream in that tenant, it has ended, or the item is too large.
        """
        if refused := oversized(item):
            raise UsageError(refused.message)

        def work(run: Execute) -> int:
            rows = run(f"SELECT tenant, status FROM streams WHERE stream = ?{self._lock}", (item.stream,))  # noqa: S608
            if not rows or rows[0][0] != item.tenant:
                raise UsageError(
                    f"there is no {item.stream} in tenant {item.tenant}; `holdfast runs list` shows what is"
                )
            if rows[0][1] in FINAL:
                raise UsageError(f"{item.stream} has ended ({rows[0][1]}): nothing can be sent to it")
            key = self._sealing_key(run, item.tenant) if item.payload else None
            line = inbox_line(item, key)
            marks = ", ".join("?" * len(line))
            number = run(f"INSERT INTO inbox ({INBOX}) VALUES ({marks}) RETURNING id", line)[0][0]  # noqa: S608
            now = self._clock(run)
            run(
                "UPDATE streams SET ready_at = ? WHERE stream = ? AND (ready_at IS NULL OR ready_at > ?)",
                (now, item.stream, now),
            )
            return int(number)

        return self._write(work)

    def erase(self, tenant: str) -> int:
        """Destroy a tenant's data keys: every payload sealed so far is gone for good. Gives how many keys it had."""

        def work(run: Execute) -> int:
            gone = run(
                "UPDATE tenant_keys SET wrapped = NULL, erased_at = ? WHERE tenant = ? AND wrapped IS NOT NULL "
                "RETURNING id",
                (self._clock(run), tenant),
            )
            return len(gone)

        count = self._write(work)
        self.keyring.forget()
        return count

    def register(self, node: NodeRow) -> None:
        """Make a node known, with its lease. Streams that an earlier life of that name owned are free."""
        line = (node.node, node.host, node.boot, node.pid, node.pid_start, node.lease_until)

        def work(run: Execute) -> None:
            self._free(run, node.node)
            run("INSERT INTO nodes (node, host, boot, pid, pid_start, lease_until) VALUES (?, ?, ?, ?, ?, ?)", line)

        self._write(work)

    def renew(self, node: str, lease_us: int) -> int | None:
        """Extend a node's lease from the database's now; gives its end, or None when it was taken away."""

        def work(run: Execute) -> int | None:
            until = self._clock(run) + lease_us
            kept = run("UPDATE nodes SET lease_until = ? WHERE node = ? RETURNING node", (until, node))
            return until if kept else None

        return self._write(work)

    def unregister(self, node: str) -> None:
        """Forget a node; its streams are free."""
        self._write(lambda run: self._free(run, node))

    def claim(self, stream: str, node: str, *, free: Sequence[str] = ()) -> int | None:
        """Take a stream that nobody owns, or that one of the nodes ``free`` owns; gives the new epoch.

        None: another owns it, it has ended, or ``node`` is not registered or its lease has passed. A node of ``free``
        that owned it is forgotten, and all its streams are free: it must register again.
        """

        def work(run: Execute) -> int | None:
            now = self._clock(run)
            held = run(f"SELECT lease_until FROM nodes WHERE node = ?{self._lock}", (node,))  # noqa: S608
            if not held or held[0][0] < now:
                return None
            owners = run("SELECT owner FROM streams WHERE stream = ?", (stream,))
            if owners and owners[0][0] in free and owners[0][0] not in ("", node):
                self._free(run, owners[0][0])
            rows = run(f"SELECT status, owner, epoch FROM streams WHERE stream = ?{self._lock}", (stream,))  # noqa: S608
            if not rows or rows[0][0] in FINAL:
                return None
            # A node may take its own stream again, under a new epoch, after it let its driver go.
            if rows[0][1] and not (rows[0][1] == node and node in free):
                return None
            epoch = int(rows[0][2]) + 1
            run("UPDATE streams SET owner = ?, epoch = ?, ready_at = ? WHERE stream = ?", (node, epoch, now, stream))
            return epoch

        return self._write(work)

    def _free(self, run: Execute, node: str) -> None:
        run("DELETE FROM nodes WHERE node = ?", (node,))
        # What it drove is ready at once: whoever frees it may die before it claims it, and while a stream is driven it
        # asks for nobody else. Locked in the order in which every transaction locks streams.
        ended = ", ".join(f"'{status}'" for status in sorted(FINAL))
        run(
            f"UPDATE streams SET owner = '', ready_at = CASE WHEN status IN ({ended}) THEN NULL ELSE ? END "  # noqa: S608
            f"WHERE stream IN (SELECT stream FROM streams WHERE owner = ? AND owner <> '' ORDER BY stream{self._lock})",
            (self._clock(run), node),
        )

    def _sealing_key(self, run: Execute, tenant: str) -> TenantKey:
        """The tenant's current data key, made when there is none."""
        sql = (
            "SELECT id, wrapped FROM tenant_keys WHERE tenant = ? AND wrapped IS NOT NULL "
            "ORDER BY created_at DESC, id DESC LIMIT 1"
        )
        rows = run(sql, (tenant,))
        if not rows:
            key_id, wrapped = self.keyring.new(tenant)
            run(
                "INSERT INTO tenant_keys (tenant, id, created_at, wrapped) VALUES (?, ?, ?, ?)",
                (tenant, key_id, self._clock(run), wrapped),
            )
            rows = [(key_id, wrapped)]
        return self.keyring.key(tenant, rows[0][0], bytes(rows[0][1]))


def must(result: Result) -> None:
    """Raise what a transaction of the store's own was refused for.

    Raises:
        UsageError: the append was refused.
    """
    if isinstance(result, Refused):
        raise UsageError(result.message)
