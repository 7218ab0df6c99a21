"""``ctx.input``: fields first, and still a dict to everything that takes one."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.agent.inputs import Input, MissingInput, wrap
from holdfast.values import dump

names = st.text(st.characters(codec="ascii"), min_size=1, max_size=8) | st.sampled_from(
    ["items", "keys", "values", "get", "copy", "pop", "update", "model_dump", "to_json_value", "self"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_it_is_the_value_that_was_given(value: Any) -> None:
    wrapped = wrap(value)
    assert wrapped == value
    assert dump(wrapped) == dump(value)
    assert copy.deepcopy(wrapped) == value


@given(st.dictionaries(names, values, max_size=4))
def test_each_field_by_attribute_and_by_key(value: dict[str, Any]) -> None:
    wrapped = wrap(value)
    for name, item in value.items():
        assert wrapped[name] == item
        if not name.startswith("__"):
            assert getattr(wrapped, name) == item


def test_fields_named_like_methods_do_not_break_what_takes_a_dict() -> None:
    value = {"items": [{"a": 1}], "keys": ["k"], "values": [], "x": 1}
    wrapped = wrap(value)
    assert [item.a for item in wrapped.items] == [1]
    assert json.loads(json.dumps(wrapped)) == value
    assert dict(wrapped) == value
    assert {**wrapped} == value
    assert pickle.loads(pickle.dumps(wrapped)) == value
    assert list(wrapped.items()) == list(value.items())


def test_methods_work_where_no_field_has_their_name() -> None:
    wrapped = wrap({"a": 1})
    assert (list(wrapped.items()), list(wrapped.keys()), wrapped.get("b", 2)) == ([("a", 1)], ["a"], 2)


@pytest.mark.parametrize(
    ("value", "words"), [({"a": 1, "b": 2}, "the input has no 'c'; it has 'a', 'b'"), ({}, "it has nothing")]
)
def test_a_missing_field_names_those_that_are_there(value: Any, words: str) -> None:
    wrapped = wrap(value)
    looks: tuple[Callable[[], Any], ...] = (lambda: wrapped.c, lambda: wrapped["c"])
    for look in looks:
        with pytest.raises(MissingInput, match=words):
            look()
    with pytest.raises(KeyError):
        wrapped["c"]
    assert not hasattr(wrapped, "c")
    assert isinstance(wrapped, Input)


def test_what_is_no_object_stays_as_it_is() -> None:
    assert wrap([1, {"a": 2}])[1].a == 2
    assert wrap("text") == "text"
    assert wrap(None) is None
