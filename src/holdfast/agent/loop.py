"""The channel inside an asyncio loop: tasks wait for their answers, and the loop reads for all.

Imported when the first ``async def`` is to run: asyncio takes longer to load than the rest of the worker.
"""

from __future__ import annotations

import asyncio
from _thread import get_ident
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from holdfast.agent.channel import Answer, Channel, Slot
from holdfast.agent.scope import current, require

T = TypeVar("T")
MAX_THREADS = 64
"""Bodies of plain ``def`` steps that run at once beside the loops of a process."""

_pool: ThreadPoolExecutor | None = None


class Reader:
    """A loop's share in reading: it leads through ``add_reader`` whenever no thread does."""

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        self._leads = False
        self._over = False

    def start(self) -> None:
        """Take part."""
        self._channel.loops(self._want, True)
        self._try()

    def stop(self) -> None:
        """Leave, and let another read."""
        self._over = True
        self._channel.loops(self._want, False)
        if self._leads:
            self._leads = False
            self._loop.remove_reader(self._channel.descriptor)
            self._channel.yield_lead()

    def _want(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._try)
        except RuntimeError:
            return  # the loop closed meanwhile; whoever reads next is asked again

    def _try(self) -> None:
        if self._over or self._leads or not self._channel.take_lead(self._poke):
            return
        self._leads = True
        self._loop.add_reader(self._channel.descriptor, self._read)
        self._read()

    def _poke(self) -> None:
        self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._leads:
            self._channel.read_ready()


async def wait(channel: Channel, slot: Slot) -> Answer:
    """The next answer for ``slot``; blocks this task only. A cancelled wait cancels the call."""
    messages = slot.messages
    if not messages:
        loop, me = asyncio.get_running_loop(), get_ident()
        # Waits of a task that the author made say nothing about the branch in which it was made.
        if current_is_branch():
            channel.block(slot)
        try:
            while not messages:
                future = loop.create_future()

                def done(future: asyncio.Future[None] = future) -> None:
                    if not future.done():
                        future.set_result(None)

                def wake(done: Callable[[], None] = done) -> None:
                    if get_ident() == me:
                        done()
                    else:
                        loop.call_soon_threadsafe(done)

                slot.wake = wake
                if not messages:
                    await future
        except CancelledError:
            channel.cancel(slot)
            raise
        finally:
            slot.wake = None
            channel.unblock(slot)
    return messages.popleft()


def current_is_branch() -> bool:
    """Whether the running task is itself a branch, and not one that the author made beside it."""
    scope = current.get()
    return scope is not None and scope.task is not None and scope.task is asyncio.current_task()


async def in_thread(channel: Channel, work: Callable[[], T]) -> T:
    """Run a plain ``def`` body beside the loop. A cancelled task waits for its end: nothing can stop it but time."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(MAX_THREADS, "holdfast-step")
    counted = current_is_branch()
    if not counted:
        channel.running(1)
    try:
        future = asyncio.get_running_loop().run_in_executor(_pool, copy_context().run, work)
        cancelled: CancelledError | None = None
        while not future.done():
            try:
                await asyncio.shield(future)
            except CancelledError as error:
                if future.cancelled():
                    raise
                cancelled = error
            except Exception:  # noqa: BLE001 - raised below, by result()
                break
        if cancelled is not None:
            raise cancelled
        return future.result()
    finally:
        if not counted:
            channel.running(-1)


def run(channel: Channel, work: Awaitable[T]) -> T:
    """Run an awaitable to its end in a loop of this thread's own."""

    async def main() -> T:
        scope = require()
        outer, scope.task = scope.task, asyncio.current_task()
        reader = Reader(channel, asyncio.get_running_loop())
        reader.start()
        try:
            return await work
        finally:
            reader.stop()
            scope.task = outer

    with asyncio.Runner() as runner:
        return runner.run(main())


async def gather(
    channel: Channel, ctx: Any, branches: tuple[Any, ...], return_exceptions: bool, limit: int = 256
) -> list[Any]:
    """Run branches as tasks; see :meth:`holdfast.AsyncContext.gather`."""
    from holdfast.agent.gather import body_of, inner, outcome

    scope = require()
    scope.gathers += 1
    group = scope.gathers
    bodies = [body_of(ctx, branch, index) for index, branch in enumerate(branches)]
    results: list[Any] = [None] * len(bodies)
    errors: dict[int, BaseException] = {}
    todo = iter(range(len(bodies)))
    loop = asyncio.get_running_loop()

    async def work() -> None:
        for index in todo:
            here = inner(channel, scope, group, index)
            here.task = asyncio.current_task()
            token = current.set(here)
            try:
                found = bodies[index]()
                results[index] = await found if hasattr(found, "__await__") else found
            except CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again by whoever gathers
                errors[index] = error
            finally:
                current.reset(token)

    counted = current_is_branch()
    tasks = [loop.create_task(work()) for _ in range(min(limit, len(bodies)))]
    for task in tasks:
        task.add_done_callback(lambda _: channel.running(-1))
    channel.running(len(tasks) - counted)
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        channel.running(counted)
    return outcome(results, errors, return_exceptions)


__all__ = ["CancelledError", "Reader", "current_is_branch", "gather", "in_thread", "run", "wait"]
