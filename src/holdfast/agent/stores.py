"""What outlasts a step beside its result: ``ctx.memory`` and ``ctx.files``."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from holdfast import wire
from holdfast.agent.ops import Op, nothing, value
from holdfast.agent.waits import text
from holdfast.errors import PayloadError, UsageError
from holdfast.values import dump, load

T = TypeVar("T")
MAX_FILE = 32 << 20
"""Bytes of one artefact, at most."""


def get(key: str, default: Any) -> Op[Any]:
    """See :meth:`Memory.get`."""
    text(key, "the key of a memory")

    def read(data: bytes) -> Any:
        found = value(data)
        return default if found is None else found

    return Op(lambda number, scope, _: wire.Memory(number, scope, "get", key), read)


def put(key: str, item: Any) -> Op[None]:
    """See :meth:`Memory.set`."""
    text(key, "the key of a memory")
    if item is None:
        raise UsageError(f"the memory {key} cannot be None, which stands for nothing; use ctx.memory.delete")
    data = dump(item, f"the memory {key}")
    return Op(lambda number, scope, v: wire.Memory(number, scope, "set", key, v), nothing, data)


def forget(key: str) -> Op[None]:
    """See :meth:`Memory.delete`."""
    text(key, "the key of a memory")
    return Op(lambda number, scope, _: wire.Memory(number, scope, "delete", key), nothing)


def keys(prefix: str) -> Op[list[str]]:
    """See :meth:`Memory.keys`."""
    return Op(lambda number, scope, _: wire.Memory(number, scope, "keys", prefix), load)


def read_file(name: str) -> Op[bytes]:
    """See :meth:`Files.read`."""
    _check(name)
    return Op(lambda number, scope, _: wire.File(number, scope, "read", name), bytes)


def write_file(name: str, data: bytes | str) -> Op[None]:
    """See :meth:`Files.write`."""
    _check(name)
    if not isinstance(data, bytes | bytearray | memoryview | str):
        raise UsageError(f"the file {name} gets {type(data).__name__}; give bytes or text")
    held = data.encode() if isinstance(data, str) else bytes(data)
    if len(held) > MAX_FILE:
        raise PayloadError(f"the file {name} has {len(held)} bytes; at most {MAX_FILE} fit. Write it in parts")
    return Op(lambda number, scope, v: wire.File(number, scope, "write", name, v), nothing, held)


class Collected(NamedTuple):
    """What :meth:`Files.collect` took out of the workspace."""

    names: list[str]
    """Names of the files, which are their paths."""
    left: dict[str, str]
    """Paths of what stayed, with the reason: links, devices, setuid bits, …"""


def collect_files(path: str) -> Op[Collected]:
    """See :meth:`Files.collect`."""
    if path:
        text(path, "the path of files")
        _check(path)
    return Op(lambda number, scope, _: wire.File(number, scope, "collect", path), lambda data: Collected(**load(data)))


def delete_file(name: str) -> Op[None]:
    """See :meth:`Files.delete`."""
    _check(name)
    return Op(lambda number, scope, _: wire.File(number, scope, "delete", name), nothing)


def list_files(prefix: str) -> Op[list[str]]:
    """See :meth:`Files.list`."""
    return Op(lambda number, scope, _: wire.File(number, scope, "list", prefix), load)


def _check(name: str) -> None:
    text(name, "the name of a file")
    if name.startswith("/") or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
        raise UsageError(f"the file name {name!r} cannot be used; write a relative path without '..'")
