"""Replays and broken glasses read and write the same on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.action import Action, Facts
from holdfast.errors import UsageError
from holdfast.journal.base import Append, Appended, Draft, Header, StreamKind, Tenant
from holdfast.journal.event import Kind
from holdfast.journal.sqlstore import SqlStore
from holdfast.node import glass, replay
from holdfast.node.views import Principal
from holdfast.policy.bundle import Bundle
from holdfast.policy.decide import decide
from holdfast.policy.model import one
from holdfast.testing.clock import FakeClock
from holdfast.values import dump

NOW = 1_772_445_600_000_000
MINUTE = 60_000_000
OPEN = Bundle([one({"id": "calls", "category": "tool_call_limit", "with": {"limit": 100}})])
ANN, BOB, CAROL = (Principal(name=name, auth="token", roles=("lead",)) for name in ("ann", "bob", "carol"))


def put(store: SqlStore, run: str, amounts: list[int], root: str = "", created_at: int = NOW) -> None:
    """A run that paid these amounts, as a node records it."""
    made: list[Draft] = [Draft(kind=Kind.RUN_CREATED, at=created_at, data={}, payloads={"input": b"{}"})]
    for number, amount in enumerate(amounts):
        at = created_at + number * 1000
        action = Action(kind="tool", name="pay", id=f"pay.{number}", args={"amount": amount})
        facts = Facts(now=at, tenant="acme", agent="clerk", run=run, root=root or run)
        verdict = decide(action, facts, OPEN)
        data = {"action": msgspec.structs.replace(action, args={}), "facts": facts, "verdict": verdict}
        made.append(Draft(kind=Kind.INTENT, at=at, data=data, payloads={"args": dump({"amount": amount})}))
        done = {"id": action.id, "status": "ok", "cost": 5}
        made.append(Draft(kind=Kind.OUTCOME, at=at + 1, data=done, payloads={"result": b"null"}))
    header = Header(
        stream=run, tenant="acme", region="eu-west", kind=StreamKind.RUN, agent="clerk", workflow="run",
        root=root or run, parent=root, depth=int(bool(root)), principal="ada", auth="token", created_at=created_at,
    )  # fmt: skip
    (result,) = store.transact([Append(stream=run, epoch=0, node="n", drafts=tuple(made), create=header)])
    assert isinstance(result, Appended), result


@pytest.fixture
def acme(store: SqlStore) -> SqlStore:
    store.create_tenant(
        Tenant(name="acme", region="eu-west", created_at=1),
        Draft(kind=Kind.TENANT_CREATED, at=1, data={"name": "acme", "region": "eu-west"}),
        "n",
    )
    return store


def test_runs_are_replayed_from_any_store(acme: SqlStore, tmp_path: Path) -> None:
    put(acme, "r-1", [10, 20, 30])
    put(acme, "r-2", [99], root="r-1", created_at=NOW + 1500)
    put(acme, "r-3", [1])
    rules = Bundle([one({"id": "x", "category": "kill_switch", "gates": ["tool"], "when": "action.args.amount > 15"})])
    streams = replay.recorded_runs(acme)
    assert [[one.header.stream for one in family] for family in replay.families(streams)] == [["r-1", "r-2"], ["r-3"]]
    same = replay.replay(acme.url, tmp_path, acme, OPEN, streams)
    assert [(delta.run, delta.same, delta.differ) for delta in same] == [("r-1", 3, 0), ("r-3", 1, 0), ("r-2", 1, 0)]
    found = {delta.run: delta for delta in replay.replay(acme.url, tmp_path, acme, rules, streams)}
    assert [found[run].stops_at for run in ("r-1", "r-2", "r-3")] == ["pay.1", "", ""]
    # The child began after its parent would have stopped.
    assert [(found[run].not_reached, found[run].saved) for run in ("r-1", "r-2", "r-3")] == [(1, 10), (1, 5), (0, 0)]
    assert [one.run for one in replay.recorded(acme, replay.recorded_runs(acme, runs=["r-3"]))] == ["r-3"]
    assert replay.recorded_runs(acme, since=NOW + 1) == [one for one in streams if one.header.stream == "r-2"]
    with pytest.raises(UsageError, match="no run r-9"):
        replay.recorded_runs(acme, runs=["r-9"])


def test_arguments_that_were_erased_are_told(acme: SqlStore, tmp_path: Path) -> None:
    put(acme, "r-1", [10])
    acme.erase("acme")
    rules = Bundle([one({"id": "x", "category": "kill_switch", "gates": ["tool"], "when": "action.args.amount > 15"})])
    (blind,) = replay.replay(acme.url, tmp_path, acme, rules, replay.recorded_runs(acme))
    assert blind.unknown == ["pay.0: its arguments were erased"]
    (sees,) = replay.replay(acme.url, tmp_path, acme, OPEN, replay.recorded_runs(acme))
    assert (sees.same, sees.unknown) == (1, [])


def test_a_glass_from_the_first_word_to_its_review(acme: SqlStore, opener: Any) -> None:
    clock, reason = FakeClock(NOW), "the payment run is stuck before the cut-off"
    node = glass.Glasses(opener())
    assert node.of("acme", clock.now()) == ()
    asked, _ = glass.ask(acme, clock, "acme", reason, 30 * MINUTE, 60 * MINUTE, 2, ANN)
    with pytest.raises(UsageError, match="another person"):
        glass.join(acme, clock, "acme", asked.id, ANN)
    with pytest.raises(UsageError, match="not open"):
        glass.close(acme, clock, "acme", asked.id, ANN)
    assert node.of("acme", clock.now()) == ()
    glass.join(acme, clock, "acme", asked.id, BOB)
    (told,) = node.of("acme", clock.now())
    assert [grant.roles for grant in told.by] == [("lead",), ("lead",)]
    with pytest.raises(UsageError, match="close it first"):
        glass.review(acme, clock, "acme", asked.id, "fine", CAROL)
    clock.advance(30 * MINUTE)
    with pytest.raises(UsageError, match="before it is reviewed"):
        glass.ask(acme, clock, "acme", reason, MINUTE, MINUTE, 2, CAROL)
    with pytest.raises(UsageError, match="somebody else"):
        glass.review(acme, clock, "acme", asked.id, "fine", BOB)
    with pytest.raises(UsageError, match="what was found"):
        glass.review(acme, clock, "acme", asked.id, " ", CAROL)
    shown, events = glass.review(acme, clock, "acme", asked.id, "two payments, checked", CAROL)
    assert (shown.state(clock.now()), shown.reviewed_by, len(events)) == ("reviewed", "carol", 1)
    assert node.of("acme", clock.now()) == ()


@pytest.mark.parametrize(
    ("tenant", "reason", "minutes", "people", "words"),
    [
        ("nobody", "a reason that is long enough", 1, 2, "no tenant nobody"),
        ("acme", "short", 1, 2, "at least 20 characters"),
        ("acme", "a reason that is long enough", 0, 2, "more than nothing"),
        ("acme", "a reason that is long enough", 1, 1, "one person alone"),
    ],
)
def test_a_glass_that_cannot_be_asked_for(
    acme: SqlStore, tenant: str, reason: str, minutes: int, people: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        glass.ask(acme, FakeClock(NOW), tenant, reason, minutes * MINUTE, MINUTE, people, ANN)
