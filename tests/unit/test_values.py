"""Values: one value, one sequence of bytes; what JSON cannot hold is refused with its place."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import subprocess
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import PayloadError
from holdfast.values import digest, dump, load, sha256

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_the_round_trip_is_the_value_and_settles_at_once(value: Any) -> None:
    data = dump(value)
    again = load(data)
    assert again == value
    assert dump(again) == data
    assert json.loads(data) == value


@given(st.dictionaries(texts, st.integers(), max_size=6))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert dump(value) == dump(dict(reversed(value.items())))


@given(st.text(max_size=20))
def test_text_is_utf8_or_refused(value: str) -> None:
    lone = any(0xD800 <= ord(character) <= 0xDFFF for character in value)
    for shape in (value, [value], {"a": value}, {value: 1}):
        if lone:
            with pytest.raises(PayloadError, match="surrogates"):
                dump(shape)
        else:
            assert load(dump(shape)) == shape


class Colour(enum.Enum):
    RED = "red"


class Struct(msgspec.Struct):
    a: int
    b: list[Any] = []


@dataclasses.dataclass
class Data:
    x: Any


class Model(pydantic.BaseModel):
    when: datetime.datetime


class Named(str):
    __slots__ = ()


class Loud(dict[str, Any]):
    """Says something else of itself than it holds."""

    def items(self) -> Any:
        raise AssertionError

    def __iter__(self) -> Any:
        raise AssertionError


class Row(list[Any]):
    pass


class Dumped(dict[str, Any]):
    def model_dump(self, mode: str) -> Any:
        return {"dumped": mode}


class Own:
    def to_json_value(self) -> Any:
        return {"own": 1}


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ((1, 2), b"[1,2]"),
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        ("é\n\u2028", '"é\\n\u2028"'.encode()),
        (Colour.RED, b'"red"'),
        (Struct(1, [Data(2)]), b'{"a":1,"b":[{"x":2}]}'),
        (Data({"k": (1,)}), b'{"x":{"k":[1]}}'),
        (Model(when=datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)), b'{"when":"2024-01-02T00:00:00Z"}'),
        (decimal.Decimal("1.50"), b'"1.50"'),
        (uuid.UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
        (Named("n"), b'"n"'),
        (OrderedDict(b=1, a=[0.5]), b'{"a":[0.5],"b":1}'),
        ([Loud(b=Row([1.5]), a=Loud())], b'[{"a":{},"b":[1.5]}]'),
        ([Dumped(a=1)], b'[{"dumped":"json"}]'),
        (Own(), b'{"own":1}'),
        ([Own()], b'[{"own":1}]'),
        ({"b", "a", "c"}, b'["a","b","c"]'),
        (2**64 - 1, b"18446744073709551615"),
        (2**70, b"1180591620717411303424"),
        (-0.5, b"-0.5"),
    ],
)
def test_what_counts_as_json(value: Any, data: bytes) -> None:
    assert dump(value) == data


async def _coroutine() -> None: ...


def iter_nothing() -> Iterator[int]:
    yield from ()


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: float("nan"), r"the value holds nan at \$, which JSON cannot"),
        (lambda: [1, {"a": float("-inf")}], r"holds -inf at \$\[1\]\.a"),
        (lambda: {"k": [b"x"]}, r"holds bytes at \$\.k\[0\]; keep bytes in ctx\.files"),
        (lambda: bytearray(b"x"), "holds bytes"),
        (lambda: OrderedDict(a=Row([float("nan")])), r"holds nan at \$\.a\[0\]"),
        (lambda: {"k": OrderedDict({1: 2})}, r"the key 1 at \$\.k"),
        (lambda: {1: 2}, r"the key 1 at \$; JSON objects have text keys"),
        (lambda: Data({2: 3}), r"the key 2 at \$\.x"),
        (lambda: Struct(1, [object()]), r"holds a tests?.*Struct|holds a .*Struct"),
        (lambda: {"f": open}, r"holds a builtins.builtin_function_or_method at \$\.f|holds a _io"),
        (lambda: iter_nothing(), "holds a builtins.generator"),
        (lambda: 1j, "holds a builtins.complex"),
        (lambda: _deep(200), "nested deeper than 128"),
        (_circle, "nested deeper than 128"),
    ],
)
def test_what_is_refused_and_where_it_stands(make: Any, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        dump(make())


def test_an_awaitable_is_refused_with_its_cure() -> None:
    coroutine = _coroutine()
    with pytest.raises(PayloadError, match=r"holds an awaitable at \$\[0\]; write await"):
        dump([coroutine])
    coroutine.close()


def test_the_limit_is_a_limit_of_bytes() -> None:
    assert dump("é" * 4, limit=10) == '"éééé"'.encode()
    with pytest.raises(PayloadError, match=r"the result is 11 bytes of JSON; at most 10 .* ctx\.files"):
        dump("é" * 4 + "x", "the result", limit=10)


@pytest.mark.parametrize("data", [b"", b"{", b"nul", b'"\xff"', b"[1,]", b"NaN", b"[" * 5000, b"9" * 9000])
def test_bytes_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(PayloadError, match="not JSON"):
        load(data)


def test_a_set_is_one_value_in_every_process() -> None:
    code = "from holdfast.values import dump; print(dump({str(n) for n in range(50)}).decode())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_no_two_lists_of_parts_share_a_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_digests_are_sha256_in_hex() -> None:
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest("é") == digest("é".encode())
