"""The policy file's JSON Schema (draft 2020-12), generated from the models and every category's parameters."""

from __future__ import annotations

from typing import Any

from holdfast.action import GATES
from holdfast.policy.categories import CATEGORIES
from holdfast.policy.categories.aliases import ALIASES
from holdfast.policy.categories.base import Category
from holdfast.policy.model import PolicyFile, profile_names

ID = "urn:holdfast:schema:policy:1"


def schema() -> dict[str, Any]:
    """What an editor checks a policy file against. ``when`` is checked by ``holdfast policy lint`` alone."""
    # Serialised, because that is how defaults are written in a file: 24h, not microseconds.
    result = PolicyFile.model_json_schema(by_alias=True, mode="serialization")
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["$id"] = ID
    result["title"] = "Holdfast policy file"
    definitions = result["$defs"]
    policy = definitions["Policy"]
    keys = policy["properties"]
    keys["category"] = {"enum": sorted([*CATEGORIES, *ALIASES]), "description": keys["category"].get("description", "")}
    keys["gates"] = {
        "type": "array",
        "items": {"enum": list(GATES)},
        "minItems": 1,
        "description": keys["gates"].get("description", ""),
    }
    if names := profile_names():
        result["properties"]["profiles"]["items"] = {"enum": names}
    policy["allOf"] = [_branch(category, definitions) for category in CATEGORIES.values()]
    tidy: dict[str, Any] = _tidy(result)
    return tidy


def _tidy(value: Any) -> Any:
    """Without null defaults, alternatives that are null, and titles that repeat a key."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: item for key, item in value.items() if key != "default" or not _empty(item)}
    options = [option for option in value.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        value = {**options[0], **{key: item for key, item in value.items() if key != "anyOf"}}
    if isinstance(properties := value.get("properties"), dict):
        value["properties"] = {
            name: {key: item for key, item in spec.items() if key != "title"} if isinstance(spec, dict) else spec
            for name, spec in properties.items()
        }
    return {key: _tidy(item) for key, item in value.items()}


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(item is None for item in value.values()))


def _branch(category: Category, definitions: dict[str, Any]) -> dict[str, Any]:
    params = category.params.model_json_schema(by_alias=True, mode="serialization")
    definitions.update(params.pop("$defs", {}))
    params["title"] = f"Parameters of {category.name}"
    params["description"] = category.summary
    then: dict[str, Any] = {
        "properties": {
            "with": params,
            "gates": {"items": {"enum": list(category.gates)}},
            "on_breach": {"enum": [outcome.word for outcome in category.verdicts]},
        }
    }
    if params.get("required"):
        then["required"] = ["with"]
    return {"if": {"properties": {"category": {"const": category.name}}, "required": ["category"]}, "then": then}
