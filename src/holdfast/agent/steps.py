"""One ``ctx.call``: what both faces do before and after the body runs."""

from __future__ import annotations

from typing import Any

from holdfast import wire
from holdfast.agent.channel import Answer, Channel, Slot
from holdfast.agent.faults import error_of, told
from holdfast.agent.plan import Plan, call_options, rounded, step_name
from holdfast.agent.scope import Scope
from holdfast.errors import HoldfastError, StepError
from holdfast.values import dump, load


class Step:
    """A step between its call and its close."""

    __slots__ = ("cause", "channel", "name", "plan", "scope", "slot")

    def __init__(
        self,
        channel: Channel,
        scope: Scope,
        plan: Plan,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: Any,
        backoff: Any,
        timeout: Any,
    ) -> None:
        """Send the call."""
        self.name = name = step_name(plan)
        self.plan = plan
        self.channel = channel
        self.scope = scope
        self.cause: BaseException | None = None
        if retries is None and backoff is None and timeout is None:
            retry, timeout_us = plan.retry, plan.timeout_us
        else:
            retry, timeout_us = call_options(plan, retries, backoff, timeout)
        data = dump(plan.record(args, kwargs), name)
        self.slot = Slot(body=True)
        outer = scope.id
        channel.open(
            self.slot,
            lambda number, value: wire.Call(
                number, outer, plan.kind, name, value, plan.effect, plan.undo, retry, timeout_us
            ),
            data,
        )

    def inner(self, go: wire.Go) -> Scope:
        """The scope of the body."""
        return Scope(self.slot.id, self.name, go.attempt, go.key, self.scope.task)

    def returned(self, value: Any) -> Any:
        """The body returned: what its caller gets, and the close.

        Raises:
            PayloadError: the value cannot be recorded, or is not what its annotation says.
        """
        data = dump(value, f"what {self.name} returned")
        result = rounded(self.plan, value, data, load)
        self.channel.close(self.slot, data)
        return result

    def raised(self, error: BaseException) -> None:
        """The body raised: Go (another attempt) or Fault comes next."""
        self.cause = error
        name, message, code, rule = told(error)
        self.channel.fail(self.slot, wire.Close(self.slot.id, error=name, message=message, code=code, rule=rule))

    def recorded(self, answer: Answer) -> Any:
        """What the node answered instead of Go: the recorded result, or the failure.

        Raises:
            HoldfastError: it failed for good.
        """
        if isinstance(answer, wire.Reply):
            value = load(answer.value.data) if answer.value.data else None
            return value if self.plan.result is None else self.plan.result(value)
        error = error_of(answer)
        if type(error) is HoldfastError:
            error = StepError(str(error))
        raise error from self.cause
