"""Where the author's code stands: the enclosing call, kept in a context variable.

The scope decides the ids of the calls made in it, and whether ``self`` may be changed. It follows the code into the
threads and tasks of ``ctx.gather``; a thread that Holdfast did not start has none, and cannot use ``ctx``.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.agent.chance import Random


class Scope:
    """One enclosing call, or a branch of ``gather``; 0 is the workflow itself."""

    __slots__ = ("attempt", "gathers", "id", "key", "random", "step", "task")

    def __init__(self, id: int, step: str = "", attempt: int = 1, key: str = "", task: object = None) -> None:
        self.id = id
        self.step = step
        """Name of the step whose body runs here; empty in the workflow's own body."""
        self.attempt = attempt
        self.key = key
        """Idempotency key of the step, stable over its attempts."""
        self.gathers = 0
        """How many gathers were begun here."""
        self.random: Random | None = None
        self.task = task
        """The asyncio task that is this branch; waits of other tasks say nothing about it."""


current: ContextVar[Scope | None] = ContextVar("holdfast_scope", default=None)


def require() -> Scope:
    """The scope of the running code.

    Raises:
        UsageError: there is none: a thread that Holdfast did not start.
    """
    scope = current.get()
    if scope is None:
        raise UsageError(
            "ctx was used outside its run or in a thread of your own; start parallel work with ctx.gather(...)"
        )
    return scope


def guard(cls: type) -> None:
    """Make setting or deleting attributes of ``cls`` instances raise while a step's body runs.

    A step is not run again when its result is recorded, so whatever it left on ``self`` would be missing after a
    resume. Patched by the worker only: elsewhere the class stays ordinary Python.
    """
    set_attribute: Any = cls.__setattr__
    delete_attribute: Any = cls.__delattr__

    def __setattr__(self: object, name: str, value: object) -> None:
        if (scope := current.get()) is not None and scope.step:
            raise _refusal(cls, name, scope.step)
        set_attribute(self, name, value)

    def __delattr__(self: object, name: str) -> None:
        if (scope := current.get()) is not None and scope.step:
            raise _refusal(cls, name, scope.step)
        delete_attribute(self, name)

    cls.__setattr__ = __setattr__  # type: ignore[assignment, method-assign]
    cls.__delattr__ = __delattr__  # type: ignore[assignment, method-assign]


def _refusal(cls: type, name: str, step: str) -> UsageError:
    return UsageError(
        f"the step {step} sets self.{name} of {cls.__name__}: that would be lost when the run resumes, since a "
        "recorded step is not run again. Return the value, or keep it in ctx.memory or ctx.files"
    )
