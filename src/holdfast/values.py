"""Values as canonical JSON bytes: what steps return, what is recorded, what is hashed.

Canonical means: one value, one sequence of bytes (keys sorted, no white space, the shortest escapes; RFC 8785 where
there are no fractions). Numbers that JSON cannot hold, bytes and other objects are refused with the place where they
stand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from typing import Any

import msgspec

from holdfast.errors import PayloadError

MAX_VALUE = 8 << 20
"""Bytes of one recorded value, at most."""

_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def dump(value: Any, what: str = "the value", limit: int = MAX_VALUE) -> bytes:
    """Canonical bytes of a value. Dataclasses, msgspec structs and pydantic models become objects.

    Raises:
        PayloadError: it is not JSON, or larger than ``limit`` bytes; names the place.
    """
    plain = value if type(value) in _SCALARS or _is_plain(value, 0) else _plain(value, "$", what, 0)
    try:
        data = _encoder.encode(plain)
    except UnicodeEncodeError:
        raise PayloadError(f"{what} holds text with lone surrogates, which is no UTF-8; replace them first") from None
    if len(data) > limit:
        raise PayloadError(
            f"{what} is {len(data)} bytes of JSON; at most {limit} are recorded. "
            "Keep large data in ctx.files and pass its name."
        )
    return data


def load(data: bytes) -> Any:
    """The value of canonical bytes.

    Raises:
        PayloadError: the bytes are not JSON.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or endless digits
        raise PayloadError(f"a recorded value is not JSON: {error}") from None


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    # Here, not above: a worker needs none of it, and OpenSSL is a fifth of its memory, to start with and to end.
    import hashlib

    return hashlib.sha256(data).hexdigest()


def digest(*parts: str | bytes) -> str:
    """SHA-256 (hex) over parts, each with its length ahead, so that no two lists collide."""
    import hashlib

    pieces: list[bytes] = []
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        pieces += len(data).to_bytes(8, "big"), data
    return hashlib.sha256(b"".join(pieces)).hexdigest()


_SCALARS = frozenset({str, int, bool, type(None)})


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is JSON as it stands: then nothing is copied, and no place is spelt out for an error."""
    kind: Any = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is not dict and kind is not list and kind is not tuple:
        kind = _container(kind)
    # Of a subclass the encoder takes the items themselves, whatever its methods say.
    if kind is dict:
        for key, item in dict.items(value):
            if type(key) is not str or (type(item) not in _SCALARS and (depth > 127 or not _is_plain(item, depth + 1))):
                return False
        return True
    if kind is not None:
        for item in kind.__iter__(value):
            if type(item) not in _SCALARS and (depth > 127 or not _is_plain(item, depth + 1)):
                return False
        return True
    return False


@functools.lru_cache(256)
def _container(kind: Hashable) -> type | None:
    """The JSON container that instances of a subclass are; None for anything else."""
    if not isinstance(kind, type) or hasattr(kind, "model_dump"):
        return None
    return next((base for base in (dict, list) if issubclass(kind, base)), None)


def _plain(value: Any, at: str, what: str, depth: int) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth > 128:
        raise PayloadError(f"{what} is nested deeper than 128 at {at}")
    if kind is float:
        if not math.isfinite(value):
            raise PayloadError(f"{what} holds {value} at {at}, which JSON cannot; use None or a string")
        return value
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise PayloadError(f"{what} has the key {key!r} at {at}; JSON objects have text keys")
        return {key: _plain(item, f"{at}.{key}", what, depth + 1) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item, f"{at}[{index}]", what, depth + 1) for index, item in enumerate(value)]
    return _plain(_object(value, at, what), at, what, depth + 1)


def _object(value: Any, at: str, what: str) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        raise PayloadError(f"{what} holds bytes at {at}; keep bytes in ctx.files and pass the name")
    if isinstance(value, str):
        return str.__str__(value)
    if callable(dumper := getattr(value, "model_dump", None)):
        return dumper(mode="json")
    try:
        # A set's order differs from process to process; sorted, it is one value.
        return msgspec.to_builtins(value, str_keys=False, order="deterministic")
    except (TypeError, ValueError, RecursionError):
        pass
    if callable(plain := getattr(value, "to_json_value", None)):
        return plain()
    if hasattr(value, "__await__"):
        raise PayloadError(f"{what} holds an awaitable at {at}; write await before the call that made it")
    raise PayloadError(
        f"{what} holds a {type(value).__module__}.{type(value).__qualname__} at {at}; "
        "return text, numbers, lists, dicts, dataclasses or pydantic models"
    )
