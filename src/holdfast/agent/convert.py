"""From JSON back to an author's types, and from those types to JSON Schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.errors import PayloadError, UsageError

_NATIVE = frozenset({str, int, float, bool, type(None), None, Any, object, list, dict})
"""Types that JSON gives as they are."""
_CONTAINERS = frozenset({list, dict, typing.Union, types.UnionType, typing.Literal, typing.Annotated})


def _is_native(kind: Any) -> bool:
    if isinstance(kind, typing.TypeVar) or typing.get_origin(kind) is typing.Literal:
        return True
    origin = typing.get_origin(kind)
    if origin is None:
        return isinstance(kind, typing.Hashable) and kind in _NATIVE
    return origin in _CONTAINERS and all(_is_native(part) for part in typing.get_args(kind))


def _hook(kind: type, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if not callable(validate):
        raise PayloadError(f"{kind.__qualname__} cannot be made from JSON")
    return validate(value)


def converter(kind: Any, what: str) -> Callable[[Any], Any] | None:
    """What turns JSON into a value of ``kind``: a dataclass, Struct, pydantic model, TypedDict, or made of those.

    None when JSON is the value already, or when the type cannot be made from JSON at all. The converter raises
    PayloadError when a value does not fit; the message begins with ``what``.
    """
    if _is_native(kind):
        return None
    try:
        decode = msgspec.json.Decoder(kind, dec_hook=_hook)
    except (TypeError, RecursionError):
        return None

    def convert(value: Any) -> Any:
        try:
            return decode.decode(msgspec.json.encode(value))
        except PayloadError:
            raise
        except Exception as error:  # noqa: BLE001 - a type's own validators may raise anything
            name = getattr(kind, "__qualname__", str(kind))
            raise PayloadError(f"{what} is not the {name} that it should be: {error}") from None

    return convert


def returns(fn: Callable[..., Any], what: str) -> Callable[[Any], Any] | None:
    """The converter for what a function says that it returns; None when it says nothing, or plain JSON."""
    kind = getattr(fn, "__annotations__", {}).get("return", Any)
    if isinstance(kind, str):
        try:
            kind = typing.get_type_hints(fn).get("return", Any)
        except Exception:  # noqa: BLE001 - an annotation that does not resolve promises nothing
            return None
    return converter(kind, what)


def schema_of(schema: Any) -> tuple[dict[str, Any], Callable[[Any], Any] | None]:
    """JSON Schema of an object for ``extract``, and what turns the answer into the author's type.

    Raises:
        UsageError: it is neither a schema nor a type that has one.
    """
    if isinstance(schema, dict):
        return schema, None
    try:
        own = getattr(schema, "model_json_schema", None)
        found = own() if callable(own) else msgspec.json.schema(schema)
    except (TypeError, RuntimeError):
        raise UsageError(
            f"extract cannot use {schema!r} as a schema; give a JSON Schema, a dataclass, a Struct or a pydantic model"
        ) from None
    if "$ref" in found:
        # Providers want the object itself on top.
        name = found["$ref"].rpartition("/")[2]
        found = {**found["$defs"][name], "$defs": found["$defs"]}
        if f'"#/$defs/{name}"' not in msgspec.json.encode(found).decode():
            del found["$defs"][name]
        if not found["$defs"]:
            del found["$defs"]
    return found, converter(schema, "the model's answer")
