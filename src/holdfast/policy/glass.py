"""Broken glasses, as a tenant's control stream tells them. Pure.

=================  ==========================================================================================
glass.asked        id, reason, for_us, review_within_us, people (how many it takes), roles (of who asks)
glass.joined       id, roles: another person agrees; with enough of them the glass is open
glass.closed       id: it ends before its time
glass.reviewed     id, note
=================  ==========================================================================================

A glass that was opened and not reviewed keeps every other one of its tenant shut, whatever is on record.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from holdfast.action import Glass, Grant
from holdfast.journal.event import Event, Kind

ASKED_FOR_US = 3_600_000_000
"""How long others may join."""


class Shown(msgspec.Struct, kw_only=True):
    """A glass, from the first person's word to its review."""

    id: str
    reason: str
    for_us: int
    review_within_us: int
    people: int
    asked_at: int
    by: tuple[Grant, ...] = ()
    opened_at: int = 0
    """0: not open yet."""
    until: int = 0
    reviewed_at: int = 0
    reviewed_by: str = ""
    note: str = ""

    def state(self, now: int) -> str:
        """asked, lapsed (too few joined in time), open, unreviewed or reviewed."""
        if self.reviewed_at:
            return "reviewed"
        if not self.opened_at:
            return "asked" if now < self.asked_at + ASKED_FOR_US else "lapsed"
        return "open" if now < self.until else "unreviewed"

    @property
    def review_by(self) -> int:
        """When the review is due; 0: it was never open."""
        return self.until + self.review_within_us if self.opened_at else 0

    def glass(self) -> Glass:
        """As a rule sees it."""
        return Glass(
            id=self.id,
            reason=self.reason,
            opened_at=self.opened_at,
            until=self.until,
            by=self.by,
            review_by=self.review_by,
            reviewed_at=self.reviewed_at,
        )


class Ledger:
    """The glasses of one tenant, event by event."""

    def __init__(self) -> None:
        self.glasses: dict[str, Shown] = {}

    def feed(self, events: Iterable[Event]) -> None:
        """Follow the events of a control stream; those of other kinds say nothing here."""
        for event in events:
            if event.kind == Kind.GLASS_ASKED:
                self._asked(event)
            elif event.kind in (Kind.GLASS_JOINED, Kind.GLASS_CLOSED, Kind.GLASS_REVIEWED):
                found = self.glasses.get(event.data["id"])
                if found is not None:
                    self._follow(found, event)

    def pending(self, now: int) -> Shown | None:
        """A glass that was open, or is, and has no review: no other may be opened."""
        return next((one for one in self.glasses.values() if one.state(now) in ("open", "unreviewed")), None)

    def telling(self, now: int) -> tuple[Glass, ...]:
        """What rules must know now: glasses in force, and those whose review is still open."""
        found = self.pending(now)
        return (found.glass(),) if found is not None else ()

    def _asked(self, event: Event) -> None:
        data = event.data
        self.glasses[data["id"]] = Shown(
            id=data["id"],
            reason=data["reason"],
            for_us=data["for_us"],
            review_within_us=data["review_within_us"],
            people=data["people"],
            asked_at=event.at,
            by=(_grant(event),),
        )

    def _follow(self, glass: Shown, event: Event) -> None:
        if event.kind == Kind.GLASS_JOINED:
            if glass.state(event.at) != "asked" or any(one.principal == event.principal for one in glass.by):
                return
            glass.by = (*glass.by, _grant(event))
            if len(glass.by) >= glass.people and self.pending(event.at) is None:
                glass.opened_at, glass.until = event.at, event.at + glass.for_us
        elif event.kind == Kind.GLASS_CLOSED:
            if glass.state(event.at) == "open":
                glass.until = event.at
        elif glass.state(event.at) == "unreviewed" and all(one.principal != event.principal for one in glass.by):
            glass.reviewed_at, glass.reviewed_by, glass.note = event.at, event.principal, event.data["note"]


def _grant(event: Event) -> Grant:
    return Grant(
        principal=event.principal,
        auth=event.auth,
        roles=tuple(event.data["roles"]),
        at=event.at,
        reason=event.data.get("reason", ""),
    )
