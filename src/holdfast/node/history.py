"""A run's events, as its state follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.journal.base import Draft, PastWrite, Store, StreamState
from holdfast.journal.event import Event, Kind
from holdfast.journal.fold import FINAL_KINDS, RunState, fold

_ENDINGS = frozenset({Kind.OUTCOME, Kind.ATTEMPT_FAILED})
COST = "$cost"


def history(store: Store, stream: StreamState) -> list[Event]:
    """The events that a run's state follows from: its first, and those since it last began anew."""
    events = store.events(stream.header.stream)
    if stream.replay_from > 1:
        return [events[0], *events[stream.replay_from - 1 :]]
    return events


def remembered(drafts: Sequence[Draft], state: RunState) -> tuple[PastWrite, ...]:
    """What these drafts change about the actions that rules over a whole tenant ask about; mostly nothing."""
    if not state.past:
        for draft in drafts:
            if "past" in draft.data:
                break
        else:
            return ()
    found: dict[str, PastWrite] = {}
    for draft in drafts:
        data = draft.data
        if draft.kind == Kind.INTENT:
            if "past" in data:
                action = data["action"]
                found[action.id] = PastWrite(step=action.id, attempt=action.attempt, past=data["past"])
        elif draft.kind in _ENDINGS and (found or state.past):
            held = found.get(data["id"]) or _open(state, data["id"])
            if held is not None:
                how = "ok" if data.get("status") == "ok" else "failed"
                figures = held.past.figures if data.get("cost") is None else {**held.past.figures, COST: data["cost"]}
                past = msgspec.structs.replace(held.past, state=how, ended_at=draft.at, figures=figures)
                found[data["id"]] = msgspec.structs.replace(held, past=past)
        elif draft.kind in FINAL_KINDS and state.past:
            # Nothing of a run that has ended is under way any more.
            for record in state.records.values():
                held = _open(state, record.id) if record.past and record.id not in found else None
                if held is not None and held.past.state == "open":
                    past = msgspec.structs.replace(held.past, state="failed", ended_at=draft.at)
                    found[record.id] = msgspec.structs.replace(held, past=past)
    return tuple(found.values())


def _open(state: RunState, id_: str) -> PastWrite | None:
    record = state.records.get(id_)
    held = state.past.get(record.past) if record is not None else None
    if record is None or held is None:
        return None
    return PastWrite(step=id_, attempt=record.attempt, past=held)


def state_of(store: Store, stream: StreamState) -> RunState:
    """A run's state, folded."""
    return fold(history(store, stream))
