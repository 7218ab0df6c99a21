"""Structure of a log: whatever is wrong is named once, and what is in order is not blamed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit.logcheck import STAMP_US, LogCheck
from holdfast.audit.report import Finding
from holdfast.journal import frontier
from holdfast.journal.columns import EventRow
from holdfast.journal.event import GENESIS, Event, encode, leaf
from holdfast.journal.evidence import StreamHead

NAMES = [name for name in EventRow._fields if name not in ("idx", "leaf", "before", "body")]


def row(event: Event, before: int, **columns: Any) -> EventRow:
    body = columns.pop("body", None) or encode(event)
    values = {name: getattr(event, name) for name in NAMES}
    return EventRow(**{**values, "idx": event.index, "leaf": leaf(body), "before": before, "body": body, **columns})


class Log:
    """Makes a log in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.streams: dict[str, Event] = {}

    def add(self, stream: str, **fields: Any) -> Event:
        last = self.streams.get(stream)
        base: dict[str, Any] = {
            "v": 1, "tenant": "t", "stream": stream, "seq": last.seq + 1 if last else 1, "index": len(self.events),
            "epoch": last.epoch if last else 1, "kind": "log", "at": 1000 + len(self.events), "clock_error": 0,
            "node": "n", "witness": "node", "principal": "", "auth": "system",
            "prev": leaf(encode(last)) if last else GENESIS, "data": {"é": "ü"}, "payloads": {},
        }  # fmt: skip
        event = Event(**{**base, **fields})
        self.events.append(event)
        self.streams[stream] = event
        return event

    def rows(self) -> list[EventRow]:
        latest: dict[str, int] = {}
        rows = []
        for event in self.events:
            rows.append(row(event, latest.get(event.stream, -1)))
            latest[event.stream] = event.index
        return rows

    def heads(self) -> list[StreamHead]:
        return [
            StreamHead(name, "open", last.epoch, last.seq, leaf(encode(last)), last.index)
            for name, last in self.streams.items()
        ]


def log_of(count: int, streams: int = 2) -> Log:
    log = Log()
    for number in range(count):
        log.add(f"s{number % streams}")
    return log


def check(rows: Iterable[EventRow], heads: Iterable[StreamHead], size: int) -> list[Finding]:
    findings: list[Finding] = []
    check = LogCheck("t", findings.append)
    for one in rows:
        check.feed(one)
    check.finish(heads, size)
    return findings


def victims(findings: list[Finding]) -> list[tuple[str, str, int | None, int | None]]:
    return [(finding.code, finding.stream, finding.seq, finding.index) for finding in findings]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_a_log_in_order_has_no_findings_and_the_root_of_its_leaves(places: list[int]) -> None:
    log = Log()
    for place in places:
        log.add(f"s{place}")
    findings: list[Finding] = []
    checker = LogCheck("t", findings.append)
    edge = b""
    for one in log.rows():
        checker.feed(one)
        edge = frontier.push(edge, bytes.fromhex(one.leaf))
    checker.finish(log.heads(), len(places))
    assert findings == []
    assert checker.frontier == edge
    assert (checker.size, checker.pushed) == (len(places), len(places))


@given(st.integers(1, 24), st.data())
def test_a_removed_event_is_named_wherever_it_stood(count: int, data: st.DataObject) -> None:
    log = log_of(count)
    gone = data.draw(st.integers(0, count - 1))
    event = log.events[gone]
    rows = [one for one in log.rows() if one.idx != gone]
    assert victims(check(rows, log.heads(), count)) == [("event.missing", event.stream, event.seq, gone)]


@given(st.integers(2, 24), st.data())
def test_swapped_places_name_both_and_nobody_else(count: int, data: st.DataObject) -> None:
    log = log_of(count)
    one = data.draw(st.integers(0, count - 2))
    other = data.draw(st.integers(one + 1, count - 1))
    rows = log.rows()
    rows[one], rows[other] = (
        rows[other]._replace(idx=one),
        rows[one]._replace(idx=other),
    )
    found = check(rows, log.heads(), count)
    assert {finding.code for finding in found} == {"event.columns"}
    assert [(f.stream, f.seq) for f in found] == [(log.events[i].stream, log.events[i].seq) for i in (other, one)]


@given(st.integers(1, 24), st.data())
def test_a_changed_event_with_a_fitting_hash_is_named_by_what_follows(count: int, data: st.DataObject) -> None:
    log = log_of(count)
    place = data.draw(st.integers(0, count - 1))
    event = log.events[place]
    rows = log.rows()
    rows[place] = row(msgspec.structs.replace(event, data={"forged": True}), rows[place].before)
    assert victims(check(rows, log.heads(), count)) == [("event.chain", event.stream, event.seq, place)]


@given(st.integers(1, 24), st.data())
def test_changed_bytes_are_named_and_do_not_blame_the_neighbours(count: int, data: st.DataObject) -> None:
    log = log_of(count)
    place = data.draw(st.integers(0, count - 1))
    event = log.events[place]
    body = bytearray(encode(event))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    rows = log.rows()
    rows[place] = rows[place]._replace(body=bytes(body))
    assert victims(check(rows, log.heads(), count)) == [("event.hash", event.stream, event.seq, place)]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"v":1}', b'{"tenant":7}'],
)
def test_what_is_no_event_is_named_even_with_a_fitting_hash(body: bytes) -> None:
    log = log_of(5)
    rows = log.rows()
    rows[2] = rows[2]._replace(body=body, leaf=leaf(body))
    event = log.events[2]
    assert victims(check(rows, log.heads(), 5)) == [("event.bytes", event.stream, event.seq, 2)]


def test_other_spellings_of_the_same_event_are_named() -> None:
    log = log_of(5)
    canonical = encode(log.events[2])
    for body in (canonical + b" ", canonical.replace(b'"v":1', b'"v": 1'), canonical.replace("é".encode(), b"\\u00e9")):
        assert body != canonical
        rows = log.rows()
        rows[2] = rows[2]._replace(body=body, leaf=leaf(body))
        assert victims(check(rows, log.heads(), 5)) == [("event.bytes", "s0", 2, 2)]


def test_an_event_of_a_later_format_is_named() -> None:
    log = Log()
    log.add("s", v=2)
    assert victims(check(log.rows(), log.heads(), 1)) == [("event.bytes", "s", 1, 0)]


@pytest.mark.parametrize("name", [*NAMES, "before"])
def test_each_column_is_compared(name: str) -> None:
    log = log_of(6)
    for place in range(6):
        rows = log.rows()
        value = 99 if isinstance(getattr(rows[place], name), int) else "other"
        rows[place] = rows[place]._replace(**{name: value})
        event = log.events[place]
        found = check(rows, log.heads(), 6)
        assert victims(found) == [("event.columns", event.stream, event.seq, place)]
        assert f"column {name}" in found[0].message


def test_epochs_that_fall_and_time_that_goes_back_are_named() -> None:
    log = Log()
    log.add("s", epoch=3, at=10_000_000, clock_error=200)
    log.add("s", epoch=2, at=10_000_000 - STAMP_US - 300, clock_error=100)
    log.add("s", epoch=3, at=10_000_000 - 2 * STAMP_US - 501, clock_error=100)
    log.add("s", epoch=3, at=1, clock_error=-1)
    found = check(log.rows(), log.heads(), 4)
    assert victims(found) == [("event.epoch", "s", 2, 1), ("event.time", "s", 3, 2), ("event.time", "s", 4, 3)]


def test_an_unknown_clock_error_leaves_some_slack() -> None:
    log = Log()
    log.add("s", at=20_000_000, clock_error=-1)
    log.add("s", at=9_000_000, clock_error=-1)
    assert check(log.rows(), log.heads(), 2) == []


def test_a_stream_that_begins_again_is_named() -> None:
    log = log_of(4, 1)
    extra = msgspec.structs.replace(log.events[1], index=4)
    rows = [*log.rows(), row(extra, 3)]
    assert ("event.extra", "s0", 2, 4) in victims(check(rows, log.heads(), 5))


def test_a_first_event_that_names_one_before_it_is_named() -> None:
    log = Log()
    log.add("s", prev="a" * 64)
    assert victims(check(log.rows(), log.heads(), 1)) == [("event.chain", "s", 1, 0)]


def test_rows_of_streams_and_tenant_are_compared() -> None:
    log = log_of(4, 1)
    (head,) = log.heads()
    change = msgspec.structs.replace
    assert victims(check(log.rows(), [change(head, seq=6)], 4)) == [("event.missing", "s0", 5, None)]
    assert victims(check(log.rows(), [change(head, seq=3)], 4)) == [("event.extra", "s0", 4, 3)]
    assert victims(check(log.rows(), [change(head, head="x")], 4)) == [("event.chain", "s0", 4, 3)]
    assert victims(check(log.rows(), [change(head, epoch=0)], 4)) == [("stream.row", "s0", 4, 3)]
    assert victims(check(log.rows(), [change(head, tail=2)], 4)) == [("stream.row", "s0", 4, 3)]
    assert victims(check(log.rows(), [], 4)) == [("stream.row", "s0", 4, 3)]
    assert victims(check(log.rows(), [head], 3)) == [("log.row", "", None, 3)]
    assert victims(check(log.rows(), [head], 6)) == [("event.missing", "", None, 4)]
    assert victims(check([], [head], 4)) == [("event.missing", "s0", 1, 0)]
    assert check([], [change(head, seq=0)], 0) == []


def test_a_row_that_could_not_be_read_keeps_its_place() -> None:
    log = log_of(5, 1)
    findings: list[Finding] = []
    checker = LogCheck("t", findings.append)
    for one in log.rows():
        if one.idx == 2:
            checker.unreadable(2)
        else:
            checker.feed(one)
    checker.finish(log.heads(), 5)
    assert victims(findings) == [("event.missing", "s0", 3, None)]
