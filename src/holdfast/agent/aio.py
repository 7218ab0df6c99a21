"""``ctx`` of an ``async def``: what waits is awaited; what is answered at once is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from holdfast import wire
from holdfast.agent import children, llm, stores, tools, waits
from holdfast.agent.channel import Channel, Slot
from holdfast.agent.children import Crew
from holdfast.agent.context import _DAY, Base, Context
from holdfast.agent.definition import Seconds
from holdfast.agent.faults import error_of
from holdfast.agent.llm import LLMOptions, Message, Pieces, Prompt
from holdfast.agent.ops import Op
from holdfast.agent.plan import plan_of
from holdfast.agent.scope import current, require
from holdfast.agent.steps import Step
from holdfast.agent.waits import Approval, Expiry

if TYPE_CHECKING:
    from holdfast.agent.http import AsyncHTTP

T = TypeVar("T")
Ado = Callable[[Op[Any]], Coroutine[Any, Any, Any]]


class AsyncContext(Base):
    """``ctx`` of an ``async def``. As :class:`Context`, but what waits is awaited.

    ``now``, ``uuid``, ``random``, ``patched``, ``budget``, ``log`` and ``continue_as_new`` are used without ``await``.
    Use ``ctx.gather`` to run things side by side: tasks of your own share one scope, and calls that they make in an
    order that depends on timing cannot be replayed.
    """

    __slots__ = ("_loop", "_sync", "files", "llm", "memory")

    def __init__(self, channel: Channel, **known: Any) -> None:
        super().__init__(channel, **known)
        # Not at the top: importing the public face must not load asyncio.
        from holdfast.agent import loop

        self._loop = loop
        self.llm = AsyncLLM(channel, self._ado)
        """Models: ``generate``, ``chat``, ``classify``, ``extract``, ``stream``."""
        self.memory = AsyncMemory(self._ado)
        """What the agent keeps from run to run."""
        self.files = AsyncFiles(self._ado)
        """The run's artefacts."""
        self._sync = Context(channel, **known)

    @property
    def http(self) -> AsyncHTTP:
        """Requests through the egress proxy, as httpx has them: ``await ctx.http.get(url)``."""
        from holdfast.agent.http import AsyncHTTP

        return AsyncHTTP()

    @classmethod
    def beside(cls, ctx: Base) -> AsyncContext:
        """The same run's other face."""
        return cls(
            ctx._channel,
            agent=ctx._agent,
            definition=ctx._definition,
            run_id=ctx.run_id,
            tenant=ctx.tenant,
            input=ctx.input,
        )

    async def _ado(self, op: Op[T]) -> T:
        scope = require().id
        slot = Slot()
        self._channel.open(slot, lambda number, value: op.make(number, scope, value), op.data)
        answer = await self._loop.wait(self._channel, slot)
        if type(answer) is wire.Reply:
            return op.read(answer.value.data)
        raise error_of(answer)

    @overload
    async def call(
        self,
        fn: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> T: ...
    @overload
    async def call(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> T: ...
    async def call(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        retries: int | None = None,
        backoff: Seconds | None = None,
        timeout: Seconds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a method or function as a step; see :meth:`Context.call`. A plain ``def`` runs in a thread."""
        plan = plan_of(fn)
        channel, sync, loop = self._channel, self._sync, self._loop
        step = Step(channel, require(), plan, args, kwargs, retries, backoff, timeout)
        while True:
            answer = await loop.wait(channel, step.slot)
            if type(answer) is not wire.Go:
                return step.recorded(answer)
            token = current.set(step.inner(answer))
            try:
                if plan.is_async:
                    value = await plan.invoke(fn, self, args, kwargs)
                else:
                    value = await loop.in_thread(channel, lambda: sync._finish(plan.invoke(fn, sync, args, kwargs)))
                return step.returned(value)
            except loop.CancelledError as error:
                step.raised(error)
                channel.drop(step.slot)
                raise
            except Exception as error:  # noqa: BLE001 - the node decides what follows from it
                step.raised(error)
            finally:
                current.reset(token)

    async def tool(
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
        """Call a connector by name, or a ``@tool`` method; see :meth:`Context.tool`."""
        if callable(tool):
            given = {**(args or {}), **kwargs}
            return await self.call(tool, retries=retries, backoff=backoff, timeout=timeout, **given)
        return await self._ado(tools.connector(tool, args, kwargs, retries, backoff, timeout))

    async def approve(
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
        """Wait until people approve ``what``; see :meth:`Context.approve`."""
        return await self._ado(waits.approve(what, approvers, quorum, ttl, on_expiry, escalate_to, raise_on_deny))

    async def declassify(
        self,
        label: str,
        *,
        reason: str,
        approvers: Sequence[str] | str = (),
        quorum: int = 1,
        ttl: Seconds = _DAY,
    ) -> Approval:
        """Wait until people take a label off what the run has read so far; see :meth:`Context.declassify`."""
        what = {"label": label, "reason": reason}
        return await self._ado(waits.approve(what, approvers, quorum, ttl, "deny", (), True, "declassify"))

    async def ask(self, question: Any, *, ttl: Seconds | None = None) -> Any:
        """Wait for a person's free answer; see :meth:`Context.ask`."""
        return await self._ado(waits.ask(question, ttl))

    async def signal(self, run: str | AsyncChildRun, name: str, data: Any = None) -> bool:
        """Send a signal to another run of the same tenant; see :meth:`Context.signal`."""
        return await self._ado(waits.signal(run if isinstance(run, str) else run.run_id, name, data))

    async def wait_signal(self, name: str, *, timeout: Seconds | None = None) -> Any:
        """Wait for a signal and return its data; see :meth:`Context.wait_signal`."""
        return await self._ado(waits.wait_signal(name, timeout))

    async def sleep(self, duration: Seconds) -> None:
        """Wait for seconds, or a timedelta; for days too."""
        await self._ado(waits.sleep(duration))

    async def gather(self, *branches: Any, return_exceptions: bool = False) -> list[Any]:
        """Run branches side by side and return their results in order; see :meth:`Context.gather`.

        A branch may also be an awaitable that has not begun: ``ctx.gather(ctx.call(self.a), ctx.call(self.b))``.
        """
        return await self._loop.gather(self._channel, self, branches, return_exceptions)

    async def spawn(
        self,
        agent: type | str,
        input: Any = None,
        *,
        workflow: str = "",
        budget_usd: float = 0,
        authority: Sequence[str] | None = None,
    ) -> AsyncChildRun:
        """Start a child run; see :meth:`Context.spawn`."""
        return AsyncChildRun(await self._ado(children.spawn(agent, input, workflow, budget_usd, authority)), self._ado)

    async def spawn_many(
        self,
        agent: type | str,
        inputs: Iterable[Any],
        *,
        max_parallel: int = 16,
        workflow: str = "",
        budget_usd: float = 0,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Run a child for each input and return their outputs in order; see :meth:`Context.spawn_many`."""
        scope = require().id
        items = list(inputs)
        crew = Crew(len(items), max_parallel)
        slot = Slot()
        while True:
            while (place := crew.start()) is not None:
                child = await self.spawn(agent, items[place], workflow=workflow, budget_usd=budget_usd)
                number = self._channel.open(slot, partial(children.join_message, child.run_id, scope))
                crew.open[number] = place
            if not crew.open:
                return crew.outcome(return_exceptions)
            crew.take(await self._loop.wait(self._channel, slot))

    async def compensate(self) -> int:
        """Undo the compensable effects of this run so far, latest first; see :meth:`Context.compensate`."""
        found = await self._ado(tools.compensate())
        for entry in found:
            if entry["kind"] == "connector":
                await self.tool(entry["name"], entry["args"])
            else:
                method, kwargs = self._undo(entry)
                await self.call(method, **kwargs)
        return len(found)


class AsyncChildRun:
    """A child run that was started."""

    __slots__ = ("_ado", "run_id")

    def __init__(self, run_id: str, ado: Ado) -> None:
        self.run_id = run_id
        self._ado = ado

    async def result(self) -> Any:
        """Wait for its output; see :meth:`ChildRun.result`."""
        return await self._ado(children.join(self.run_id))

    def __repr__(self) -> str:
        return f"AsyncChildRun({self.run_id!r})"


class AsyncStream(AsyncIterator[str]):
    """The pieces of a model's answer as they come; see :class:`holdfast.agent.llm.Stream`."""

    def __init__(self, channel: Channel, op: Op[str]) -> None:
        self._pieces = Pieces(channel, op)

    @property
    def text(self) -> str:
        """What came so far; after the loop, all of it."""
        return self._pieces.text

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        from holdfast.agent.loop import wait

        pieces = self._pieces
        while not pieces.done:
            if piece := pieces.take(await wait(pieces.channel, pieces.slot)):
                return piece
        raise StopAsyncIteration

    def close(self) -> None:
        """Stop here: the node lets the rest go."""
        self._pieces.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncLLM:
    """``ctx.llm`` of an ``async def``; see :class:`holdfast.agent.llm.LLM`."""

    __slots__ = ("_ado", "_channel")

    def __init__(self, channel: Channel, ado: Ado) -> None:
        self._channel = channel
        self._ado = ado

    async def generate(self, prompt: Prompt, **given: Unpack[LLMOptions]) -> str:
        """The model's answer to a text."""
        return cast(str, await self._ado(llm.generate(prompt, **given)))

    async def chat(self, messages: Sequence[Message], **given: Unpack[LLMOptions]) -> str:
        """The model's next turn of a conversation."""
        return cast(str, await self._ado(llm.chat(messages, **given)))

    async def classify(self, content: Any, categories: Sequence[str], **given: Unpack[LLMOptions]) -> str:
        """The one of ``categories`` that a text (or a JSON value) belongs to, never anything else."""
        return cast(str, await self._ado(llm.classify(content, categories, **given)))

    @overload
    async def extract(self, content: Any, schema: type[T], **given: Unpack[LLMOptions]) -> T: ...
    @overload
    async def extract(self, content: Any, schema: dict[str, Any], **given: Unpack[LLMOptions]) -> Any: ...
    async def extract(self, content: Any, schema: Any, **given: Unpack[LLMOptions]) -> Any:
        """What a text says, as an object of ``schema``; see :meth:`holdfast.agent.llm.LLM.extract`."""
        return await self._ado(llm.extract(content, schema, **given))

    def stream(self, prompt: Prompt, **given: Unpack[LLMOptions]) -> AsyncStream:
        """The answer to a text or a conversation, piece by piece: ``async for piece in ctx.llm.stream(…)``."""
        return AsyncStream(self._channel, llm.generate(prompt, stream=True, **given))


class AsyncMemory:
    """``ctx.memory`` of an ``async def``; see :class:`holdfast.agent.context.Memory`."""

    __slots__ = ("_ado",)

    def __init__(self, ado: Ado) -> None:
        self._ado = ado

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        return await self._ado(stores.get(key, default))

    async def set(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""
        await self._ado(stores.put(key, value))

    async def delete(self, key: str) -> None:
        """Forget a key; one that is not there is no error."""
        await self._ado(stores.forget(key))

    async def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with ``prefix``, sorted."""
        return sorted(await self._ado(stores.keys(prefix)))


class AsyncFiles:
    """``ctx.files`` of an ``async def``; see :class:`holdfast.agent.context.Files`."""

    __slots__ = ("_ado",)

    def __init__(self, ado: Ado) -> None:
        self._ado = ado

    async def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return cast(bytes, await self._ado(stores.read_file(name)))

    async def read_text(self, name: str) -> str:
        """The text of a file, which is UTF-8."""
        return (await self.read(name)).decode()

    async def write(self, name: str, data: bytes | str) -> None:
        """Keep bytes, or text as UTF-8, under a name; what was there is replaced."""
        await self._ado(stores.write_file(name, data))

    async def collect(self, path: str = "") -> stores.Collected:
        """Keep the files at a path of the workspace."""
        return cast(stores.Collected, await self._ado(stores.collect_files(path)))

    async def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        await self._ado(stores.delete_file(name))

    async def list(self, prefix: str = "") -> list[str]:
        """The names that begin with ``prefix``, sorted."""
        return sorted(await self._ado(stores.list_files(prefix)))
