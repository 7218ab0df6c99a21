"""The writer: one thread that groups the appends that wait into commits.

While one commit is under way the next group gathers, so the number of commits a second is the disk's and the number of
appends is not. Overload blocks; nothing is ever dropped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from holdfast.errors import StoreError
from holdfast.journal.base import Append, Appended, Result, Store
from holdfast.journal.event import Event

if TYPE_CHECKING:
    import asyncio

MAX_BATCH = 256
"""Appends of one commit, at most."""
MAX_BATCH_BYTES = 16 << 20
"""Bytes of payloads after which a commit takes no more."""
QUICK = 0.25
"""Seconds that a commit in an event loop's own thread may take without being the last one there. Far above what a disk
takes: on a busy machine most of a commit's time is waiting for a processor, and the thread waits longer still, because
it has to win the interpreter from the loop again after each statement."""
TELL_DELAY = 0.05
"""Seconds after which the hooks hear of what was committed in an event loop's own thread: to wake the writer's thread
for each commit would cost as much as the commit's own work."""
MAX_WAITING = 4096
"""Appends that may wait; whoever brings more waits itself."""


class _Waiter:
    """A thread that waits for a result; settled like a future of asyncio."""

    __slots__ = ("error", "ready", "result")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.result: Result | None = None
        self.error: BaseException | None = None


class _Told:
    """Events that the hooks have to hear of, on their way to the writer's thread."""

    __slots__ = ("events",)

    def __init__(self, events: list[Event]) -> None:
        self.events = events


_Item = tuple[Append, "asyncio.AbstractEventLoop | None", Any]


class Writer:
    """Groups appends into commits of ``store``. Start it with :meth:`start`, or use it as a context manager.

    ``on_commit`` is called in the writer's thread with the events of commits, once they are durable. When it fails
    it is called again with the same events before the next commit, which fails as long as it does.
    ``before_commit`` and ``after_commit`` are points at which tests let the process die.

    With ``inline``, what an event loop hands over in one turn is committed at the end of that turn, in the loop's own
    thread: two hand-overs between threads cost more than a commit to a local disk. As soon as a commit takes longer
    than :data:`QUICK` the thread takes over, until commits are quick again, so a slow disk stalls the loop once.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_commit: Sequence[Callable[[Sequence[Event]], None]] = (),
        before_commit: Callable[[Sequence[Append]], None] | None = None,
        after_commit: Callable[[Sequence[Result]], None] | None = None,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
        inline: bool = False,
    ) -> None:
        self.store = store
        self._hooks = tuple(on_commit)
        self._before = before_commit
        self._after = after_commit
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[_Item | _Told | None] = SimpleQueue()
        self._door = threading.Lock()
        self._room = threading.Condition()
        self._blocked = 0
        self._closed = False
        self._unseen: list[Event] = []
        self._untold = False
        self._inline = inline
        self._quick = True
        self._handed = 0
        self._turn: list[_Item] = []
        self._later: list[Event] = []
        self._thread = threading.Thread(target=self._run, name="holdfast-writer", daemon=True)

    def start(self) -> Writer:
        """Start the thread."""
        self._thread.start()
        return self

    def __enter__(self) -> Writer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, append: Append) -> asyncio.Future[Result]:
        """Hand over an append from a running event loop; the future gives its result once it is durable.

        A cancelled future does not take the append back. Blocks while :data:`MAX_WAITING` appends wait.

        Raises:
            StoreError: the writer is closed. The future raises it when the store fails: nothing was written then.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._put(loop, [(append, loop, future)])
        return future

    def submit_all(self, appends: Sequence[Append]) -> list[asyncio.Future[Result]]:
        """Hand over several appends that belong into one commit, in this order; a future for each.

        Raises:
            StoreError: as :meth:`submit`.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        items: list[_Item] = [(append, loop, loop.create_future()) for append in appends]
        self._put(loop, items)
        return [item[2] for item in items]

    def post(self, entries: Sequence[tuple[Append, Callable[[Result | BaseException], None]]]) -> None:
        """Hand over appends that belong into one commit; each function hears its outcome, in the loop's thread.

        What :meth:`submit_all` does without a future: no turn of the loop lies between the commit and the call.

        Raises:
            StoreError: as :meth:`submit`.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        self._put(loop, [(append, loop, done) for append, done in entries])

    def commit(self, append: Append) -> Result:
        """Hand over an append and wait until it is durable. Not from an event loop's thread.

        Raises:
            StoreError: the store failed and nothing was written, or the writer is closed.
        """
        waiter = _Waiter()
        self._put(None, [(append, None, waiter)])
        waiter.ready.wait()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.result is not None
        return waiter.result

    def close(self) -> None:
        """Commit what waits, then end the thread. Leaves the store open."""
        with self._door:
            if not self._closed:
                self._closed = True
                turn, self._turn = self._turn, []
                for item in turn:
                    self._queue.put(item)
                self._hand_later()
                self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _put(self, loop: asyncio.AbstractEventLoop | None, items: list[_Item]) -> None:
        if self._queue.qsize() >= self._max_waiting:
            with self._room:
                self._blocked += 1
                while self._queue.qsize() >= self._max_waiting and not self._closed:
                    self._room.wait()
                self._blocked -= 1
        with self._door:
            if self._closed:
                raise StoreError("the journal's writer is closed: the node is shutting down. Start it again.")
            if self._inline and loop is not None:
                turn = self._turn
                if turn and turn[0][1] is loop:
                    turn += items
                    return
                # Never ahead of what the thread still has: appends of one stream keep their order.
                if not turn and not self._handed and self._quick and not self._untold:
                    turn += items
                    loop.call_soon(self._end_turn)
                    return
            self._handed += len(items)
            for item in items:
                self._queue.put(item)

    def _end_turn(self) -> None:
        """Commit, in the loop's thread, what was handed over in this turn of it."""
        import asyncio

        with self._door:
            turn, self._turn = self._turn, []
        while turn:
            count, size = 0, 0
            for append, _, _ in turn[: self._max_batch]:
                count += 1
                size += weight(append)
                if size >= MAX_BATCH_BYTES:
                    break
            events = self._commit(turn[:count], here=True)
            if events and self._hooks:
                with self._door:
                    if not self._later:
                        asyncio.get_running_loop().call_later(TELL_DELAY, self._tell_now)
                    self._later += events
            turn = turn[count:]

    def _tell_now(self) -> None:
        with self._door:
            self._hand_later()

    def _hand_later(self) -> None:
        events, self._later = self._later, []
        if events:
            self._queue.put(_Told(events))

    def _run(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._gather()
            if batch:
                events = self._commit(batch, here=False)
                self._unseen += events
                with self._door:
                    self._handed -= len(batch)
            # A failure is met again, and reported, before the next commit.
            with contextlib.suppress(StoreError):
                self._tell()

    def _gather(self) -> tuple[list[_Item], bool]:
        """What waits, at least one; and whether more may come."""
        batch: list[_Item] = []
        size = 0
        open_ = True
        item = self._queue.get()
        # Whoever is putting several appends puts them all before the group is closed.
        with self._door:
            pass
        while True:
            if item is None:
                open_ = False
                break
            if isinstance(item, _Told):
                self._unseen += item.events
            else:
                batch.append(item)
                size += weight(item[0])
            if len(batch) >= self._max_batch or size >= MAX_BATCH_BYTES:
                break
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
        if self._blocked:
            with self._room:
                self._room.notify_all()
        return batch, open_

    def _commit(self, batch: list[_Item], here: bool) -> list[Event]:
        """Commit a group and tell everyone; gives the events that are durable now."""
        appends = [item[0] for item in batch]
        start = time.monotonic()
        try:
            if not here:
                self._tell()
            if self._before is not None:
                self._before(appends)
            results = self.store.transact(appends)
            if self._after is not None:
                self._after(results)
        except StoreError as error:
            self._quick = False
            _settle(batch, [error] * len(batch), here)
            return []
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            if len(batch) == 1:
                _settle(batch, [error], here)
                return []
            # One append that cannot even be looked at must not take the others with it.
            return [event for item in batch for event in self._commit([item], here)]
        self._quick = time.monotonic() - start < QUICK
        _settle(batch, results, here)
        return [event for result in results if type(result) is Appended for event in result.events]

    def _tell(self) -> None:
        """Let the hooks hear of what they have not heard of yet. In the writer's thread only.

        Raises:
            StoreError: one of them failed; it is called again.
        """
        if not self._hooks:
            self._unseen = []
        if not self._unseen:
            return
        self._untold = True
        for hook in self._hooks:
            try:
                hook(self._unseen)
            except StoreError:
                raise
            except Exception as error:
                raise StoreError(
                    f"what follows a commit failed ({error}): nothing more is recorded until it works"
                ) from error
        self._unseen = []
        self._untold = False


def weight(append: Append) -> int:
    """Bytes of an append's payloads: what it costs to hold and to write."""
    total = 0
    for draft in append.drafts:
        for payload in draft.payloads.values():
            total += len(payload)
    return total


def _settle(batch: list[_Item], outcomes: Sequence[Result | BaseException], here: bool) -> None:
    """Give everyone who waits its outcome: one wake-up for each event loop, none when it is this very thread's."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Any, Result | BaseException]]] = {}
    for (_, loop, waiter), outcome in zip(batch, outcomes, strict=True):
        if loop is not None:
            loops.setdefault(loop, []).append((waiter, outcome))
            continue
        if isinstance(outcome, BaseException):
            waiter.error = outcome
        else:
            waiter.result = outcome
        waiter.ready.set()
    for loop, pairs in loops.items():
        if here:
            _resolve(pairs)
            continue
        try:
            loop.call_soon_threadsafe(_resolve, pairs)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            continue


def _resolve(pairs: list[tuple[Any, Result | BaseException]]) -> None:
    for future, outcome in pairs:
        if callable(future):
            future(outcome)
            continue
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
