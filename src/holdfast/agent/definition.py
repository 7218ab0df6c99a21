"""What an author writes on a class: ``@agent``, ``@workflow``, ``@decision``, ``@step`` and ``@tool``.

The decorators leave a mark and give back the same object, so classes and functions stay ordinary Python with their own
signatures, and can be called and tested without Holdfast.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar, overload

from holdfast.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
Seconds = float | int | timedelta
"""A duration: a number of seconds, or a timedelta."""
Effect = Literal["pure", "idempotent", "compensable", "irreversible"]
EFFECTS = ("pure", "idempotent", "compensable", "irreversible")

_MARK = "__holdfast__"
_AGENT = "__holdfast_agent__"


class Options(NamedTuple):
    """How often a call is tried, how long apart, and how long each attempt may take. None: not said."""

    retries: int | None = None
    """Further attempts after the first."""
    backoff: float | None = None
    """Seconds before the second attempt; doubles each time, up to a minute."""
    timeout: float | None = None
    """Seconds that one attempt may take."""


NO_OPTIONS = Options()


class Mark(NamedTuple):
    """What a decorator said about a function."""

    kind: str
    """workflow, decision, step or tool."""
    name: str = ""
    options: Options = NO_OPTIONS
    effect: str = "pure"
    undo: str = ""


class Definition(NamedTuple):
    """What :func:`inspect_class` found."""

    name: str
    workflows: dict[str, str]
    """Name of a workflow to the attribute that holds it."""
    tools: dict[str, tuple[str, str]]
    """Name of a tool to its effect class and the name of its undo (empty: none)."""
    attributes: dict[str, str]
    """Name of a tool to the attribute that holds it."""


def seconds(value: Seconds, what: str) -> float:
    """A duration in seconds.

    Raises:
        UsageError: it is negative or no number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise UsageError(f"{what} is {value!r}; give seconds from 0 up, or a timedelta")
    return value


def options(retries: int | None, backoff: Seconds | None, timeout: Seconds | None, what: str) -> Options:
    """Checked options.

    Raises:
        UsageError: one of them makes no sense; names it.
    """
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 1000):
        raise UsageError(f"retries of {what} is {retries!r}; give a whole number from 0 to 1000")
    if timeout is not None and seconds(timeout, f"timeout of {what}") == 0:
        raise UsageError(f"timeout of {what} is 0; leave it out for none")
    return Options(
        retries,
        None if backoff is None else seconds(backoff, f"backoff of {what}"),
        None if timeout is None else seconds(timeout, f"timeout of {what}"),
    )


@overload
def agent(cls: C, /) -> C: ...
@overload
def agent(*, name: str = "") -> Callable[[C], C]: ...
def agent(cls: C | None = None, /, *, name: str = "") -> C | Callable[[C], C]:
    """Make a class an agent. ``name`` is what policies, kills and the record call it; without one, the class's name."""

    def mark(cls: C) -> C:
        if not isinstance(cls, type):
            raise UsageError(f"@agent belongs on a class, not on {cls!r}")
        setattr(cls, _AGENT, _name(name or cls.__name__, "agent"))
        return cls

    return mark if cls is None else mark(cls)


@overload
def workflow(fn: F, /) -> F: ...
@overload
def workflow(*, name: str = "") -> Callable[[F], F]: ...
def workflow(fn: F | None = None, /, *, name: str = "") -> F | Callable[[F], F]:
    """Make a method a workflow: the entry of a run. Its body is run again after a suspension, its steps are not."""
    return _marker(fn, "workflow", name)


@overload
def decision(fn: F, /) -> F: ...
@overload
def decision(
    *, name: str = "", retries: int | None = None, backoff: Seconds | None = None, timeout: Seconds | None = None
) -> Callable[[F], F]: ...
def decision(
    fn: F | None = None,
    /,
    *,
    name: str = "",
    retries: int | None = None,
    backoff: Seconds | None = None,
    timeout: Seconds | None = None,
) -> F | Callable[[F], F]:
    """Make a method a decision: a step that the record shows as one. See :func:`step` for the options."""
    return _marker(fn, "decision", name, options(retries, backoff, timeout, "@decision"))


@overload
def step(fn: F, /) -> F: ...
@overload
def step(
    *, name: str = "", retries: int | None = None, backoff: Seconds | None = None, timeout: Seconds | None = None
) -> Callable[[F], F]: ...
def step(
    fn: F | None = None,
    /,
    *,
    name: str = "",
    retries: int | None = None,
    backoff: Seconds | None = None,
    timeout: Seconds | None = None,
) -> F | Callable[[F], F]:
    """Give a method or function standing options for ``ctx.call``, which takes plain ones as well.

    Args:
        name: what the record calls it; without one, the function's name.
        retries: further attempts after one that raised.
        backoff: seconds before the second attempt; doubles each time, up to a minute.
        timeout: seconds that one attempt may take.
    """
    return _marker(fn, "step", name, options(retries, backoff, timeout, "@step"))


@overload
def tool(fn: F, /) -> F: ...
@overload
def tool(
    *,
    name: str = "",
    effect: Effect = "irreversible",
    undo: str | Callable[..., Any] = "",
    retries: int | None = None,
    backoff: Seconds | None = None,
    timeout: Seconds | None = None,
) -> Callable[[F], F]: ...
def tool(
    fn: F | None = None,
    /,
    *,
    name: str = "",
    effect: Effect = "irreversible",
    undo: str | Callable[..., Any] = "",
    retries: int | None = None,
    backoff: Seconds | None = None,
    timeout: Seconds | None = None,
) -> F | Callable[[F], F]:
    """Make a method a tool: a step with an effect outside the boundary. Call it with ``ctx.call`` or ``ctx.tool``.

    Args:
        effect: what doing it twice means: pure, idempotent, compensable or irreversible (the default: never repeated
            when it may have happened).
        undo: the method (or its name) that takes a compensable effect back. It gets the arguments of the call by name,
            and ``result`` if it takes one.
    """
    if effect not in EFFECTS:
        raise UsageError(f"the effect {effect!r} of a @tool is not known; use one of {', '.join(EFFECTS)}")
    undo_name = undo if isinstance(undo, str) else str(getattr(undo, "__name__", ""))
    if undo_name and effect != "compensable":
        raise UsageError(f'a @tool with undo= is compensable; write effect="compensable", not {effect!r}')
    return _marker(fn, "tool", name, options(retries, backoff, timeout, "@tool"), effect, undo_name)


def _marker(
    fn: F | None, kind: str, name: str, options: Options = NO_OPTIONS, effect: str = "pure", undo: str = ""
) -> F | Callable[[F], F]:
    def mark(fn: F) -> F:
        if isinstance(fn, type) or not callable(getattr(fn, "__func__", fn)):
            raise UsageError(f"@{kind} belongs on a method or function, not on {fn!r}")
        # On the function itself: a staticmethod around it is gone when the method is looked up.
        own = _name(name, kind) if name else ""
        setattr(getattr(fn, "__func__", fn), _MARK, Mark(kind, own, options, effect, undo))
        return fn

    return mark if fn is None else mark(fn)


def _name(name: str, kind: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable() or "/" in name:
        raise UsageError(f"the name {name!r} of an @{kind} cannot be used; up to 200 printable characters without '/'")
    return name


def mark_of(fn: object) -> Mark | None:
    """What a decorator said about a function or method; None when there is no decorator."""
    mark = getattr(getattr(fn, "__func__", fn), _MARK, None)
    return mark if type(mark) is Mark else None


def name_of(fn: Any) -> str:
    """What the record calls a callable."""
    mark = mark_of(fn)
    return (mark.name if mark else "") or getattr(fn, "__name__", "") or type(fn).__name__


def inspect_class(cls: object) -> Definition:
    """What an agent class defines, its base classes included.

    Raises:
        UsageError: no class, not an ``@agent``, or without a ``@workflow``; says what to write.
    """
    if not isinstance(cls, type):
        raise UsageError(f"{cls!r} is not a class; a target names an @agent class")
    where = f"{cls.__module__}.{cls.__qualname__}"
    name = getattr(cls, _AGENT, None)
    if not isinstance(name, str):
        raise UsageError(f'{where} is not an agent. Write above it:\n    @agent(name="…")\n    class {cls.__name__}:')
    workflows: dict[str, str] = {}
    tools: dict[str, tuple[str, str]] = {}
    attributes: dict[str, str] = {}
    seen: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        seen.update(vars(base))
    for attribute, member in seen.items():
        mark = mark_of(member)
        if mark is None:
            continue
        own = mark.name or attribute
        if mark.kind == "workflow":
            if own in workflows:
                raise UsageError(f"{where} has two workflows named {own!r}; rename one")
            workflows[own] = attribute
        elif mark.kind == "tool":
            if own in tools:
                raise UsageError(f"{where} has two tools named {own!r}; rename one")
            if mark.undo and not callable(getattr(cls, mark.undo, None)):
                raise UsageError(f"the tool {own} of {where} names the undo {mark.undo!r}, which is no method of it")
            tools[own] = (mark.effect, mark.undo)
            attributes[own] = attribute
    if not workflows:
        raise UsageError(
            f"{where} has no workflow. Write above the method that starts it:\n    @workflow\n    def run(self, ctx):"
        )
    return Definition(name, workflows, tools, attributes)


def choose_workflow(definition: Definition, name: str = "") -> str:
    """The workflow to run: the one named, or the only one.

    Raises:
        UsageError: it is not there, or several are and none was named.
    """
    names = ", ".join(sorted(definition.workflows))
    if name:
        if name not in definition.workflows:
            raise UsageError(f"the agent {definition.name} has no workflow {name!r}; it has: {names}")
        return name
    if len(definition.workflows) > 1:
        raise UsageError(f"the agent {definition.name} has several workflows ({names}); name one with --workflow")
    return next(iter(definition.workflows))
