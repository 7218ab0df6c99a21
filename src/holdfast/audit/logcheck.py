"""Structure of one tenant's log: bytes, columns, hashes, links, places, epochs and time. Pure.

Rows are fed in the order of the log. Each damaged row is named once, and a row that is in order but follows a
damaged one is not blamed: the links tell which of two neighbours was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

import msgspec

from holdfast.audit.merkle import hash_leaf
from holdfast.audit.report import Finding
from holdfast.journal import frontier
from holdfast.journal.columns import EventRow
from holdfast.journal.event import GENESIS, VERSION, Event, decode, encode
from holdfast.journal.evidence import StreamHead

UNKNOWN_CLOCK_US = 5_000_000
"""Slack for a clock whose error bound is not on record, microseconds."""
STAMP_US = 1_000_000
"""Slack between the moments at which two events are stamped and committed, microseconds."""

_FIELDS = (
    "tenant",
    "stream",
    "seq",
    "kind",
    "at",
    "clock_error",
    "node",
    "epoch",
    "witness",
    "principal",
    "auth",
    "prev",
)
"""What a row repeats of its event under the same name."""
_fields = attrgetter(*_FIELDS)


class _Stream:
    """What is remembered of a stream between its events."""

    __slots__ = ("at", "clock_error", "epoch", "index", "kind", "leaf", "seq", "sound")

    def __init__(self) -> None:
        self.seq = 0
        self.index = -1
        self.leaf = GENESIS
        self.epoch = 0
        self.at = 0
        self.clock_error = 0
        self.kind = ""
        self.sound = True


class LogCheck:
    """Checks one tenant's log, row by row; ``report`` takes each finding."""

    def __init__(self, tenant: str, report: Callable[[Finding], None]) -> None:
        self.tenant = tenant
        self.frontier = b""
        self.pushed = 0
        """Rows so far: the frontier's size."""
        self.size = 0
        """Index after the last row."""
        self.first_at = 0
        self.last_at = 0
        self._report = report
        self._streams: dict[str, _Stream] = {}
        self._lost: list[tuple[int, int]] = []
        self._gaps: list[tuple[str, int, int]] = []
        self._placed: set[tuple[str, int]] = set()

    def feed(self, row: EventRow) -> Event | None:
        """Check a row; gives its event, or None when its bytes are not one."""
        index, body = row.idx, row.body
        leaf = hash_leaf(body)
        self.frontier = frontier.push(self.frontier, leaf)
        self.pushed += 1
        if index > self.size:
            self._lost.append((self.size, index))
        self.size = index + 1
        hexleaf = leaf.hex()
        wrong: list[tuple[str, str]] = []
        if row.leaf != hexleaf:
            wrong.append(("event.hash", "its bytes do not give the hash that was recorded with them"))
        event: Event | None
        try:
            event = decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            event = None
            wrong.append(("event.bytes", "its bytes are not an event's"))
        else:
            if differing := _differing(event, row):
                wrong.append(("event.columns", differing))
            if event.v != VERSION or encode(event) != body:
                wrong.append(("event.bytes", "its bytes are not in the canonical form"))
        if wrong or event is None:
            self._damaged(event, row, wrong)
        else:
            self._follows(event, hexleaf, row.before)
        return event

    def unreadable(self, index: int) -> None:
        """A row is there and cannot be read: it was named, its place is taken."""
        self.size = index + 1

    def finish(self, heads: Iterable[StreamHead], log_size: int) -> None:
        """After the last row: compare with the streams' rows and the tenant's, and name what is gone."""
        rows = set()
        for head in heads:
            rows.add(head.stream)
            self._ends(self._streams.get(head.stream), head)
        for name, stream in self._streams.items():
            if name not in rows and stream.seq:
                self._of(stream, name, "stream.row", "its stream has no row: the row was removed or the event inserted")
        if log_size > self.size:
            self._lost.append((self.size, log_size))
        elif log_size < self.size:
            self._report(
                Finding(
                    code="log.row",
                    message=f"the log has {self.size} places and its tenant's row counts {log_size}",
                    tenant=self.tenant,
                    index=log_size,
                )
            )
        self._name_lost()

    def _damaged(self, event: Event | None, row: EventRow, wrong: list[tuple[str, str]]) -> None:
        name, seq, kind, index = row.stream, row.seq, row.kind, row.idx
        if event is not None and wrong[0][0] != "event.hash":
            # The bytes are those that were hashed: the columns were changed, and the bytes say which event it is.
            name, seq, kind = event.stream, event.seq, event.kind
        self._report(
            Finding(
                code=wrong[0][0],
                message="; ".join(text for _, text in wrong),
                tenant=self.tenant,
                stream=name,
                seq=seq if type(seq) is int else None,
                index=index,
                kind=kind,
            )
        )
        # Either column or bytes may be where it belongs. What is named is the better guess: the stream goes on there.
        self._placed.add((row.stream, row.seq))
        if event is not None:
            self._placed.add((event.stream, event.seq))
        for other in {row.stream, name}:
            stream = self._streams.get(other)
            if stream is None:
                continue
            stream.sound = False
            if other == name and seq == stream.seq + 1:
                stream.seq, stream.index, stream.kind = seq, index, kind

    def _follows(self, event: Event, leaf: str, before: int) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            stream = self._streams[event.stream] = _Stream()
        expected = stream.seq + 1
        if event.seq > expected:
            self._gaps.append((event.stream, expected, event.seq))
        elif event.seq < expected:
            self._event("event.extra", event, f"its stream has reached event {stream.seq} before it")
        elif event.prev != stream.leaf and stream.sound:
            self._unlinked(event, stream)
        elif before != stream.index and stream.sound:
            text = f"its column before says {before!r}, the event before it in its stream has place {stream.index}"
            self._event("event.columns", event, text)
        if event.epoch < stream.epoch:
            self._event("event.epoch", event, f"it was written under epoch {event.epoch}, after epoch {stream.epoch}")
        slack = _slack(event.clock_error) + _slack(stream.clock_error) + STAMP_US
        if event.at + slack < stream.at:
            self._event("event.time", event, f"it is {stream.at - event.at} µs older than the event before it")
        stream.seq = max(stream.seq, event.seq)
        stream.index, stream.leaf, stream.kind, stream.sound = event.index, leaf, event.kind, True
        stream.epoch = max(stream.epoch, event.epoch)
        stream.at, stream.clock_error = event.at, event.clock_error
        self.first_at = self.first_at or event.at
        self.last_at = max(self.last_at, event.at)

    def _unlinked(self, event: Event, stream: _Stream) -> None:
        if stream.seq == 0:
            self._event("event.chain", event, "it is the first of its stream and yet names one before it")
        else:
            text = f"event {event.seq} was written after another event {stream.seq} than this one: it was changed"
            self._of(stream, event.stream, "event.chain", text)

    def _ends(self, stream: _Stream | None, row: StreamHead) -> None:
        name = row.stream
        if stream is None:
            if row.seq:
                self._gaps.append((name, 1, row.seq + 1))
            return
        if row.seq > stream.seq:
            self._gaps.append((name, stream.seq + 1, row.seq + 1))
        elif row.seq < stream.seq:
            self._of(stream, name, "event.extra", f"its stream's row counts {row.seq} events: it was inserted")
        elif stream.sound and row.head != stream.leaf:
            self._of(stream, name, "event.chain", "its stream's row holds another hash of it: it was changed")
        elif stream.sound and row.tail != stream.index:
            text = f"its row says that its last event has place {row.tail} in the log; it has {stream.index}"
            self._of(stream, name, "stream.row", text)
        if stream.sound and row.seq == stream.seq and row.epoch < stream.epoch:
            text = f"the stream's row says epoch {row.epoch}, its last event {stream.epoch}"
            self._of(stream, name, "stream.row", text)

    def _name_lost(self) -> None:
        gone = [piece for gap in self._gaps for piece in self._without_placed(*gap)]
        if len(gone) == len(self._lost) == 1 and gone[0][2] - gone[0][1] == self._lost[0][1] - self._lost[0][0]:
            (name, first, end), (index, _) = gone[0], self._lost[0]
            self._missing(_range("event", first, end), stream=name, seq=first, index=index)
            return
        for name, first, end in gone:
            self._missing(f"{_range('event', first, end)} of its stream", stream=name, seq=first)
        for index, end in self._lost:
            self._missing(f"{_range('event', index, end)} of the log", index=index)

    def _without_placed(self, name: str, first: int, end: int) -> list[tuple[str, int, int]]:
        """The gap, less what was named as damaged and merely stands elsewhere."""
        pieces, start = [], first
        for place in sorted(
            seq for stream, seq in self._placed if stream == name and type(seq) is int and first <= seq < end
        ):
            if place > start:
                pieces.append((name, start, place))
            start = place + 1
        if start < end:
            pieces.append((name, start, end))
        return pieces

    def _missing(self, what: str, *, stream: str = "", seq: int | None = None, index: int | None = None) -> None:
        message = f"{what} is gone" if what.startswith("event ") else f"{what} are gone"
        self._report(
            Finding(code="event.missing", message=message, tenant=self.tenant, stream=stream, seq=seq, index=index)
        )

    def _event(self, code: str, event: Event, message: str) -> None:
        self._report(
            Finding(
                code=code,
                message=message,
                tenant=self.tenant,
                stream=event.stream,
                seq=event.seq,
                index=event.index,
                kind=event.kind,
            )
        )

    def _of(self, stream: _Stream, name: str, code: str, message: str) -> None:
        self._report(
            Finding(
                code=code,
                message=message,
                tenant=self.tenant,
                stream=name,
                seq=stream.seq,
                index=stream.index,
                kind=stream.kind,
            )
        )


def _differing(event: Event, row: EventRow) -> str:
    """What the row's columns say otherwise than its bytes."""
    if event.index == row.idx and _fields(event) == _fields(row):
        return ""
    pairs = [("idx", row.idx, event.index), *zip(_FIELDS, _fields(row), _fields(event), strict=True)]
    return "; ".join(
        f"its column {name} says {column!r}, its bytes say {actual!r}"
        for name, column, actual in pairs
        if column != actual
    )


def _slack(clock_error: int) -> int:
    return UNKNOWN_CLOCK_US if clock_error < 0 else clock_error


def _range(word: str, first: int, end: int) -> str:
    return f"{word} {first}" if end - first == 1 else f"{word}s {first} to {end - 1}"
