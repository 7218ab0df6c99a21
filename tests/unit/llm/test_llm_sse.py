"""The event parser: the same events however the bytes were cut."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.llm.sse import Event, Parser

CASES = [
    (b"data: a\n\n", [Event("message", "a")]),
    (b"event: x\ndata: a\n\n", [Event("x", "a")]),
    (b"event:x\rdata:a\r\r", [Event("x", "a")]),
    (b"event: x\r\ndata: a\r\n\r\n", [Event("x", "a")]),
    (b"data: a\ndata: b\n\n", [Event("message", "a\nb")]),
    (b"data:  a\n\n", [Event("message", " a")]),
    (b": comment\n\ndata: a\n\n", [Event("message", "a")]),
    (b"event: only-a-name\n\ndata: a\n\n", [Event("message", "a")]),
    (b"id: 3\nretry: 10\nunknown: x\ndata\n\n", [Event("message", "")]),
    (b"data: not ended", []),
    (b"data: a\n\ndata: not ended\n", [Event("message", "a")]),
    (b"\xef\xbb\xbfdata: a\n\n", [Event("message", "a")]),
    (b"data: \xff\n\n", [Event("message", "\ufffd")]),
]


@pytest.mark.parametrize(("data", "events"), CASES)
def test_whole(data: bytes, events: list[Event]) -> None:
    assert Parser().feed(data) == events


@pytest.mark.parametrize(("data", "events"), CASES)
def test_byte_by_byte(data: bytes, events: list[Event]) -> None:
    parser = Parser()
    assert [event for at in range(len(data)) for event in parser.feed(data[at : at + 1])] == events


lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)
events = st.lists(st.tuples(lines.filter(bool), st.lists(lines, min_size=1, max_size=3)), max_size=5)


@settings(deadline=None)
@given(events, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 400)))
def test_any_cut(written: list[tuple[str, list[str]]], end: str, cuts: list[int]) -> None:
    text = "".join(
        f"event: {name}{end}" + "".join(f"data: {line}{end}" for line in data) + end for name, data in written
    )
    raw = text.encode()
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parser, found = Parser(), []
    for start, stop in itertools.pairwise(places):
        found += parser.feed(raw[start:stop])
    assert found == [Event(name, "\n".join(data)) for name, data in written]


@pytest.mark.parametrize("data", [b"data: " + b"x" * 200, b"data: " + b"x" * 50 + b"\ndata: " + b"x" * 60 + b"\n"])
def test_an_event_is_bounded(data: bytes) -> None:
    parser = Parser(limit=100)
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    with pytest.raises(ValueError, match="larger than 100"):
        deque(map(parser.feed, pieces))


def test_a_long_stream_of_small_events_is_not_bounded() -> None:
    parser = Parser(limit=100)
    assert sum(len(parser.feed(b"data: 0123456789\n\n")) for _ in range(100)) == 100
