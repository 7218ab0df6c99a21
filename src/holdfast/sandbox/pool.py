"""A one-shot warm pool: boundaries that were started ahead of their runs, each used by one of them, or by none.

A pooled boundary belongs to one tenant, agent, deployment and level from its start: its uid, workspace and label are
its own, and a kill of the tenant or the agent ends it like any other. Until a run claims it nobody listens to it: what
says a word after its first one is ended, and so is what waited too long. New code drains what was made of the old.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from holdfast.errors import IsolationError
from holdfast.log import Log
from holdfast.sandbox.base import Boundary, Label

REFILL_SECONDS = 0.25
"""Between a run's start and the start of the boundary that replaces the one it took: its own start comes first."""
KEEP_SECONDS = 600.0
"""How long a boundary may wait for a run."""
MAX_FAILURES = 3
"""Starts of one deployment that may fail in a row; then its runs start cold until its code changes."""

log = Log(__name__)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooled boundary is good for."""

    tenant: str
    agent: str
    level: str
    deployment: str

    @property
    def place(self) -> tuple[str, str, str]:
        """Whose shelf it is: an agent has one deployment at a time on it."""
        return self.tenant, self.agent, self.level


class Warm:
    """A boundary that is ready, and this process's ends of its channels."""

    def __init__(self, boundary: Boundary, channels: tuple[socket.socket, ...], word: object) -> None:
        self.boundary = boundary
        self.channels = channels
        """Non-blocking."""
        self.word = word
        """What the program inside said when it was ready."""
        self.memory = boundary.memory()[0]
        self.expires: asyncio.TimerHandle | None = None

    def silent(self) -> bool:
        """Whether nothing came through its channels, not even their end."""
        for channel in self.channels:
            try:
                channel.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                pass
            return False
        return True


Start = Callable[[], Awaitable[Warm]]
"""Starts a boundary for the pool and waits until it is ready. Raises IsolationError when it does not get there."""


class _Shelf:
    def __init__(self, key: Key, start: Start) -> None:
        self.key = key
        self.start = start
        self.ready: deque[Warm] = deque()
        self.failures = 0
        self.memory = 0
        """Bytes of the last one."""


class Pool:
    """Belongs to the event loop that it was made in.

    Args:
        size: boundaries kept for each agent and level.
        memory: bytes that all of them may use together.
        room: whether another may be started now; asked each time.
    """

    def __init__(self, *, size: int, memory: int, room: Callable[[Label], bool]) -> None:
        self._size = size
        self._memory = memory
        self._room = room
        self._shelves: dict[tuple[str, str, str], _Shelf] = {}
        """The one used last comes last."""
        self._turn = asyncio.Lock()
        self._fills: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    def take(self, key: Key) -> Warm | None:
        """A boundary that nobody has used, now the caller's to claim and to end; None when there is none."""
        shelf = self._shelves.get(key.place)
        if shelf is None or shelf.key != key:
            return None
        while shelf.ready:
            warm = shelf.ready.popleft()
            self._release(warm)
            if warm.silent():
                return warm
            self.discard(warm)
        return None

    def discard(self, warm: Warm) -> None:
        """End one that was taken and cannot be used."""
        warm.boundary.kill()
        for channel in warm.channels:
            channel.close()
        _spawn(self._ends, warm.boundary.close())

    def want(self, key: Key, start: Start) -> None:
        """Runs of this deployment come: keep boundaries for them, and none of another deployment of the agent's."""
        if self._closed or self._size == 0:
            return
        shelf = self._shelves.pop(key.place, None)
        if shelf is not None and shelf.key != key:
            self._clear(shelf)
            shelf = None
        shelf = self._shelves[key.place] = shelf or _Shelf(key, start)
        shelf.start = start
        if len(shelf.ready) < self._size and shelf.failures < MAX_FAILURES:
            self._later(shelf)

    def drain(self, concerns: Callable[[Label], bool]) -> None:
        """End those whose label it concerns, and keep no more until a run asks for them."""
        for place, shelf in list(self._shelves.items()):
            if concerns(_label(shelf.key)):
                del self._shelves[place]
                self._clear(shelf)

    def boundaries(self) -> list[Boundary]:
        """All that wait for a run. May be called from any thread."""
        return [warm.boundary for shelf in list(self._shelves.values()) for warm in list(shelf.ready)]

    async def close(self) -> None:
        """End all of them and wait until nothing is left."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self.drain(lambda label: True)
        for fill in self._fills:
            fill.cancel()
        while tasks := self._fills | self._ends:
            await asyncio.gather(*tasks, return_exceptions=True)

    # filling

    def _later(self, shelf: _Shelf) -> None:
        def now() -> None:
            self._timers.discard(timer)
            _spawn(self._fills, self._fill(shelf))

        timer = asyncio.get_running_loop().call_later(REFILL_SECONDS, now)
        self._timers.add(timer)

    async def _fill(self, shelf: _Shelf) -> None:
        async with self._turn:
            while self._wanted(shelf) and len(shelf.ready) < self._size:
                if not self._room(_label(shelf.key)) or not self._fits(shelf):
                    return
                try:
                    warm = await shelf.start()
                except IsolationError as error:
                    shelf.failures += 1
                    log.info("no warm boundary", agent=shelf.key.agent, reason=str(error))
                    return
                shelf.failures = 0
                shelf.memory = warm.memory
                # All is asked again: a kill may have come while it started, and only now is known what it takes.
                if not self._wanted(shelf) or not self._room(_label(shelf.key)) or not self._fits(shelf):
                    self.discard(warm)
                    return
                self._keep(shelf, warm)

    def _wanted(self, shelf: _Shelf) -> bool:
        return not self._closed and self._shelves.get(shelf.key.place) is shelf and shelf.failures < MAX_FAILURES

    def _fits(self, shelf: _Shelf) -> bool:
        """Make room for one more, at the cost of agents that were started longer ago."""
        for other in list(self._shelves.values()):
            if self._used() + shelf.memory <= self._memory or other is shelf:
                break
            self._clear(other)
        return self._used() + shelf.memory <= self._memory

    def _used(self) -> int:
        return sum(warm.memory for shelf in self._shelves.values() for warm in shelf.ready)

    def _keep(self, shelf: _Shelf, warm: Warm) -> None:
        loop = asyncio.get_running_loop()

        def drop() -> None:
            shelf.ready.remove(warm)
            self._release(warm)
            self.discard(warm)

        shelf.ready.append(warm)
        warm.expires = loop.call_later(KEEP_SECONDS, drop)
        for channel in warm.channels:
            loop.add_reader(channel, drop)

    # emptying

    def _clear(self, shelf: _Shelf) -> None:
        while shelf.ready:
            warm = shelf.ready.popleft()
            self._release(warm)
            self.discard(warm)

    def _release(self, warm: Warm) -> None:
        """Watch it no longer."""
        if warm.expires is not None:
            warm.expires.cancel()
        for channel in warm.channels:
            asyncio.get_running_loop().remove_reader(channel)


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _label(key: Key) -> Label:
    return Label(tenant=key.tenant, agent=key.agent)
