"""The ledger's arithmetic: what one reservation or settlement makes of one row. Pure.

A row that a reservation does not fit stays as it is, and the refusal says why. At no row does reserved + settled
exceed the limit, as long as no call costs more than the worst case that was reserved for it; what was really spent is
counted in any case.
"""

from __future__ import annotations

from holdfast.action import Budget, Hold, Once, Rate, Refusal, Release, Reservation, Settle, Settlement
from holdfast.journal.base import LedgerRow


def apply(row: LedgerRow | None, op: Reservation | Settlement, now: int) -> LedgerRow | Refusal:
    """The row after the operation, or why it does not fit.

    ``now`` is microseconds since the Unix epoch, by the database's clock.
    """
    kind = type(op)
    if kind is Budget:
        return _budget(row, op, now)  # type: ignore[arg-type]
    if kind is Settle:
        return _settle(row, op)  # type: ignore[arg-type]
    if kind is Rate:
        return _rate(row, op, now)  # type: ignore[arg-type]
    if kind is Hold:
        return _hold(row, op, now)  # type: ignore[arg-type]
    if kind is Release:
        return _release(row, op)  # type: ignore[arg-type]
    if kind is Once:
        return _once(row, op, now)  # type: ignore[arg-type]
    raise TypeError(f"{kind.__name__} is no operation of the ledger")


def _budget(row: LedgerRow | None, op: Budget, now: int) -> LedgerRow | Refusal:
    if row is None:
        row = LedgerRow(key=op.key, kind="budget")
    used = row.reserved + row.settled
    if row.kind != "budget" or op.amount < 0 or used + op.amount > op.limit:
        return Refusal(key=op.key, policy=op.policy, limit=op.limit, used=used)
    return LedgerRow(key=op.key, kind="budget", reserved=row.reserved + op.amount, settled=row.settled, limit=op.limit)


def _settle(row: LedgerRow | None, op: Settle) -> LedgerRow:
    actual = max(op.actual, 0)
    if row is None:
        return LedgerRow(key=op.key, kind="budget", settled=actual, limit=actual)
    return LedgerRow(
        key=op.key,
        kind=row.kind,
        reserved=max(row.reserved - max(op.reserved, 0), 0),
        settled=row.settled + actual,
        limit=row.limit,
        tat=row.tat,
        holders=row.holders,
    )


def _rate(row: LedgerRow | None, op: Rate, now: int) -> LedgerRow | Refusal:
    """GCRA as in ITU-T I.371, virtual scheduling: a cell conforms when it does not come before TAT - tolerance."""
    if op.limit <= 0 or op.period_us <= 0 or op.burst <= 0 or (row is not None and row.kind != "rate"):
        return Refusal(key=op.key, policy=op.policy, limit=op.limit, used=0)
    # Rounded up, so that the rate is never exceeded.
    interval = -(-op.period_us // op.limit)
    tat = now if row is None or row.tat < now else row.tat
    # No conforming cell puts TAT further ahead; where it is (the clock was set back, the burst lowered), the
    # bucket counts as full instead of blocking for as long as the clock was wrong.
    tat = min(tat, now + interval * op.burst)
    wait = tat + interval - interval * op.burst - now
    if wait > 0:
        used = min(-((now - tat) // interval), op.burst)
        return Refusal(key=op.key, policy=op.policy, limit=op.limit, used=used, retry_after_us=wait)
    return LedgerRow(key=op.key, kind="rate", limit=op.limit, tat=tat + interval)


def _hold(row: LedgerRow | None, op: Hold, now: int) -> LedgerRow | Refusal:
    if row is not None and row.kind != "hold":
        return Refusal(key=op.key, policy=op.policy, limit=op.limit, used=0)
    held = {} if row is None else {holder: until for holder, until in row.holders.items() if until > now}
    if op.holder not in held and len(held) >= op.limit:
        wait = min(held.values()) - now if held else 0
        return Refusal(key=op.key, policy=op.policy, limit=op.limit, used=len(held), retry_after_us=wait)
    held[op.holder] = now + op.ttl_us
    return LedgerRow(key=op.key, kind="hold", limit=op.limit, holders=held)


def _release(row: LedgerRow | None, op: Release) -> LedgerRow:
    if row is None:
        return LedgerRow(key=op.key, kind="hold")
    if row.kind != "hold" or op.holder not in row.holders:
        return row
    held = {holder: until for holder, until in row.holders.items() if holder != op.holder}
    return LedgerRow(key=op.key, kind="hold", limit=row.limit, holders=held)


def _once(row: LedgerRow | None, op: Once, now: int) -> LedgerRow | Refusal:
    if row is None:
        return LedgerRow(key=op.key, kind="once", limit=1, holders={op.holder: now})
    if row.kind != "once" or op.holder not in row.holders:
        return Refusal(key=op.key, policy=op.policy, limit=1, used=1)
    return row
