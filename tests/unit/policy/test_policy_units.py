from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.policy.units import (
    MAX_DURATION,
    MAX_USD,
    format_duration,
    format_usd,
    parse_duration,
    parse_usd,
)


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        (Decimal("0.10"), 100_000_000),
        ("0.1", 100_000_000),
        ("$2.50", 2_500_000_000),
        (3, 3_000_000_000),
        ("0.000000001", 1),
        (0, 0),
        (Decimal("1e-3"), 1_000_000),
    ],
)
def test_usd(written: Any, nano: int) -> None:
    assert parse_usd(written) == nano


@pytest.mark.parametrize(
    "written", ["", "a lot", "0.0000000001", -1, "NaN", "Infinity", True, None, [], MAX_USD + 1, 0.1, "1" * 500]
)
def test_no_usd(written: Any) -> None:
    with pytest.raises(ValueError, match=r"USD|nano-dollar"):
        parse_usd(written)


@pytest.mark.parametrize(
    ("written", "micros"),
    [
        ("24h", 86_400_000_000),
        ("30s", 30_000_000),
        ("500ms", 500_000),
        ("7d", 604_800_000_000),
        ("1w", 604_800_000_000),
        ("1.5h", 5_400_000_000),
        ("9us", 9),
        ("15m", 900_000_000),
        ("0s", 0),
    ],
)
def test_duration(written: str, micros: int) -> None:
    assert parse_duration(written) == micros


@pytest.mark.parametrize("written", ["", "24", 24, "h", "-1h", "1y", "1 h", "0.5us", "99999d", None, "1h30m"])
def test_no_duration(written: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(written)


@settings(deadline=None)
@given(st.integers(0, MAX_USD * 10**9))
def test_usd_comes_back(nano: int) -> None:
    assert parse_usd(format_usd(nano)) == nano


@settings(deadline=None)
@given(st.integers(0, MAX_DURATION))
def test_duration_comes_back(micros: int) -> None:
    assert parse_duration(format_duration(micros)) == micros


def test_negative_amounts_are_shown() -> None:
    assert format_usd(-1_500_000_000) == "-1.5"
