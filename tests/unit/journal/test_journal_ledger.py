"""The ledger's arithmetic, as tables and as properties over any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.action import Budget, Hold, Once, Rate, Refusal, Release, Settle
from holdfast.journal.base import LedgerRow
from holdfast.journal.ledger import apply

NOW = 1_700_000_000_000_000


def row_of(result: LedgerRow | Refusal) -> LedgerRow:
    assert isinstance(result, LedgerRow)
    return result


def refusal_of(result: LedgerRow | Refusal) -> Refusal:
    assert isinstance(result, Refusal)
    return result


class TestBudget:
    @pytest.mark.parametrize(
        ("reserved", "settled", "amount", "limit", "fits"),
        [
            (0, 0, 100, 100, True),
            (0, 0, 101, 100, False),
            (40, 50, 10, 100, True),
            (40, 50, 11, 100, False),
            (0, 90, 0, 80, False),
            (0, 0, 0, 0, True),
            (0, 0, -1, 100, False),
            (50, 0, 10, 55, False),
        ],
    )
    def test_reserving(self, reserved: int, settled: int, amount: int, limit: int, fits: bool) -> None:
        row = LedgerRow(key="k", kind="budget", reserved=reserved, settled=settled, limit=100)
        after = apply(row, Budget(key="k", amount=amount, limit=limit, policy="p"), NOW)
        if fits:
            assert after == LedgerRow(key="k", kind="budget", reserved=reserved + amount, settled=settled, limit=limit)
        else:
            assert after == Refusal(key="k", policy="p", limit=limit, used=reserved + settled)

    def test_settling_what_is_not_there(self) -> None:
        after = row_of(apply(None, Settle(key="k", reserved=10, actual=4), NOW))
        assert (after.reserved, after.settled, after.limit) == (0, 4, 4)

    def test_settling_more_than_is_reserved_never_goes_below_nothing(self) -> None:
        row = LedgerRow(key="k", kind="budget", reserved=3, settled=5, limit=10)
        after = row_of(apply(row, Settle(key="k", reserved=7, actual=-2), NOW))
        assert (after.reserved, after.settled) == (0, 5)

    @given(
        st.integers(0, 1000),
        st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100), st.integers(0, 10)), max_size=60),
    )
    def test_no_row_ever_exceeds_the_limit_and_what_is_freed_is_used_again(
        self, limit: int, calls: list[tuple[int, int, int]]
    ) -> None:
        """Calls reserve their worst case; some end, at any share of it, whenever they like."""
        row: LedgerRow | None = None
        open_: list[int] = []
        spent = 0
        for amount, percent, which in calls:
            free = limit - spent - sum(open_)
            after = apply(row, Budget(key="k", amount=amount, limit=limit), NOW)
            assert isinstance(after, LedgerRow) == (amount <= free)
            if isinstance(after, LedgerRow):
                row = after
                open_.append(amount)
            if open_ and which % 2:
                worst = open_.pop(which % len(open_))
                actual = worst * percent // 100
                spent += actual
                row = row_of(apply(row, Settle(key="k", reserved=worst, actual=actual), NOW))
            if row is not None:
                assert row.reserved + row.settled <= limit
                assert (row.reserved, row.settled) == (sum(open_), spent)


class TestRate:
    def test_a_burst_and_then_the_pace(self) -> None:
        op = Rate(key="k", limit=2, period_us=1_000_000, burst=3, policy="p")
        row: LedgerRow | None = None
        for _ in range(3):
            row = row_of(apply(row, op, NOW))
        no = refusal_of(apply(row, op, NOW))
        assert no == Refusal(key="k", policy="p", limit=2, used=3, retry_after_us=500_000)
        assert isinstance(apply(row, op, NOW + 499_999), Refusal)
        assert isinstance(apply(row, op, NOW + 500_000), LedgerRow)

    @pytest.mark.parametrize(("limit", "period", "burst"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
    def test_a_rate_of_nothing_lets_nothing_through(self, limit: int, period: int, burst: int) -> None:
        assert isinstance(apply(None, Rate(key="k", limit=limit, period_us=period, burst=burst), NOW), Refusal)

    def test_a_clock_set_back_blocks_for_one_interval_only(self) -> None:
        op = Rate(key="k", limit=1, period_us=1_000_000, burst=2)
        row = row_of(apply(None, op, NOW + 10**12))
        assert refusal_of(apply(row, op, NOW)).retry_after_us == 1_000_000
        assert isinstance(apply(row, op, NOW + 1_000_000), Refusal)
        first = row_of(apply(None, op, NOW))
        second = row_of(apply(first, op, NOW))
        assert isinstance(apply(second, op, NOW + 1_000_000), LedgerRow)

    @given(
        st.integers(1, 50),
        st.integers(1, 10_000_000),
        st.integers(1, 20),
        st.lists(st.integers(0, 2_000_000), min_size=1, max_size=80),
    )
    def test_never_more_than_burst_and_rate_times_time(
        self, limit: int, period: int, burst: int, gaps: list[int]
    ) -> None:
        op = Rate(key="k", limit=limit, period_us=period, burst=burst)
        row: LedgerRow | None = None
        now = NOW
        passed: list[int] = []
        for gap in gaps:
            now += gap
            after = apply(row, op, now)
            if isinstance(after, LedgerRow):
                row = after
                passed.append(now)
            else:
                # The wait that it names is enough, and one microsecond less is not.
                assert isinstance(apply(row, op, now + after.retry_after_us), LedgerRow)
                assert isinstance(apply(row, op, now + after.retry_after_us - 1), Refusal)
        for start, first in enumerate(passed):
            for end in range(start, len(passed)):
                assert end - start + 1 <= burst + (passed[end] - first) * limit / period


class TestHold:
    op = Hold(key="k", holder="a", limit=2, ttl_us=100, policy="p")

    def hold(self, row: LedgerRow | None, holder: str, now: int = NOW) -> LedgerRow | Refusal:
        return apply(row, Hold(key="k", holder=holder, limit=2, ttl_us=100, policy="p"), now)

    def test_places(self) -> None:
        row = row_of(self.hold(row_of(self.hold(None, "a")), "b", NOW + 10))
        assert self.hold(row, "c", NOW + 20) == Refusal(key="k", policy="p", limit=2, used=2, retry_after_us=80)
        again = row_of(self.hold(row, "a", NOW + 20))
        assert again.holders == {"a": NOW + 120, "b": NOW + 110}

    def test_lapsed_holders_are_dropped(self) -> None:
        row = row_of(self.hold(row_of(self.hold(None, "a")), "b"))
        assert row_of(self.hold(row, "c", NOW + 100)).holders == {"c": NOW + 200}

    def test_release(self) -> None:
        row = row_of(self.hold(row_of(self.hold(None, "a")), "b"))
        assert row_of(apply(row, Release(key="k", holder="a"), NOW)).holders == {"b": NOW + 100}
        assert apply(row, Release(key="k", holder="z"), NOW) == row
        assert row_of(apply(None, Release(key="k", holder="a"), NOW)).holders == {}

    def test_a_limit_of_nothing(self) -> None:
        no = refusal_of(apply(None, Hold(key="k", holder="a", limit=0, ttl_us=9), NOW))
        assert (no.used, no.retry_after_us) == (0, 0)

    @given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 60), st.booleans()), max_size=50))
    def test_never_more_holders_than_places(self, limit: int, moves: list[tuple[int, int, bool]]) -> None:
        row: LedgerRow | None = None
        now = NOW
        for holder, gap, leaves in moves:
            now += gap
            op = (
                Release(key="k", holder=str(holder))
                if leaves
                else Hold(key="k", holder=str(holder), limit=limit, ttl_us=100)
            )
            after = apply(row, op, now)
            if isinstance(after, LedgerRow):
                row = after
                assert sum(until > now for until in row.holders.values()) <= limit


def test_once() -> None:
    row = row_of(apply(None, Once(key="k", holder="a", policy="p"), NOW))
    assert apply(row, Once(key="k", holder="a"), NOW + 1) == row
    assert apply(row, Once(key="k", holder="b", policy="p"), NOW) == Refusal(key="k", policy="p", limit=1, used=1)


def test_a_key_is_of_one_kind() -> None:
    budget = row_of(apply(None, Budget(key="k", amount=1, limit=9), NOW))
    hold = row_of(apply(None, Hold(key="k", holder="a", limit=1, ttl_us=9), NOW))
    for op in (
        Rate(key="k", limit=1, period_us=1, burst=1),
        Hold(key="k", holder="a", limit=1, ttl_us=1),
        Once(key="k", holder="a"),
    ):
        assert isinstance(apply(budget, op, NOW), Refusal)
    assert isinstance(apply(hold, Budget(key="k", amount=1, limit=9), NOW), Refusal)
    assert apply(budget, Release(key="k", holder="a"), NOW) == budget


def test_something_else_is_no_operation() -> None:
    with pytest.raises(TypeError):
        apply(None, "x", NOW)  # type: ignore[arg-type]
