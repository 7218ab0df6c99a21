"""The fields of actions and facts, as conditions read them: each path becomes a function that gives its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from holdfast.action import Action, Facts

ACTION_FIELDS = (
    "kind", "gate", "name", "id", "args", "digest", "effect", "attempt", "model", "provider", "max_tokens",
    "input_tokens", "witness", "target", "host", "method", "path", "credential",
    "region", "labels", "server",
)  # fmt: skip
FACTS_FIELDS = (
    "now", "tenant", "region", "agent", "workflow", "run", "session", "root", "depth", "principal", "auth", "roles",
    "isolation", "deployment", "started_at", "active_at", "counters", "price", "kill_generation", "approval_state",
    "recent", "labels", "tags", "identity", "claims", "on_behalf_of", "authority", "user_authority", "suspended",
    "history",
)  # fmt: skip
COUNTERS = ("steps", "llm_calls", "tool_calls", "tokens", "cost")
"""Counters that are 0 until they count: a condition may name them from the first step on."""

KEPT = {
    "action": frozenset({"kind", "gate", "name", "effect", "model", "provider", "witness"}),
    "facts": frozenset(
        {"tenant", "region", "agent", "workflow", "principal", "auth", "roles", "isolation", "deployment", "labels"}
    ),
}
_CONVERTED = frozenset(
    {"args", "effect", "roles", "recent", "labels", "counters", "price", "tags", "claims", "authority"}
    | {"user_authority", "suspended", "history"}
)

Getter = Callable[[Action, Facts], Any]
"""Gives the value of one path; None where it leads nowhere."""


def field_of(root: str, field: str) -> Getter:
    if root == "action":
        return lambda action, facts: getattr(action, field)
    return lambda action, facts: getattr(facts, field)


def getter_of(names: tuple[str, ...]) -> Getter:
    root, field, *rest = names
    of_action = root == "action"
    if field == "counters" and len(rest) == 1:
        counter, default = rest[0], 0 if rest[0] in COUNTERS else None
        return lambda action, facts: facts.counters.get(counter, default)
    if field == "args" and len(rest) == 1:
        key = rest[0]
        return lambda action, facts: _scalar(action.args.get(key))
    if not rest:
        convert = field in _CONVERTED
        if of_action:
            return (lambda action, facts: plain(getattr(action, field))) if convert else field_of(root, field)
        return (lambda action, facts: plain(read(facts, field))) if convert else field_of(root, field)

    def deep(action: Action, facts: Facts) -> Any:
        value = getattr(action if of_action else facts, field)
        for name in rest:
            value = _inner(value, name)
        return _scalar(value)

    return deep


def presence_of(names: tuple[str, ...]) -> Getter:
    """Whether the last name is there; None where that is for the views to say."""
    root, field, *rest, last = names
    if field == "counters" and not rest:
        return lambda action, facts: last in COUNTERS or last in facts.counters

    def there(action: Action, facts: Facts) -> Any:
        value = getattr(action if root == "action" else facts, field)
        for name in rest:
            value = _inner(value, name)
        if type(value) is not dict and not isinstance(value, Mapping):
            return None
        return None if last in value and value[last] is None else last in value

    return there


def _inner(value: Any, name: str) -> Any:
    """A field of a value as it is, so that nothing but the field itself is converted; None when it is not there."""
    if type(value) is not dict and not isinstance(value, Mapping):
        if type(value) in (int, str, float, bool, list, tuple) or value is None:
            return None
        value = plain(value)
        if not isinstance(value, dict):
            return None
    return value.get(name)


def _scalar(value: Any) -> Any:
    return value if type(value) in (int, str, float, bool) or value is None else plain(value)


def read(value: Any, field: str) -> Any:
    if field == "counters":
        return {**dict.fromkeys(COUNTERS, 0), **value.counters}
    return getattr(value, field)


def plain(value: Any) -> Any:
    kind = type(value)
    if kind in (int, str, float, bool) or value is None:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(msgspec.to_builtins(value))
