"""One round trip for what most commits are: steps of runs that this node drives, whose rows it wrote itself last.

The transaction is decided on rows that are kept in memory. The function ``holdfast_commit`` (see the migrations) takes
its locks in the order in which every transaction does and writes each row on condition that it is what was kept. Where
one is not, nothing is written (``serialization_failure``), and the batch is decided again on rows that are read under
their locks. So what is kept need not be true, and nothing has to tell this node that it is not.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from holdfast.journal.base import Append, LedgerRow
from holdfast.journal.columns import holders_text, ledger_line
from holdfast.journal.payloads import TenantKey
from holdfast.journal.postgres_rows import Loaded
from holdfast.journal.rows import StreamRow, TenantRow
from holdfast.journal.transaction import Transaction

if TYPE_CHECKING:
    import psycopg

_MOST_ROWS = 20_000
"""Rows of one kind kept in memory, at most."""
_MOST_SKIPPED = 64
"""Commits in a row that do not try, at most, while another node writes the same rows."""

PLANS = (
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; "
    "SET enable_mergejoin = off"
)
"""What the writing connection sets: every row is found by its key, and rows are locked in the order in which they are
given. Else statements are planned anew each time, which costs more than to run them."""
_WRITTEN = ("stream", "epoch", "node", "drafts", "kill_generation", "reserve", "settle")
_others = attrgetter(*(name for name in Append.__struct_fields__ if name not in _WRITTEN))
"""What an append may ask for that the function does not write."""
_TENANTS = "tntnb"
_STREAMS = "tntnntn"
_LEDGER = "nnntttnnnnt"
_EVENTS = "tntntnntntttttnb"
_PAYLOADS = "tntttb"
"""Types of the columns of each table's arguments: text, number, bytes."""
_MARKS = ", ".join(f"${n + 1}" for n in range(1 + len(_TENANTS + _STREAMS + _LEDGER + _EVENTS + _PAYLOADS)))
_CALL = f"SELECT holdfast_commit({_MARKS})".encode()
_UNKNOWN = (None, None, None, None)
_BINARY = [1] * (_MARKS.count("$"))

_TYPES = {"t": 25, "n": 20, "b": 17}
"""Of PostgreSQL: text, int8, bytea."""
_head = struct.Struct(">iiiii").pack
_item = struct.Struct(">iq").pack
_length = struct.Struct(">i").pack
_NULL = _length(-1)
_NONE = {kind: struct.pack(">iii", 0, 0, number) for kind, number in _TYPES.items()}


class Kept:
    """Rows as this node wrote or read them last, for a transaction to decide on."""

    def __init__(self) -> None:
        self._tenants: dict[str, TenantRow] = {}
        self._streams: dict[str, StreamRow] = {}
        self._ledger: dict[str, LedgerRow | None] = {}
        self._keys: dict[str, TenantKey] = {}
        self._generation = 0
        self._ahead = 0
        self._skip = 0
        self._skipped = 0
        self.prepared: psycopg.Connection[Any] | None = None
        """The connection on which the statement is prepared."""
        self.count = 0
        """How often it was."""

    def now(self) -> int:
        """The server's clock: this host's, corrected by what the server's latest answer said."""
        return time.monotonic_ns() // 1000 + self._ahead

    def tenant(self, name: str) -> TenantRow | None:
        return self._tenants.get(name)

    def stream(self, name: str) -> StreamRow | None:
        return self._streams.get(name)

    def ledger(self, key: str) -> LedgerRow | None:
        return self._ledger.get(key)

    def generation(self) -> int:
        return self._generation

    def waiting(self, stream: str) -> Collection[int]:
        raise AssertionError("no append that asks for the inbox is decided on kept rows")

    def key(self, tenant: str) -> TenantKey:
        return self._keys[tenant]

    def learn(self, rows: Loaded, step: Transaction) -> None:
        """Keep what a transaction read and wrote."""
        for kept in (self._streams, self._ledger):
            if len(kept) > _MOST_ROWS:
                kept.clear()
        self._tenants.update(rows.tenants)
        self._tenants.update(step.new_tenants)
        self._streams.update(rows.streams)
        self._streams.update(step.created)
        for key in rows.asked:
            self._ledger[key] = rows.rows.get(key)
        self._ledger.update(step.ledger)
        self._keys.update(rows.keys)
        self._generation = rows.generation() if step.generation is None else step.generation
        self._ahead = rows.now() - rows.read_at

    def fits(self, batch: Sequence[Append]) -> bool:
        """Whether the batch can be decided on what is kept: nothing but events, payloads and the ledger."""
        if self._skipped < self._skip:
            self._skipped += 1
            return False
        streams, ledger = self._streams, self._ledger
        for item in batch:
            if not item.drafts or any(_others(item)):
                return False
            row = streams.get(item.stream)
            if row is None or row.header.tenant not in self._tenants or row.header.tenant not in self._keys:
                return False
            for op in (*item.reserve, *item.settle):
                if op.key not in ledger:
                    return False
        return True

    def call(self, batch: Sequence[Append]) -> Call:
        """A transaction to decide, from which :meth:`Call.send` makes the one statement."""
        return Call(self, batch)

    def succeeded(self, step: Transaction, clock: int) -> None:
        """The statement committed."""
        self._ledger.update(step.ledger)
        self._ahead = clock - time.monotonic_ns() // 1000
        self._skip = self._skipped = 0

    def failed(self, batch: Sequence[Append], stale: bool) -> None:
        """Nothing was written: what the transaction changed in memory is dropped."""
        for item in batch:
            row = self._streams.pop(item.stream, None)
            if row is not None:
                self._tenants.pop(row.header.tenant, None)
            for op in (*item.reserve, *item.settle):
                self._ledger.pop(op.key, None)
        if stale:
            self._skip, self._skipped = min(2 * self._skip + 1, _MOST_SKIPPED), 0


class Call:
    """One batch on its way through ``holdfast_commit``."""

    def __init__(self, kept: Kept, batch: Sequence[Append]) -> None:
        self._kept = kept
        self._guarded = any(item.kill_generation is not None for item in batch)
        streams = {item.stream: kept._streams[item.stream] for item in batch}
        self._streams = [(row, (name, row.epoch, row.owner, row.seq)) for name, row in sorted(streams.items())]
        tenants = {row.header.tenant for row in streams.values()}
        self._tenants = [(name, kept._tenants[name].size) for name in sorted(tenants)]
        self.step = Transaction(kept)

    def send(self, connection: psycopg.Connection[Any]) -> int:
        """Have it committed; gives the server's clock, microseconds.

        Raises:
            psycopg.errors.SerializationFailure: a row is not what it was kept as; nothing was written.
            psycopg.Error: the statement failed; nothing was written unless the connection broke.
        """
        step, kept = self.step, self._kept
        keys, tenants = kept._keys, kept._tenants
        rows: list[tuple[Any, ...]] = []
        for name, size in self._tenants:
            row = tenants[name]
            rows.append((name, size, keys[name].id, row.size, row.frontier))
        parameters = _columns(_TENANTS, rows)
        parameters.append((kept._generation if self._guarded else -1).to_bytes(8, "big", signed=True))
        parameters += _columns(_STREAMS, [(*before, row.seq, row.head, row.tail) for row, before in self._streams])
        ledger = []
        for key in sorted(step.ledger):
            old = kept._ledger[key]
            before = _UNKNOWN if old is None else (old.reserved, old.settled, old.tat, holders_text(old))
            ledger.append((*before, *ledger_line(step.ledger[key])))
        parameters += _columns(_LEDGER, ledger)
        parameters += _columns(_EVENTS, step.events)
        parameters += _columns(_PAYLOADS, step.payloads)
        return int.from_bytes(self._execute(connection, parameters), "big", signed=True)

    def _execute(self, connection: psycopg.Connection[Any], parameters: list[bytes]) -> bytes:
        """One message there and one back: what psycopg does for a statement costs more than the server's work."""
        from psycopg import errors, pq

        kept, line = self._kept, connection.pgconn
        for _ in range(2):
            if kept.prepared is not connection:
                # Another name each time: after a rollback psycopg drops all statements, at a time of its own.
                kept.count += 1
                result = line.prepare(b"holdfast_commit_%d" % kept.count, _CALL)
                if result.status == pq.ExecStatus.COMMAND_OK:
                    kept.prepared = connection
            if kept.prepared is connection:
                result = line.exec_prepared(b"holdfast_commit_%d" % kept.count, parameters, _BINARY, 1)
                if result.status == pq.ExecStatus.TUPLES_OK:
                    return result.get_value(0, 0) or b""
            if line.status != pq.ConnStatus.OK:
                raise errors.OperationalError(line.get_error_message())
            error = errors.error_from_result(result, connection.info.encoding)
            if not isinstance(error, errors.InvalidSqlStatementName):
                raise error
            kept.prepared = None
        raise error


def _columns(types: str, rows: Sequence[Sequence[Any]]) -> list[bytes]:
    """Rows as arrays in PostgreSQL's binary format, one for each column."""
    if not rows:
        return [_NONE[kind] for kind in types]
    count = len(rows)
    arrays: list[bytes] = []
    for kind, values in zip(types, zip(*rows, strict=True), strict=True):
        parts = [_head(1, 1 if None in values else 0, _TYPES[kind], count, 1)]
        for value in values:
            if value is None:
                parts.append(_NULL)
            elif kind == "n":
                parts.append(_item(8, value))
            else:
                data = value.encode() if kind == "t" else value
                parts.append(_length(len(data)))
                parts.append(data)
        arrays.append(b"".join(parts))
    return arrays
