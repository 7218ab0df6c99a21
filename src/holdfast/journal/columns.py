"""Rows of the tables as tuples, and as what the rest of the journal works with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from holdfast.errors import StoreError
from holdfast.journal.base import Header, LedgerRow, StreamKind
from holdfast.journal.event import Event, decode
from holdfast.journal.rows import StreamRow

STREAM = (
    "stream, tenant, region, kind, agent, workflow, root, parent, depth, principal, auth, deployment, created_at, "
    "status, epoch, owner, seq, head, tail, ready_at, replay_from, asking"
)
LEDGER = "key, kind, reserved, settled, ceiling, tat, holders"
INBOX = "tenant, stream, kind, data, key_id, ciphertext, principal, auth, at"
EVENT = (
    "tenant, idx, stream, seq, kind, at, clock_error, node, epoch, witness, principal, auth, prev, leaf, before, body"
)
PAYLOAD = "tenant, idx, role, commitment, key_id, ciphertext"


_holders: msgspec.json.Decoder[dict[str, int]] = msgspec.json.Decoder(dict[str, int])


class EventRow(NamedTuple):
    """A row of ``events``, every column as it stands there: what an auditor compares with ``body``."""

    tenant: str
    idx: int
    stream: str
    seq: int
    kind: str
    at: int
    clock_error: int
    node: str
    epoch: int
    witness: str
    principal: str
    auth: str
    prev: str
    leaf: str
    before: int
    body: bytes


class PayloadRow(NamedTuple):
    """A row of ``payloads``, with the key that it was sealed with as it stands in ``tenant_keys``."""

    idx: int
    """Place in the log of the event that commits to it."""
    role: str
    commitment: str
    key_id: str
    ciphertext: bytes
    wrapped: bytes | None
    """None: the key was destroyed or is not there."""
    erased_at: int | None

    @property
    def state(self) -> str:
        """``held``, ``erased``, or ``lost``: its key is gone and no erasure is on record."""
        if self.wrapped is not None:
            return "held"
        return "lost" if self.erased_at is None else "erased"


def stream_row(row: Sequence[Any]) -> StreamRow:
    """A stream's row from the columns of :data:`STREAM`."""
    header = Header(
        stream=row[0],
        tenant=row[1],
        region=row[2],
        kind=StreamKind(row[3]),
        agent=row[4],
        workflow=row[5],
        root=row[6],
        parent=row[7],
        depth=row[8],
        principal=row[9],
        auth=row[10],
        deployment=row[11],
        created_at=row[12],
    )
    return StreamRow(header, *row[13:])


def stream_line(row: StreamRow) -> tuple[Any, ...]:
    """The columns of :data:`STREAM`."""
    head = row.header
    return (
        head.stream,
        head.tenant,
        head.region,
        head.kind.value,
        head.agent,
        head.workflow,
        head.root,
        head.parent,
        head.depth,
        head.principal,
        head.auth,
        head.deployment,
        head.created_at,
        row.status,
        row.epoch,
        row.owner,
        row.seq,
        row.head,
        row.tail,
        row.ready_at,
        row.replay_from,
        row.asking,
    )


def stream_change(row: StreamRow) -> tuple[Any, ...]:
    """What a transaction may change of a stream's row, and the stream."""
    return (
        row.status,
        row.owner,
        row.seq,
        row.head,
        row.tail,
        row.ready_at,
        row.replay_from,
        row.asking,
        row.header.stream,
    )


def ledger_row(row: Sequence[Any]) -> LedgerRow:
    """A row of the ledger from the columns of :data:`LEDGER`."""
    return LedgerRow(
        key=row[0],
        kind=row[1],
        reserved=row[2],
        settled=row[3],
        limit=row[4],
        tat=row[5],
        holders=_holders.decode(row[6]) if row[6] != "{}" else {},
    )


def ledger_line(row: LedgerRow) -> tuple[Any, ...]:
    """The columns of :data:`LEDGER`."""
    return (row.key, row.kind, row.reserved, row.settled, row.limit, row.tat, holders_text(row))


def holders_text(row: LedgerRow) -> str:
    """The holders of a row of the ledger as they are written; in the same order, so that equal rows are equal text."""
    return msgspec.json.encode(row.holders).decode() if row.holders else "{}"


def as_bytes(value: Any) -> bytes:
    """Bytes of a cell, whatever a stranger put into it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return str(value).encode(errors="surrogateescape")


def as_event(body: Any, what: str) -> Event:
    """The event of a cell.

    Raises:
        StoreError: its bytes were changed; names ``what``.
    """
    try:
        return decode(as_bytes(body))
    except (msgspec.DecodeError, UnicodeError):
        raise StoreError(
            f"{what} cannot be read: its bytes were changed. `holdfast audit verify` says what else was; restore the "
            "journal from a backup."
        ) from None
