"""Whose turn it is: memory is never given twice, nobody starves, equal demand gets equal shares."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.node.fairness import Fairness, Want


class Host:
    """A node under a simulated load: what waits, and what was started in which order."""

    def __init__(self, capacity: int, slots: int = 1000) -> None:
        self.fairness = Fairness(capacity, slots)
        self.queues: dict[str, deque[Want]] = {}
        self.started: list[Want] = []
        self._number = 0

    def submit(self, tenant: str, memory: int, count: int = 1) -> None:
        for _ in range(count):
            self._number += 1
            want = Want(run=f"r{self._number}", tenant=tenant, memory=memory)
            self.queues.setdefault(tenant, deque()).append(want)

    def admit(self) -> list[Want]:
        begun = []
        while (want := self.fairness.next(self.queues)) is not None:
            self.queues[want.tenant].popleft()
            self.fairness.take(want)
            begun.append(want)
        self.started += begun
        return begun

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))


def test_only_what_fits_is_started() -> None:
    host = Host(100)
    host.submit("a", 30, 5)
    assert len(host.admit()) == 3
    assert host.admit() == []
    host.fairness.release("r1")
    assert [want.run for want in host.admit()] == ["r4"]


def test_no_more_than_the_slots() -> None:
    host = Host(100, slots=2)
    host.submit("a", 1, 5)
    assert len(host.admit()) == 2


def test_what_wants_more_than_there_is_runs_alone() -> None:
    host = Host(100)
    host.submit("a", 500, 2)
    assert [want.memory for want in host.admit()] == [100]
    host.fairness.release("r1")
    assert [want.run for want in host.admit()] == ["r2"]


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_equal_at_every_prefix_whatever_ends_first(seed: int) -> None:
    chance = random.Random(seed)
    host = Host(40)
    for tenant in "abcde":
        host.submit(tenant, 1, 40)
    host.admit()
    while host.waiting:
        host.fairness.release(chance.choice(sorted(host.fairness.held)))
        host.admit()
    for length in range(50, 201):
        shares = Counter(want.tenant for want in host.started[:length])
        assert all(abs(shares[tenant] - length / 5) <= 0.1 * length / 5 for tenant in "abcde"), (length, shares)


def test_who_comes_later_gets_at_least_half_of_what_is_freed() -> None:
    host = Host(10)
    host.submit("a", 1, 100)
    host.admit()
    host.submit("b", 1, 100)
    for run in [want.run for want in host.started[:8]]:
        host.fairness.release(run)
    assert Counter(want.tenant for want in host.admit())["b"] >= 4


def test_runs_that_never_end_do_not_take_the_node() -> None:
    host = Host(20)
    host.submit("long", 1, 1000)
    host.submit("short", 1, 1000)
    host.admit()
    for _ in range(500):
        held = sorted(run for run, want in host.fairness.held.items() if want.tenant == "short")
        assert held, "short runs are kept out by long ones"
        host.fairness.release(held[0])
        host.admit()
    assert host.fairness.held_by("long") < 20
    assert len([want for want in host.started if want.tenant == "short"]) >= 500


def test_a_large_run_is_passed_by_one_node_full_at_most() -> None:
    host = Host(100)
    host.submit("small", 10, 1000)
    host.admit()
    host.submit("large", 90)
    before = len(host.started)
    for _ in range(1000):
        if any(want.tenant == "large" for want in host.started):
            break
        host.fairness.release(next(iter(host.fairness.held)))
        host.admit()
    passed = [want for want in host.started[before:] if want.tenant == "small"]
    assert any(want.tenant == "large" for want in host.started)
    assert sum(want.memory for want in passed) <= 100


def test_a_start_that_failed_costs_no_turn() -> None:
    host = Host(2)
    host.submit("a", 1)
    host.submit("b", 1)
    first = host.fairness.next(host.queues)
    assert first is not None
    host.fairness.take(first)
    host.fairness.undo(first.run)
    again = host.fairness.next(host.queues)
    assert again == first


def test_idle_time_is_no_claim() -> None:
    host = Host(4)
    host.submit("a", 1, 500)
    host.admit()
    for _ in range(200):
        host.fairness.release(next(iter(host.fairness.held)))
        host.admit()
    host.submit("b", 1, 500)
    mark = len(host.started)
    for _ in range(100):
        host.fairness.release(next(iter(host.fairness.held)))
        host.admit()
    shares = Counter(want.tenant for want in host.started[mark:])
    assert abs(shares["a"] - shares["b"]) <= 4


jobs = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 150)), min_size=1, max_size=60)


@given(jobs, st.integers(1, 12), st.randoms(use_true_random=False))
def test_nothing_is_given_twice_and_everything_starts(
    wanted: list[tuple[str, int]], slots: int, chance: random.Random
) -> None:
    host = Host(100, slots)
    for tenant, memory in wanted:
        host.submit(tenant, memory)
    for _ in range(20 * len(wanted)):
        host.admit()
        assert host.fairness.used <= 100
        assert len(host.fairness.held) <= slots
        if not host.fairness.held:
            break
        host.fairness.release(chance.choice(sorted(host.fairness.held)))
    assert sorted(want.run for want in host.started) == sorted(f"r{n + 1}" for n in range(len(wanted)))
