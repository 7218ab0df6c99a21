"""Step ids: derived by the node from the order of calls, so that a worker cannot choose them. Pure."""

from __future__ import annotations

import functools
import re

from holdfast.errors import ProtocolError

MAX_DEPTH = 64
_NAME = re.compile(r"[^A-Za-z0-9_.\-<>\[\]:]")
MAX_NAME = 120


class Scope:
    """An enclosing call, and how many calls it made."""

    __slots__ = ("_counts", "depth", "path", "place")

    def __init__(self, path: str = "", depth: int = 0) -> None:
        self.path = path
        self.depth = depth
        self.place = 0
        self._counts: dict[str, int] = {}

    def next(self, name: str) -> tuple[str, int]:
        """Id and place of the next call by this name.

        Raises:
            ProtocolError: calls are nested deeper than MAX_DEPTH.
        """
        if self.depth >= MAX_DEPTH:
            raise ProtocolError(f"calls are nested deeper than {MAX_DEPTH}")
        ordinal = self._counts.get(name, 0) + 1
        self._counts[name] = ordinal
        place = self.place
        self.place = place + 1
        return (f"{self.path}/{name}.{ordinal}" if self.path else f"{name}.{ordinal}"), place

    def enter(self, id_: str) -> Scope:
        """The scope of a call's own calls."""
        return Scope(id_, self.depth + 1)

    def branch(self, group: int, index: int) -> Scope:
        """The scope of one branch of a gather."""
        inner = f"gather.{group}.{index}"
        return Scope(f"{self.path}/{inner}" if self.path else inner, self.depth + 1)


@functools.lru_cache(4096)
def clean(name: str) -> str:
    """A name as ids carry it: no separators, bounded."""
    return _NAME.sub("_", name)[:MAX_NAME] or "_"
