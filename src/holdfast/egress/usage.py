"""What a provider says that a call used, read from its answer: whole, as server-sent events, or as an event stream.

Only the provider's own figures count; nothing is estimated. A *tally* is complete once the figures are final: what an
answer that broke off earlier has said is not what it will be charged for.

Sources: docs.anthropic.com/en/api/messages, platform.openai.com/docs/api-reference (chat, responses, embeddings),
ai.google.dev/api/generate-content, docs.aws.amazon.com/bedrock/latest/APIReference, docs.mistral.ai/api.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from holdfast.egress import eventstream
from holdfast.egress.base import ResponseHead
from holdfast.llm import sse

MAX_WHOLE = 32 << 20
"""Bytes of an answer in one piece that are kept to be read; a longer one counts as without figures."""


class Tally(msgspec.Struct, kw_only=True):
    """The figures so far. Tokens; input is without what came from or went to a cache."""

    seen: bool = False
    """Whether any figures came."""
    complete: bool = False
    """Whether they are final."""
    failed: bool = False
    """The provider broke off with an error."""
    model: str = ""
    tier: str = ""
    """The provider's service tier: ``batch``, ``flex``, ``priority``; otherwise empty."""
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    detail: dict[str, int] = {}


Reader = Callable[[Tally, dict[str, Any], str], None]
"""Takes over what one object of an answer says. The last argument is the event's name, empty in one piece."""


def _count(table: Any, *names: str) -> int:
    for name in names:
        table = table.get(name) if isinstance(table, dict) else None
    return table if type(table) is int and table >= 0 else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _tier(value: Any) -> str:
    return value if value in ("batch", "flex", "priority") else ""


def anthropic(tally: Tally, data: dict[str, Any], event: str) -> None:
    """Messages. Figures of a stream are cumulative: the latest stands."""
    kind = data.get("type")
    if kind == "error":
        tally.failed = True
        return
    if kind not in ("message", "message_start", "message_delta"):
        return
    message = data.get("message") if kind == "message_start" else data
    if not isinstance(message, dict):
        return
    tally.model = _text(message.get("model")) or tally.model
    usage = message.get("usage")
    if not isinstance(usage, dict):
        return
    tally.tier = "batch" if usage.get("service_tier") == "batch" else tally.tier
    for name, field in (
        ("input_tokens", "input"),
        ("output_tokens", "output"),
        ("cache_read_input_tokens", "cache_read"),
        ("cache_creation_input_tokens", "cache_write"),
    ):
        if type(usage.get(name)) is int:
            setattr(tally, field, _count(usage, name))
    for unit, path in (
        ("cache_write_1h", ("cache_creation", "ephemeral_1h_input_tokens")),
        ("web_searches", ("server_tool_use", "web_search_requests")),
    ):
        if count := _count(usage, *path):
            tally.detail[unit] = count
    tally.seen = True
    delta = data.get("delta")
    ended = isinstance(delta, dict) and bool(delta.get("stop_reason"))
    tally.complete = tally.complete or kind == "message" or (kind == "message_delta" and ended)


def _openai_usage(tally: Tally, usage: dict[str, Any], given: str, taken: str) -> None:
    """Both of OpenAI's protocols count cached tokens in."""
    total, details = _count(usage, given), f"{given}_details"
    tally.cache_read = min(total, _count(usage, details, "cached_tokens"))
    tally.input = total - tally.cache_read
    tally.output = _count(usage, taken)
    for unit, path in (
        ("input_audio", (details, "audio_tokens")),
        ("output_audio", (f"{taken}_details", "audio_tokens")),
        ("reasoning", (f"{taken}_details", "reasoning_tokens")),
    ):
        if count := _count(usage, *path):
            tally.detail[unit] = count
    tally.seen = True


def openai_chat(tally: Tally, data: dict[str, Any], event: str) -> None:
    """Chat completions, completions and embeddings, of OpenAI, Mistral and many others."""
    if data.get("error"):
        tally.failed = True
        return
    tally.model = _text(data.get("model")) or tally.model
    tally.tier = _tier(data.get("service_tier")) or tally.tier
    usage = data.get("usage")
    if not isinstance(usage, dict) or type(usage.get("prompt_tokens")) is not int:
        return
    _openai_usage(tally, usage, "prompt_tokens", "completion_tokens")
    choices = data.get("choices")
    # In a stream the figures that count come last: with no choice, or with the one that ends.
    last = not choices or any(isinstance(one, dict) and one.get("finish_reason") for one in choices)
    tally.complete = tally.complete or event == "" or last


def openai_responses(tally: Tally, data: dict[str, Any], event: str) -> None:
    """Responses: figures come with the events that end it."""
    kind = _text(data.get("type"))
    if kind == "error":
        tally.failed = True
        return
    response = data.get("response") if kind.startswith("response.") else data
    if not isinstance(response, dict):
        return
    tally.model = _text(response.get("model")) or tally.model
    tally.tier = _tier(response.get("service_tier")) or tally.tier
    usage = response.get("usage")
    if isinstance(usage, dict) and type(usage.get("input_tokens")) is int:
        _openai_usage(tally, usage, "input_tokens", "output_tokens")
        output = response.get("output")
        searches = [one for one in output or () if isinstance(one, dict) and one.get("type") == "web_search_call"]
        if searches:
            tally.detail["web_searches"] = len(searches)
        tally.complete = True


def gemini(tally: Tally, data: dict[str, Any], event: str) -> None:
    """generateContent: thoughts are charged as output, and results of tools as input."""
    if data.get("error"):
        tally.failed = True
        return
    tally.model = _text(data.get("modelVersion")) or tally.model
    usage = data.get("usageMetadata")
    if not isinstance(usage, dict):
        return
    prompt, cached = _count(usage, "promptTokenCount"), _count(usage, "cachedContentTokenCount")
    tools, thoughts = _count(usage, "toolUsePromptTokenCount"), _count(usage, "thoughtsTokenCount")
    tally.cache_read = min(prompt, cached)
    tally.input = prompt - tally.cache_read + tools
    tally.output = _count(usage, "candidatesTokenCount") + thoughts
    for unit, count in (("reasoning", thoughts), ("tool_input", tools)):
        if count:
            tally.detail[unit] = count
    for unit, name in (("input_audio", "promptTokensDetails"), ("output_audio", "candidatesTokensDetails")):
        spoken = sum(
            _count(one, "tokenCount")
            for one in usage.get(name) or ()
            if isinstance(one, dict) and one.get("modality") == "AUDIO"
        )
        if spoken:
            tally.detail[unit] = spoken
    tally.seen = True
    candidates = data.get("candidates")
    ended = any(isinstance(one, dict) and one.get("finishReason") for one in candidates or ())
    tally.complete = tally.complete or event == "" or ended or "promptFeedback" in data


def converse(tally: Tally, data: dict[str, Any], event: str) -> None:
    """Bedrock's Converse: input is without what came from or went to a cache."""
    usage = data.get("usage")
    if isinstance(usage, dict) and type(usage.get("inputTokens")) is int:
        tally.input, tally.output = _count(usage, "inputTokens"), _count(usage, "outputTokens")
        tally.cache_read = _count(usage, "cacheReadInputTokens")
        tally.cache_write = _count(usage, "cacheWriteInputTokens")
        tally.seen = tally.complete = True


def invoke(tally: Tally, data: dict[str, Any], event: str) -> None:
    """Bedrock's InvokeModel: the model's own protocol, and metrics that hold for every model."""
    metrics = data.get("amazon-bedrock-invocationMetrics")
    if isinstance(metrics, dict) and type(metrics.get("inputTokenCount")) is int:
        tally.input, tally.output = _count(metrics, "inputTokenCount"), _count(metrics, "outputTokenCount")
        tally.cache_read = _count(metrics, "cacheReadInputTokenCount")
        tally.cache_write = _count(metrics, "cacheWriteInputTokenCount")
        tally.seen = tally.complete = True
    elif "type" in data:
        # The model's name in the answer is not Bedrock's, which has the price.
        model = tally.model
        anthropic(tally, data, event)
        tally.model = model
    else:
        converse(tally, data, event)


class Source(Protocol):
    """Takes an answer's bytes apart."""

    def feed(self, data: bytes) -> Iterable[tuple[str, dict[str, Any]]]:
        """The objects that these bytes complete, each with its event's name.

        Raises:
            ValueError: this is no such answer.
        """

    def finish(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """The objects that the end completes."""


class Whole:
    """JSON in one piece: an object, or a list of them, as Gemini streams without server-sent events."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterable[tuple[str, dict[str, Any]]]:
        self._size += len(data)
        if self._size > MAX_WHOLE:
            self._parts.clear()
            raise ValueError(f"an answer is longer than {MAX_WHOLE} bytes")
        self._parts.append(data)
        return ()

    def finish(self) -> Iterable[tuple[str, dict[str, Any]]]:
        found = _object(b"".join(self._parts))
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, dict):
                yield ("" if one is found else "item"), one


class Events:
    """Server-sent events."""

    def __init__(self) -> None:
        self._parser = sse.Parser(MAX_WHOLE)

    def feed(self, data: bytes) -> Iterable[tuple[str, dict[str, Any]]]:
        for event in self._parser.feed(data):
            found = _object(event.data.encode())
            if isinstance(found, dict):
                yield event.name, found

    def finish(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return ()


class Frames:
    """AWS's event stream; the chunks of InvokeModel hold base64 of the model's own events."""

    def __init__(self) -> None:
        self._parser = eventstream.Parser()

    def feed(self, data: bytes) -> Iterable[tuple[str, dict[str, Any]]]:
        for message in self._parser.feed(data):
            found = _object(message.payload)
            if not isinstance(found, dict):
                continue
            if message.headers.get(":message-type") == "exception":
                yield "error", {"type": "error"}
            elif isinstance(inner := found.get("bytes"), str):
                try:
                    chunk = _object(base64.b64decode(inner))
                except binascii.Error:
                    raise ValueError("a chunk is not base64") from None
                if isinstance(chunk, dict):
                    yield "chunk", chunk
            else:
                yield message.headers.get(":event-type", "event"), found

    def finish(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return ()


def source(head: ResponseHead) -> Source:
    """How an answer is taken apart, by its content type."""
    kind = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind == b"text/event-stream":
        return Events()
    return Frames() if kind == eventstream.CONTENT_TYPE else Whole()


def _object(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
