"""The rows that a transaction works on, and how a store hands them to it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from holdfast.journal.base import Header, LedgerRow, StreamState
from holdfast.journal.event import GENESIS
from holdfast.journal.payloads import TenantKey

FINAL = frozenset({"completed", "failed", "denied", "terminated", "killed", "refused"})
"""Statuses that a stream never leaves: nothing is delivered to it, and it is never ready."""


class StreamRow:
    """A stream's row. Changed in place once an append is accepted; dropped when its commit fails."""

    __slots__ = ("asking", "epoch", "head", "header", "owner", "ready_at", "replay_from", "seq", "status", "tail")

    def __init__(
        self,
        header: Header,
        status: str,
        epoch: int = 0,
        owner: str = "",
        seq: int = 0,
        head: str = GENESIS,
        tail: int = -1,
        ready_at: int | None = None,
        replay_from: int = 1,
        asking: int = 0,
    ) -> None:
        self.header = header
        self.status = status
        self.epoch = epoch
        self.owner = owner
        self.seq = seq
        self.head = head
        self.tail = tail
        self.ready_at = ready_at
        self.replay_from = replay_from
        self.asking = asking

    def state(self) -> StreamState:
        """What readers see of it."""
        return StreamState(
            header=self.header,
            status=self.status,
            epoch=self.epoch,
            owner=self.owner,
            seq=self.seq,
            ready_at=self.ready_at,
            replay_from=self.replay_from,
        )


class TenantRow:
    """A tenant's row: where its log ends."""

    __slots__ = ("created_at", "frontier", "name", "region", "size")

    def __init__(self, name: str, region: str, created_at: int, size: int = 0, frontier: bytes = b"") -> None:
        self.name = name
        self.region = region
        self.created_at = created_at
        self.size = size
        self.frontier = frontier


class Rows(Protocol):
    """What a store knows at the start of a transaction, under its locks."""

    def now(self) -> int:
        """The database's clock, microseconds."""

    def tenant(self, name: str) -> TenantRow | None:
        """A tenant's row."""

    def stream(self, name: str) -> StreamRow | None:
        """A stream's row."""

    def ledger(self, key: str) -> LedgerRow | None:
        """A row of the ledger."""

    def generation(self) -> int:
        """The kill generation."""

    def waiting(self, stream: str) -> Collection[int]:
        """Ids of the items in a stream's inbox."""

    def key(self, tenant: str) -> TenantKey:
        """The tenant's data key; makes one where there is none."""
