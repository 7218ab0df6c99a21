"""The wire: frames survive any cut of the stream, bounds hold, and neither side speaks the other's words."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import wire
from holdfast.errors import ProtocolError

numbers = st.integers(0, 2**62)
texts = st.text(max_size=40)
blobs = st.binary(max_size=300)
values = st.builds(wire.Value, blobs, numbers)
from_worker = st.one_of(
    st.builds(wire.Ready, numbers, numbers, texts),
    st.builds(wire.Loaded, texts, texts, st.dictionaries(texts, st.tuples(texts, texts), max_size=3)),
    st.builds(wire.Call, numbers, numbers, texts, texts, values),
    st.builds(wire.Close, numbers, values, texts, texts, texts, texts),
    st.builds(wire.Llm, numbers, numbers, texts, values, st.booleans()),
    st.builds(wire.Approve, numbers, numbers, values, st.lists(texts, max_size=3).map(tuple)),
    st.builds(wire.Idle, st.lists(numbers, max_size=5).map(tuple)),
    st.builds(wire.Log, texts, texts, values),
    st.builds(wire.Done, values),
    st.builds(wire.Failed, texts, texts, texts, texts, texts),
    st.builds(wire.Blob, numbers, blobs, st.booleans()),
)
from_node = st.one_of(
    st.builds(wire.Go, numbers, numbers, texts),
    st.builds(wire.Reply, numbers, values, st.booleans()),
    st.builds(wire.Chunk, numbers, texts),
    st.builds(wire.Parked, numbers),
    st.builds(wire.Fault, numbers, texts, texts, texts),
    st.builds(wire.Blob, numbers, blobs, st.booleans()),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces."""
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@given(st.lists(from_worker, max_size=6), st.lists(numbers, max_size=12))
def test_messages_survive_any_cut_of_the_stream(messages: list[Any], places: list[int]) -> None:
    deframer = wire.Deframer()
    found = []
    for piece in cut(b"".join(map(wire.frame, messages)), places):
        deframer.feed(piece)
        found += [wire.decode(wire.worker_decoder, body) for body in deframer]
    assert found == messages
    assert deframer.pending == 0


@given(st.lists(from_node, min_size=1, max_size=6))
def test_a_loop_left_early_goes_on_where_it_was(messages: list[Any]) -> None:
    deframer = wire.Deframer()
    deframer.feed(b"".join(map(wire.frame, messages)))
    found = [wire.decode(wire.node_decoder, next(iter(deframer))) for _ in messages]
    assert found == messages
    assert list(deframer) == []


@given(st.one_of(from_worker, from_node))
def test_only_one_side_understands_a_message(message: Any) -> None:
    body = wire.frame(message)[4:]
    kinds = (wire.worker_decoder, wire.node_decoder)
    known = [decoder for decoder in kinds if not _fails(decoder, body)]
    assert len(known) == (2 if isinstance(message, wire.Blob) else 1)


def _fails(decoder: Any, body: bytes) -> bool:
    try:
        wire.decode(decoder, body)
    except ProtocolError:
        return True
    return False


@given(st.binary(max_size=200))
def test_noise_is_a_protocol_error_and_nothing_else(noise: bytes) -> None:
    deframer = wire.Deframer()
    deframer.feed(noise)
    try:
        for body in deframer:
            wire.decode(wire.worker_decoder, body)
    except ProtocolError:
        return
    assert deframer.pending <= len(noise)


@given(from_worker, st.data())
def test_a_changed_byte_never_raises_anything_else(message: Any, data: st.DataObject) -> None:
    body = bytearray(wire.frame(message)[4:])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        wire.decode(wire.worker_decoder, bytes(body))


def test_a_decode_error_does_not_show_what_was_sent() -> None:
    body = wire.frame(wire.Log("info", "hunter2"))[4:]
    with pytest.raises(ProtocolError) as caught:
        wire.decode(wire.node_decoder, body)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("size", [0, wire.MAX_FRAME + 1, 0xFFFFFFFF])
def test_sizes_out_of_bounds_are_refused_before_their_bytes_come(size: int) -> None:
    deframer = wire.Deframer()
    deframer.feed(size.to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match=f"1 to {wire.MAX_FRAME} are allowed"):
        list(deframer)


def test_a_message_larger_than_a_frame_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="send a blob"):
        wire.frame(wire.Done(wire.Value(bytes(wire.MAX_FRAME))))
    assert wire.frame(wire.Done(wire.Value(bytes(wire.MAX_FRAME - 100))))


@given(st.integers(0, 3 * wire.BLOB_PART), st.integers(1, 9))
def test_values_go_whole_or_in_parts_and_come_back(size: int, number: int) -> None:
    data = bytes([number]) * size
    parts, value = wire.pack(data, number)
    reader = wire.BlobReader(1 << 30)
    for part in parts:
        assert len(wire.frame(part)) <= wire.MAX_FRAME
        reader.add(part)
    assert bool(parts) == (size > wire.INLINE_VALUE)
    assert reader.take(value) == data


def test_large_values_of_several_calls_may_interleave() -> None:
    reader = wire.BlobReader(1 << 30)
    first, one = wire.pack(b"a" * (3 * wire.BLOB_PART), 1)
    second, two = wire.pack(b"b" * (3 * wire.BLOB_PART), 2)
    for pair in zip(first, second, strict=True):
        for part in pair:
            reader.add(part)
    assert reader.take(two) == b"b" * (3 * wire.BLOB_PART)
    assert reader.take(one) == b"a" * (3 * wire.BLOB_PART)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([wire.Blob(0, b"x", True)], "no number"),
        ([wire.Blob(-1, b"x", True)], "no number"),
        ([wire.Blob(1, b"x", True), wire.Blob(1, b"y", True)], "twice"),
        ([wire.Blob(1, b"x" * 11, False)], "exceed"),
        ([wire.Blob(1, b"x" * 6, True), wire.Blob(2, b"x" * 6, True)], "exceed"),
        ([wire.Blob(n, b"", False) for n in range(1, wire.MAX_BLOBS + 2)], "exceed"),
        ([wire.Blob(n, b"", True) for n in range(1, wire.MAX_BLOBS + 2)], "exceed"),
    ],
)
def test_blobs_out_of_bounds_are_refused(parts: list[wire.Blob], words: str) -> None:
    def add() -> None:
        reader = wire.BlobReader(10)
        for part in parts:
            reader.add(part)

    with pytest.raises(ProtocolError, match=words):
        add()


def test_a_blob_that_did_not_come_or_was_taken_is_refused() -> None:
    reader = wire.BlobReader(10)
    reader.add(wire.Blob(1, b"x", False))
    with pytest.raises(ProtocolError, match="named before it was sent"):
        reader.take(wire.Value(blob=1))
    reader.add(wire.Blob(1, b"y", True))
    assert reader.take(wire.Value(blob=1)) == b"xy"
    with pytest.raises(ProtocolError, match="named before it was sent"):
        reader.take(wire.Value(blob=1))


@given(st.lists(st.integers(1, 10), max_size=30))
def test_what_was_taken_no_longer_counts(sizes: list[int]) -> None:
    reader = wire.BlobReader(10)
    for number, size in enumerate(sizes, 1):
        reader.add(wire.Blob(number, b"x" * size, True))
        assert len(reader.take(wire.Value(blob=number))) == size


def test_fields_that_a_newer_version_adds_do_not_break_an_older_one() -> None:
    body = msgspec.msgpack.encode(["parked", 5, "new"])
    assert wire.decode(wire.node_decoder, body) == wire.Parked(5)


def test_a_message_is_named_by_its_tag() -> None:
    assert wire.describe(wire.Parked(1)) == "parked"
