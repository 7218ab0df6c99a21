"""Nothing is sent unless the lease outlasts the dial, and nobody is replaced before lease and dial have passed."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from holdfast.gate import Fenced
from holdfast.journal.base import NodeRow
from holdfast.node import lease as leases
from holdfast.node.lease import Lease
from holdfast.sandbox.procs import boot_id, identify
from holdfast.testing.clock import FakeClock

SECOND = 1_000_000
LEASE = 10 * SECOND
DIAL = 5 * SECOND


class Nodes:
    """What a lease needs of a store, by a database's clock that goes as fast as the node's."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rows: dict[str, NodeRow] = {}
        self.taken = False
        self.slow = 0

    def now(self) -> int:
        return self.clock.now()

    def nodes(self) -> list[NodeRow]:
        return list(self.rows.values())

    def register(self, row: NodeRow) -> None:
        self.rows[row.node] = row

    def renew(self, node: str, lease_us: int) -> int | None:
        self.clock.advance(self.slow)
        return None if self.taken else self.now() + lease_us


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Any:
    return Nodes(clock)


@pytest.fixture
def lease(clock: FakeClock, store: Any) -> Lease:
    held = Lease(clock, LEASE)
    held.register(store)
    return held


def test_a_node_without_a_registration_sends_nothing(clock: FakeClock) -> None:
    with pytest.raises(Fenced):
        Lease(clock, LEASE).before_dial(0)


def test_a_dial_must_end_within_the_lease(clock: FakeClock, lease: Lease) -> None:
    lease.before_dial(10)
    with pytest.raises(Fenced, match="does not outlast"):
        lease.before_dial(10.000001)
    clock.advance(6 * SECOND)
    lease.before_dial(4)
    with pytest.raises(Fenced):
        lease.before_dial(5)
    clock.advance(5 * SECOND)
    with pytest.raises(Fenced):
        lease.before_dial(0)


def test_the_wall_clock_does_not_matter(clock: FakeClock, lease: Lease) -> None:
    clock.set_wall(clock.now() - 3600 * SECOND)
    clock.advance(9 * SECOND)
    with pytest.raises(Fenced):
        lease.before_dial(5)


def test_a_renewal_counts_from_when_it_was_asked_for(clock: FakeClock, store: Any, lease: Lease) -> None:
    clock.advance(3 * SECOND)
    store.slow = 4 * SECOND
    assert lease.renew(store)
    lease.before_dial(6)
    with pytest.raises(Fenced):
        lease.before_dial(7)


def test_a_lease_that_was_taken_away_is_gone_at_once(store: Any, lease: Lease) -> None:
    store.taken = True
    assert not lease.renew(store)
    with pytest.raises(Fenced):
        lease.before_dial(0)


def row(name: str, **changes: Any) -> NodeRow:
    me = identify(os.getpid())
    assert me is not None
    held = {
        "node": name,
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": me.pid,
        "pid_start": me.start,
        "lease_until": 0,
    }
    return NodeRow(**{**held, **changes})


@pytest.mark.parametrize(
    ("changes", "age", "gone"),
    [
        ({}, 0, False),
        ({}, DIAL, False),
        ({}, DIAL + 1, True),
        ({"pid_start": 1}, -LEASE, True),
        ({"host": "elsewhere", "pid_start": 1}, 0, False),
        ({"host": "elsewhere", "pid_start": 1}, DIAL, False),
        ({"host": "elsewhere", "pid_start": 1}, DIAL + 1, True),
        ({"boot": "before", "pid_start": 1}, DIAL, False),
        ({"boot": "before", "pid_start": 1}, DIAL + 1, True),
    ],
)
def test_who_may_be_replaced(store: Any, changes: dict[str, Any], age: int, gone: bool) -> None:
    store.rows["other"] = row("other", lease_until=store.now() - age, **changes)
    assert leases.dead(store, "me", DIAL) == (["other"] if gone else [])
    assert leases.dead(store, "other", DIAL) == []


def test_only_serving_nodes_are_handed_runs(store: Any) -> None:
    store.rows["run-here"] = row("run-here")
    assert not leases.serving(store)
    store.rows["serve-gone"] = row("serve-gone", pid_start=1)
    assert not leases.serving(store)
    store.rows["serve-here"] = row("serve-here")
    assert leases.serving(store)
    assert [one.node for one in leases.living(store)] == ["run-here", "serve-here"]
