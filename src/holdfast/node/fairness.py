"""Which waiting run starts next: by memory, and fair between tenants. Pure: no clock, no I/O.

Turns are those of start-time fair queueing (Goyal, Vin, Cheng 1996) with memory as the cost: the tenant that has been
given the fewest bytes so far goes next, so equal demand gives equal shares at every point in time. Two rules keep
anyone from starving: who holds less than a quarter of a fair share goes first, so that runs which never end do not
take the node bit by bit; and a run that is too large for what is free is passed by at most one node-full of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

LEAST = 0.25
"""Part of a fair share of the memory below which a tenant goes first."""


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """A run that wants to start."""

    run: str
    tenant: str
    memory: int
    """Bytes that it is expected to need at most."""


class Fairness:
    """What is held and whose turn it is. ``capacity``: bytes to give; ``slots``: runs side by side."""

    def __init__(self, capacity: int, slots: int) -> None:
        self.capacity = max(capacity, 1)
        self.slots = slots
        self.held: dict[str, Want] = {}
        """Runs that have their memory."""
        self._given: dict[str, int] = {}
        self._passed: dict[str, int] = {}

    @property
    def used(self) -> int:
        """Bytes that are given out."""
        return sum(want.memory for want in self.held.values())

    def held_by(self, tenant: str) -> int:
        """Bytes that a tenant's runs hold."""
        return sum(want.memory for want in self.held.values() if want.tenant == tenant)

    def next(self, queues: Mapping[str, Sequence[Want]]) -> Want | None:
        """The run to start now, given what waits of each tenant in its order; None: nothing may.

        A run that wants more than there is gets everything, and so runs alone.
        """
        heads = [self._fitted(queue[0]) for queue in queues.values() if queue]
        self._settle_in(heads)
        if not heads or len(self.held) >= self.slots:
            return None
        turns = sorted(heads, key=self._turn)
        free = self.capacity - self.used
        for place, want in enumerate(turns):
            if want.memory <= free:
                for larger in turns[:place]:
                    self._passed[larger.run] = self._passed.get(larger.run, 0) + want.memory
                return want
            if self._overdue(want):
                return None
        return None

    def take(self, want: Want) -> None:
        """Give a run its memory."""
        self.held[want.run] = want
        self._given[want.tenant] = self._given.get(want.tenant, 0) + want.memory

    def undo(self, run: str) -> None:
        """A run that was given memory did not start: it is as if it had not been its tenant's turn."""
        if (want := self.held.pop(run, None)) is not None:
            self._given[want.tenant] = self._given.get(want.tenant, want.memory) - want.memory

    def release(self, run: str) -> None:
        """A run ended or waits without a process."""
        self.held.pop(run, None)

    def _fitted(self, want: Want) -> Want:
        return msgspec.structs.replace(want, memory=min(max(want.memory, 1), self.capacity))

    def _settle_in(self, heads: Sequence[Want]) -> None:
        """Who comes back after having wanted nothing has no claim to what it did not use meanwhile."""
        busy = {want.tenant for want in heads} | {want.tenant for want in self.held.values()}
        known = [given for tenant, given in self._given.items() if tenant in busy]
        start = min(known, default=0)
        # Counted from the least served one, so that the numbers stay small.
        self._given = {tenant: self._given.get(tenant, start) - start for tenant in sorted(busy)}
        waiting = {want.run for want in heads}
        self._passed = {run: passed for run, passed in self._passed.items() if run in waiting}

    def _turn(self, want: Want) -> tuple[bool, bool, int, str]:
        poor = self.held_by(want.tenant) + want.memory <= LEAST * self.capacity / len(self._given)
        return not self._overdue(want), not poor, self._given[want.tenant], want.tenant

    def _overdue(self, want: Want) -> bool:
        return self._passed.get(want.run, 0) >= self.capacity
