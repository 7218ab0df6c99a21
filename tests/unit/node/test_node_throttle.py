"""An action that must wait for its turn: on record once, tried until it may go ahead."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from holdfast.action import Action, Facts, Hold, Outcome, Release
from holdfast.clock import SystemClock
from holdfast.gate import Control, Passage
from holdfast.journal.base import Append, Draft, Header, NodeRow, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.fold import fold
from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore
from holdfast.journal.writer import Writer
from holdfast.node.recorder import Recorder
from holdfast.node.run import Place, Run
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.model import one

ACTION = Action(kind="tool", name="pay", id="pay.1", digest="d")
AT = Place("pay.1", "", 0, kind="tool", name="pay", digest="d")
BUNDLE = Bundle([one({"id": "one-at-once", "category": "concurrency_limit", "with": {"limit": 1}})])


class Node:
    """What a run asks of its node here."""

    clock = SystemClock()


def prepare(home: Path) -> tuple[SqlStore, Header]:
    store = open_store("sqlite", home)
    store.create_tenant(
        Tenant(name="default", region="us-east", created_at=1), Draft(kind=Kind.TENANT_CREATED, at=1), "n"
    )
    store.register(NodeRow(node="n", host="h", boot="b", pid=1, pid_start=1, lease_until=store.now() + 600_000_000))
    header = Header(stream="run-1", tenant="default", region="us-east", kind=StreamKind.RUN)
    created = Draft(
        kind=Kind.RUN_CREATED, at=1, data={"agent": "a", "bundle": BUNDLE.digest}, payloads={"input": b"{}"}
    )
    store.transact([Append(stream="run-1", epoch=0, node="n", drafts=(created,), create=header)])
    return store, header


def test_a_throttled_action_is_on_record_once_and_goes_ahead_in_its_turn(tmp_path: Path) -> None:
    store, header = prepare(tmp_path / "home")
    (wanted,) = decide(ACTION, Facts(now=1, run="run-1"), BUNDLE).reservations
    assert isinstance(wanted, Hold)

    async def main() -> Passage:
        with Writer(store, inline=True) as writer:
            epoch = store.claim("run-1", "n")
            assert epoch is not None
            state = fold(store.events("run-1"))
            failures: list[Any] = []
            recorder = Recorder(
                state, epoch=epoch, node="n", writer=writer, clock=SystemClock(), on_failure=failures.append
            )
            services: Any = Node()
            run = Run(
                header=header,
                state=state,
                recorder=recorder,
                bundle=BUNDLE,
                control=Control(store),
                services=services,
                isolation="namespace",
            )
            other = msgspec.structs.replace(wanted, holder="another run's call")
            await writer.submit(Append(stream="run-1", epoch=epoch, node="n", drafts=(), reserve=(other,)))
            passing = asyncio.ensure_future(run.gate(ACTION, AT, b"{}"))
            async with asyncio.timeout(60):
                while "pay.1" not in state.records:
                    await asyncio.sleep(0.01)
            record = state.records["pay.1"]
            assert (record.state, record.rule, record.attempt) == ("retry", "one-at-once", 0)
            # Several tries more, each of them as vain.
            await asyncio.sleep(0.2)
            gone = Release(key=wanted.key, holder=other.holder)
            await writer.submit(Append(stream="run-1", epoch=epoch, node="n", drafts=(), settle=(gone,)))
            async with asyncio.timeout(60):
                passage = await passing
            assert (failures, record.state) == ([], "open")
            return passage

    passage = asyncio.run(main())
    assert passage.verdict.allowed
    events = store.events("run-1")
    store.close()
    assert [event.kind for event in events[1:]] == [Kind.VERDICT, Kind.INTENT]
    said = events[1].data
    assert said["verdict"]["outcome"] == Outcome.THROTTLE
    assert said["retry_at"] > said["facts"]["now"]
    assert list(said["facts"]["refusals"]) == [wanted.key]
