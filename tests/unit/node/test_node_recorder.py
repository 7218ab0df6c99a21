"""A run's pen: what it wrote, the state that follows, and what happens when something cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.clock import SystemClock
from holdfast.errors import HoldfastError, PayloadError
from holdfast.gate import Fenced
from holdfast.journal import transaction
from holdfast.journal.base import Append, Appended, Draft, Header, NodeRow, Result, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.fold import RunState, fold
from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore
from holdfast.journal.writer import Writer
from holdfast.node.recorder import Recorder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = open_store("sqlite", tmp_path / "home")
    store.create_tenant(
        Tenant(name="default", region="us-east", created_at=1), Draft(kind=Kind.TENANT_CREATED, at=1), "n"
    )
    row = NodeRow(node="n", host="h", boot="b", pid=1, pid_start=1, lease_until=store.now() + 600_000_000)
    store.register(row)
    header = Header(stream="run-1", tenant="default", region="us-east", kind=StreamKind.RUN)
    created = Draft(kind=Kind.RUN_CREATED, at=1, data={"agent": "a"}, payloads={"input": b"{}"})
    store.transact([Append(stream="run-1", epoch=0, node="n", drafts=(created,), create=header)])
    yield store
    store.close()


class Desk:
    """A recorder on a run that was claimed, and what it reported."""

    def __init__(self, store: SqlStore, writer: Writer) -> None:
        epoch = store.claim("run-1", "n")
        assert epoch is not None
        self.failures: list[HoldfastError] = []
        self.state: RunState = fold(store.events("run-1"))
        self.recorder = Recorder(
            self.state, epoch=epoch, node="n", writer=writer, clock=SystemClock(), on_failure=self.failures.append
        )

    def line(self, text: bytes) -> Draft:
        return self.recorder.draft(Kind.LOG, {"level": "info"}, {"message": text})


def test_notes_go_ahead_of_what_takes_them_along(store: SqlStore) -> None:
    async def main() -> None:
        with Writer(store, inline=True) as writer:
            desk = Desk(store, writer)
            desk.recorder.note(desk.line(b"first"))
            results: list[Result | None] = []
            landed = asyncio.Event()

            def done(result: Result | None) -> None:
                results.append(result)
                landed.set()

            desk.recorder.post(desk.line(b"second"), reserve=(), kill_generation=0, done=done)
            await asyncio.wait_for(landed.wait(), 30)
            (result,) = results
            assert isinstance(result, Appended)
            # The state has followed before whoever waits hears of it.
            assert desk.state.seq == result.events[0].seq == 3
            assert desk.failures == []

    asyncio.run(main())


@pytest.mark.parametrize("way", ["flush", "write", "post"])
def test_notes_that_cannot_be_written_are_reported(store: SqlStore, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(transaction, "MAX_PAYLOAD", 8)

    async def main() -> None:
        with Writer(store, inline=True) as writer:
            desk = Desk(store, writer)
            desk.recorder.note(desk.line(b"longer than eight bytes"))
            if way == "write":
                assert isinstance(await desk.recorder.write(desk.line(b"short")), Appended)
            elif way == "post":
                landed = asyncio.Event()
                desk.recorder.post(desk.line(b"short"), reserve=(), kill_generation=0, done=lambda _: landed.set())
                await asyncio.wait_for(landed.wait(), 30)
            await desk.recorder.flush()
            (failure,) = desk.failures
            assert isinstance(failure, PayloadError)
            # The run can still write down how it ends.
            assert desk.recorder.failed is None

    asyncio.run(main())


def test_a_fenced_pen_writes_nothing_more(store: SqlStore) -> None:
    async def main() -> None:
        with Writer(store, inline=True) as writer:
            desk = Desk(store, writer)
            store.claim("run-1", "n", free=("n",))
            before = len(store.events("run-1"))
            with pytest.raises(Fenced):
                await desk.recorder.write(desk.line(b"late"))
            with pytest.raises(Fenced):
                desk.recorder.post(desk.line(b"later"), reserve=(), kill_generation=0, done=lambda _: None)
            assert len(store.events("run-1")) == before
            assert isinstance(desk.failures[0], Fenced)

    asyncio.run(main())
