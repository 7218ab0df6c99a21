"""``ctx.gather`` of a ``def``: branches in threads, each with a scope of its own, results in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

from holdfast.agent.channel import Channel
from holdfast.agent.definition import mark_of
from holdfast.agent.plan import Face, plan_of
from holdfast.agent.scope import Scope, current, require
from holdfast.errors import UsageError

MAX_THREADS = 64
"""Threads that all gathers of a process have beside those that gather; without one to spare, the gathering thread runs
the branches itself, one after the other."""

_spare = threading.BoundedSemaphore(MAX_THREADS)


def body_of(ctx: Any, branch: Any, index: int) -> Callable[[], Any]:
    """What a branch runs: a function, a decorated step, a tuple of a step and its arguments, or an awaitable.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(branch, tuple) and branch and callable(branch[0]):
        return lambda: ctx.call(*branch)
    if hasattr(branch, "__await__"):
        return lambda: branch
    if not callable(branch):
        raise UsageError(
            f"branch {index} of gather is {type(branch).__name__}; give functions without arguments "
            "(lambda: ctx.call(…)), or tuples (method, argument, …)"
        )
    mark = mark_of(branch)
    if mark is not None and mark.kind != "workflow":
        return lambda: ctx.call(branch)
    return lambda: plan_of(branch).invoke(branch, ctx, (), {})


def inner(channel: Channel, scope: Scope, group: int, index: int) -> Scope:
    """Open the scope of a branch."""
    return Scope(channel.branch(scope.id, group, index), scope.step, scope.attempt, scope.key, scope.task)


def outcome(results: list[Any], errors: dict[int, BaseException], return_exceptions: bool) -> list[Any]:
    """The results in order. All branches have ended: which failure is raised must not depend on their timing."""
    for error in errors.values():
        if not isinstance(error, Exception):
            raise error
    if errors and not return_exceptions:
        raise errors[min(errors)]
    return [errors.get(index, result) for index, result in enumerate(results)]


def gather(
    channel: Channel, ctx: Face, branches: Sequence[Any], return_exceptions: bool, finish: Callable[[Any], Any]
) -> list[Any]:
    """Run branches side by side; see :meth:`holdfast.Context.gather`."""
    scope = require()
    scope.gathers += 1
    group = scope.gathers
    bodies = [body_of(ctx, branch, index) for index, branch in enumerate(branches)]
    results: list[Any] = [None] * len(bodies)
    errors: dict[int, BaseException] = {}
    todo = iter(range(len(bodies)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = next(todo, None)
            if index is None:
                return
            token = current.set(inner(channel, scope, group, index))
            try:
                results[index] = finish(bodies[index]())
            except BaseException as error:  # noqa: BLE001 - raised again by the gathering thread
                errors[index] = error
            finally:
                current.reset(token)

    def helper() -> None:
        try:
            work()
        finally:
            _spare.release()
            channel.running(-1)

    threads: list[threading.Thread] = []
    while len(threads) < len(bodies) - 1 and _spare.acquire(blocking=False):
        threads.append(threading.Thread(target=copy_context().run, args=(helper,), daemon=True))
    channel.running(len(threads))
    for thread in threads:
        thread.start()
    work()
    if threads:
        channel.running(-1)
        for thread in threads:
            thread.join()
        channel.running(1)
    return outcome(results, errors, return_exceptions)
