"""Clocks: wall time with the bound of its error, and the boot clock that leases are held to.

Everything that waits or stamps takes a :class:`Clock`, so that tests can hold the hands.
"""

from __future__ import annotations

import ctypes
import time
from typing import Protocol

STA_UNSYNC = 0x0040
"""adjtimex(2): the clock is not synchronised, so its error has no bound."""
ERROR_TTL_US = 60_000_000


class Clock(Protocol):
    """What tells the time, in microseconds."""

    def now(self) -> int:
        """Wall clock since the Unix epoch."""

    def boottime(self) -> int:
        """CLOCK_BOOTTIME: goes on while the host sleeps, and never jumps."""

    def clock_error(self) -> int:
        """Bound of the wall clock's error; -1 when it is not known."""


class SystemClock:
    """The host's clocks."""

    def __init__(self) -> None:
        self._error = -1
        self._until = -1

    def now(self) -> int:
        """Wall clock since the Unix epoch."""
        return time.time_ns() // 1000

    def boottime(self) -> int:
        """CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000

    def clock_error(self) -> int:
        """The kernel's ``maxerror`` (adjtimex(2)), asked for once a minute."""
        now = self.boottime()
        if now >= self._until:
            self._error, self._until = _max_error(), now + ERROR_TTL_US
        return self._error


class _Timex(ctypes.Structure):
    # struct timex of <sys/timex.h>; only the head is read, the rest is room for the kernel to write into.
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def _max_error() -> int:
    timex = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return -1
    if state < 0 or timex.status & STA_UNSYNC:
        return -1
    return int(timex.maxerror)
