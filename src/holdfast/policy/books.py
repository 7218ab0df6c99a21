"""A ledger that is only imagined: what reservations of a candidate bundle would have met. Pure, in memory."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from holdfast.action import Budget, Refusal, Reservation, Settlement
from holdfast.journal.base import LedgerRow
from holdfast.journal.ledger import apply


class Books:
    """Rows by key, as :mod:`holdfast.journal.ledger` computes them. They begin empty."""

    def __init__(self) -> None:
        self._rows: dict[str, LedgerRow] = {}

    def take(self, wanted: Iterable[Reservation], now: int) -> dict[str, Refusal]:
        """Reserve all of it, or nothing; gives what did not fit, by key."""
        rows: dict[str, LedgerRow] = {}
        refused: dict[str, Refusal] = {}
        for op in wanted:
            row = apply(rows.get(op.key) or self._rows.get(op.key), op, now)
            if isinstance(row, Refusal):
                refused[op.key] = row
            else:
                rows[op.key] = row
        if not refused:
            self._rows.update(rows)
        return refused

    def enter(self, known: Iterable[Reservation], now: int) -> None:
        """Count what is known to have fitted, whether or not it fits here."""
        for op in known:
            wide = msgspec.structs.replace(op, limit=1 << 62) if isinstance(op, Budget) else op
            row = apply(self._rows.get(op.key), wide, now)
            if isinstance(row, LedgerRow):
                self._rows[op.key] = row

    def settle(self, ops: Iterable[Settlement], now: int) -> None:
        """Settle what was reserved, and release what was held."""
        for op in ops:
            row = apply(self._rows.get(op.key), op, now)
            if isinstance(row, LedgerRow):
                self._rows[op.key] = row
