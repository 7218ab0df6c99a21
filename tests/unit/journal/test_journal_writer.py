"""The writer: grouping, order, failure, overload and end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from holdfast.errors import StoreError
from holdfast.journal import writer as writer_module
from holdfast.journal.base import Append, Appended, Draft, Refused, Result, Store
from holdfast.journal.event import VERSION, Event
from holdfast.journal.writer import MAX_BATCH_BYTES, Writer

TIMEOUT = 60.0


class FakeStore:
    """A store whose commits a test lets through one by one."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(10**6)
        self.fail: Callable[[Sequence[Append]], Exception | None] = lambda batch: None

    def transact(self, batch: Sequence[Append]) -> list[Result]:
        self.entered.release()
        assert self.gate.acquire(timeout=TIMEOUT)
        if error := self.fail(batch):
            raise error
        self.batches.append([append.stream for append in batch])
        return [
            Refused(reason="epoch", message="no") if append.epoch else Appended(events=(event(append.stream),))
            for append in batch
        ]


def event(stream: str) -> Event:
    return Event(
        v=VERSION,
        tenant="t",
        stream=stream,
        seq=1,
        index=0,
        epoch=0,
        kind="log",
        at=1,
        clock_error=-1,
        node="n",
        witness="node",
        principal="",
        auth="",
        prev="",
        data={},
        payloads={},
    )


def append(stream: str, epoch: int = 0, payload: bytes = b"") -> Append:
    drafts = (Draft(kind="log", at=1, payloads={"x": payload}),)
    return Append(stream=stream, epoch=epoch, node="n", drafts=drafts)


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()


@pytest.fixture
def make(fake: FakeStore) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def start(**options: Any) -> Writer:
        made.append(Writer(cast(Store, fake), **options).start())
        return made[-1]

    yield start
    for writer in made:
        writer.close()


def hold(fake: FakeStore) -> None:
    """From here on, no commit passes before the gate is released."""
    fake.gate = threading.Semaphore(0)


def entered(fake: FakeStore) -> None:
    assert fake.entered.acquire(timeout=TIMEOUT)


async def settled(futures: Sequence[asyncio.Future[Result]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), TIMEOUT)


def test_what_waits_while_a_commit_is_under_way_is_one_group(fake: FakeStore, make: Callable[..., Writer]) -> None:
    async def main() -> None:
        writer = make()
        hold(fake)
        futures = [writer.submit(append("a"))]
        entered(fake)
        futures += [writer.submit(append(name)) for name in "bcd"]
        fake.gate.release(2)
        results = await settled(futures)
        assert fake.batches == [["a"], ["b", "c", "d"]]
        assert [result.events[0].stream for result in results] == list("abcd")

    asyncio.run(main())


def test_groups_are_bounded_by_number_and_by_bytes(fake: FakeStore, make: Callable[..., Writer]) -> None:
    async def main() -> None:
        writer = make(max_batch=3)
        hold(fake)
        futures = [writer.submit(append("a"))]
        entered(fake)
        futures += [writer.submit(append("b")) for _ in range(4)]
        large = bytes(MAX_BATCH_BYTES)
        futures += [writer.submit(append("c", payload=large)), writer.submit(append("d"))]
        fake.gate.release(100)
        await settled(futures)
        assert fake.batches == [["a"], ["b"] * 3, ["b", "c"], ["d"]]

    asyncio.run(main())


def test_appends_handed_over_together_are_committed_together(fake: FakeStore, make: Callable[..., Writer]) -> None:
    async def main() -> None:
        writer = make()
        results = await settled(writer.submit_all([append("a"), append("b")]))
        assert [result.events[0].stream for result in results] == ["a", "b"]
        assert fake.batches == [["a", "b"]]

    asyncio.run(main())


def test_a_refusal_is_a_result(make: Callable[..., Writer]) -> None:
    assert isinstance(make().commit(append("a", epoch=1)), Refused)


def test_when_the_store_fails_everyone_hears_of_it_and_the_writer_goes_on(
    fake: FakeStore, make: Callable[..., Writer]
) -> None:
    async def main() -> None:
        writer = make()
        hold(fake)
        broken = [True]
        fake.fail = lambda batch: StoreError("disk full") if broken[0] else None
        futures = [writer.submit(append("a"))]
        entered(fake)
        futures += [writer.submit(append(name)) for name in "bc"]
        fake.gate.release(2)
        assert [str(result) for result in await settled(futures)] == ["disk full"] * 3
        broken[0] = False
        fake.gate.release(1)
        (result,) = await settled([writer.submit(append("d"))])
        assert isinstance(result, Appended)

    asyncio.run(main())


def test_one_append_that_cannot_be_looked_at_harms_itself_only(fake: FakeStore, make: Callable[..., Writer]) -> None:
    async def main() -> None:
        writer = make()
        fake.fail = lambda batch: KeyError("bug") if any(one.stream == "bad" for one in batch) else None
        hold(fake)
        futures = [writer.submit(append("a"))]
        entered(fake)
        futures += [writer.submit(append(name)) for name in ("b", "bad", "c")]
        fake.gate.release(100)
        results = await settled(futures)
        assert [type(result).__name__ for result in results] == ["Appended", "Appended", "KeyError", "Appended"]

    asyncio.run(main())


def test_a_cancelled_future_does_not_take_the_append_back(fake: FakeStore, make: Callable[..., Writer]) -> None:
    async def main() -> None:
        writer = make()
        hold(fake)
        future = writer.submit(append("a"))
        entered(fake)
        other = writer.submit(append("b"))
        future.cancel()
        fake.gate.release(2)
        (result,) = await settled([other])
        assert isinstance(result, Appended)
        assert fake.batches == [["a"], ["b"]]

    asyncio.run(main())


def test_overload_blocks_and_drops_nothing(fake: FakeStore, make: Callable[..., Writer]) -> None:
    writer = make(max_waiting=4, max_batch=2)
    hold(fake)
    results: list[Result] = []
    threads = [
        threading.Thread(target=lambda name=str(number): results.append(writer.commit(append(name))))
        for number in range(30)
    ]
    for thread in threads:
        thread.start()
    entered(fake)
    fake.gate.release(1000)
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(results) == 30
    assert sorted(name for batch in fake.batches for name in batch) == sorted(map(str, range(30)))


def test_closing_commits_what_waits_and_refuses_what_comes(fake: FakeStore, make: Callable[..., Writer]) -> None:
    async def main() -> None:
        writer = make()
        hold(fake)
        futures = [writer.submit(append("a"))]
        entered(fake)
        futures += [writer.submit(append(name)) for name in "bc"]
        fake.gate.release(2)
        await asyncio.to_thread(writer.close)
        assert all(isinstance(result, Appended) for result in await settled(futures))
        with pytest.raises(StoreError, match="closed"):
            writer.submit(append("d"))
        writer.close()

    asyncio.run(main())


def test_points_and_hooks_come_in_order(fake: FakeStore, make: Callable[..., Writer]) -> None:
    seen: list[str] = []
    told = threading.Event()

    def tell(events: Sequence[Event]) -> None:
        seen.append("told " + events[0].stream)
        told.set()

    writer = make(
        before_commit=lambda batch: seen.append("before " + batch[0].stream),
        after_commit=lambda results: seen.append(f"after {len(results)}"),
        on_commit=[tell],
    )
    writer.commit(append("a"))
    assert told.wait(TIMEOUT)
    writer.commit(append("b", epoch=1))
    writer.close()
    assert seen == ["before a", "after 1", "told a", "before b", "after 1"]


def test_a_hook_that_fails_stops_what_comes_until_it_works(fake: FakeStore, make: Callable[..., Writer]) -> None:
    works = threading.Event()
    told: list[list[str]] = []

    def tell(events: Sequence[Event]) -> None:
        if not works.is_set():
            raise OSError("no space")
        told.append([one.stream for one in events])

    writer = make(on_commit=[tell])
    assert isinstance(writer.commit(append("a")), Appended)
    with pytest.raises(StoreError, match="no space"):
        writer.commit(append("b"))
    works.set()
    assert isinstance(writer.commit(append("c")), Appended)
    writer.close()
    assert told == [["a"], ["c"]]
    assert fake.batches == [["a"], ["c"]]


class TestInline:
    """Commits at the end of the event loop's turn, in its own thread."""

    def test_what_one_turn_hands_over_is_one_group(self, fake: FakeStore, make: Callable[..., Writer]) -> None:
        threads: list[int] = []

        async def main() -> None:
            writer = make(inline=True, before_commit=lambda batch: threads.append(threading.get_ident()))
            futures = [writer.submit(append(name)) for name in "ab"]
            futures += writer.submit_all([append("c"), append("d", epoch=1)])
            results = await settled(futures)
            assert [type(result).__name__ for result in results] == ["Appended"] * 3 + ["Refused"]
            await settled([writer.submit(append("e"))])
            assert fake.batches == [["a", "b", "c", "d"], ["e"]]
            assert set(threads) == {threading.get_ident()}

        asyncio.run(main())

    def test_groups_are_bounded(self, fake: FakeStore, make: Callable[..., Writer]) -> None:
        async def main() -> None:
            writer = make(inline=True, max_batch=2)
            await settled([writer.submit(append(name)) for name in "abcde"])
            assert fake.batches == [["a", "b"], ["c", "d"], ["e"]]

        asyncio.run(main())

    def test_a_slow_commit_is_the_last_one_in_the_loop(
        self, fake: FakeStore, make: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[int] = []

        async def main() -> None:
            writer = make(inline=True, before_commit=lambda batch: threads.append(threading.get_ident()))
            here = threading.get_ident()
            monkeypatch.setattr(writer_module, "QUICK", 0.0)
            await settled([writer.submit(append("a"))])
            await settled([writer.submit(append("b"))])
            assert (threads[0] == here, threads[1] == here) == (True, False)

        asyncio.run(main())

    def test_nothing_overtakes_what_the_thread_has(self, fake: FakeStore, make: Callable[..., Writer]) -> None:
        async def main() -> None:
            writer = make(inline=True)
            hold(fake)
            waiting = asyncio.get_running_loop().run_in_executor(None, writer.commit, append("a"))
            entered(fake)
            futures = [writer.submit(append(name)) for name in "bc"]
            fake.gate.release(100)
            await settled([*futures, asyncio.ensure_future(waiting)])
            assert [name for batch in fake.batches for name in batch] == ["a", "b", "c"]

        asyncio.run(main())

    def test_failures(self, fake: FakeStore, make: Callable[..., Writer]) -> None:
        async def main() -> None:
            writer = make(inline=True)
            fake.fail = lambda batch: KeyError("bug") if any(one.stream == "bad" for one in batch) else None
            results = await settled([writer.submit(append(name)) for name in ("a", "bad", "b")])
            assert [type(result).__name__ for result in results] == ["Appended", "KeyError", "Appended"]
            fake.fail = lambda batch: StoreError("disk full")
            (result,) = await settled([writer.submit(append("c"))])
            assert str(result) == "disk full"
            fake.fail = lambda batch: None
            (result,) = await settled([writer.submit(append("d"))])
            assert isinstance(result, Appended)

        asyncio.run(main())

    def test_hooks_are_called_in_the_thread(self, fake: FakeStore, make: Callable[..., Writer]) -> None:
        told: list[tuple[list[str], bool]] = []

        async def main() -> None:
            here = threading.get_ident()
            writer = make(
                inline=True,
                on_commit=[lambda events: told.append(([e.stream for e in events], threading.get_ident() == here))],
            )
            await settled([writer.submit(append(name)) for name in "ab"])
            writer.close()

        asyncio.run(main())
        assert told == [(["a", "b"], False)]

    def test_closing_commits_what_this_turn_has(self, fake: FakeStore, make: Callable[..., Writer]) -> None:
        async def main() -> None:
            writer = make(inline=True)
            future = writer.submit(append("a"))
            writer.close()
            (result,) = await settled([future])
            assert isinstance(result, Appended)
            assert fake.batches == [["a"]]

        asyncio.run(main())
