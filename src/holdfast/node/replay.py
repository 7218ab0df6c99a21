"""Candidate policies over recorded runs: reads families of runs from a journal and replays them, in several processes.

Nothing is written and nothing is called: a replay has no effect. Only the events that hold decisions and outcomes are
read, and arguments are decrypted only where a rule of the candidate looks at them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from holdfast.action import Action, Facts, Verdict
from holdfast.audit.redecide import Undecidable, arguments
from holdfast.errors import PayloadError, StoreError, UsageError
from holdfast.journal.base import StreamKind, StreamState
from holdfast.journal.event import Kind
from holdfast.journal.evidence import Evidence
from holdfast.journal.open import open_store
from holdfast.policy.bundle import Bundle
from holdfast.policy.recorded import Decided, Deferred, Delta, Done, Recorded, Told, Unreadable
from holdfast.policy.whatif import Refused, Replay, across
from holdfast.values import load

CHUNK = 100
"""Families that are read at once."""
ALONE = 300
"""Families up to which one process is quicker than several."""
KINDS = frozenset({Kind.INTENT, Kind.WAIT, Kind.VERDICT, Kind.RUN_COMPLETED, Kind.OUTCOME, Kind.ATTEMPT_FAILED})
"""Events that hold a decision, or what came of an action."""
_DONE = frozenset({Kind.OUTCOME, Kind.ATTEMPT_FAILED})


class _Usage(msgspec.Struct):
    output: int = 0


class _After(msgspec.Struct):
    facts: Facts
    verdict: Verdict


class _Data(msgspec.Struct):
    action: Action | None = None
    facts: Facts | None = None
    verdict: Verdict | None = None
    id: str = ""
    status: str = ""
    cost: int | None = None
    tokens: int | None = None
    usage: _Usage | None = None
    after: _After | None = None
    delivered: Any = None


class _Event(msgspec.Struct):
    kind: str
    at: int
    index: int
    data: _Data
    payloads: dict[str, str]


_decoder = msgspec.json.Decoder(_Event)


class Reading:
    """Recorded runs of one store."""

    def __init__(self, store: Evidence) -> None:
        self._store = store

    def families(self, families: Sequence[Sequence[StreamState]]) -> list[list[Recorded]]:
        """The runs of some families, each the root first, with what is on record of them."""
        names = [stream.header.stream for family in families for stream in family]
        bodies: dict[str, list[tuple[int, bytes]]] = {name: [] for name in names}
        for name, seq, body in self._store.bodies(names):
            bodies[name].append((seq, body))
        return [[self._run(stream, bodies[stream.header.stream]) for stream in family] for family in families]

    def _run(self, stream: StreamState, bodies: Sequence[tuple[int, bytes]]) -> Recorded:
        header = stream.header
        run = Recorded(
            run=header.stream,
            parent=header.parent,
            tenant=header.tenant,
            agent=header.agent,
            workflow=header.workflow,
            status=stream.status,
            created_at=header.created_at,
        )
        places: dict[str, int] = {}
        # All arguments of a run come with the first that is looked at: one question to the store instead of many.
        payloads = functools.cache(functools.partial(self._payloads, header.tenant, places))
        items: list[Decided | Done] = []
        for seq, body in bodies:
            try:
                event = _decoder.decode(body)
            except msgspec.DecodeError as error:
                run.wrong = f"event {seq} cannot be read: {error}"
                return run
            if event.kind in KINDS and (item := _item(header.stream, seq, event, payloads, places)) is not None:
                items.append(item)
        run.items = items
        return run

    def _payloads(self, tenant: str, places: Mapping[str, int]) -> Mapping[str, bytes]:
        try:
            return self._store.payloads_at(tenant, places)
        except StoreError as error:
            raise Unreadable(str(error)) from None


def _item(
    run: str, seq: int, event: _Event, payloads: Callable[[], Mapping[str, bytes]], places: dict[str, int]
) -> Decided | Done | None:
    data = event.data
    if event.kind in _DONE:
        commitment = event.payloads.get("received") or event.payloads.get("result", "")
        value = None
        if commitment and data.delivered is None:
            places[commitment] = event.index
            value = functools.partial(_value, payloads, commitment, data.usage is not None)
        return Done(
            run=run,
            seq=seq,
            at=event.at,
            id=data.id,
            ok=event.kind == Kind.OUTCOME and data.status != "fault",
            cost=data.cost,
            tokens=data.tokens,
            output_tokens=data.usage.output if data.usage is not None else 0,
            value=value,
            facts=data.after.facts if data.after is not None else None,
            verdict=data.after.verdict if data.after is not None else None,
        )
    if data.action is None or data.facts is None or data.verdict is None or not data.verdict.bundle:
        return None
    action = data.action
    commitment = event.payloads.get("args") or (
        event.payloads.get("output", "") if event.kind == Kind.RUN_COMPLETED else ""
    )
    if commitment:
        places[commitment] = event.index
        fetch = functools.partial(_fetch, payloads, commitment, action.kind)
        action = msgspec.structs.replace(action, args=Deferred(fetch))
    return Decided(
        run=run,
        seq=seq,
        at=event.at,
        action=action,
        facts=data.facts,
        verdict=data.verdict,
        went=event.kind == Kind.INTENT,
    )


def _fetch(payloads: Callable[[], Mapping[str, bytes]], commitment: str, kind: str) -> Mapping[str, Any]:
    payload = payloads().get(commitment)
    if payload is None:
        raise Unreadable("its arguments were erased")
    try:
        return arguments(kind, payload)
    except Undecidable as error:
        raise Unreadable(str(error)) from None


def _value(payloads: Callable[[], Mapping[str, bytes]], commitment: str, of_model: bool) -> Any:
    payload = payloads().get(commitment)
    if payload is None:
        raise Unreadable("what came back was erased")
    try:
        return looked_at(load(payload), of_model=of_model)
    except PayloadError as error:
        raise Unreadable(f"what came back cannot be read: {error}") from None


def looked_at(value: Any, *, of_model: bool) -> Any:
    """What came back, as rules look at it: of a model, the object that was asked for, otherwise its text."""
    if of_model and isinstance(value, dict) and "text" in value:
        return value["text"] if value.get("value") is None else value["value"]
    return value


def families(streams: Iterable[StreamState]) -> list[list[StreamState]]:
    """Runs by family, earliest first; in each the root comes first. A run whose root is not among them stands alone."""
    streams = sorted(streams, key=lambda one: (one.header.created_at, one.header.depth, one.header.stream))
    known = {one.header.stream for one in streams}
    found: dict[str, list[StreamState]] = {}
    for one in streams:
        root = one.header.root if one.header.root in known else one.header.stream
        found.setdefault(root, []).append(one)
    for root, family in found.items():
        family.sort(key=lambda one: one.header.stream != root)
    return list(found.values())


def replay(
    url: str,
    home: Path,
    store: Evidence,
    candidate: Bundle,
    streams: Iterable[StreamState],
    *,
    minutes: float = 5.0,
    jobs: int = 0,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[Delta]:
    """What the candidate changes about each run, earliest first.

    Args:
        url, home: where other processes find ``store``.
        minutes: what one person takes for one approval.
        jobs: processes; 0: as many as there are cores to run on.
        told: hears how many families are done, of how many.
    """
    groups = families(streams)
    jobs = jobs or len(os.sched_getaffinity(0))
    found: dict[str, Told] = {}
    parts = [groups[start : start + CHUNK] for start in range(0, len(groups), CHUNK)]
    for part in _parts(url, home, store, candidate, minutes, parts, jobs if len(groups) > ALONE else 1):
        found.update((one.root, one) for one in part)
        told(len(found), len(groups))
    by_root = {group[0].header.stream: group for group in groups}
    reading, core = Reading(store), Replay(candidate, minutes=minutes)

    def again(root: str, refused: Refused) -> Told:
        return core.family(reading.families([by_root[root]])[0], refused)

    found = across(found, again)
    deltas = [delta for one in found.values() for delta in one.deltas]
    created = {one.header.stream: one.header.created_at for group in groups for one in group}
    return sorted(deltas, key=lambda delta: (created[delta.run], delta.run))


def _parts(
    url: str,
    home: Path,
    store: Evidence,
    candidate: Bundle,
    minutes: float,
    parts: Sequence[Sequence[Sequence[StreamState]]],
    jobs: int,
) -> Iterator[list[Told]]:
    if jobs < 2:
        reading, core = Reading(store), Replay(candidate, minutes=minutes)
        for part in parts:
            yield [core.family(runs) for runs in reading.families(part)]
        return
    # A fresh interpreter: a connection to a database must not be shared by forking.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (url, home, candidate.to_bytes(), minutes)) as pool:
        yield from pool.map(_work, parts)


_worker: tuple[Reading, Replay] | None = None


def _begin(url: str, home: Path, bundle: bytes, minutes: float) -> None:
    """Make this process ready to replay."""
    global _worker
    _worker = Reading(open_store(url, home)), Replay(Bundle.from_bytes(bundle), minutes=minutes)


def _work(part: Sequence[Sequence[StreamState]]) -> list[Told]:
    assert _worker is not None
    reading, core = _worker
    return [core.family(runs) for runs in reading.families(part)]


def recorded(store: Evidence, streams: Sequence[StreamState]) -> Iterator[Recorded]:
    """What is on record of some runs, each by itself, a part at a time."""
    reading = Reading(store)
    for start in range(0, len(streams), CHUNK):
        for runs in reading.families([[stream] for stream in streams[start : start + CHUNK]]):
            yield from runs


def recorded_runs(store: Evidence, *, tenant: str = "", runs: Sequence[str] = (), since: int = 0) -> list[StreamState]:
    """The runs to replay: those named with their descendants, or all of a tenant, begun at ``since`` or later.

    Raises:
        UsageError: a run that is named does not exist.
    """
    found = store.streams(tenant=tenant or None, kind=StreamKind.RUN)
    if runs:
        known = {one.header.stream for one in found}
        if missing := [run for run in runs if run not in known]:
            raise UsageError(f"there is no run {missing[0]}; `holdfast runs list` shows them")
        return [one for one in found if one.header.stream in runs or one.header.root in runs]
    return [one for one in found if one.header.created_at >= since]
