"""Money and time as people write them, to and from the integers that are counted: nano-dollars and microseconds.

No float takes part: an amount is read from its decimal digits, so that 0.1 is exactly 100,000,000 nano-dollars.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from holdfast.action import NANO

MAX_USD = 10**9
"""Dollars in one amount, at most: keeps every sum within 64 bits."""

_UNITS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)(us|ms|s|m|h|d|w)")
DURATION_PATTERN = r"^\d{1,15}(\.\d{1,6})?(us|ms|s|m|h|d|w)$"
"""What a duration looks like, for the JSON Schema."""
MAX_DURATION = 3_660 * _UNITS["d"]
"""Ten years: a longer wait is a typing error."""


def parse_usd(value: object) -> int:
    """Nano-dollars of an amount in USD: a number as it was written (``Decimal``, ``int``) or its text.

    Raises:
        ValueError: not an amount, negative, larger than MAX_USD, or finer than a nano-dollar.
    """
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise ValueError(f"an amount in USD, such as 0.25, is needed, not {_shown(value)}")
    try:
        amount = Decimal(value.removeprefix("$") if isinstance(value, str) else value)
    except InvalidOperation:
        raise ValueError(f"an amount in USD, such as 0.25, is needed, not {_shown(value)}") from None
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise ValueError(f"an amount between 0 and {MAX_USD} USD is needed, not {_shown(value)}")
    nano = amount * NANO
    if nano != nano.to_integral_value():
        raise ValueError("the amount is finer than a nano-dollar (nine places after the point)")
    return int(nano)


def format_usd(nano: int) -> str:
    """The shortest decimal number of dollars: ``0.1`` for 100,000,000 nano-dollars."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def parse_duration(value: object) -> int:
    """Microseconds of a duration such as ``24h``, ``30s``, ``500ms`` or ``7d``.

    Raises:
        ValueError: no unit, an unknown one, or more than ten years.
    """
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"a duration with its unit, such as 500ms, 30s, 15m, 24h or 7d, is needed, not {_shown(value)}"
        )
    micros = Decimal(match[1]) * _UNITS[match[2]]
    if micros != micros.to_integral_value():
        raise ValueError("the duration is finer than a microsecond")
    if micros > MAX_DURATION:
        raise ValueError(f"the duration is longer than {format_duration(MAX_DURATION)}")
    return int(micros)


def format_duration(micros: int) -> str:
    """A duration in the largest unit (up to days) that divides it: ``1d`` for 86,400,000,000."""
    for unit in ("d", "h", "m", "s", "ms"):
        if micros and micros % _UNITS[unit] == 0:
            return f"{micros // _UNITS[unit]}{unit}"
    return f"{micros}us"


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...") if isinstance(value, str) else text[:40]
