"""Connectors, the budget, and undoing: what ``ctx.tool``, ``ctx.budget`` and ``ctx.compensate`` send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from holdfast import wire
from holdfast.agent.definition import Seconds, options
from holdfast.agent.ops import Op, value
from holdfast.agent.plan import wire_options
from holdfast.agent.waits import text
from holdfast.errors import UsageError
from holdfast.values import dump, load

_TIMEOUT_US = 60_000_000


def connector(
    name: str,
    given: Mapping[str, Any] | None,
    args: Mapping[str, Any],
    retries: int | None,
    backoff: Seconds | None,
    timeout: Seconds | None,
) -> Op[Any]:
    """See :meth:`holdfast.Context.tool`."""
    text(name, "the name of a tool")
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"ctx.tool({name!r}, …) takes its arguments by name: ctx.tool({name!r}, amount=…)")
    retry, timeout_us = wire_options(options(retries, backoff, timeout, f"the tool {name}"), wire.Retry(), _TIMEOUT_US)
    data = dump({**(given or {}), **args}, f"the arguments of {name}")
    return Op(lambda number, scope, v: wire.Tool(number, scope, name, v, retry, timeout_us), value, data)


def compensate() -> Op[list[dict[str, Any]]]:
    """What is to be undone, latest first."""
    return Op(lambda number, scope, _: wire.Compensate(number, scope), load)


class Budget:
    """``ctx.budget``: what is left for this run. Each look asks the node, and is recorded."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[Op[Any]], Any]) -> None:
        self._do = do

    def _left(self, name: str) -> int | None:
        left = self._do(Op(lambda number, scope, _: wire.Balance(number, scope), load)).get(name)
        return None if left is None else int(left)

    @property
    def usd_left(self) -> float | None:
        """Dollars that the tightest budget leaves; None: nothing limits it."""
        left = self._left("usd_nano")
        return None if left is None else left / 1e9

    @property
    def tokens_left(self) -> int | None:
        """Tokens that the tightest budget leaves; None: nothing limits it."""
        return self._left("tokens")
