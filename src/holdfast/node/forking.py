"""A run forked from another: it shares its history up to a step, and goes on from there by itself.

What the calls before the step gave is copied and served; nothing of it is done again. A copy belongs to the new run
alone: it costs it nothing, and there is nothing of it that the new run could undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast.clock import Clock
from holdfast.errors import UsageError
from holdfast.journal.base import Draft, Store
from holdfast.journal.event import Event, Kind
from holdfast.journal.fold import RunState, fold
from holdfast.node.history import history
from holdfast.node.mandate import mandate
from holdfast.node.show import find
from holdfast.node.submit import begin, run_id
from holdfast.node.views import Principal
from holdfast.values import load

_OPENS = (Kind.INTENT, Kind.WAIT, Kind.SAMPLE, Kind.VERDICT)
_LASTING = ("file", "size", "deleted", "collected")
"""What an effect leaves behind that the copy has too: its files."""


def fork(store: Store, clock: Clock, run: str, step: str, principal: Principal) -> tuple[str, tuple[Event, ...]]:
    """Create a run that shares the history of another up to ``step`` (empty: all of it); gives its id and its events.

    Raises:
        UsageError: there is no such run or step, or what it gave was erased.
        StoreError: the store cannot be written.
    """
    origin = find(store, run)
    events = history(store, origin)
    if events[0].kind == Kind.RUN_REFUSED:
        raise UsageError(f"{run} was refused and has no history; start it anew with holdfast run")
    shared = events[: _cut(events, step, run)]
    before = fold(shared)
    name = run_id()
    header = msgspec.structs.replace(
        origin.header,
        stream=name,
        root=name,
        parent="",
        depth=0,
        principal=principal.name,
        auth=principal.auth,
        created_at=clock.now(),
    )
    copier = _Copier(store, clock, run, before)
    data = {**before.created, "root": name, "parent": "", "depth": 0, "forked_from": run, "at": step}
    held = msgspec.structs.replace(mandate(before.created), roles=principal.roles)
    if principal.name != before.principal:
        # Who forks a run does not come by another's right to act for somebody.
        held = msgspec.structs.replace(held, on_behalf_of="")
    data |= {"labels": before.labels, "asked": before.asked[0], "mandate": held}
    created = Draft(
        kind=Kind.RUN_CREATED,
        data=data,
        payloads={"input": copier.payload(before.input)},
        at=clock.now(),
        clock_error=clock.clock_error(),
        principal=principal.name,
        auth=principal.auth,
    )
    return name, begin(store, clock, header, created, copier.copies(shared, fold(events).ended))


def _cut(events: Sequence[Event], step: str, run: str) -> int:
    if not step:
        return len(events)
    for at, event in enumerate(events):
        if event.kind in _OPENS and event.data["action"]["id"] == step:
            return at
    raise UsageError(f"{run} has no step {step}; `holdfast runs tail {run}` shows its steps")


class _Copier:
    """Writes again what a run's calls gave, for another run of the same tenant."""

    def __init__(self, store: Store, clock: Clock, run: str, before: RunState) -> None:
        self._store = store
        self._clock = clock
        self._run = run
        self._before = before

    def payload(self, commitment: str) -> bytes:
        """A payload's bytes.

        Raises:
            UsageError: it was erased.
        """
        found = self._store.payload(self._before.tenant, commitment)
        if found is None:
            raise UsageError(f"{self._run} cannot be forked there: something that it was given or gave was erased")
        return found

    def copies(self, shared: Sequence[Event], ended: dict[str, dict[str, Any]]) -> tuple[Draft, ...]:
        """Drafts of what is served: finished calls, signals that nobody took, children that have ended."""
        opened: dict[str, Event] = {}
        closed: dict[str, Event] = {}
        for event in shared:
            if event.kind in _OPENS:
                opened[event.data["action"]["id"]] = event
            elif event.kind == Kind.OUTCOME:
                closed[event.data["id"]] = event
        drafts: list[Draft] = []
        for record in self._before.records.values():
            if not record.finished:
                continue
            child = ""
            if record.action.kind == "spawn" and record.state == "done":
                child = load(self.payload(record.result))
                # One that still runs tells its end to its own parent only; the copy starts another.
                if child not in ended:
                    continue
            drafts.append(self._copy(opened[record.id]))
            end = closed.get(record.id)
            # One from before it was opened again is of an earlier attempt.
            if end is not None and end.seq > opened[record.id].seq:
                drafts.append(self._copy(end))
            if child:
                told = {key: value for key, value in ended[child].items() if key != "output"}
                drafts.append(self._inbox({**told, "item": 0}, ended[child]["output"]))
        for name, waiting in self._before.signals.items():
            drafts += [self._inbox({"item": 0, "kind": "signal", "name": name, "from": ""}, one) for one in waiting]
        return tuple(drafts)

    def _copy(self, event: Event) -> Draft:
        data = {key: value for key, value in event.data.items() if key not in ("cost", "tokens", "effect")}
        kept = {key: value for key, value in (event.data.get("effect") or {}).items() if key in _LASTING}
        if kept:
            data["effect"] = kept
        return Draft(
            kind=event.kind,
            data={**data, "copied": {"run": self._run, "seq": event.seq}},
            payloads={role: self.payload(commitment) for role, commitment in event.payloads.items()},
            at=self._clock.now(),
            clock_error=self._clock.clock_error(),
            witness=event.witness,
            principal=event.principal,
            auth=event.auth,
        )

    def _inbox(self, data: dict[str, Any], commitment: str) -> Draft:
        return Draft(
            kind=Kind.INBOX,
            data={**data, "copied": {"run": self._run}},
            payloads={"data": self.payload(commitment)} if commitment else {},
            at=self._clock.now(),
            clock_error=self._clock.clock_error(),
            principal=self._before.principal,
            auth=self._before.auth,
        )
