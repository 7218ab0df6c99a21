"""One request to the node and what its answer means: shared by the two faces of ``ctx``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from holdfast import wire
from holdfast.values import load

T = TypeVar("T")


class Op(Generic[T]):
    """A request ready to be sent, once."""

    __slots__ = ("data", "make", "read")

    def __init__(
        self,
        make: Callable[[int, int, wire.Value], wire.FromWorker],
        read: Callable[[bytes], T],
        data: bytes = b"",
    ) -> None:
        self.make = make
        """Number, scope and value to the message."""
        self.read = read
        """The reply's bytes to the result."""
        self.data = data


def nothing(data: bytes) -> None:
    """The result of a call that has none."""


def value(data: bytes) -> Any:
    """The result of a call that replies with JSON."""
    return load(data) if data else None
