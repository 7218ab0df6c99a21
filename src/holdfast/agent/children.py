"""Child runs: runs of their own, with a boundary, a record and a budget of their own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from holdfast import wire
from holdfast.agent.channel import Answer
from holdfast.agent.definition import choose_workflow, inspect_class
from holdfast.agent.faults import error_of
from holdfast.agent.ops import Op, value
from holdfast.errors import UsageError
from holdfast.values import dump, load

NANO = 1_000_000_000


def target_of(agent: type | str) -> str:
    """``module:Class`` of an agent class.

    Raises:
        UsageError: it is no agent, or is not at the top of a module of this deployment.
    """
    if isinstance(agent, str):
        module, colon, name = agent.partition(":")
        if not colon or not module or not name.isidentifier():
            raise UsageError(f"{agent!r} is no target; write an agent class, or module:Class")
        return agent
    inspect_class(agent)
    if "." in agent.__qualname__:
        raise UsageError(f"{agent.__qualname__} cannot be spawned: put the class at the top of its module")
    spec = getattr(sys.modules.get(agent.__module__), "__holdfast_target__", agent.__module__)
    return f"{spec}:{agent.__qualname__}"


_DEED = re.compile(r"(?:[a-z]+|\*):\S+$")


def spawn(
    agent: type | str, input: Any, workflow: str, budget_usd: float, authority: Sequence[str] | None = None
) -> Op[str]:
    """See :meth:`holdfast.Context.spawn`."""
    target = target_of(agent)
    if isinstance(agent, type) and workflow:
        choose_workflow(inspect_class(agent), workflow)
    if isinstance(budget_usd, bool) or not isinstance(budget_usd, int | float) or not 0 <= budget_usd < 1e9:
        raise UsageError(f"budget_usd is {budget_usd!r}; give dollars from 0 up (0: only the policies' own limits)")
    nano = round(budget_usd * NANO)
    if authority is not None and (isinstance(authority, str) or not all(_DEED.match(deed) for deed in authority)):
        raise UsageError(f'authority is {authority!r}; give what the child may do, as ["tool:read_*", "llm:*"]')
    may = None if authority is None else tuple(authority)
    return Op(
        lambda number, scope, v: wire.Spawn(number, scope, target, workflow, v, nano, may),
        lambda data: str(load(data)),
        dump(input, f"the input of {target}"),
    )


def join(run: str) -> Op[Any]:
    """See :meth:`ChildRun.result`."""
    return Op(lambda number, scope, _: wire.Join(number, scope, run), value)


def join_message(run: str, scope: int, number: int, _: wire.Value) -> wire.Join:
    """What waits for a child run, without an answer of its own to read."""
    return wire.Join(number, scope, run)


class ChildRun:
    """A child run that was started."""

    __slots__ = ("_do", "run_id")

    def __init__(self, run_id: str, do: Callable[[Op[Any]], Any]) -> None:
        self.run_id = run_id
        self._do = do

    def result(self) -> Any:
        """Wait for its output.

        Raises:
            StepError: it failed, was denied, terminated or killed; the message says which.
        """
        return self._do(join(self.run_id))

    def __repr__(self) -> str:
        return f"ChildRun({self.run_id!r})"


class Crew:
    """The order in which ``spawn_many`` starts and awaits: the next child starts when any ended.

    Only the order of the inputs decides which child is which, so that a replay, where they end in another order, asks
    for the same ones.
    """

    def __init__(self, count: int, max_parallel: int) -> None:
        if isinstance(max_parallel, bool) or not isinstance(max_parallel, int) or not 1 <= max_parallel <= 256:
            raise UsageError(f"max_parallel is {max_parallel!r}; give a whole number from 1 to 256")
        self.results: list[Any] = [None] * count
        self.errors: dict[int, Exception] = {}
        self.open: dict[int, int] = {}
        """Number of a join to the place of its child."""
        self._max = max_parallel
        self._next = 0

    def start(self) -> int | None:
        """The place of the next child to start now; None: wait first, or all are started."""
        if self._next >= len(self.results) or len(self.open) >= self._max:
            return None
        self._next += 1
        return self._next - 1

    def outcome(self, return_exceptions: bool) -> list[Any]:
        """The results in the order of the inputs; the first failure is raised unless told otherwise."""
        if self.errors and not return_exceptions:
            raise self.errors[min(self.errors)]
        return [self.errors.get(place, result) for place, result in enumerate(self.results)]

    def take(self, answer: Answer) -> None:
        """A child ended."""
        place = self.open.pop(answer.id)
        if isinstance(answer, wire.Reply):
            self.results[place] = value(answer.value.data)
        else:
            self.errors[place] = error_of(answer)
