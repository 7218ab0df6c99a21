"""Each part of the gate fails in turn: nothing passes that should not, and the verdict says why."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from holdfast.action import Action, Ended, Facts, Kill, Outcome, Refusal, Verdict
from holdfast.errors import PolicyFileError, StoreError
from holdfast.gate import Control, Passage, enter
from holdfast.journal.base import Append, Appended, Draft, Header, NodeRow, Result, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.fold import RunState
from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore
from holdfast.journal.writer import Writer
from holdfast.node.labels import UNSEEN, Labels
from holdfast.policy import flow
from holdfast.policy.bundle import Bundle
from holdfast.policy.categories.carddata import PanGuard
from holdfast.policy.decide import decide, decide_after, decide_during
from holdfast.policy.model import one

CARD = "4111 1111 1111 1111"
FACTS = Facts(now=1, tenant="acme", run="r1")
PAY = Action(kind="tool", name="pay", id="pay.1", digest="d", args={"text": CARD})
ASK = Action(kind="llm", name="generate", provider="p", model="m", digest="d", args={"messages": []})
HOUR = 3_600_000_000


def rules(*policies: Mapping[str, Any]) -> Bundle:
    return Bundle([one({"id": f"r{number}", **policy}, "test") for number, policy in enumerate(policies)])


CARDS = rules({"category": "pan_guard", "gates": ["llm", "tool"]})


class TestScanner:
    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def look(*_: Any) -> Any:
            raise MemoryError(CARD)

        monkeypatch.setattr(PanGuard, "look", look)

    @pytest.mark.parametrize(
        "verdict",
        [
            lambda: decide(PAY, FACTS, CARDS),
            lambda: decide_during(ASK, "x", FACTS, CARDS),
            lambda: decide_after(PAY, Ended(value="x"), FACTS, CARDS),
        ],
        ids=["before", "during", "after"],
    )
    def test_a_scanner_that_dies_denies_in_every_phase(self, verdict: Any) -> None:
        found: Verdict = verdict()
        assert found.outcome is Outcome.DENY
        assert "failed (MemoryError)" in found.reason
        assert "4111" not in str(found)

    def test_what_cannot_be_looked_into_may_be_anything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def seen(value: Any) -> Any:
            raise RecursionError

        monkeypatch.setattr(flow, "seen", seen)
        labels = Labels(RunState(), rules({"category": "untrusted_taint"}))
        assert labels.take(PAY, Ended(value="x")) == {"labels": sorted(UNSEEN)}
        assert labels.told(b"not json") == {}
        assert labels.now() == tuple(sorted(UNSEEN))


class Home:
    """A store with a run, a writer whose commits can be held up, and the gate in front of them."""

    def __init__(self, folder: Path) -> None:
        self.store: SqlStore = open_store("sqlite", folder)
        self.reader: SqlStore = open_store("sqlite", folder)
        self.held = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.store.create_tenant(
            Tenant(name="acme", region="eu", created_at=1), Draft(kind=Kind.TENANT_CREATED, at=1), "n"
        )
        until = self.store.now() + HOUR
        self.store.register(NodeRow(node="n", host="h", boot="b", pid=1, pid_start=1, lease_until=until))
        header = Header(stream="r1", tenant="acme", region="eu", kind=StreamKind.RUN, created_at=1)
        created = Append(stream="r1", epoch=0, node="n", drafts=(Draft(kind=Kind.RUN_CREATED, at=1),), create=header)
        assert isinstance(self.store.transact([created])[0], Appended)
        assert self.store.claim("r1", "n") == 1
        self.control = Control(self.reader)
        self.writer = Writer(self.store, before_commit=self._hold)
        self.writer.start()

    def _hold(self, _: Any) -> None:
        self.held.set()
        assert self.go.wait(60)

    async def enter(self, bundle: Bundle, action: Action = PAY) -> Passage:
        def facts_of(refusals: Mapping[str, Refusal]) -> Facts:
            return Facts(
                now=1, tenant="acme", run="r1", kills=self.control.kills,
                kill_generation=self.control.generation, refusals=dict(refusals),
            )  # fmt: skip

        async def commit(verdict: Verdict, facts: Facts) -> Result:
            return await self.writer.submit(
                Append(
                    stream="r1",
                    epoch=1,
                    node="n",
                    drafts=(Draft(kind=Kind.LOG, at=1),),
                    reserve=verdict.reservations,
                    kill_generation=facts.kill_generation,
                )
            )

        return await enter(action, bundle, self.control, facts_of, commit)

    def close(self) -> None:
        self.go.set()
        self.writer.close()
        self.store.close()
        self.reader.close()


@pytest.fixture
def home(tmp_path: Path) -> Any:
    found = Home(tmp_path)
    yield found
    found.close()


OPEN = rules({"category": "step_limit", "with": {"limit": 10}})
RATE = rules({"category": "rate_limit", "gates": ["tool"], "on_breach": "deny", "with": {"limit": 1, "period": "1h"}})


async def until(event: threading.Event) -> None:
    assert await asyncio.get_running_loop().run_in_executor(None, event.wait, 60)


def test_nothing_passes_while_the_store_is_slow(home: Home) -> None:
    async def main() -> None:
        home.go.clear()
        passing = asyncio.ensure_future(home.enter(OPEN))
        await until(home.held)
        assert not passing.done()
        home.go.set()
        assert (await passing).written is not None

    asyncio.run(main())


def test_a_kill_that_comes_while_the_store_is_slow_holds(home: Home) -> None:
    kill = Kill(id="kill-1", scope="tenant", name="acme", tenant="acme", reason="stop", by="alice", at=1)

    async def main() -> Passage:
        home.go.clear()
        passing = asyncio.ensure_future(home.enter(OPEN))
        await until(home.held)
        issued = Append(
            stream="control:acme", epoch=0, node="cli", drafts=(Draft(kind=Kind.KILL_ISSUED, at=1),), kills=(kill,)
        )
        assert isinstance(home.reader.transact([issued])[0], Appended)
        home.go.set()
        return await passing

    passage = asyncio.run(main())
    assert passage.written is None
    assert (passage.verdict.outcome, passage.verdict.rule) == (Outcome.TERMINATE, "kill:kill-1")


def test_nothing_passes_when_the_store_is_gone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Any) -> list[Result]:
        raise StoreError("the disk is full")

    monkeypatch.setattr(home.store, "transact", gone)
    with pytest.raises(StoreError, match="disk is full"):
        asyncio.run(home.enter(OPEN))


def test_a_clock_that_jumps_back_gives_no_new_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(home.enter(RATE)).written is not None
    now = home.store.now()
    for jump in (-24 * HOUR, -HOUR, 0, HOUR // 2):
        monkeypatch.setattr(home.store, "now", lambda jump=jump: now + jump)
        passage = asyncio.run(home.enter(RATE))
        assert passage.written is None, jump
        assert "more than 1 in 1h" in passage.verdict.reason
    monkeypatch.setattr(home.store, "now", lambda: now + 2 * HOUR)
    assert asyncio.run(home.enter(RATE)).written is not None


def test_a_bundle_that_was_half_written_is_none() -> None:
    data = CARDS.to_bytes()
    for end in range(len(data)):
        with pytest.raises(PolicyFileError):
            Bundle.from_bytes(data[:end])
