"""The pool of boundaries that wait for a run: whose they are, what ends them, and that none is used twice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from holdfast.errors import IsolationError
from holdfast.sandbox import pool as pools
from holdfast.sandbox.base import Label
from holdfast.sandbox.pool import Key, Pool, Warm

WAIT = 30.0
KEY = Key(tenant="acme", agent="buyer", level="namespace", deployment="one")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REFILL_SECONDS", 0)


class FakeBoundary:
    def __init__(self, memory: int) -> None:
        self.used = memory
        self.killed = asyncio.Event()
        self.closed = asyncio.Event()

    def memory(self) -> tuple[int, int]:
        return self.used, self.used

    def kill(self) -> None:
        self.killed.set()

    async def close(self) -> None:
        assert self.killed.is_set()
        self.closed.set()


class Maker:
    """Starts fake boundaries, and keeps the inner ends of their channels."""

    def __init__(self, memory: int = MIB) -> None:
        self.memory = memory
        self.made: list[Warm] = []
        self.inner: list[socket.socket] = []
        self.fails = 0
        self.asked = 0
        self.changed = asyncio.Condition()

    async def __call__(self) -> Warm:
        async with self.changed:
            self.asked += 1
            self.changed.notify_all()
        if self.fails:
            self.fails -= 1
            raise IsolationError("its code was not imported")
        outer, inner = socket.socketpair()
        outer.setblocking(False)
        self.inner.append(inner)
        boundary: Any = FakeBoundary(self.memory)
        warm = Warm(boundary, (outer,), "ready")
        self.made.append(warm)
        return warm

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(WAIT), self.changed:
            await self.changed.wait_for(lambda: self.asked >= times)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT):
        while not holds():
            await asyncio.sleep(0.001)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def make(size: int = 1, memory: int = 100 * MIB, room: Callable[[Label], bool] = lambda label: True) -> Pool:
    return Pool(size=size, memory=memory, room=room)


def fake(warm: Warm) -> FakeBoundary:
    found: Any = warm.boundary
    assert isinstance(found, FakeBoundary)
    return found


def test_each_is_used_once() -> None:
    async def scenario() -> None:
        pool, maker = make(size=3), Maker()
        assert pool.take(KEY) is None
        pool.want(KEY, maker)
        await until(lambda: len(pool.boundaries()) == 3)
        taken = [pool.take(KEY) for _ in range(4)]
        assert taken[3] is None
        assert len({id(warm) for warm in taken[:3]}) == 3
        await pool.close()
        # What was taken is the taker's to end.
        assert not any(fake(warm).killed.is_set() for warm in maker.made)

    run(scenario)


@pytest.mark.parametrize("field", ["tenant", "agent", "level", "deployment"])
def test_it_is_good_for_nobody_else(field: str) -> None:
    async def scenario() -> None:
        pool, maker = make(), Maker()
        pool.want(KEY, maker)
        await until(pool.boundaries)
        other = {name: getattr(KEY, name) for name in ("tenant", "agent", "level", "deployment")} | {field: "other"}
        assert pool.take(Key(**other)) is None
        assert pool.take(KEY) is maker.made[0]
        await pool.close()

    run(scenario)


def test_new_code_ends_what_was_made_of_the_old() -> None:
    async def scenario() -> None:
        pool, old, new = make(), Maker(), Maker()
        pool.want(KEY, old)
        await until(pool.boundaries)
        changed = Key(tenant="acme", agent="buyer", level="namespace", deployment="two")
        pool.want(changed, new)
        await until(lambda: new.made and pool.boundaries() == [new.made[0].boundary])
        await until(lambda: fake(old.made[0]).closed.is_set())
        assert pool.take(KEY) is None
        assert pool.take(changed) is new.made[0]
        await pool.close()

    run(scenario)


def test_code_that_changes_during_a_start_ends_what_comes_of_it() -> None:
    async def scenario() -> None:
        pool, old, new = make(), Maker(), Maker()
        held = asyncio.Event()

        async def slow() -> Warm:
            warm = await old()
            await held.wait()
            return warm

        pool.want(KEY, slow)
        await old.until_asked(1)
        changed = Key(tenant="acme", agent="buyer", level="namespace", deployment="two")
        pool.want(changed, new)
        held.set()
        await until(lambda: fake(old.made[0]).closed.is_set())
        await until(lambda: new.made)
        await pool.close()

    run(scenario)


@pytest.mark.parametrize("end", [False, True])
def test_one_that_says_more_than_that_it_is_ready_is_ended(end: bool) -> None:
    async def scenario() -> None:
        pool, maker = make(), Maker()
        pool.want(KEY, maker)
        await until(pool.boundaries)
        if end:
            maker.inner[0].close()
        else:
            maker.inner[0].send(b"?")
        assert pool.take(KEY) is None
        await until(lambda: fake(maker.made[0]).closed.is_set())
        await pool.close()

    run(scenario)


def test_one_that_speaks_while_nobody_asks_for_it_is_ended() -> None:
    async def scenario() -> None:
        pool, maker = make(), Maker()
        pool.want(KEY, maker)
        await until(pool.boundaries)
        maker.inner[0].send(b"?")
        await until(lambda: fake(maker.made[0]).closed.is_set())
        assert pool.boundaries() == []
        await pool.close()

    run(scenario)


def test_one_that_nobody_comes_for_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "KEEP_SECONDS", 0)

    async def scenario() -> None:
        pool, maker = make(), Maker()
        pool.want(KEY, maker)
        await until(lambda: maker.made and fake(maker.made[0]).closed.is_set())
        assert pool.boundaries() == []
        assert maker.asked == 1
        await pool.close()

    run(scenario)


def test_memory_bounds_them_and_the_agent_used_last_comes_first() -> None:
    async def scenario() -> None:
        pool, first, second = make(size=2, memory=100 * MIB), Maker(40 * MIB), Maker(40 * MIB)
        pool.want(KEY, first)
        await until(lambda: len(pool.boundaries()) == 2)
        other = Key(tenant="acme", agent="seller", level="namespace", deployment="one")
        pool.want(other, second)
        await until(lambda: len(second.made) == 2)
        await until(lambda: all(fake(warm).closed.is_set() for warm in first.made))
        assert pool.take(KEY) is None
        assert sum(warm.memory for warm in second.made) <= 100 * MIB
        await pool.close()

    run(scenario)


def test_none_is_started_where_there_is_no_room() -> None:
    async def scenario() -> None:
        asked: list[Label] = []
        pool = make(room=lambda label: asked.append(label) or False)  # type: ignore[func-returns-value]
        maker = Maker()
        pool.want(KEY, maker)
        await until(lambda: asked)
        assert asked == [Label(tenant="acme", agent="buyer")]
        await pool.close()
        assert maker.asked == 0

    run(scenario)


def test_a_kill_that_comes_during_a_start_ends_what_comes_of_it() -> None:
    async def scenario() -> None:
        answers = iter([True, False])
        pool, maker = make(room=lambda label: next(answers)), Maker()
        pool.want(KEY, maker)
        await until(lambda: maker.made and fake(maker.made[0]).closed.is_set())
        assert pool.boundaries() == []
        await pool.close()

    run(scenario)


def test_a_kill_drains_whom_it_concerns() -> None:
    async def scenario() -> None:
        pool, mine, theirs = make(), Maker(), Maker()
        other = Key(tenant="acme", agent="seller", level="namespace", deployment="one")
        pool.want(KEY, mine)
        pool.want(other, theirs)
        await until(lambda: len(pool.boundaries()) == 2)
        pool.drain(lambda label: label.agent == "buyer")
        await until(lambda: fake(mine.made[0]).closed.is_set())
        assert pool.take(KEY) is None
        assert pool.take(other) is theirs.made[0]
        await pool.close()

    run(scenario)


def test_code_that_cannot_be_imported_is_not_tried_for_ever() -> None:
    async def scenario() -> None:
        pool, maker = make(), Maker()
        maker.fails = 100
        for times in range(1, pools.MAX_FAILURES + 1):
            pool.want(KEY, maker)
            await maker.until_asked(times)
        await until(lambda: not pool._fills)
        pool.want(KEY, maker)
        assert not pool._timers
        assert maker.asked == pools.MAX_FAILURES
        await pool.close()

    run(scenario)


def test_nothing_is_left_at_the_end() -> None:
    async def scenario() -> None:
        pool, maker = make(size=2), Maker()
        pool.want(KEY, maker)
        await until(lambda: len(pool.boundaries()) == 2)
        await pool.close()
        assert all(fake(warm).closed.is_set() for warm in maker.made)
        pool.want(KEY, maker)
        assert not pool._timers

    run(scenario)
