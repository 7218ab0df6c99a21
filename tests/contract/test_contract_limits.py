"""A hundred callers on two nodes press against one limit at once: through the gate and the journal, never one over."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from holdfast.action import NANO, Action, Facts, Price, Refusal, Verdict
from holdfast.gate import Control, Passage, enter
from holdfast.journal.base import Append, Draft, Header, NodeRow, Patch, Result, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.sqlstore import SqlStore
from holdfast.journal.writer import Writer
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import settlements
from holdfast.policy.model import one

Opener = Callable[[], SqlStore]
CALLERS = 100
HOUR = 3_600_000_000
CENT = NANO // 100
PAY = Action(kind="tool", name="pay", id="pay.1", digest="d")
ASK = Action(
    kind="llm", name="generate", id="llm.1", digest="d", provider="p", model="m", max_tokens=1000, input_tokens=0
)

pytestmark = pytest.mark.timeout(300)


class Node:
    """One node of two: a store and a writer of its own, and a run that it drives."""

    def __init__(self, store: SqlStore, name: str) -> None:
        self.store = store
        self.name = name
        self.run = f"run-{name}"
        self.writer = Writer(store)
        self.control = Control(store)

    def begin(self) -> None:
        """Register, make the run, claim it, and start writing."""
        store = self.store
        until = store.now() + HOUR
        store.register(NodeRow(node=self.name, host="h", boot="b", pid=1, pid_start=2, lease_until=until))
        header = Header(stream=self.run, tenant="acme", region="eu", kind=StreamKind.RUN, created_at=1)
        draft = Draft(kind=Kind.RUN_CREATED, at=1)
        store.transact(
            [Append(stream=self.run, epoch=0, node=self.name, drafts=(draft,), create=header, patch=Patch())]
        )
        assert store.claim(self.run, self.name) == 1
        self.writer.start()

    def append(self, **more: Any) -> Append:
        """Something to write to the run."""
        return Append(stream=self.run, epoch=1, node=self.name, **more)

    async def enter(self, action: Action, bundle: Bundle, price: Price | None = None) -> Passage:
        """Take an action through the gate, as a run does."""

        def facts_of(refusals: Mapping[str, Refusal]) -> Facts:
            return Facts(
                now=self.store.now(), tenant="acme", agent="a", run=self.run, root="run-root", price=price,
                kill_generation=self.control.generation, refusals=dict(refusals),
            )  # fmt: skip

        async def commit(verdict: Verdict, facts: Facts) -> Result:
            draft = Draft(kind=Kind.LOG, at=1)
            wanted = self.append(drafts=(draft,), reserve=verdict.reservations, kill_generation=facts.kill_generation)
            return await self.writer.submit(wanted)

        return await enter(action, bundle, self.control, facts_of, commit)

    async def settle(self, passage: Passage, cost: int | None = None) -> None:
        """The action has ended."""
        given = settlements(passage.verdict.reservations, cost=cost)
        await self.writer.submit(self.append(drafts=(Draft(kind=Kind.LOG, at=1),), settle=given))


@pytest.fixture
def nodes(opener: Opener) -> Any:
    """Two nodes on one database."""
    found = [Node(opener(), name) for name in ("n1", "n2")]
    tenant = Tenant(name="acme", region="eu", created_at=1)
    found[0].store.create_tenant(tenant, Draft(kind=Kind.TENANT_CREATED, at=1), "n1")
    for node in found:
        node.begin()
    yield found
    for node in found:
        node.writer.close()


def rules(**policy: Any) -> Bundle:
    return Bundle([one({"id": "limit", **policy}, "test")])


def hammer(nodes: Sequence[Node], call: Callable[[Node], Any]) -> list[Any]:
    """Every caller is a thread with a loop of its own; all begin at once. What each gave, or raised."""
    gate = threading.Barrier(CALLERS)
    found: list[Any] = [None] * CALLERS

    def caller(number: int) -> None:
        gate.wait(60)
        try:
            found[number] = asyncio.run(call(nodes[number % 2]))
        except Exception as error:  # noqa: BLE001 - raised again below, in the test's own thread
            found[number] = error

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    wrong = [one for one in found if isinstance(one, Exception)]
    assert not wrong, wrong[0]
    return found


def admitted(passages: Sequence[Passage]) -> int:
    for passage in passages:
        assert passage.written is not None or passage.verdict.rule == "limit", passage.verdict
    return sum(passage.written is not None for passage in passages)


def test_rate_limit(nodes: Sequence[Node]) -> None:
    bundle = rules(
        category="rate_limit",
        gates=["tool"],
        on_breach="deny",
        **{"with": {"limit": 12, "per": "tenant", "period": "24h"}},
    )
    assert admitted(hammer(nodes, lambda node: node.enter(PAY, bundle))) == 12


def test_concurrency_limit(nodes: Sequence[Node]) -> None:
    bundle = rules(
        category="concurrency_limit", gates=["tool"], on_breach="deny", **{"with": {"limit": 5, "per": "tenant"}}
    )
    lock = threading.Lock()
    held, most = 0, 0
    number = itertools.count()

    async def call(node: Node) -> Passage:
        nonlocal held, most
        mine = msgspec.structs.replace(PAY, id=f"pay.{next(number)}")
        passage = await node.enter(mine, bundle)
        if passage.written is not None:
            with lock:
                held += 1
                most = max(most, held)
            await asyncio.sleep(0.01)
            with lock:
                held -= 1
            await node.settle(passage)
        return passage

    assert admitted(hammer(nodes, call)) >= 1
    assert 1 <= most <= 5
    assert [row.holders for row in nodes[0].store.ledger("concurrency_limit")] == [{}]


@pytest.mark.parametrize("category", ["budget_usd", "budget_tree"])
def test_budgets(nodes: Sequence[Node], opener: Opener, category: str) -> None:
    """A call takes a cent in the worst case; half of each is given back, so that later ones fit again."""
    window = {"window": "total"} if category == "budget_usd" else {}
    bundle = rules(category=category, gates=["llm"], **{"with": {"limit": "0.20", "floor_tokens": 1000, **window}})
    price = Price(input=0, output=CENT // 1000)
    over: list[int] = []
    reader, reading = opener(), threading.Lock()

    async def call(node: Node) -> Passage:
        passage = await node.enter(ASK, bundle, price)
        if passage.written is not None:
            with reading:
                used = [row.reserved + row.settled for row in reader.ledger(category)]
            over.extend(amount for amount in used if amount > 20 * CENT)
            await node.settle(passage, cost=CENT // 2)
        return passage

    count = admitted(hammer(nodes, call))
    (row,) = reader.ledger(category)
    assert over == []
    assert row.reserved == 0
    assert row.settled == count * CENT // 2 <= 20 * CENT
    assert 20 <= count <= 40, "all that fits at once, and at most what fits with what was given back"
