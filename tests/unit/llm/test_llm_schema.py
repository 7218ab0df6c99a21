"""Validation of extracted objects: right answers, and no schema that can stop the node."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.llm.schema import APPLIED, MAX_SCHEMA, REFUSED, fault, violation

PERSON = {
    "type": "object",
    "$defs": {"money": {"type": "integer", "minimum": 0}},
    "properties": {"name": {"type": "string", "minLength": 1}, "paid": {"$ref": "#/$defs/money"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "x", "paid": 3}, ""),
        ({"paid": 3}, "breaks 'required' at $"),
        ({"name": ""}, "breaks 'minLength' at $.name"),
        ({"name": "x", "paid": -1}, "breaks 'minimum' at $.paid"),
        ({"name": "x", "more": 1}, "breaks 'additionalProperties' at $"),
    ],
)
def test_values(value: dict[str, Any], words: str) -> None:
    assert fault(PERSON) == ""
    assert violation(PERSON, value) == words


def doubling(levels: int) -> dict[str, Any]:
    names = [f"d{level}" for level in range(levels)]
    table: dict[str, Any] = {
        name: {"allOf": [{"$ref": f"#/$defs/{after}"}] * 2} for name, after in itertools.pairwise(names)
    }
    table[names[-1]] = {"type": "object"}
    return {"type": "object", "$defs": table, "$ref": "#/$defs/d0"}


HOSTILE = [
    (doubling(40), {}, "takes too long"),
    ({"type": "object", "$ref": "#"}, {}, "cannot be checked"),
    ({"type": "object", "$ref": "http://127.0.0.1:1/schema"}, {}, "refers to what it does not define"),
    ({"type": "object", "$ref": "#/nowhere"}, {}, "refers to what it does not define"),
    ({"type": "object", "properties": 3}, {"a": 1}, "not valid JSON Schema"),
    ({"type": "object", "required": 3}, {}, "not valid JSON Schema"),
    ({"type": "object", "properties": {"a": {"type": "unheard"}}}, {"a": 1}, "not valid JSON Schema"),
    ({"type": "object", "properties": {"a": {"minimum": "x"}}}, {"a": 1}, "not valid JSON Schema"),
    (
        {"type": "object", "properties": {"a": {"items": {"enum": ["y"] * 1000}}}},
        {"a": ["x"] * 1000},
        "too long|breaks",
    ),
    # Not applied: it would run for ever.
    ({"type": "object", "properties": {"a": {"pattern": "(a+)+$"}}}, {"a": "a" * 60 + "!"}, "^$"),
    ({"type": "object", "properties": {"a": {"uniqueItems": True}}}, {"a": [{"b": 1}] * 5000}, "^$"),
]


@pytest.mark.parametrize(("schema", "value", "words"), HOSTILE)
@pytest.mark.timeout(60)
def test_a_hostile_schema_ends(schema: dict[str, Any], value: dict[str, Any], words: str) -> None:
    assert fault(schema) == ""
    assert re.search(words, violation(schema, value))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "has to describe an object"),
        ({"type": ["object", "null"]}, "has to describe an object"),
        ({"type": "object", "patternProperties": {"(a+)+$": {}}}, "uses patternProperties"),
        ({"type": "object", "properties": {"a": {"unevaluatedProperties": False}}}, "uses unevaluatedProperties"),
        ({"type": "object", "allOf": [{"$dynamicRef": "#x"}]}, "uses \\$dynamicRef"),
        ({"type": "object", "description": "x" * MAX_SCHEMA}, "bytes; at most"),
        ({"type": "object", "const": object()}, "is not JSON"),
    ],
)
def test_schemas_that_are_refused(schema: dict[str, Any], words: str) -> None:
    assert re.search(words, fault(schema))


def test_a_member_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"patternProperties": {"type": "string", "enum": ["$dynamicRef"]}}}
    assert fault(schema) == ""
    assert violation(schema, {"patternProperties": "$dynamicRef"}) == ""


def test_no_keyword_is_both_applied_and_refused() -> None:
    assert not APPLIED & REFUSED
    assert set(jsonschema.Draft202012Validator.VALIDATORS) >= APPLIED


leaves = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "string", "maxLength": 2},
        {"const": 1},
        {"enum": ["a", 1]},
        {"anyOf": [{"type": "null"}, {"minimum": 2}]},
        {"not": {"type": "string"}},
    ]
)
members = st.dictionaries(st.sampled_from("abc"), leaves, max_size=3)
values = st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(0, 3) | st.text("ab", max_size=3), max_size=4)


@settings(deadline=None)
@given(members, st.lists(st.sampled_from("abc"), unique=True), st.booleans(), values)
def test_it_agrees_with_the_library(
    properties: dict[str, Any], required: list[str], more: bool, value: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": more}
    assert (violation(schema, value) == "") == jsonschema.Draft202012Validator(schema).is_valid(value)
