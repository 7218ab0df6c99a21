"""What a run counts for, and when there is room for one more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import NodeSettings, SandboxSettings, Settings
from holdfast.journal.base import Header, StreamKind, StreamState
from holdfast.journal.event import Event
from holdfast.node.admission import FLOOR, KNOWN, RECENT, Admission, Ceilings, node_memory, per_host, recorded_peaks

MIB = 1 << 20
DECLARED = 512 * MIB
AGENT = ("t", "a")


def state(run: str, tenant: str = "t", agent: str = "a", seq: int = 1, status: str = "pending") -> StreamState:
    header = Header(stream=run, tenant=tenant, region="r", kind=StreamKind.RUN, agent=agent, root=run)
    return StreamState(header=header, status=status, epoch=0, owner="", seq=seq, ready_at=0, replay_from=1)


def admission(memory: int, overhead: int = 0, slots: int = 100) -> Admission:
    return Admission(memory=memory, overhead=overhead, declared=DECLARED, slots=slots)


@pytest.mark.parametrize(
    ("peaks", "ceiling"),
    [
        ([], DECLARED),
        ([64 * MIB] * (KNOWN - 1), DECLARED),
        ([64 * MIB] * KNOWN, 64 * MIB),
        ([0] * 10, DECLARED),
        ([MIB] * 10, FLOOR),
        ([2 * DECLARED] * 10, DECLARED),
        ([20 * MIB] * 19 + [400 * MIB], 20 * MIB),
        ([20 * MIB] * 18 + [400 * MIB] * 2, 400 * MIB),
        ([400 * MIB] * RECENT + [30 * MIB] * RECENT, 30 * MIB),
    ],
)
def test_a_ceiling_is_the_95th_percentile_of_recent_peaks(peaks: list[int], ceiling: int) -> None:
    ceilings = Ceilings(DECLARED)
    ceilings.learn(AGENT, peaks)
    assert ceilings.of(AGENT) == ceiling


@given(st.lists(st.integers(0, 4 * DECLARED), max_size=200))
def test_a_ceiling_stays_between_the_floor_and_what_was_declared(peaks: list[int]) -> None:
    ceilings = Ceilings(DECLARED)
    ceilings.learn(AGENT, peaks)
    assert FLOOR <= ceilings.of(AGENT) <= DECLARED
    known = [peak for peak in peaks if peak][-RECENT:]
    if len(known) >= KNOWN:
        above = sum(peak > ceilings.of(AGENT) for peak in known)
        assert above <= 0.05 * len(known) or ceilings.of(AGENT) == DECLARED


def test_agents_and_tenants_are_told_apart() -> None:
    ceilings = Ceilings(DECLARED)
    ceilings.learn(("t", "a"), [20 * MIB] * KNOWN)
    assert [ceilings.of(agent) for agent in (("t", "a"), ("t", "b"), ("u", "a"))] == [20 * MIB, DECLARED, DECLARED]


class Journal:
    """What admission reads of a store."""

    def __init__(self, runs: Sequence[tuple[StreamState, dict[str, Any]]]) -> None:
        self._runs = runs

    def streams(self, *, tenant: str, kind: StreamKind, status: str, limit: int) -> list[StreamState]:
        found = [one for one, _ in self._runs if one.header.tenant == tenant and one.status == status]
        return found[::-1][:limit]

    def events(self, stream: str, *, start: int) -> list[Event]:
        data = next(data for one, data in self._runs if one.header.stream == stream)
        fields = {
            "v": 1,
            "tenant": "t",
            "stream": stream,
            "seq": start,
            "index": 0,
            "epoch": 1,
            "kind": "run.completed",
        }
        rest = {"at": 0, "clock_error": 0, "node": "", "witness": "node", "principal": "", "auth": "", "prev": ""}
        return [Event(**fields, **rest, data=data, payloads={})]


def test_what_was_learnt_is_a_fold_of_the_journal() -> None:
    runs = [(state(f"r{n}", status="completed", seq=4), {"memory_peak": n * MIB}) for n in range(1, RECENT + 11)]
    runs.append((state("other", agent="b", status="completed"), {"memory_peak": 999}))
    runs.append((state("unmeasured", status="failed"), {}))
    found = recorded_peaks(Journal(runs), AGENT)  # type: ignore[arg-type]
    assert found[-1] == (RECENT + 10) * MIB
    assert len(found) == RECENT
    assert 999 not in found


def test_runs_start_while_their_ceilings_fit() -> None:
    node = admission(3 * DECLARED + 100, overhead=100)
    queue = [state(f"r{n}") for n in range(5)]
    started = []
    while (run := node.next({"t": queue})) is not None:
        started.append(run)
        queue.pop(0)
    assert started == ["r0", "r1", "r2"]
    assert node.crowded
    node.release("r0")
    assert node.next({"t": queue}) == "r3"


def test_what_is_learnt_makes_room() -> None:
    node = admission(DECLARED)
    node.ceilings.learn(AGENT, [DECLARED // 4] * KNOWN)
    assert [node.next({"t": [state(f"r{n}")]}) for n in range(5)] == ["r0", "r1", "r2", "r3", None]
    metrics = node.metrics()
    assert metrics["admitted_bytes"] == DECLARED
    assert metrics["admitted_runs"] == 4
    assert metrics["waiting_runs"] == {"t": 1}
    assert metrics["agents"] == [
        {"tenant": "t", "agent": "a", "ceiling": DECLARED // 4, "peaks": KNOWN, "per_host": 4},
    ]


def test_pressure_lets_nothing_start_beside_what_runs() -> None:
    node = admission(10 * DECLARED)
    node.paused = True
    assert node.crowded
    assert node.next({"t": [state("first")]}) == "first"
    assert node.next({"t": [state("second")]}) is None
    node.paused = False
    assert node.next({"t": [state("second")]}) == "second"


def test_a_node_without_a_queue_is_not_crowded() -> None:
    node = admission(DECLARED)
    assert node.next({}) is None
    assert not node.crowded


@pytest.mark.parametrize(
    ("memory", "overhead", "ceiling", "agents"), [(1000, 100, 100, 9), (1000, 100, 899, 1), (100, 100, 50, 1)]
)
def test_agents_per_host(memory: int, overhead: int, ceiling: int, agents: int) -> None:
    assert per_host(memory, overhead, ceiling) == agents


def test_the_memory_of_a_node_is_what_the_settings_say_else_what_is_there() -> None:
    told = Settings(node=NodeSettings(memory=5 * MIB))
    assert node_memory(told) == (5 * MIB, "[node] memory")
    found, why = node_memory(Settings(sandbox=SandboxSettings(memory=MIB)))
    assert found > 64 * MIB
    assert why in ("the machine's memory", "the limit of the node's control group")
