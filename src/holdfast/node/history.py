"""A run's events, as its state follows from them."""

from __future__ import annotations

from holdfast.journal.base import Store, StreamState
from holdfast.journal.event import Event
from holdfast.journal.fold import RunState, fold


def history(store: Store, stream: StreamState) -> list[Event]:
    """The events that a run's state follows from: its first, and those since it last began anew."""
    events = store.events(stream.header.stream)
    if stream.replay_from > 1:
        return [events[0], *events[stream.replay_from - 1 :]]
    return events


def state_of(store: Store, stream: StreamState) -> RunState:
    """A run's state, folded."""
    return fold(history(store, stream))
