"""One run's pen: what is written to its stream, in order, and the state that follows from it.

Notes (outcomes, samples, log lines) wait for the next commit, for they need no answer: whatever depends on them leaves
only after an intent, and that intent's commit takes them along, ahead of it in the same transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from holdfast.action import Reservation, Settlement
from holdfast.clock import Clock
from holdfast.errors import HoldfastError, PayloadError
from holdfast.gate import LOST, Fenced
from holdfast.journal.base import Append, Appended, Draft, Header, InboxItem, MemoryWrite, Patch, Refused, Result
from holdfast.journal.event import Witness
from holdfast.journal.fold import RunState, apply
from holdfast.journal.writer import Writer
from holdfast.node.history import remembered

NOTE_DELAY = 0.02
"""Seconds after which notes are made durable although nothing needs them yet."""
MAX_NOTES = 256
MAX_NOTE_BYTES = 4 << 20


class Recorder:
    """Writes one run's stream while this node owns it under ``epoch``."""

    def __init__(
        self,
        state: RunState,
        *,
        epoch: int,
        node: str,
        writer: Writer,
        clock: Clock,
        on_failure: Callable[[HoldfastError], None],
    ) -> None:
        self.state = state
        self.epoch = epoch
        self._node = node
        self._writer = writer
        self._clock = clock
        self._on_failure = on_failure
        self._notes: list[Draft] = []
        self._settle: list[Settlement] = []
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        """When the oldest note came, by the loop's clock."""
        self._latest: asyncio.Future[Result] | None = None
        """The last append that was handed over: appends become durable in the order of their handing over."""
        self._loop = asyncio.get_running_loop()
        self._posts = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.failed: HoldfastError | None = None
        """Why nothing more can be written: fenced, or the store is gone."""

    def draft(
        self,
        kind: str,
        data: dict[str, Any],
        payloads: dict[str, bytes] | None = None,
        *,
        witness: str = Witness.NODE,
        principal: str | None = None,
        auth: str | None = None,
    ) -> Draft:
        """An event to be, stamped with now and the run's principal."""
        return Draft(
            kind=kind,
            data=data,
            payloads=payloads or {},
            at=self._clock.now(),
            clock_error=self._clock.clock_error(),
            witness=witness,
            principal=self.state.principal if principal is None else principal,
            auth=self.state.auth if auth is None else auth,
        )

    def note(self, draft: Draft, settle: Iterable[Settlement] = ()) -> None:
        """Take a draft along with the next commit, at the latest after NOTE_DELAY."""
        if not self._notes:
            self._since = self._loop.time()
        self._notes.append(draft)
        self._settle.extend(settle)
        self._bytes += sum(map(len, draft.payloads.values()))
        if len(self._notes) >= MAX_NOTES or self._bytes >= MAX_NOTE_BYTES:
            self.push()
        elif self._timer is None:
            self._timer = self._loop.call_later(NOTE_DELAY, self._due)

    def _due(self) -> None:
        """The time of the oldest note may be up. One timer for whatever comes: a step would not pay for its own."""
        self._timer = None
        if self._notes:
            left = self._since + NOTE_DELAY - self._loop.time()
            if left > 0:
                self._timer = self._loop.call_later(left, self._due)
            else:
                self.push()

    def push(self) -> asyncio.Future[Result] | None:
        """Send the notes off without waiting; None when there are none."""
        notes = self._take_notes()
        if notes is None:
            return None
        future = self._submit(notes)[0]
        future.add_done_callback(self._on_noted)
        return future

    async def flush(self) -> None:
        """Wait until every note so far is durable.

        Raises:
            Fenced, StoreError: it cannot be.
        """
        future = self.push() or self._latest
        if future is not None:
            self._check(await asyncio.shield(future))
        if self._posts:
            waiting: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(waiting)
            await waiting
        if self.failed is not None:
            raise self.failed

    def post(
        self,
        draft: Draft,
        *,
        reserve: tuple[Reservation, ...],
        kill_generation: int,
        done: Callable[[Result | None], None],
    ) -> None:
        """Commit a draft under conditions like :meth:`write`, and call ``done`` with the result once there is one.

        None: nothing more can be written to the stream.

        Raises:
            Fenced, StoreError: this node can write nothing more to the stream.
        """
        if self.failed is not None:
            raise self.failed
        append = Append(
            stream=self.state.run,
            epoch=self.epoch,
            node=self._node,
            drafts=(draft,),
            pasts=remembered((draft,), self.state),
            reserve=reserve,
            kill_generation=kill_generation,
        )

        def landed(outcome: Result | BaseException) -> None:
            self._posts -= 1
            self._take(outcome)
            done(None if self.failed is not None else cast("Result", outcome))
            if not self._posts:
                waiting, self._waiting = self._waiting, []
                for future in waiting:
                    if not future.done():
                        future.set_result(None)

        notes = self._take_notes()
        self._posts += 1
        try:
            if notes is None:
                self._writer.post([(append, landed)])
            else:
                self._writer.post([(notes, self._noted), (append, landed)])
        except HoldfastError:
            self._posts -= 1
            raise

    async def write(
        self,
        *drafts: Draft,
        reserve: tuple[Reservation, ...] = (),
        settle: tuple[Settlement, ...] = (),
        kill_generation: int | None = None,
        consume: tuple[int, ...] = (),
        deliver: tuple[InboxItem, ...] = (),
        memory: tuple[MemoryWrite, ...] = (),
        patch: Patch | None = None,
        then: Callable[[], None] | None = None,
    ) -> Result:
        """Commit drafts under conditions, with the notes ahead of them in the same transaction.

        ``then`` is called once it is settled either way, right after the state has followed.

        Raises:
            Fenced, StoreError: this node can write nothing more to the stream.
        """
        append = Append(
            stream=self.state.run,
            epoch=self.epoch,
            node=self._node,
            drafts=drafts,
            pasts=remembered(drafts, self.state),
            reserve=reserve,
            settle=settle,
            kill_generation=kill_generation,
            consume=consume,
            deliver=deliver,
            memory=memory,
            patch=patch,
        )
        notes = self._take_notes()
        try:
            futures = self._submit(append) if notes is None else self._submit(notes, append)
            if notes is not None:
                futures[0].add_done_callback(self._on_noted)
        except HoldfastError:
            if then is not None:
                then()
            raise
        if then is not None:
            futures[-1].add_done_callback(lambda _: then())
        # Whoever waits may be cancelled; what is written counts all the same.
        result = await asyncio.shield(futures[-1])
        if isinstance(result, Refused) and result.reason in LOST:
            raise Fenced(result.message)
        return result

    async def create(self, header: Header, draft: Draft) -> Result:
        """Begin another stream: a child's."""
        append = Append(stream=header.stream, epoch=0, node=self._node, drafts=(draft,), create=header)
        return await self._writer.submit(append)

    def _take_notes(self) -> Append | None:
        if not self._notes:
            return None
        append = Append(
            stream=self.state.run,
            epoch=self.epoch,
            node=self._node,
            drafts=tuple(self._notes),
            pasts=remembered(self._notes, self.state),
            settle=tuple(self._settle),
        )
        self._notes, self._settle, self._bytes = [], [], 0
        return append

    def _submit(self, *appends: Append) -> list[asyncio.Future[Result]]:
        if self.failed is not None:
            raise self.failed
        futures = self._writer.submit_all(appends)
        for future in futures:
            future.add_done_callback(self._on_result)
        self._latest = futures[-1]
        return futures

    def _on_result(self, future: asyncio.Future[Result]) -> None:
        if not future.cancelled():
            self._take(future.exception() or future.result())

    def _take(self, outcome: Result | BaseException) -> None:
        """Let the state follow what was written."""
        if isinstance(outcome, Appended):
            for event in outcome.events:
                apply(self.state, event)
        elif isinstance(outcome, BaseException):
            self._fail(outcome if isinstance(outcome, HoldfastError) else HoldfastError(str(outcome)))
        elif outcome.reason in LOST:
            self._fail(Fenced(outcome.message))

    def _on_noted(self, future: asyncio.Future[Result]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._unrecordable(future.result())

    def _noted(self, outcome: Result | BaseException) -> None:
        self._take(outcome)
        if not isinstance(outcome, BaseException):
            self._unrecordable(outcome)

    def _unrecordable(self, result: Result) -> None:
        """Notes that cannot be written (one is too large, say) would leave a gap in the record: the run ends."""
        if isinstance(result, Refused) and result.reason not in LOST:
            self._on_failure(PayloadError(result.message))

    def _fail(self, error: HoldfastError) -> None:
        if self.failed is None:
            self.failed = error
            self._on_failure(error)

    @staticmethod
    def _check(result: Result) -> None:
        if isinstance(result, Refused) and result.reason in LOST:
            raise Fenced(result.message)
