"""JSON Schema (draft 2020-12) of an author's ``extract``, checked on the node's side within bounds.

The schema comes from inside a boundary, and a schema is a program: a regular expression can backtrack for ever, a
reference can reach out, nested alternatives double at each level. So only keywords of bounded cost are applied and
every one of them is counted. ``pattern``, ``uniqueItems`` and ``format`` go to the model and are not checked here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

MAX_SCHEMA = 64 << 10
"""Bytes of a schema, at most."""
MAX_WORK = 100_000
"""Keywords, members and items looked at in one validation, at most."""
REFERENCE = 10
"""What following a reference counts for: it takes that much longer."""

APPLIED = frozenset((
    "$ref", "additionalProperties", "allOf", "anyOf", "const", "contains", "dependentRequired", "enum",
    "exclusiveMaximum", "exclusiveMinimum", "if", "items", "maxItems", "maxLength", "maxProperties",
    "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "not", "oneOf",
    "prefixItems", "properties", "required", "type",
))  # fmt: skip
REFUSED = frozenset((
    "patternProperties", "unevaluatedItems", "unevaluatedProperties", "dependentSchemas", "propertyNames",
    "$dynamicRef",
))  # fmt: skip
"""Keywords that change which members are allowed: ignoring one would let through what it forbids."""


class _TooMuch(Exception):
    pass


def fault(schema: dict[str, Any]) -> str:
    """Why a schema cannot be used; empty when it can."""
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError, RecursionError):
        return "the schema is not JSON"
    if size > MAX_SCHEMA:
        return f"the schema is {size} bytes; at most {MAX_SCHEMA} are allowed"
    if schema.get("type") != "object":
        return 'the schema has to describe an object ("type": "object")'
    for name in _keywords(schema):
        if name in REFUSED:
            return f"the schema uses {name}, which is not supported; check that in your own code"
    return ""


def _keywords(node: Any) -> Iterator[str]:
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            for key, child in item.items():
                if key in ("properties", "$defs", "definitions") and isinstance(child, dict):
                    stack.extend(child.values())
                elif key not in ("const", "enum", "default", "examples"):
                    yield key
                    stack.append(child)


def violation(schema: dict[str, Any], value: Any) -> str:
    """How a value breaks its schema, in words that quote nothing of the value; empty when it keeps it."""
    import jsonschema
    import referencing
    import referencing.exceptions

    base = jsonschema.Draft202012Validator
    follow = base.VALIDATORS["$ref"]
    work = 0

    def counted(check: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(check)
        def run(validator: Any, keyword: Any, instance: Any, whole: Any) -> Any:
            nonlocal work
            work += (REFERENCE if check is follow else 1) + _size(keyword) + _size(instance)
            if work > MAX_WORK:
                raise _TooMuch
            return check(validator, keyword, instance, whole)

        return run

    checks = {name: counted(base.VALIDATORS[name]) for name in APPLIED}
    bounded = jsonschema.validators.create(base.META_SCHEMA, checks, type_checker=base.TYPE_CHECKER)
    try:
        # An empty registry: by default the library would fetch a reference over the network.
        error = next(bounded(schema, registry=referencing.Registry()).iter_errors(value), None)
    except _TooMuch:
        return "takes too long to check against its schema; simplify the schema"
    except referencing.exceptions.Unresolvable:
        return "cannot be checked: the schema refers to what it does not define"
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError, jsonschema.exceptions.UnknownType):
        return "cannot be checked: the schema is not valid JSON Schema"
    if error is None:
        return ""
    where = ".".join(str(part) for part in error.absolute_path)
    return f"breaks {error.validator!r} at ${'.' + where if where else ''}"


def _size(item: Any) -> int:
    return len(item) if isinstance(item, dict | list) else 0
