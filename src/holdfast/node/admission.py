"""Admission by memory: how much a run of an agent is expected to need, and whether there is room for one more.

The node measures the peak of each boundary and keeps a ceiling for each agent: the 95th percentile of recent peaks,
not below a floor; until enough are known, the limit that was declared. A ceiling only admits: what holds a boundary is
the declared limit. Peaks stand in the events that end an incarnation (``memory_peak``), so what was learnt is a fold of
the journal and needs no table of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from holdfast.config import Settings
from holdfast.journal.base import Store, StreamKind, StreamState
from holdfast.node.fairness import Fairness, Want
from holdfast.node.pressure import machine_memory
from holdfast.sandbox.cgroup import own_memory

FLOOR = 16 << 20
"""Bytes below which no ceiling falls: less than an interpreter needs."""
RECENT = 64
"""Peaks that a ceiling is made of."""
KNOWN = 3
"""Peaks from which on a ceiling is trusted."""
PERCENTILE = 0.95
_LOOK_BACK = 4 * RECENT
_ENDED = ("completed", "failed")

Agent = tuple[str, str]
"""Tenant and agent's name."""


def node_memory(settings: Settings) -> tuple[int, str]:
    """Bytes that a node of these settings may use, and what says so."""
    if settings.node.memory is not None:
        return settings.node.memory, "[node] memory"
    machine, group = machine_memory(), own_memory()
    if group is not None and (not machine or group[0] < machine):
        return group[0], "the limit of the node's control group"
    # Nobody tells how much there is: then only the number of boundaries bounds them.
    return machine or settings.node.concurrency * settings.sandbox.memory, "the machine's memory"


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an agent's memory."""

    tenant: str
    agent: str
    ceiling: int
    """Bytes that one run of it counts for."""
    peaks: int
    """Peaks that it was made of; fewer than :data:`KNOWN`: it is the declared limit."""


class Ceilings:
    """What each agent needs. ``declared``: the limit of one boundary, bytes."""

    def __init__(self, declared: int) -> None:
        self._declared = declared
        self._peaks: dict[Agent, deque[int]] = {}

    def known(self, agent: Agent) -> bool:
        """Whether an agent's history was looked at."""
        return agent in self._peaks

    def learn(self, agent: Agent, peaks: Iterable[int]) -> None:
        """Take measured peaks in, oldest first; zero is one that could not be measured."""
        recent = self._peaks.setdefault(agent, deque(maxlen=RECENT))
        recent.extend(peak for peak in peaks if peak > 0)

    def of(self, agent: Agent) -> int:
        """Bytes that a run of this agent counts for."""
        peaks = self._peaks.get(agent, ())
        if len(peaks) < KNOWN:
            return self._declared
        ranked = sorted(peaks)
        return min(max(ranked[math.ceil(PERCENTILE * len(ranked)) - 1], FLOOR), self._declared)

    def all(self) -> list[Ceiling]:
        """Every agent that was looked at."""
        return [
            Ceiling(tenant=agent[0], agent=agent[1], ceiling=self.of(agent), peaks=len(peaks))
            for agent, peaks in sorted(self._peaks.items())
        ]


def recorded_peaks(store: Store, agent: Agent) -> list[int]:
    """Peaks of an agent's latest runs, oldest first, as their last events tell."""
    tenant, name = agent
    found: list[int] = []
    for status in _ENDED:
        for state in store.streams(tenant=tenant, kind=StreamKind.RUN, status=status, limit=_LOOK_BACK):
            if state.header.agent == name and len(found) < RECENT:
                last = store.events(state.header.stream, start=state.seq)
                found += [int(event.data.get("memory_peak", 0)) for event in last]
    return found[::-1]


class Admission:
    """Whether there is room, and for whom. ``memory``: bytes that this node may use; ``overhead``: those it keeps."""

    def __init__(self, *, memory: int, overhead: int, declared: int, slots: int) -> None:
        self.memory = memory
        self.overhead = overhead
        self.ceilings = Ceilings(declared)
        self.paused = False
        """Whether memory is short on the host: then nothing starts beside what runs."""
        self._fairness = Fairness(memory - overhead, slots)
        self._waiting: dict[str, int] = {}

    @classmethod
    def of(cls, settings: Settings) -> Admission:
        """As the settings say."""
        node = settings.node
        memory, _ = node_memory(settings)
        return cls(memory=memory, overhead=node.overhead, declared=settings.sandbox.memory, slots=node.concurrency)

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for memory."""
        return self.paused or any(self._waiting.values())

    def next(self, queues: Mapping[str, Sequence[StreamState]]) -> str | None:
        """The run to start now, of what waits of each tenant; it has its memory then, until :meth:`release`."""
        self._waiting = {tenant: len(queue) for tenant, queue in queues.items()}
        if self.paused and self._fairness.held:
            return None
        want = self._fairness.next({tenant: [self._want(queue[0])] for tenant, queue in queues.items() if queue})
        if want is None:
            return None
        self._fairness.take(want)
        self._waiting[want.tenant] -= 1
        return want.run

    def release(self, run: str) -> None:
        """A run ended, or waits without a process."""
        self._fairness.release(run)

    def undo(self, run: str) -> None:
        """A run that had its turn could not be claimed."""
        self._fairness.undo(run)

    def _want(self, state: StreamState) -> Want:
        header = state.header
        return Want(run=header.stream, tenant=header.tenant, memory=self.ceilings.of((header.tenant, header.agent)))

    def metrics(self) -> dict[str, object]:
        """How it stands, in bytes and counts."""
        held = list(self._fairness.held.values())
        return {
            "memory_bytes": self.memory,
            "overhead_bytes": self.overhead,
            "admitted_bytes": self._fairness.used,
            "admitted_runs": len(held),
            "paused": self.paused,
            "waiting_runs": dict(self._waiting),
            "agents": [
                {**msgspec.structs.asdict(one), "per_host": per_host(self.memory, self.overhead, one.ceiling)}
                for one in self.ceilings.all()
            ],
        }


def per_host(memory: int, overhead: int, ceiling: int) -> int:
    """Agents per host: (memory - overhead) / ceiling. At least one, which then runs alone."""
    return max((memory - overhead) // max(ceiling, 1), 1)
