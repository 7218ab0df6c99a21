from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from holdfast.policy.bundle import BUILTIN
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.fields import ACTION_FIELDS, FACTS_FIELDS
from holdfast.policy.lint import lint
from holdfast.policy.model import SCOPE_KEYS
from holdfast.policy.reference import FAMILIES, parameters, render
from holdfast.policy.schema import schema
from holdfast.policy.source import parse

PAGE = render()
CHECK = Draft202012Validator(schema())


def test_every_category_is_on_the_page_with_all_that_belongs_to_it() -> None:
    assert {category.family for category in CATEGORIES.values()} == set(FAMILIES)
    for name, category in CATEGORIES.items():
        part = PAGE.split(f"### {name}\n")[1].split("\n### ")[0]
        assert category.summary in part
        for key in category.params.model_fields:
            assert f"| `{key}` |" in part
        for gate in category.gates:
            assert f"`{gate}`" in part
        for outcome in category.verdicts:
            assert f"`{outcome.word}`" in part


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_a_category_describes_itself(name: str) -> None:
    category = CATEGORIES[name]
    assert set(category.default_gates) <= set(category.gates)
    assert category.summary.endswith(".")
    assert category.name == name
    assert category.verdicts
    assert category.controls
    assert all(":" in control for control in category.controls)
    for key, field in category.params.model_fields.items():
        assert field.description, f"{name}.{key} says nothing"


def test_the_page_names_scopes_fields_and_what_is_built_in() -> None:
    for word in (
        *SCOPE_KEYS,
        *(f"action.{name}" for name in ACTION_FIELDS),
        *(f"facts.{name}" for name in FACTS_FIELDS),
    ):
        assert f"`{word}`" in PAGE
    for policy in BUILTIN:
        assert policy["id"] in PAGE


def test_parameters_are_shown_as_they_are_written() -> None:
    rows = {name: (form, default) for name, form, default, _ in parameters(CATEGORIES["rate_limit"])}
    assert rows["period"] == ("duration, such as `30s` or `24h`", "`1m`")
    assert rows["limit"] == ("whole number, 1 to 10,000,000", "required")
    money = {name: form for name, form, _, _ in parameters(CATEGORIES["budget_usd"])}
    assert money["limit"] == "USD, such as `0.25`"


def test_the_examples_of_the_page_are_good_files(tmp_path: Path) -> None:
    blocks = [block.split("```")[0] for block in PAGE.split("```yaml\n")[1:]]
    assert len(blocks) == len(CATEGORIES) + 1
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        indented = "\n".join(f"  {line}" for line in block.splitlines())
        path.write_text(block if block.startswith("version") else f"version: 1\npolicies:\n{indented}\n")
        assert lint([path]) == []
        CHECK.validate(_plain(parse(path.read_bytes(), "x").value))


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    "change",
    [
        {"category": "nope"},
        {"colour": "red"},
        {"with": {}},
        {"with": {"limit": 0}},
        {"with": {"limit": 5, "extra": 1}},
        {"gates": ["llm"]},
        {"gates": []},
        {"on_breach": "throttle"},
        {"mode": "maybe"},
        {"scope": {"agents": "x"}},
        {"id": ""},
        {"category": "wall_clock_limit", "with": {"limit": "24"}},
        {"category": "budget_usd", "with": {"limit": -1}},
    ],
)
def test_the_schema_refuses_what_loading_refuses(change: dict[str, Any]) -> None:
    good = {"id": "a", "category": "step_limit", "with": {"limit": 5}}
    CHECK.validate({"version": 1, "policies": [good]})
    assert not CHECK.is_valid({"version": 1, "policies": [{**good, **change}]})


def test_the_schema_describes_every_parameter() -> None:
    branches = {
        branch["if"]["properties"]["category"]["const"]: branch for branch in schema()["$defs"]["Policy"]["allOf"]
    }
    assert set(branches) == set(CATEGORIES)
    for name, branch in branches.items():
        shown = branch["then"]["properties"]["with"]["properties"]
        assert set(shown) == set(CATEGORIES[name].params.model_fields)
        assert all(spec.get("description") for spec in shown.values())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if type(value).__name__ == "Decimal" else value
