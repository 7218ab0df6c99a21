"""A node that cannot read the kill generation stops what runs after two seconds, and ends it after five."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import StoreError
from holdfast.node.watch import END_AFTER, FREEZE_AFTER, Watch


class World:
    """A store that may be gone, a clock, and what the watch holds; remembers what was done."""

    def __init__(self) -> None:
        self.time = 100.0
        self.generation = 3
        self.gone = False
        self.opened = 0
        self.done: list[str] = []

    def open(self) -> Any:
        self.opened += 1
        self._check()
        return self

    def kill_generation(self) -> int:
        self._check()
        return self.generation

    def _check(self) -> None:
        if self.gone:
            raise StoreError("gone")

    def close(self) -> None:
        self.done.append("close")

    def freeze(self) -> None:
        self.done.append("freeze")

    def thaw(self) -> None:
        self.done.append("thaw")

    def end(self) -> None:
        self.done.append("end")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def watch(world: World) -> Watch:
    return Watch(world.open, world, lambda: world.done.append("changed"), monotonic=lambda: world.time)


def test_a_new_generation_is_told_and_the_first_is_not(world: World, watch: Watch) -> None:
    watch.look()
    watch.look()
    assert world.done == []
    world.generation += 1
    watch.look()
    watch.look()
    assert world.done == ["changed"]
    assert world.opened == 1


def test_blind_for_two_seconds_it_freezes_and_goes_on_when_it_sees(world: World, watch: Watch) -> None:
    watch.look()
    world.gone = True
    for seconds, done in ((FREEZE_AFTER - 0.01, []), (FREEZE_AFTER, ["freeze"]), (FREEZE_AFTER + 1, ["freeze"])):
        world.time = 100 + seconds
        watch.look()
        assert world.done == done
    world.gone = False
    watch.look()
    assert world.done == ["freeze", "thaw"]
    world.gone = True
    world.time += FREEZE_AFTER
    watch.look()
    assert world.done == ["freeze", "thaw", "freeze"], "it counts from the last look that saw"


def test_blind_for_five_seconds_it_ends_once(world: World, watch: Watch) -> None:
    watch.look()
    world.gone = True
    for seconds in (FREEZE_AFTER, END_AFTER - 0.01, END_AFTER, END_AFTER + 10):
        world.time = 100 + seconds
        watch.look()
    assert world.done == ["freeze", "end"]
    world.gone = False
    world.generation += 1
    watch.look()
    assert world.done == ["freeze", "end", "changed"], "what has ended is not thawed, and kills count again"


def test_a_look_that_comes_late_ends_at_once(world: World, watch: Watch) -> None:
    watch.look()
    world.gone = True
    world.time += END_AFTER + 3
    watch.look()
    assert world.done == ["end"]


def test_a_store_that_never_opened_counts_from_the_start(world: World, watch: Watch) -> None:
    world.gone = True
    world.time += FREEZE_AFTER
    watch.look()
    assert world.done == ["freeze"]
    assert world.opened == 1
    world.gone = False
    watch.look()
    assert world.done == ["freeze", "thaw"]


def test_its_thread_ends_and_closes_the_store(world: World, watch: Watch) -> None:
    watch.start()
    watch.nudge()
    watch.close()
    assert world.opened <= 1
    assert world.done == ["close"] * world.opened
