"""Anthropic's Messages API (https://docs.anthropic.com/en/api/messages), version 2023-06-01, plain and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.llm import answers, sse
from holdfast.llm.base import BeforeDial, Delta, LLMFailure, LLMRequest, LLMResponse, Usage
from holdfast.llm.http import Answer, Timing, Transport, as_dict, as_object, as_text, clean, refused

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
KEY = "ANTHROPIC_API_KEY"


class Anthropic:
    """The provider behind ``claude-…`` models, or a gateway that speaks its protocol."""

    name = "anthropic"

    def __init__(
        self,
        key: str,
        base_url: str = BASE_URL,
        *,
        key_name: str = KEY,
        timing: Timing | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        base = base_url.rstrip("/").removesuffix("/v1")
        self._key = key
        self._key_name = key_name
        self._transport = Transport(self.name, base, timing or Timing(), env or {})

    async def complete(
        self,
        operation: str,
        request: LLMRequest,
        *,
        idempotency_key: str,
        timeout: float,
        before_dial: BeforeDial,
        on_delta: Delta | None = None,
    ) -> LLMResponse:
        """Make one attempt (see :class:`holdfast.llm.base.Provider`)."""
        answers.check(operation, request)
        heard = _Message(on_delta, self._key)
        answer = await self._transport.post(
            "/v1/messages",
            {
                "x-api-key": self._key,
                "anthropic-version": VERSION,
                "idempotency-key": idempotency_key,
                "accept": "text/event-stream" if on_delta else "application/json",
            },
            msgspec.json.encode(body(operation, request, stream=on_delta is not None)),
            timeout=timeout,
            before_dial=before_dial,
            on_event=heard.event if on_delta else None,
        )
        if not 200 <= answer.status < 300:
            raise self._error(answer)
        if not answer.streamed:
            await heard.whole(answer.body)
        return await heard.response(operation, request, answer)

    def _error(self, answer: Answer) -> LLMFailure:
        kind, text = _fault(answer.body, self._key)
        return refused(self.name, answer, f"{kind}: {text}" if text else kind, self._key_name)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


def body(operation: str, request: LLMRequest, *, stream: bool) -> dict[str, Any]:
    """The JSON body of a request."""
    built: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
    }
    if system := answers.system(operation, request):
        built["system"] = system
    if request.temperature is not None:
        built["temperature"] = request.temperature
    if request.stop:
        built["stop_sequences"] = list(request.stop)
    if form := answers.form(operation, request):
        built["tools"] = [{"name": form.name, "description": form.description, "input_schema": form.schema}]
        built["tool_choice"] = {"type": "tool", "name": form.name, "disable_parallel_tool_use": True}
    if stream:
        built["stream"] = True
    return built


class _Message:
    """An answer as it builds up, from one body or from events."""

    def __init__(self, on_delta: Delta | None, secret: str) -> None:
        self._on_delta = on_delta
        self._secret = secret
        self._text: list[str] = []
        self._partial: list[str] = []
        self._tool_input: Any = None
        self._usage: dict[str, int] = {}
        self._id = ""
        self._model = ""
        self._stop_reason = ""
        self._ended = False

    async def event(self, event: sse.Event) -> None:
        """Take one event of a stream. Types that are not known are passed over, as the protocol asks."""
        data = as_object(event.data)
        if data is None:
            raise self._unreadable()
        kind = data.get("type")
        if kind == "message_start":
            self._head(as_dict(data.get("message")))
        elif kind == "content_block_start":
            block = as_dict(data.get("content_block"))
            if block.get("type") == "text" and block.get("text"):
                await self._say(block["text"])
        elif kind == "content_block_delta":
            delta = as_dict(data.get("delta"))
            if delta.get("type") == "text_delta":
                await self._say(delta.get("text"))
            elif delta.get("type") == "input_json_delta" and isinstance(delta.get("partial_json"), str):
                self._partial.append(delta["partial_json"])
        elif kind == "message_delta":
            self._count(as_dict(data.get("usage")))
            self._stop_reason = as_text(as_dict(data.get("delta")).get("stop_reason")) or self._stop_reason
        elif kind == "message_stop":
            self._ended = True
        elif kind == "error":
            fault = as_dict(data.get("error"))
            name = clean(fault.get("type"), self._secret, 60) or "error"
            raise LLMFailure(
                f"anthropic broke off its answer: {name}: {clean(fault.get('message'), self._secret)}",
                retryable=name in ("overloaded_error", "api_error", "rate_limit_error", "timeout_error"),
                sent=True,
                usage=self._so_far(),
            )

    async def whole(self, body: bytes) -> None:
        """Take an answer that came in one piece."""
        data = as_object(body)
        if data is None or not isinstance(data.get("content"), list):
            raise self._unreadable()
        self._head(data)
        for block in map(as_dict, data["content"]):
            if block.get("type") == "text":
                await self._say(block.get("text"))
            elif block.get("type") == "tool_use" and self._tool_input is None:
                self._tool_input = block.get("input")
        self._stop_reason = as_text(data.get("stop_reason"))
        self._ended = True

    async def response(self, operation: str, request: LLMRequest, answer: Answer) -> LLMResponse:
        """The finished answer, checked.

        Raises:
            LLMFailure: it ended early or is not allowed.
        """
        if not self._ended:
            raise LLMFailure(
                "anthropic ended its answer in the middle", retryable=True, sent=True, usage=self._so_far()
            )
        if self._partial and self._tool_input is None:
            self._tool_input = as_object("".join(self._partial))
        usage, text = self._figures(), "".join(self._text)
        value = await answers.value(
            operation, request, tool_input=self._tool_input, text=text, stop_reason=self._stop_reason, usage=usage
        )
        return LLMResponse(
            text=text,
            model=self._model or request.model,
            usage=usage,
            value=value,
            stop_reason=self._stop_reason,
            request_id=answer.headers.get("request-id", "")[:200] or self._id,
        )

    async def _say(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self._text.append(text)
            if self._on_delta:
                await self._on_delta(text)

    def _head(self, message: dict[str, Any]) -> None:
        self._id = as_text(message.get("id"))
        self._model = as_text(message.get("model"))
        self._count(as_dict(message.get("usage")))

    def _count(self, usage: dict[str, Any]) -> None:
        # Figures of a stream are cumulative: the latest stands.
        for name, figure in usage.items():
            if type(figure) is int and figure >= 0:
                self._usage[name] = figure

    def _figures(self) -> Usage:
        count = self._usage
        return Usage(
            input=count.get("input_tokens", 0),
            output=count.get("output_tokens", 0),
            cache_read=count.get("cache_read_input_tokens", 0),
            cache_write=count.get("cache_creation_input_tokens", 0),
            reported="input_tokens" in count and "output_tokens" in count,
        )

    def _so_far(self) -> Usage:
        return msgspec.structs.replace(self._figures(), reported=False)

    def _unreadable(self) -> LLMFailure:
        return LLMFailure(
            "anthropic sent an answer that is not of its protocol; check the base URL",
            retryable=True,
            sent=True,
            usage=self._so_far(),
        )


def _fault(body: bytes, secret: str) -> tuple[str, str]:
    error = as_dict((as_object(body) or {}).get("error"))
    return clean(error.get("type"), secret, 60) or "error", clean(error.get("message"), secret)
