"""Which share of what agents did passed a gate, and which of it some rule looked at. A fold of recorded events."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from holdfast.action import GATES, Action, Facts
from holdfast.journal.event import Event, Kind
from holdfast.policy.bundle import Bundle


class Share(msgspec.Struct, kw_only=True):
    """Actions of one kind."""

    actions: int = 0
    gated: int = 0
    """Those with a verdict on record."""
    ruled: int = 0
    """Those that at least one rule of the bundle in force applied to."""


class Coverage(msgspec.Struct, kw_only=True):
    """What was covered."""

    kinds: dict[str, Share] = {}
    bypasses: dict[str, int] = {}
    """What has an outcome or an intent and no verdict, as ``kind name``, and how often."""
    unruled: dict[str, int] = {}
    """What passed a gate where no rule applied, as ``kind name``, and how often."""

    @property
    def actions(self) -> int:
        """All actions."""
        return sum(share.actions for share in self.kinds.values())

    @property
    def gated(self) -> int:
        """All that passed a gate."""
        return sum(share.gated for share in self.kinds.values())


def coverage(streams: Iterable[Iterable[Event]], bundle_of: Callable[[str], Bundle | None]) -> Coverage:
    """Fold the events of runs.

    Args:
        streams: each run's events.
        bundle_of: a pinned bundle by its digest; None when it is not on record, which counts as no rule.
    """
    found = Coverage()
    for events in streams:
        _run(events, bundle_of, found)
    return found


def _run(events: Iterable[Event], bundle_of: Callable[[str], Bundle | None], found: Coverage) -> None:
    made: dict[str, Action] = {}
    verdicts: dict[str, Event] = {}
    ended: dict[str, None] = {}
    for event in events:
        data = event.data
        if event.kind == Kind.OUTCOME:
            ended.setdefault(str(data["id"]))
        if "action" not in data:
            continue
        action = msgspec.convert({**data["action"], "args": {}}, Action)
        made.setdefault(action.id, action)
        if "verdict" in data:
            verdicts.setdefault(action.id, event)
    for id_, action in made.items():
        if action.gate not in GATES:
            continue  # a wait for a timer, a signal or a child reaches nothing
        share = found.kinds.setdefault(action.kind, Share())
        share.actions += 1
        name = f"{action.kind} {action.target}"
        verdict = verdicts.get(id_)
        if verdict is None:
            found.bypasses[name] = found.bypasses.get(name, 0) + 1
            continue
        share.gated += 1
        if _ruled(action, verdict, bundle_of):
            share.ruled += 1
        else:
            found.unruled[name] = found.unruled.get(name, 0) + 1
    for id_ in ended:
        if id_ not in made:
            share = found.kinds.setdefault("unknown", Share())
            share.actions += 1
            name = f"unknown {id_.rpartition('/')[2].rpartition('.')[0] or id_}"
            found.bypasses[name] = found.bypasses.get(name, 0) + 1


def _ruled(action: Action, event: Event, bundle_of: Callable[[str], Bundle | None]) -> bool:
    bundle = bundle_of(str(event.data["verdict"].get("bundle", "")))
    if bundle is None or "facts" not in event.data:
        return False
    facts = msgspec.convert(event.data["facts"], Facts)
    return any(bundle.plan(action.gate, facts, phase) for phase in ("before", "during", "after"))
