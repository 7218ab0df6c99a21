"""A clock that stands still until a test moves it (see :class:`holdfast.clock.Clock`)."""

from __future__ import annotations

import asyncio
import threading

START = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


class FakeClock:
    """Stands at ``now`` until :meth:`advance`. Threads and event loops may share one."""

    def __init__(self, now: int = START, *, boottime: int = 1_000_000_000, error: int = -1) -> None:
        self._now = now
        self._boottime = boottime
        self._error = error
        self._changed = threading.Condition()
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def now(self) -> int:
        """Wall-clock time, microseconds since the Unix epoch."""
        with self._changed:
            return self._now

    def boottime(self) -> int:
        """Moves with :meth:`advance`, not with :meth:`set_wall`."""
        with self._changed:
            return self._boottime

    def clock_error(self) -> int:
        """What the test said."""
        with self._changed:
            return self._error

    def set_error(self, error: int) -> None:
        """Say how far the clock may be off; -1: not known."""
        with self._changed:
            self._error = error

    def advance(self, us: int) -> None:
        """Let time pass and wake whom it concerns.

        Raises:
            ValueError: ``us`` is negative: time does not run backwards; a wall clock may (:meth:`set_wall`).
        """
        if us < 0:
            raise ValueError(f"cannot advance by {us} µs; set_wall sets the wall clock back")
        with self._changed:
            self._boottime += us
            self._move(self._now + us)

    def set_wall(self, now: int) -> None:
        """Set the wall clock alone, forwards or backwards, as an operator or NTP may."""
        with self._changed:
            self._move(now)

    def _move(self, now: int) -> None:
        self._now = now
        due = [waiter for waiter in self._waiters if waiter[0] <= now]
        self._waiters = [waiter for waiter in self._waiters if waiter[0] > now]
        for _, loop, future in due:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, future)

    async def wait_until(self, at: int) -> None:
        """Return when the wall clock has reached ``at``."""
        with self._changed:
            if self._now >= at:
                return
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            waiter = (at, loop, future)
            self._waiters.append(waiter)
            self._changed.notify_all()
        try:
            await future
        finally:
            with self._changed:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    @property
    def waiting(self) -> tuple[int, ...]:
        """What is waited for, earliest first."""
        with self._changed:
            return tuple(sorted(at for at, _, _ in self._waiters))

    def wait_for_waiters(self, count: int, timeout: float = 60.0) -> None:
        """Wait, from another thread, until so many wait for this clock.

        Raises:
            TimeoutError: fewer do.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._waiters) >= count, timeout):
                raise TimeoutError(f"{len(self._waiters)} of {count} wait for the clock after {timeout:g} s")


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
