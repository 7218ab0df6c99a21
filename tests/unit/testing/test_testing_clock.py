"""The fake clock, and that both clocks are what a node takes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from holdfast.clock import Clock, SystemClock
from holdfast.testing.clock import START, FakeClock


def read(clock: Clock) -> tuple[int, int, int]:
    return clock.now(), clock.boottime(), clock.clock_error()


def test_it_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(boottime=5, error=250)
    assert read(clock) == read(clock) == (START, 5, 250)
    clock.advance(1_000_000)
    assert read(clock) == (START + 1_000_000, 1_000_005, 250)
    clock.set_wall(START)
    clock.set_error(-1)
    assert read(clock) == (START, 1_000_005, -1)
    with pytest.raises(ValueError, match="set_wall"):
        clock.advance(-1)


def test_the_machines_clock_runs() -> None:
    clock = SystemClock()
    first, second = read(clock), read(clock)
    assert second[1] >= first[1] > 0
    assert first[2] >= -1


def test_waiters_wake_when_their_time_has_come() -> None:
    async def body() -> None:
        clock = FakeClock(0)
        woken: list[int] = []

        async def wait(at: int) -> None:
            await clock.wait_until(at)
            woken.append(at)

        tasks = [asyncio.create_task(wait(at)) for at in (30, 10, 20)]
        await asyncio.to_thread(clock.wait_for_waiters, 3)
        assert clock.waiting == (10, 20, 30)
        clock.advance(20)
        await asyncio.gather(tasks[1], tasks[2])
        assert (sorted(woken), clock.waiting) == ([10, 20], (30,))
        await clock.wait_until(20)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        assert clock.waiting == ()
        clock.advance(100)
        assert sorted(woken) == [10, 20]

    asyncio.run(body())


def test_another_thread_may_move_it() -> None:
    async def body() -> None:
        clock = FakeClock(0)

        def move() -> None:
            clock.wait_for_waiters(1)
            clock.set_wall(7)

        thread = threading.Thread(target=move)
        thread.start()
        await clock.wait_until(7)
        thread.join()
        assert clock.now() == 7

    asyncio.run(body())


def test_waiting_for_waiters_gives_up() -> None:
    with pytest.raises(TimeoutError, match="0 of 1"):
        FakeClock().wait_for_waiters(1, timeout=0)
