"""What Holdfast needs to know of a callable before it runs it as a step: looked up once, kept on the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from holdfast import wire
from holdfast.agent.convert import returns
from holdfast.agent.definition import NO_OPTIONS, Options, mark_of, name_of, options
from holdfast.errors import UsageError

_COROUTINE = 0x80  # inspect.CO_COROUTINE
_VARARGS, _VARKEYWORDS = 0x04, 0x08
_SCALARS = frozenset({str, int, bool, type(None)})
_CONTEXTS = frozenset({"Context", "AsyncContext"})


class Face:
    """Base of the two faces of ``ctx``; here so that a plan can tell a ``ctx`` from other arguments."""

    __slots__ = ()


class Plan:
    """How to call one callable, and what to record of its arguments."""

    __slots__ = (
        "ctx_at",
        "ctx_name",
        "effect",
        "is_async",
        "kind",
        "name",
        "names",
        "options",
        "parameters",
        "rest",
        "result",
        "retry",
        "target",
        "timeout_us",
        "undo",
    )

    def __init__(self, fn: Any, target: Any, bound: bool) -> None:
        mark = mark_of(target)
        self.target = target
        self.name = name_of(target)
        self.kind = mark.kind if mark and mark.kind != "workflow" else "step"
        self.effect = mark.effect if mark else "pure"
        self.undo = mark.undo if mark else ""
        self.options = mark.options if mark else NO_OPTIONS
        self.retry, self.timeout_us = wire_options(self.options, wire.Retry(), 0)
        inner = target
        while (wrapped := getattr(inner, "__wrapped__", None)) is not None:
            inner = wrapped
        code = getattr(inner, "__code__", None)
        self.is_async = bool(code and code.co_flags & _COROUTINE)
        positional: tuple[str, ...] = ()
        keyword: tuple[str, ...] = ()
        self.rest = "args"
        if code is not None:
            names = code.co_varnames
            count = code.co_argcount
            positional = names[1 if bound else 0 : count]
            keyword = names[count : count + code.co_kwonlyargcount]
            if code.co_flags & _VARARGS:
                self.rest = names[count + code.co_kwonlyargcount]
        notes: Mapping[str, Any] = getattr(inner, "__annotations__", {})
        self.ctx_name = next((name for name in (*positional, *keyword) if _is_ctx(name, notes.get(name))), "")
        self.ctx_at = positional.index(self.ctx_name) if self.ctx_name in positional else -1
        self.names = tuple(name for name in positional if name != self.ctx_name)
        self.parameters = frozenset((*self.names, *keyword)) - {self.ctx_name}
        self.result = returns(inner, f"what {self.name} returned")

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, as policies and approvers see them; without ``ctx``."""
        if self.ctx_name:
            args = tuple(value for value in args if not isinstance(value, Face))
            kwargs = {name: value for name, value in kwargs.items() if name != self.ctx_name}
        known = len(self.names)
        found = dict(zip(self.names, args, strict=False))
        if len(args) > known:
            found[self.rest] = args[known:]
        if kwargs:
            found |= kwargs
        return found

    def invoke(self, fn: Callable[..., Any], ctx: Face, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call it, with ``ctx`` where it takes one."""
        if not self.ctx_name:
            return fn(*args, **kwargs)
        at = self.ctx_at
        if at < 0 or len(args) < at:
            return fn(*args, **{**kwargs, self.ctx_name: ctx})
        if len(args) > at and isinstance(args[at], Face):
            return fn(*args[:at], ctx, *args[at + 1 :], **kwargs)
        kwargs.pop(self.ctx_name, None)
        return fn(*args[:at], ctx, *args[at:], **kwargs)


def plan_of(fn: Any) -> Plan:
    """The plan of a callable.

    Raises:
        UsageError: it is no callable.
    """
    bound = type(fn) is MethodType
    target = fn.__func__ if bound else fn
    slot = "__holdfast_bound__" if bound else "__holdfast_free__"
    held: dict[str, Any] | None = getattr(target, "__dict__", None)
    if held is not None:
        plan = held.get(slot)
        # functools.wraps copies the attributes of what it wraps, this one too.
        if type(plan) is Plan and plan.target is target:
            return plan
    if not callable(fn):
        hint = "; it was called already, write ctx.call(fn, …) without the brackets" if fn is None else ""
        raise UsageError(f"ctx.call takes a method or function, not {type(fn).__name__}{hint}")
    plan = Plan(fn, target, bound)
    if type(held) is dict:
        setattr(target, slot, plan)
    return plan


def step_name(plan: Plan) -> str:
    """The name of a step.

    Raises:
        UsageError: it is a lambda without a name.
    """
    if plan.name == "<lambda>":
        raise UsageError('a lambda has no name for the record; write step(name="…")(lambda: …) or a function')
    return plan.name


def wire_options(given: Options, retry: wire.Retry, timeout_us: int) -> tuple[wire.Retry, int]:
    """Options as the wire carries them, over the defaults of a kind of call."""
    if given.retries is not None or given.backoff is not None:
        retry = wire.Retry(
            attempts=retry.attempts if given.retries is None else given.retries + 1,
            backoff_us=retry.backoff_us if given.backoff is None else round(given.backoff * 1e6),
        )
    if given.timeout is not None:
        timeout_us = max(1, round(given.timeout * 1e6))
    return retry, timeout_us


def call_options(plan: Plan, retries: Any, backoff: Any, timeout: Any) -> tuple[wire.Retry, int]:
    """Options of one ``ctx.call``, over those of the decorator.

    Raises:
        UsageError: one of them makes no sense, or is also a parameter of the callee.
    """
    for name, value in (("retries", retries), ("backoff", backoff), ("timeout", timeout)):
        if value is not None and name in plan.parameters:
            raise UsageError(
                f"{plan.name} has a parameter {name}, which ctx.call takes as its own; pass it by position"
            )
    return wire_options(options(retries, backoff, timeout, plan.name), plan.retry, plan.timeout_us)


def rounded(plan: Plan, value: Any, data: bytes, load: Callable[[bytes], Any]) -> Any:
    """What a step's result is to its caller: the JSON round trip, so that the first run sees what replay will see."""
    kind = type(value)
    plain = value if kind in _SCALARS else load(data)
    return plain if plan.result is None else plan.result(plain)


def _is_ctx(name: str, note: Any) -> bool:
    if name == "ctx":
        return True
    label = note if isinstance(note, str) else getattr(note, "__name__", "")
    return label.rpartition(".")[2] in _CONTEXTS


__all__ = ["Face", "Plan", "call_options", "plan_of", "rounded", "step_name", "wire_options"]
