"""Broken glasses, folded from a tenant's control stream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.journal.event import GENESIS, Event, Kind
from holdfast.policy.glass import ASKED_FOR_US, Ledger, Shown

MINUTE = 60_000_000
START = 1_772_445_600_000_000


def event(kind: Kind, at: int, who: str, id_: str = "g", **data: Any) -> Event:
    return Event(
        v=1, tenant="default", stream="control:default", seq=1, index=0, epoch=0, kind=kind, at=at, clock_error=-1,
        node="n", witness="node", principal=who, auth="token", prev=GENESIS, data={"id": id_, **data}, payloads={},
    )  # fmt: skip


def asked(at: int = START, who: str = "ann", id_: str = "g", people: int = 2) -> Event:
    data = {"reason": "stuck", "for_us": 30 * MINUTE, "review_within_us": 60 * MINUTE, "people": people, "roles": []}
    return event(Kind.GLASS_ASKED, at, who, id_, **data)


def joined(at: int, who: str, id_: str = "g") -> Event:
    return event(Kind.GLASS_JOINED, at, who, id_, roles=["lead"])


def closed(at: int, who: str = "bob", id_: str = "g") -> Event:
    return event(Kind.GLASS_CLOSED, at, who, id_)


def reviewed(at: int, who: str = "carol", id_: str = "g") -> Event:
    return event(Kind.GLASS_REVIEWED, at, who, id_, note="fine")


def told(*events: Event, id_: str = "g") -> Shown:
    ledger = Ledger()
    ledger.feed(events)
    return ledger.glasses[id_]


@pytest.mark.parametrize(
    ("events", "at", "state"),
    [
        ([asked()], 0, "asked"),
        ([asked()], ASKED_FOR_US, "lapsed"),
        ([asked(), joined(START + 1, "ann")], 2, "asked"),
        ([asked(), joined(START + 1, "bob")], 2, "open"),
        ([asked(), joined(START + ASKED_FOR_US, "bob")], ASKED_FOR_US, "lapsed"),
        ([asked(people=3), joined(START + 1, "bob")], 2, "asked"),
        ([asked(people=3), joined(START + 1, "bob"), joined(START + 2, "bob")], 3, "asked"),
        ([asked(people=3), joined(START + 1, "bob"), joined(START + 2, "carol")], 3, "open"),
        ([asked(), joined(START + 1, "bob")], 1 + 30 * MINUTE, "unreviewed"),
        ([asked(), joined(START + 1, "bob"), closed(START + 5)], 5, "unreviewed"),
        ([asked(), closed(START + 5), joined(START + 6, "bob")], 7, "open"),
        ([asked(), joined(START + 1, "bob"), reviewed(START + 5)], 6, "open"),
        ([asked(), joined(START + 1, "bob"), closed(START + 5), reviewed(START + 6)], 7, "reviewed"),
        ([asked(), joined(START + 1, "bob"), closed(START + 5), reviewed(START + 6, "ann")], 7, "unreviewed"),
    ],
)
def test_states(events: list[Event], at: int, state: str) -> None:
    assert told(*events).state(START + at) == state


def test_one_that_was_not_reviewed_keeps_every_other_shut() -> None:
    first = [asked(), joined(START + 1, "bob"), closed(START + 5)]
    second = [asked(START + 10, id_="h"), joined(START + 11, "bob", "h")]
    assert told(*first, *second, id_="h").opened_at == 0
    assert told(*first, reviewed(START + 6), *second, id_="h").opened_at == START + 11


def test_rules_are_told_of_what_is_open_or_not_reviewed_and_when_its_review_is_due() -> None:
    ledger = Ledger()
    ledger.feed([asked(), joined(START + 1, "bob")])
    (glass,) = ledger.telling(START + 2)
    assert (glass.opened_at, glass.until) == (START + 1, START + 1 + 30 * MINUTE)
    assert glass.review_by == glass.until + 60 * MINUTE
    assert [grant.principal for grant in glass.by] == ["ann", "bob"]
    ledger.feed([closed(START + 9)])
    (glass,) = ledger.telling(START + 10)
    assert (glass.until, glass.review_by) == (START + 9, START + 9 + 60 * MINUTE)
    ledger.feed([reviewed(START + 11)])
    assert ledger.telling(START + 12) == ()


STEPS = st.tuples(
    st.sampled_from(["ask", "join", "close", "review"]),
    st.sampled_from(["ann", "bob", "carol"]),
    st.sampled_from(["g", "h", "i"]),
    st.integers(1, 40) | st.integers(1, 3).map(lambda hours: hours * 60),
)


@given(st.lists(STEPS, max_size=25))
def test_whatever_is_on_record_at_most_one_is_open_by_two_people_and_nobody_reviews_their_own(
    steps: list[tuple[str, str, str, int]],
) -> None:
    ledger, now, seen = Ledger(), START, set()
    for what, who, id_, minutes in steps:
        now += minutes * MINUTE
        if what == "ask" and id_ not in seen:
            seen.add(id_)
            ledger.feed([asked(now, who, id_)])
        elif what != "ask":
            ledger.feed([{"join": joined, "close": closed, "review": reviewed}[what](now, who, id_)])
        open_ = [one for one in ledger.glasses.values() if one.state(now) in ("open", "unreviewed")]
        assert len(open_) <= 1
        for one in ledger.glasses.values():
            people = [grant.principal for grant in one.by]
            assert len(set(people)) == len(people)
            assert not one.opened_at or len(people) >= 2
            assert one.reviewed_by not in people
            assert one.until <= one.opened_at + 30 * MINUTE
