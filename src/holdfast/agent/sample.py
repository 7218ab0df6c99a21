"""Time, ids and versions, recorded so that replay sees them again."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import TypeVar

from holdfast import wire
from holdfast.agent.ops import Op
from holdfast.agent.waits import text
from holdfast.errors import UsageError
from holdfast.values import load

T = TypeVar("T")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def now() -> Op[datetime.datetime]:
    """See :meth:`holdfast.Context.now`."""
    return _sample("now", lambda data: _EPOCH + datetime.timedelta(microseconds=load(data)))


def new_uuid() -> Op[uuid.UUID]:
    """See :meth:`holdfast.Context.uuid`."""
    return _sample("uuid", lambda data: uuid.UUID(load(data)))


def patched(name: str, highest: int) -> Op[int]:
    """See :meth:`holdfast.Context.patched`."""
    text(name, "the name of a patch")
    if isinstance(highest, bool) or not isinstance(highest, int) or not 1 <= highest < 1 << 31:
        raise UsageError(f"highest of the patch {name} is {highest!r}; give a whole number from 1 up")
    return Op(lambda number, scope, _: wire.Sample(number, scope, "patch", name, highest), lambda data: int(load(data)))


def _sample(what: str, read: Callable[[bytes], T]) -> Op[T]:
    return Op(lambda number, scope, _: wire.Sample(number, scope, what), read)


def seed() -> Op[int]:
    """A seed for the generator of one scope."""
    return _sample("random", lambda data: int(load(data)))
