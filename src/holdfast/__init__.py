"""Holdfast: a governed execution runtime for AI agents.

What an author imports. Names are loaded when they are first used, so that ``import holdfast`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what typing calls it, and type checkers know; importing typing would double the time

if TYPE_CHECKING:
    from holdfast.agent.aio import AsyncChildRun, AsyncContext
    from holdfast.agent.children import ChildRun
    from holdfast.agent.context import Context
    from holdfast.agent.definition import agent, decision, step, tool, workflow
    from holdfast.agent.waits import Approval
    from holdfast.errors import (
        DeniedError,
        DivergenceError,
        HoldfastError,
        InDoubtError,
        IsolationError,
        KilledError,
        LLMError,
        PayloadError,
        RunError,
        StepError,
        StepTimeout,
        TerminatedError,
        UsageError,
    )

__all__ = [
    "Approval",
    "AsyncChildRun",
    "AsyncContext",
    "ChildRun",
    "Context",
    "DeniedError",
    "DivergenceError",
    "HoldfastError",
    "InDoubtError",
    "IsolationError",
    "KilledError",
    "LLMError",
    "PayloadError",
    "RunError",
    "StepError",
    "StepTimeout",
    "TerminatedError",
    "UsageError",
    "agent",
    "decision",
    "step",
    "tool",
    "workflow",
]

_HOMES = {
    "Approval": "agent.waits",
    "AsyncChildRun": "agent.aio",
    "AsyncContext": "agent.aio",
    "ChildRun": "agent.children",
    "Context": "agent.context",
    "decision": "agent.definition",
    "step": "agent.definition",
    "tool": "agent.definition",
    "workflow": "agent.definition",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "agent":  # the package, which is the decorator too
        return import_module("holdfast.agent")
    found = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
