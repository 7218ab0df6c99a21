"""OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat), plain and streamed.

Many servers speak this protocol. They differ in how the output limit is called: OpenAI's own takes
``max_completion_tokens``, others only know ``max_tokens``; one that refuses a name by its name is asked again with
the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from holdfast.llm import answers, sse
from holdfast.llm.base import BeforeDial, Delta, LLMFailure, LLMRequest, LLMResponse, Usage
from holdfast.llm.http import Answer, Timing, Transport, as_dict, as_object, as_text, clean, refused

BASE_URL = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
LIMIT_NAMES = ("max_completion_tokens", "max_tokens")

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""Finish reasons in the words that all providers' answers use here."""
FINAL = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Codes of a 429 that no waiting cures."""


class OpenAI:
    """The provider behind ``gpt-…`` models, or any server that speaks its protocol."""

    name = "openai"

    def __init__(
        self,
        key: str,
        base_url: str = BASE_URL,
        *,
        key_name: str = KEY,
        timing: Timing | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        # As OpenAI's own libraries have it, the base holds the version; one without any path gets the usual.
        base = base_url.rstrip("/")
        parts = urlsplit(base)
        self._path = "/chat/completions" if parts.path else "/v1/chat/completions"
        self._key = key
        self._key_name = key_name
        self._limit = LIMIT_NAMES[0] if parts.hostname == "api.openai.com" else LIMIT_NAMES[1]
        self._learnt: dict[str, str] = {}
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
        limit = self._learnt.get(request.model, self._limit)
        heard = _Completion(on_delta, self._key)

        async def post(limit: str) -> Answer:
            return await self._transport.post(
                self._path,
                {
                    "authorization": f"Bearer {self._key}",
                    "idempotency-key": idempotency_key,
                    "accept": "text/event-stream" if on_delta else "application/json",
                },
                msgspec.json.encode(body(operation, request, limit=limit, stream=on_delta is not None)),
                timeout=timeout,
                before_dial=before_dial,
                on_event=heard.event if on_delta else None,
            )

        answer = await post(limit)
        if answer.status == 400 and _refuses(answer, limit):
            other = LIMIT_NAMES[1 - LIMIT_NAMES.index(limit)]
            answer = await post(other)
            if 200 <= answer.status < 300 and len(self._learnt) < 1000:
                self._learnt[request.model] = other
        if not 200 <= answer.status < 300:
            raise self._error(answer)
        if not answer.streamed:
            await heard.whole(answer.body)
        return await heard.response(operation, request, answer)

    def _error(self, answer: Answer) -> LLMFailure:
        error = as_dict((as_object(answer.body) or {}).get("error"))
        code = clean(error.get("code"), self._key, 60) or clean(error.get("type"), self._key, 60) or "error"
        text = clean(error.get("message"), self._key)
        final = code in FINAL
        if final:
            text = "the account has no credit left; check its plan and billing"
        return refused(self.name, answer, f"{code}: {text}" if text else code, self._key_name, final=final)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


def body(operation: str, request: LLMRequest, *, limit: str, stream: bool) -> dict[str, Any]:
    """The JSON body of a request. ``limit`` is what the server calls the output limit."""
    messages = [{"role": turn.role, "content": turn.content} for turn in request.messages]
    if system := answers.system(operation, request):
        messages.insert(0, {"role": "system", "content": system})
    built: dict[str, Any] = {"model": request.model, "messages": messages, limit: request.max_tokens}
    if request.temperature is not None:
        built["temperature"] = request.temperature
    if request.stop:
        built["stop"] = list(request.stop)
    if form := answers.form(operation, request):
        function = {"name": form.name, "description": form.description, "parameters": form.schema}
        built["tools"] = [{"type": "function", "function": function}]
        built["tool_choice"] = {"type": "function", "function": {"name": form.name}}
    if stream:
        built["stream"] = True
        built["stream_options"] = {"include_usage": True}
    return built


def _refuses(answer: Answer, limit: str) -> bool:
    error = as_dict((as_object(answer.body) or {}).get("error"))
    message = error.get("message")
    unsupported = error.get("code") in ("unsupported_parameter", "unknown_parameter") or (
        isinstance(message, str) and "support" in message.lower() and limit in message
    )
    return unsupported and error.get("param") in (limit, None)


class _Completion:
    """An answer as it builds up, from one body or from chunks."""

    def __init__(self, on_delta: Delta | None, secret: str) -> None:
        self._on_delta = on_delta
        self._secret = secret
        self._text: list[str] = []
        self._arguments: list[str] = []
        self._refused = False
        self._usage: Usage | None = None
        self._id = ""
        self._model = ""
        self._stop_reason = ""

    async def event(self, event: sse.Event) -> None:
        """Take one event of a stream."""
        if event.data.strip() == "[DONE]":
            return
        data = as_object(event.data)
        if data is None:
            raise self._unreadable()
        if "error" in data:
            fault = as_dict(data["error"])
            name = clean(fault.get("code"), self._secret, 60) or clean(fault.get("type"), self._secret, 60) or "error"
            raise LLMFailure(
                f"openai broke off its answer: {name}: {clean(fault.get('message'), self._secret)}",
                retryable=name not in FINAL,
                sent=True,
                usage=Usage(reported=False),
            )
        self._head(data)
        for choice in data.get("choices") or []:
            await self._part(as_dict(as_dict(choice).get("delta")))
            self._stop(as_dict(choice))

    async def whole(self, body: bytes) -> None:
        """Take an answer that came in one piece."""
        data = as_object(body)
        choices = data.get("choices") if data else None
        if data is None or not isinstance(choices, list) or not choices:
            raise self._unreadable()
        self._head(data)
        await self._part(as_dict(as_dict(choices[0]).get("message")))
        self._stop(as_dict(choices[0]))
        # Some servers give none for an answer that is complete.
        self._stop_reason = self._stop_reason or "end_turn"

    async def response(self, operation: str, request: LLMRequest, answer: Answer) -> LLMResponse:
        """The finished answer, checked.

        Raises:
            LLMFailure: it ended early or is not allowed.
        """
        usage = self._usage or Usage(reported=False)
        if not self._stop_reason:
            raise LLMFailure(
                "openai ended its answer in the middle",
                retryable=True,
                sent=True,
                usage=msgspec.structs.replace(usage, reported=False),
            )
        text = "".join(self._text)
        stop_reason = "refusal" if self._refused else self._stop_reason
        value = await answers.value(
            operation,
            request,
            tool_input=as_object("".join(self._arguments)) if self._arguments else None,
            text=text,
            stop_reason=stop_reason,
            usage=usage,
        )
        return LLMResponse(
            text=text,
            model=self._model or request.model,
            usage=usage,
            value=value,
            stop_reason=stop_reason,
            request_id=answer.headers.get("x-request-id", "")[:200] or self._id,
        )

    async def _part(self, message: dict[str, Any]) -> None:
        """Take a message, or a piece of one: both have the same members."""
        text = message.get("content")
        if isinstance(text, str) and text:
            self._text.append(text)
            if self._on_delta:
                await self._on_delta(text)
        if message.get("refusal"):
            self._refused = True
        for call in message.get("tool_calls") or []:
            call = as_dict(call)
            arguments = as_dict(call.get("function")).get("arguments")
            if isinstance(arguments, str) and call.get("index", 0) == 0:
                self._arguments.append(arguments)

    def _head(self, data: dict[str, Any]) -> None:
        self._id = as_text(data.get("id")) or self._id
        self._model = as_text(data.get("model")) or self._model
        if isinstance(data.get("usage"), dict):
            self._usage = figures(data["usage"])

    def _stop(self, choice: dict[str, Any]) -> None:
        if reason := as_text(choice.get("finish_reason")):
            self._stop_reason = STOP_REASONS.get(reason, reason)

    def _unreadable(self) -> LLMFailure:
        return LLMFailure(
            "openai sent an answer that is not of its protocol; check the base URL",
            retryable=True,
            sent=True,
            usage=Usage(reported=False),
        )


def figures(usage: dict[str, Any]) -> Usage:
    """Usage from the protocol's figures, whose prompt counts cached tokens in."""

    def count(table: dict[str, Any], name: str) -> int:
        figure = table.get(name)
        return figure if type(figure) is int and figure >= 0 else 0

    prompt = count(usage, "prompt_tokens")
    cached = min(prompt, count(as_dict(usage.get("prompt_tokens_details")), "cached_tokens"))
    reported = type(usage.get("prompt_tokens")) is int and type(usage.get("completion_tokens")) is int
    return Usage(input=prompt - cached, output=count(usage, "completion_tokens"), cache_read=cached, reported=reported)
