"""``ctx.llm``: a model's answers. The node holds the keys, speaks the provider's protocol, and meters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, cast, overload

from holdfast import wire
from holdfast.agent.channel import Channel, Slot
from holdfast.agent.convert import schema_of
from holdfast.agent.definition import Seconds, options
from holdfast.agent.faults import error_of
from holdfast.agent.ops import Op
from holdfast.agent.plan import wire_options
from holdfast.agent.scope import require
from holdfast.errors import LLMError, UsageError
from holdfast.values import dump, load

T = TypeVar("T")
Message = Mapping[str, str]
"""``{"role": "user" | "assistant" | "system", "content": text}``."""
Prompt = str | Sequence[Message]


class LLMOptions(TypedDict, total=False):
    """What every call of ``ctx.llm`` takes beside its content; left out, the operator's settings apply."""

    system: str
    """Instructions."""
    model: str
    max_tokens: int
    temperature: float
    stop: Sequence[str]
    retries: int
    backoff: Seconds
    timeout: Seconds


_RETRY = wire.Retry(attempts=3)
_TIMEOUT_US = 120_000_000
REFILL = wire.WINDOW // 2
"""Chunks after which the node is given credit again."""


def request(
    operation: str,
    content: Any,
    read: Callable[[bytes], T],
    *,
    system: str = "",
    model: str = "",
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] = (),
    retries: int | None = None,
    backoff: Seconds | None = None,
    timeout: Seconds | None = None,
    stream: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Op[T]:
    """A model call ready to be sent.

    Raises:
        UsageError: a message or an option makes no sense.
    """
    what = f"ctx.llm.{operation}"
    messages, system = _messages(content, system, what)
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise UsageError(f"max_tokens of {what} is {max_tokens!r}; give a whole number from 1 up")
    asked: dict[str, Any] = {"messages": messages, **(more or {})}
    for name, value in (("system", system), ("model", model), ("max_tokens", max_tokens), ("temperature", temperature)):
        if value not in ("", None):
            asked[name] = value
    if stop:
        asked["stop"] = [stop] if isinstance(stop, str) else list(stop)
    retry, timeout_us = wire_options(options(retries, backoff, timeout, what), _RETRY, _TIMEOUT_US)
    return Op(
        lambda number, scope, value: wire.Llm(number, scope, operation, value, stream, retry, timeout_us),
        read,
        dump(asked, what),
    )


def generate(prompt: Prompt, stream: bool = False, **given: Unpack[LLMOptions]) -> Op[str]:
    """See :meth:`LLM.generate`."""
    return request("generate" if isinstance(prompt, str) else "chat", prompt, _text, stream=stream, **given)


def chat(messages: Sequence[Message], **given: Unpack[LLMOptions]) -> Op[str]:
    """See :meth:`LLM.chat`."""
    if isinstance(messages, str):
        raise UsageError('ctx.llm.chat takes messages: [{"role": "user", "content": …}]; for one text use generate')
    return request("chat", messages, _text, **given)


def classify(content: Any, categories: Sequence[str], **given: Unpack[LLMOptions]) -> Op[str]:
    """See :meth:`LLM.classify`."""
    names = list(categories) if not isinstance(categories, str) else []
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UsageError(f"categories of ctx.llm.classify are {categories!r}; give a list of different texts")

    def read(data: bytes) -> str:
        found = load(data).get("value")
        if found not in names:
            raise LLMError("the node gave a category that is not in the list; this is a fault of the node")
        return cast(str, found)

    return request("classify", content, read, more={"categories": names}, **given)


def extract(content: Any, schema: Any, **given: Unpack[LLMOptions]) -> Op[Any]:
    """See :meth:`LLM.extract`."""
    asked, convert = schema_of(schema)

    def read(data: bytes) -> Any:
        found = load(data).get("value")
        return found if convert is None else convert(found)

    return request("extract", content, read, more={"schema": asked}, **given)


def _text(data: bytes) -> str:
    return str(load(data)["text"])


def _messages(content: Any, system: str, what: str) -> tuple[list[dict[str, str]], str]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}], system
    turns = list(content) if isinstance(content, list | tuple) and what.endswith(("chat", "generate")) else None
    if turns is None:
        return [{"role": "user", "content": dump(content, what).decode()}], system
    found = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise UsageError(f'a message of {what} is {type(turn).__name__}; write {{"role": …, "content": …}}')
        role, text = turn["role"], turn["content"]
        if role == "system":
            system = f"{system}\n\n{text}".strip()
        elif role in ("user", "assistant"):
            found.append({"role": role, "content": text})
        else:
            raise UsageError(f"a message of {what} has the role {role!r}; use user, assistant or system")
    if not found:
        raise UsageError(f"{what} has no message of a user")
    return found, system


class Pieces:
    """The state of one stream: what came, and what is owed to the node for it."""

    __slots__ = ("channel", "done", "slot", "taken", "text")

    def __init__(self, channel: Channel, op: Op[str]) -> None:
        scope = require().id
        self.channel = channel
        self.slot = Slot(stream=True)
        self.text = ""
        """What came so far."""
        self.taken = 0
        self.done = False
        channel.open(self.slot, lambda number, value: op.make(number, scope, value), op.data)

    def take(self, answer: wire.Go | wire.Reply | wire.Fault | wire.Chunk) -> str | None:
        """The text of an answer; None at the end of the stream.

        Raises:
            HoldfastError: the call failed.
        """
        if isinstance(answer, wire.Chunk):
            self.taken += 1
            if self.taken == REFILL:
                self.slot.credit += REFILL
                self.taken = 0
                self.channel.send(wire.Credit(self.slot.id, REFILL))
            self.text += answer.text
            return answer.text
        self.done = True
        if not isinstance(answer, wire.Reply):
            raise error_of(answer)
        # A replay may bring the whole at once, and a resumed stream its rest.
        whole = _text(answer.value.data)
        rest = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text = whole
        return rest or None

    def close(self) -> None:
        """Nobody wants the rest."""
        if not self.done:
            self.done = True
            self.channel.cancel(self.slot)

    def __del__(self) -> None:
        # Runs wherever the collector likes, perhaps inside a send: so the cancel goes out with the next call.
        if not self.done:
            self.channel.abandon(self.slot)


class Stream(Iterator[str]):
    """The pieces of a model's answer as they come. How it is cut may differ in a replay; the whole is the same."""

    def __init__(self, channel: Channel, op: Op[str]) -> None:
        self._pieces = Pieces(channel, op)

    @property
    def text(self) -> str:
        """What came so far; after the loop, all of it."""
        return self._pieces.text

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        pieces = self._pieces
        while not pieces.done:
            if piece := pieces.take(pieces.channel.wait(pieces.slot)):
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop here: the node lets the rest go."""
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LLM:
    """``ctx.llm`` of a ``def``. Every call takes the options of :class:`LLMOptions`."""

    __slots__ = ("_channel", "_do")

    def __init__(self, channel: Channel, do: Callable[[Op[Any]], Any]) -> None:
        self._channel = channel
        self._do = do

    def generate(self, prompt: Prompt, **given: Unpack[LLMOptions]) -> str:
        """The model's answer to a text.

        Raises:
            LLMError: the provider refused or failed after the last attempt.
            DeniedError: a policy denied the call.
        """
        return cast(str, self._do(generate(prompt, **given)))

    def chat(self, messages: Sequence[Message], **given: Unpack[LLMOptions]) -> str:
        """The model's next turn of a conversation. Raises as :meth:`generate` does."""
        return cast(str, self._do(chat(messages, **given)))

    def classify(self, content: Any, categories: Sequence[str], **given: Unpack[LLMOptions]) -> str:
        """The one of ``categories`` that a text (or a JSON value) belongs to, never anything else.

        Raises:
            LLMError: the model chose none of them, or failed, after the last attempt.
            DeniedError: a policy denied the call.
        """
        return cast(str, self._do(classify(content, categories, **given)))

    @overload
    def extract(self, content: Any, schema: type[T], **given: Unpack[LLMOptions]) -> T: ...
    @overload
    def extract(self, content: Any, schema: dict[str, Any], **given: Unpack[LLMOptions]) -> Any: ...
    def extract(self, content: Any, schema: Any, **given: Unpack[LLMOptions]) -> Any:
        """What a text says, as an object of ``schema``: a JSON Schema, or a dataclass, Struct, TypedDict or pydantic
        model, of which an instance is returned. Raises as :meth:`classify` does."""
        return self._do(extract(content, schema, **given))

    def stream(self, prompt: Prompt, **given: Unpack[LLMOptions]) -> Stream:
        """The answer to a text or a conversation, piece by piece. Slow readers slow the model, nothing piles up."""
        return Stream(self._channel, generate(prompt, stream=True, **given))
