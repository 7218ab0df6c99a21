"""``ctx`` of a ``def``: everything that an agent does beyond plain Python goes through here."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from holdfast import wire
from holdfast.agent import children, sample, stores, tools, waits
from holdfast.agent.channel import Channel, Slot
from holdfast.agent.children import ChildRun, Crew
from holdfast.agent.definition import Definition, Seconds
from holdfast.agent.faults import error_of
from holdfast.agent.llm import LLM
from holdfast.agent.log import Log
from holdfast.agent.ops import Op
from holdfast.agent.plan import Face, plan_of
from holdfast.agent.scope import current, require
from holdfast.agent.steps import Step
from holdfast.agent.tools import Budget
from holdfast.agent.waits import Approval, Expiry
from holdfast.errors import UsageError
from holdfast.values import dump

if TYPE_CHECKING:
    from holdfast.agent.chance import Random
    from holdfast.agent.http import HTTP

T = TypeVar("T")
_DAY = 86_400


class Base(Face):
    """What both faces of ``ctx`` have: what is known at once, or answered at once."""

    __slots__ = ("_agent", "_channel", "_definition", "budget", "input", "log", "run_id", "tenant")

    def __init__(
        self, channel: Channel, *, agent: object, definition: Definition, run_id: str, tenant: str, input: Any
    ) -> None:
        self._channel = channel
        self._agent = agent
        self._definition = definition
        self.run_id = run_id
        """Id of this run."""
        self.tenant = tenant
        """Whose run it is."""
        self.input: Any = input
        """The run's input: JSON, its objects by attribute and by key."""
        self.log = Log(channel)
        """Lines of the run's record: ``ctx.log.info("paid", invoice=7)``."""
        self.budget = Budget(self._do)
        """What is left: ``usd_left``, ``tokens_left``."""

    def _do(self, op: Op[T]) -> T:
        """Send a request and wait for its answer in this thread."""
        scope = require().id
        slot = Slot()
        self._channel.open(slot, lambda number, value: op.make(number, scope, value), op.data)
        answer = self._channel.wait(slot)
        if type(answer) is wire.Reply:
            return op.read(answer.value.data)
        raise error_of(answer)

    @property
    def attempt(self) -> int:
        """Which attempt of the running step this is, from 1."""
        return require().attempt

    @property
    def idempotency_key(self) -> str:
        """Key of the running step, the same in every attempt and after a crash: give it to whoever must not do a
        thing twice. Empty in the workflow's own body."""
        return require().key

    def now(self) -> datetime.datetime:
        """The time, in UTC; the same in a replay."""
        return self._do(sample.now())

    def uuid(self) -> uuid.UUID:
        """A fresh UUID; the same in a replay."""
        return self._do(sample.new_uuid())

    @property
    def random(self) -> Random:
        """Chance that is the same in a replay: ``ctx.random()`` is a float from 0 to 1, and ``ctx.random.choice(…)``
        and all else of :class:`random.Random` is there as well."""
        from holdfast.agent.chance import random_of

        return random_of(self._do)

    def patched(self, name: str, highest: int = 1) -> int:
        """The version of the workflow's code named ``name`` that this run goes by: ``highest`` for a run that comes
        here for the first time, 0 for one that was past this place before the patch was written."""
        return self._do(sample.patched(name, highest))

    def continue_as_new(self, input: Any) -> NoReturn:
        """Start the workflow anew with another input and an empty history, in the same run. Never returns.

        Raises:
            PayloadError: the input cannot be recorded.
        """
        require()
        slot = Slot()
        self._channel.open(slot, wire.Continue, dump(input, "the input of continue_as_new"))
        raise error_of(self._channel.wait(slot))

    def _undo(self, entry: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        name = entry["name"]
        method = getattr(self._agent, self._definition.attributes.get(name, name), None)
        if not callable(method):
            raise UsageError(f"{name}, which undoes a recorded effect, is no method of {type(self._agent).__name__}")
        given = {**entry["args"], "result": entry.get("result")}
        plan = plan_of(method)
        return method, {key: value for key, value in given.items() if key in plan.parameters}


class Context(Base):
    """``ctx`` of a ``def``: its methods return results. An ``async def`` gets :class:`AsyncContext`."""

    __slots__ = ("files", "llm", "memory")

    def __init__(self, channel: Channel, **known: Any) -> None:
        super().__init__(channel, **known)
        self.llm = LLM(channel, self._do)
        """Models: ``generate``, ``chat``, ``classify``, ``extract``, ``stream``."""
        self.memory = Memory(self._do)
        """What the agent keeps from run to run."""
        self.files = Files(self._do)
        """The run's artefacts."""

    @property
    def http(self) -> HTTP:
        """Requests through the egress proxy, as httpx has them: ``ctx.http.get(url)``. Other libraries and programs
        find the same proxy in their environment."""
        from holdfast.agent.http import HTTP

        return HTTP()

    @overload
    def call(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> T: ...
    @overload
    def call(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> T: ...
    def call(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a method or function as a step: decided before, recorded after, never run again once it returned.

        ``ctx`` is passed when it takes one. The result is what JSON makes of it (or the dataclass, Struct, TypedDict or
        pydantic model that its annotation names), in the first run as in a replay.

        Args:
            retries: further attempts after one that raised.
            backoff: seconds before the second attempt; doubles each time, up to a minute.
            timeout: seconds that one attempt may take.

        Raises:
            StepError: it raised in its last attempt; the author's exception is its cause.
            StepTimeout: its last attempt took too long.
            DeniedError: a policy denied it.
            PayloadError: an argument or the result is no JSON, or too large.
        """
        plan = plan_of(fn)
        step = Step(self._channel, require(), plan, args, kwargs, retries, backoff, timeout)
        while True:
            answer = self._channel.wait(step.slot)
            if type(answer) is not wire.Go:
                return step.recorded(answer)
            token = current.set(step.inner(answer))
            try:
                if plan.is_async:
                    value = self._finish(plan.invoke(fn, self._async(), args, kwargs))
                else:
                    value = self._finish(plan.invoke(fn, self, args, kwargs))
                return step.returned(value)
            except Exception as error:  # noqa: BLE001 - the node decides what follows from it
                step.raised(error)
            finally:
                current.reset(token)

    def tool(
        self,
        tool: str | Callable[..., Any],
        args: Mapping[str, Any] | None = None,
        /,
        *,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a connector by name, or a ``@tool`` method; arguments by name, or as one mapping.

        Raises:
            StepError: it failed in its last attempt.
            StepTimeout: its last attempt took too long.
            DeniedError: a policy denied it, or there is no such connector for this tenant.
        """
        if callable(tool):
            return self.call(tool, retries=retries, backoff=backoff, timeout=timeout, **{**(args or {}), **kwargs})
        return self._do(tools.connector(tool, args, kwargs, retries, backoff, timeout))

    def approve(
        self,
        what: Any,
        *,
        approvers: Sequence[str] | str = (),
        quorum: int = 1,
        ttl: Seconds = _DAY,
        on_expiry: Expiry = "deny",
        escalate_to: Sequence[str] | str = (),
        raise_on_deny: bool = True,
    ) -> Approval:
        """Wait until people approve ``what``, which is shown to them and bound by its digest.

        Args:
            approvers: ``role:NAME`` or ``user:NAME``; none: any authenticated person.
            quorum: how many distinct people must approve; one refusal denies.
            ttl: seconds until it expires.
            on_expiry: deny, approve, or escalate (to ``escalate_to``, for another ``ttl``).
            raise_on_deny: False: return the refusal instead of raising it.

        Raises:
            DeniedError: it was refused, or expired.
        """
        return self._do(waits.approve(what, approvers, quorum, ttl, on_expiry, escalate_to, raise_on_deny))

    def declassify(
        self,
        label: str,
        *,
        reason: str,
        approvers: Sequence[str] | str = (),
        quorum: int = 1,
        ttl: Seconds = _DAY,
    ) -> Approval:
        """Wait until people take a label (``private``, ``untrusted``, …) off what the run has read so far.

        What it reads afterwards carries the label anew. Who approved, and why, is on record.

        Raises:
            DeniedError: it was refused, or expired.
            UsageError: there is no such label, or no reason.
        """
        what = {"label": label, "reason": reason}
        return self._do(waits.approve(what, approvers, quorum, ttl, "deny", (), True, "declassify"))

    def ask(self, question: Any, *, ttl: Seconds | None = None) -> Any:
        """Wait for a person's free answer.

        Raises:
            StepTimeout: none came within ``ttl`` seconds.
        """
        return self._do(waits.ask(question, ttl))

    def signal(self, run: str | ChildRun, name: str, data: Any = None) -> bool:
        """Send a signal to another run of the same tenant; False: that run had ended."""
        return self._do(waits.signal(run if isinstance(run, str) else run.run_id, name, data))

    def wait_signal(self, name: str, *, timeout: Seconds | None = None) -> Any:
        """Wait for a signal and return its data.

        Raises:
            StepTimeout: none came within ``timeout`` seconds.
        """
        return self._do(waits.wait_signal(name, timeout))

    def sleep(self, duration: Seconds) -> None:
        """Wait for seconds, or a timedelta; for days too, since a waiting run costs no process."""
        self._do(waits.sleep(duration))

    def gather(self, *branches: Any, return_exceptions: bool = False) -> list[Any]:
        """Run branches side by side and return their results in order.

        A branch is a function without arguments (``lambda: ctx.call(self.score, 7)``), a decorated step, or a tuple of
        a step and its arguments. All branches run to their end; then the first failure, in the order of the branches,
        is raised, or stands among the results with ``return_exceptions``.
        """
        from holdfast.agent.gather import gather

        return gather(self._channel, self, branches, return_exceptions, self._finish)

    def spawn(
        self,
        agent: type | str,
        input: Any = None,
        *,
        workflow: str = "",
        budget_usd: float = 0,
        authority: Sequence[str] | None = None,
    ) -> ChildRun:
        """Start a child run of an agent class of this deployment (or ``module:Class``).

        Args:
            workflow: which one, where the class has several.
            budget_usd: a ceiling of its own, in dollars; 0: only the policies' limits.
            authority: what it may do, as in ``["tool:read_*"]``; None: what this run may. Policies hold it to that.

        Raises:
            DeniedError: a policy denied it.
        """
        return ChildRun(self._do(children.spawn(agent, input, workflow, budget_usd, authority)), self._do)

    def spawn_many(
        self,
        agent: type | str,
        inputs: Iterable[Any],
        *,
        max_parallel: int = 16,
        workflow: str = "",
        budget_usd: float = 0,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Run a child for each input, at most ``max_parallel`` at once, and return their outputs in order.

        All run to their end; then the first failure is raised, or stands among the results with ``return_exceptions``.
        """
        scope = require().id
        items = list(inputs)
        crew = Crew(len(items), max_parallel)
        slot = Slot()
        while True:
            while (place := crew.start()) is not None:
                child = self.spawn(agent, items[place], workflow=workflow, budget_usd=budget_usd)
                number = self._channel.open(slot, partial(children.join_message, child.run_id, scope))
                crew.open[number] = place
            if not crew.open:
                return crew.outcome(return_exceptions)
            crew.take(self._channel.wait(slot))

    def compensate(self) -> int:
        """Undo the compensable effects of this run so far, latest first; each undo is a recorded call of its own.
        Returns how many there were."""
        found = self._do(tools.compensate())
        for entry in found:
            if entry["kind"] == "connector":
                self.tool(entry["name"], entry["args"])
            else:
                method, kwargs = self._undo(entry)
                self.call(method, **kwargs)
        return len(found)

    def _async(self) -> Face:
        from holdfast.agent.aio import AsyncContext

        return AsyncContext.beside(self)

    def _finish(self, value: Any) -> Any:
        """Run an awaitable to its end; anything else is the result."""
        if not hasattr(value, "__await__"):
            return value
        from holdfast.agent.loop import run

        return run(self._channel, value)


class Memory:
    """``ctx.memory`` of a ``def``: values by key, per tenant and agent, that outlast the run."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[Op[Any]], Any]) -> None:
        self._do = do

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        return self._do(stores.get(key, default))

    def set(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""
        self._do(stores.put(key, value))

    def delete(self, key: str) -> None:
        """Forget a key; one that is not there is no error."""
        self._do(stores.forget(key))

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with ``prefix``, sorted."""
        return sorted(self._do(stores.keys(prefix)))


class Files:
    """``ctx.files`` of a ``def``: the run's artefacts, by name."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[Op[Any]], Any]) -> None:
        self._do = do

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            StepError: there is none of this name.
        """
        found: bytes = self._do(stores.read_file(name))
        return found

    def read_text(self, name: str) -> str:
        """The text of a file, which is UTF-8. Raises as :meth:`read` does."""
        return self.read(name).decode()

    def write(self, name: str, data: bytes | str) -> None:
        """Keep bytes, or text as UTF-8, under a name; what was there is replaced."""
        self._do(stores.write_file(name, data))

    def collect(self, path: str = "") -> stores.Collected:
        """Keep the file at a path of the workspace, or every file below it, under its path; without: all there are.

        Plain files only: links, devices, sparse files and the like stay, and are named with the reason.

        Raises:
            PayloadError: nothing stands there, or more than may be kept.
            StepError: files cannot be collected at this isolation level.
            DeniedError: a policy denied it.
        """
        found: stores.Collected = self._do(stores.collect_files(path))
        return found

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._do(stores.delete_file(name))

    def list(self, prefix: str = "") -> list[str]:
        """The names that begin with ``prefix``, sorted."""
        return sorted(self._do(stores.list_files(prefix)))
