"""Tokens and cost against what providers say, over 500 scripted exchanges, and the bound that is reserved before."""

from __future__ import annotations

import base64
import datetime
import json
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import genai_prices
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import Price
from holdfast.config import PriceSettings
from holdfast.egress.base import Body, RequestHead, ResponseHead, Usage
from holdfast.egress.calls import CEILING, REMOTE, recognise
from holdfast.egress.eventstream import CONTENT_TYPE, Parser, encode
from holdfast.egress.meter import Exchange, PriceMeter, charge
from holdfast.egress.usage import Tally
from holdfast.llm.prices import Prices, Rates

PRICES = Prices()
METER = PriceMeter(PRICES)
TODAY = datetime.datetime.now(datetime.UTC)
JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"


class Figures(NamedTuple):
    """What a provider counts: input without cached tokens."""

    input: int
    output: int
    read: int = 0
    write: int = 0
    hour: int = 0
    """Of ``write``, those that are kept for an hour."""
    reasoning: int = 0
    """Of ``output``."""
    tools: int = 0
    """Of ``input``: what tools brought (Gemini)."""
    searches: int = 0
    batch: bool = False


class Script(NamedTuple):
    """One exchange with a scripted provider."""

    provider: str
    """As the price list calls it."""
    model: str
    head: RequestHead
    body: dict[str, Any]
    kind: bytes
    """Content type of the answer."""
    parts: list[bytes]
    """The answer; the figures are final once all of the first ``final`` came."""
    final: int
    headers: tuple[tuple[bytes, bytes], ...] = ()


def post(host: str, path: str, query: str = "") -> RequestHead:
    return RequestHead(method="POST", scheme="https", host=host, port=443, path=path, query=query)


def sse(*events: tuple[str, Any]) -> list[bytes]:
    return [
        (f"event: {name}\n" if name else "").encode()
        + b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"
        for name, data in events
    ]  # fmt: skip


def whole(data: Any) -> list[bytes]:
    return [json.dumps(data, indent=1).encode()]


TALK = 'The answer — forty-two. \u2028 data: {"usage": {"output_tokens": 1}}\n'


def anthropic(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "claude-sonnet-4-5-20250929"
    usage: dict[str, Any] = {
        "input_tokens": f.input,
        "cache_creation_input_tokens": f.write,
        "cache_read_input_tokens": f.read,
        "cache_creation": {"ephemeral_5m_input_tokens": f.write - f.hour, "ephemeral_1h_input_tokens": f.hour},
        "service_tier": "batch" if f.batch else "standard",
    }
    if f.searches:
        usage["server_tool_use"] = {"web_search_requests": f.searches}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    body = {"model": "claude-sonnet-4-5", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]}
    head = post("api.anthropic.com", "/v1/messages")
    if not stream:
        text = [{"type": "text", "text": TALK}]
        answer = message | {"content": text, "stop_reason": "end_turn", "usage": usage | {"output_tokens": f.output}}
        return Script("anthropic", model, head, body, JSON, whole(answer), 1)
    deltas = [
        (
            "content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TALK}},
        )
    ] * dice.randint(0, 4)
    parts = sse(
        ("message_start", {"type": "message_start", "message": message | {"usage": usage | {"output_tokens": 1}}}),
        ("ping", {"type": "ping"}),
        *deltas,
        (
            "message_delta",
            {
                "type": "message_delta",
                "delta": {"stop_reason": "tool_use", "stop_sequence": None},
                "usage": {
                    "output_tokens": f.output,
                    **({"server_tool_use": usage["server_tool_use"]} if f.searches else {}),
                },
            },
        ),
        ("message_stop", {"type": "message_stop"}),
    )
    return Script("anthropic", model, head, body | {"stream": True}, SSE, parts, len(parts) - 1)


def chat_usage(f: Figures) -> dict[str, Any]:
    return {
        "prompt_tokens": f.input + f.read,
        "completion_tokens": f.output,
        "total_tokens": f.input + f.read + f.output,
        "prompt_tokens_details": {"cached_tokens": f.read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": f.reasoning},
    }


def openai_chat(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "gpt-4.1-2025-04-14"
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 2000}
    head = post("api.openai.com", "/v1/chat/completions")
    base = {"id": "c", "model": model, "service_tier": "flex" if f.batch else "default"}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": TALK}, "finish_reason": "stop"}
        answer = {**base, "object": "chat.completion", "choices": [choice], "usage": chat_usage(f)}
        return Script("openai", model, head, body, JSON, whole(answer), 1)
    chunk = {**base, "object": "chat.completion.chunk", "usage": None}
    parts = sse(
        *[("", {**chunk, "choices": [{"index": 0, "delta": {"content": TALK}}]})] * dice.randint(1, 4),
        ("", {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        ("", {**chunk, "choices": [], "usage": chat_usage(f)}),
        ("", "[DONE]"),
    )
    return Script("openai", model, head, body | {"stream": True}, SSE, parts, len(parts) - 1)


def openai_responses(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "gpt-4.1-mini-2025-04-14"
    usage = {
        "input_tokens": f.input + f.read,
        "input_tokens_details": {"cached_tokens": f.read},
        "output_tokens": f.output,
        "output_tokens_details": {"reasoning_tokens": f.reasoning},
        "total_tokens": f.input + f.read + f.output,
    }
    output: list[dict[str, Any]] = [{"type": "web_search_call", "status": "completed"}] * f.searches
    output.append({"type": "message", "content": [{"type": "output_text", "text": TALK}]})
    tier = "flex" if f.batch else "default"
    response = {"id": "r", "object": "response", "status": "completed", "model": model, "service_tier": tier}
    body = {"model": "gpt-4.1-mini", "input": "hi", "max_output_tokens": 900}
    head = post("api.openai.com", "/v1/responses")
    done = response | {"output": output, "usage": usage}
    if not stream:
        return Script("openai", model, head, body, JSON, whole(done), 1)
    begun = response | {"status": "in_progress", "output": [], "usage": None}
    parts = sse(
        ("response.created", {"type": "response.created", "response": begun}),
        *[("response.output_text.delta", {"type": "response.output_text.delta", "delta": TALK})] * dice.randint(0, 4),
        ("response.completed", {"type": "response.completed", "response": done}),
    )
    return Script("openai", model, head, body | {"stream": True}, SSE, parts, len(parts))


def gemini(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "gemini-2.5-flash"
    usage = {
        "promptTokenCount": f.input - f.tools + f.read,
        "cachedContentTokenCount": f.read,
        "candidatesTokenCount": f.output - f.reasoning,
        "thoughtsTokenCount": f.reasoning,
        "toolUsePromptTokenCount": f.tools,
        "totalTokenCount": f.input + f.read + f.output,
    }
    body = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 700}}
    candidate = {"content": {"parts": [{"text": TALK}], "role": "model"}}
    last = {"candidates": [candidate | {"finishReason": "STOP"}], "usageMetadata": usage, "modelVersion": model}
    host, path = "generativelanguage.googleapis.com", f"/v1beta/models/{model}"
    if not stream:
        return Script("google", model, post(host, path + ":generateContent"), body, JSON, whole(last), 1)
    part = {"candidates": [candidate], "usageMetadata": usage | {"candidatesTokenCount": 1}, "modelVersion": model}
    chunks = [part] * dice.randint(0, 4) + [last]
    if dice.random() < 0.5:
        parts = sse(*(("", chunk) for chunk in chunks))
        head = post(host, path + ":streamGenerateContent", "alt=sse")
        return Script("google", model, head, body, SSE, parts, len(parts))
    parts = [b"[" if at == 0 else b",\r\n" for at in range(len(chunks))]
    parts = [mark + json.dumps(chunk).encode() for mark, chunk in zip(parts, chunks, strict=True)] + [b"]"]
    return Script("google", model, post(host, path + ":streamGenerateContent"), body, JSON, parts, len(parts))


def frame(event: str, data: Any) -> bytes:
    names = {":event-type": event, ":content-type": "application/json", ":message-type": "event"}
    return encode(names, json.dumps(data).encode())


def converse(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "amazon.nova-pro-v1:0"
    usage = {"inputTokens": f.input, "outputTokens": f.output, "totalTokens": f.input + f.output + f.read}
    if f.read:
        usage |= {"cacheReadInputTokens": f.read, "cacheWriteInputTokens": 0}
    body = {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": 300}}
    host = "bedrock-runtime.us-east-1.amazonaws.com"
    if not stream:
        answer = {"output": {"message": {"content": [{"text": TALK}]}}, "stopReason": "end_turn", "usage": usage}
        return Script("aws", model, post(host, f"/model/{model}/converse"), body, JSON, whole(answer), 1)
    parts = [
        frame("messageStart", {"role": "assistant"}),
        *[frame("contentBlockDelta", {"delta": {"text": TALK}, "contentBlockIndex": 0})] * dice.randint(0, 4),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", {"usage": usage, "metrics": {"latencyMs": 5}}),
    ]
    return Script("aws", model, post(host, f"/model/{model}/converse-stream"), body, CONTENT_TYPE, parts, len(parts))


def invoke(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "us.anthropic.claude-sonnet-4-20250514-v1:0"
    inner = anthropic(dice, f._replace(hour=0, searches=0, batch=False), stream)
    body = {**inner.body, "anthropic_version": "bedrock-2023-05-31"}
    body.pop("model")
    body.pop("stream", None)
    host = "bedrock-runtime.us-east-1.amazonaws.com"
    path = "/model/" + model.replace(":", "%3A")
    if not stream:
        return Script("aws", model, post(host, path + "/invoke"), body, JSON, inner.parts, 1)
    events = [json.loads(part.partition(b"data: ")[2]) for part in inner.parts]
    events[-1]["amazon-bedrock-invocationMetrics"] = {
        "inputTokenCount": f.input,
        "outputTokenCount": f.output,
        "cacheReadInputTokenCount": f.read,
        "cacheWriteInputTokenCount": f.write,
    }
    parts = [frame("chunk", {"bytes": base64.b64encode(json.dumps(one).encode()).decode()}) for one in events]
    head = post(host, path + "/invoke-with-response-stream")
    return Script("aws", model, head, body, CONTENT_TYPE, parts, len(parts) - 1)


def llama(dice: random.Random, f: Figures, stream: bool) -> Script:
    """A model on Bedrock whose figures stand in the headers."""
    model = "meta.llama3-1-70b-instruct-v1:0"
    head = post("bedrock-runtime.us-west-2.amazonaws.com", f"/model/{model}/invoke")
    headers = (
        (b"x-amzn-bedrock-input-token-count", str(f.input).encode()),
        (b"x-amzn-bedrock-output-token-count", str(f.output).encode()),
    )
    return Script(
        "aws", model, head, {"prompt": "hi", "max_gen_len": 500}, JSON, whole({"generation": TALK}), 0, headers
    )


def mistral(dice: random.Random, f: Figures, stream: bool) -> Script:
    model = "mistral-large-latest"
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 600}
    head = post("api.mistral.ai", "/v1/chat/completions")
    usage = {"prompt_tokens": f.input, "completion_tokens": f.output, "total_tokens": f.input + f.output}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": TALK}, "finish_reason": "stop"}
        return Script(
            "mistral", model, head, body, JSON, whole({"model": model, "choices": [choice], "usage": usage}), 1
        )
    parts = sse(
        *[("", {"model": model, "choices": [{"index": 0, "delta": {"content": TALK}, "finish_reason": None}]})] * 2,
        ("", {"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}),
        ("", "[DONE]"),
    )
    return Script("mistral", model, head, body | {"stream": True}, SSE, parts, len(parts) - 1)


class Provider(NamedTuple):
    script: Callable[[random.Random, Figures, bool], Script]
    has: frozenset[str] = frozenset()
    """What beyond input and output its figures tell apart."""


PROVIDERS = (
    Provider(anthropic, frozenset({"read", "write", "hour", "searches", "batch"})),
    Provider(openai_chat, frozenset({"read", "reasoning", "batch"})),
    Provider(openai_responses, frozenset({"read", "reasoning", "batch", "searches"})),
    Provider(gemini, frozenset({"read", "reasoning", "tools"})),
    Provider(converse, frozenset({"read"})),
    Provider(invoke, frozenset({"read", "write"})),
    Provider(llama),
    Provider(mistral),
)
ENDS = ("whole", "stream", "stream", "stream aborted", "stream aborted", "after the figures", "no figures", "refused")


def rolled(dice: random.Random, has: frozenset[str]) -> Figures:
    def of(name: str, most: int) -> int:
        return dice.randint(1, most) if name in has and dice.random() < 0.6 else 0

    taken, given = dice.randint(1, 90_000), dice.randint(1, 20_000)
    write = of("write", 30_000)
    return Figures(
        input=taken,
        output=given,
        read=of("read", 60_000),
        write=write,
        hour=min(write, of("hour", 30_000)),
        reasoning=min(given, of("reasoning", 9_000)),
        tools=min(taken, of("tools", 9_000)),
        searches=of("searches", 5),
        batch="batch" in has and dice.random() < 0.2,
    )


def listed(script: Script, f: Figures) -> int:
    """What the price list itself makes of the figures, in nano-dollars. It counts cached tokens in."""
    usage = genai_prices.Usage(
        input_tokens=f.input + f.read + f.write,
        output_tokens=f.output,
        cache_read_tokens=f.read,
        cache_write_tokens=f.write,
        cache_write_1h_tokens=f.hour,
    )
    found = genai_prices.calc_price(usage, script.model, provider_id=script.provider, genai_request_timestamp=TODAY)
    nano = found.total_price * 1_000_000_000
    nano = nano / 2 if f.batch else nano
    nano += Decimal(10_000_000) * f.searches
    assert nano == nano.to_integral_value(), "choose models whose prices are whole nano-dollars"
    return int(nano)


def play(script: Script, parts: list[bytes], dice: random.Random, *, status: int = 200, aborted: str = "") -> Usage:
    """Through the meter, cut anywhere."""
    body = json.dumps(script.body).encode()
    exchange = METER.begin(script.head, Body(data=body, decoded=body))
    assert exchange is not None
    exchange.response(ResponseHead(status=status, headers=((b"content-type", script.kind), *script.headers)))
    data = b"".join(parts)
    while data:
        size = dice.choice((1, 2, 7, 100, 5000))
        exchange.feed(data[:size])
        data = data[size:]
    return exchange.finish(aborted)


def worst(script: Script) -> int:
    body = json.dumps(script.body).encode()
    exchange = METER.begin(script.head, Body(data=body, decoded=body))
    assert exchange is not None
    assert exchange.worst_cost is not None
    return exchange.worst_cost


@pytest.mark.parametrize("block", range(10))
def test_500_exchanges_cost_exactly_what_the_provider_says(block: int) -> None:
    for number in range(block * 50, block * 50 + 50):
        dice = random.Random(number)
        provider = PROVIDERS[number % len(PROVIDERS)]
        end = ENDS[number // len(PROVIDERS) % len(ENDS)]
        f = rolled(dice, provider.has)
        script = provider.script(dice, f, end not in ("whole", "no figures", "refused"))
        if script.provider == "aws" and provider.script is not converse:
            f = f._replace(hour=0, searches=0, batch=False)
        label = f"exchange {number}: {provider.script.__name__}, {end}"
        if end == "refused":
            got = play(
                script._replace(headers=()), whole({"type": "error", "error": {"message": "no"}}), dice, status=429
            )
            assert (got.cost, got.input_tokens, got.output_tokens) == (0, 0, 0), label
            continue
        if end == "no figures" or (end == "stream aborted" and script.final):
            parts = script.parts[: dice.randrange(script.final)] if end == "stream aborted" else [b'{"text": "hi"}']
            aborted = dice.choice(("client_gone", "upstream_reset")) if end == "stream aborted" else ""
            got = play(script._replace(headers=()), parts, dice, aborted=aborted)
            assert got.settled_at_worst, label
            assert got.cost == worst(script), label
            continue
        parts, aborted = script.parts, ""
        if end == "after the figures" and script.final:
            parts, aborted = script.parts[: script.final], "client_gone"
            if script.kind == JSON:
                parts, aborted = script.parts, ""
        got = play(script, parts, dice, aborted=aborted)
        tokens = (got.input_tokens, got.output_tokens, got.cache_read_tokens, got.cache_write_tokens)
        assert tokens == (f.input, f.output, f.read, f.write), label
        assert got.cost == listed(script, f), label
        assert not got.settled_at_worst, label
        assert got.provider == script.provider
        assert got.prices.startswith("genai-prices ")


def begin(
    body: Any, path: str = "/v1/messages", host: str = "api.anthropic.com", *, meter: PriceMeter = METER, **more: Any
) -> Exchange | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = RequestHead(method=more.pop("method", "POST"), scheme="https", host=host, port=443, path=path, **more)
    return meter.begin(head, Body(data=data, decoded=data))


CALL = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


class TestBefore:
    def test_the_worst_case_is_the_bound_times_the_dearest_price(self) -> None:
        found = begin(CALL)
        assert found is not None
        assert found.max_tokens == 100
        assert found.input_tokens >= len(json.dumps(CALL))
        escaped = json.dumps(CALL).replace("hi", "\\u00e9\\ud800").encode()
        again = begin(escaped)
        assert again is not None
        assert again.input_tokens >= found.input_tokens
        assert again.limited(1)
        assert found.price == Price(input=1000, output=5000, cache_read=1000, cache_write=1000)
        assert found.worst_cost == found.input_tokens * 1000 + 100 * 5000

    def test_what_may_be_written_to_a_cache_counts_as_written_for_an_hour(self) -> None:
        text = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
        found = begin(CALL | {"messages": [{"role": "user", "content": [text]}]})
        assert found is not None
        assert found.price == Price(input=2000, output=5000, cache_read=2000, cache_write=2000)

    def test_a_model_without_a_price_has_no_worst_case(self) -> None:
        found = begin(CALL | {"model": "no-such-model"})
        assert found is not None
        assert found.worst_cost is None
        assert found.finish("client_gone").cost is None

    def test_the_operators_price_is_the_declared_ceiling_of_an_unknown_model(self) -> None:
        meter = PriceMeter(Prices({"no-such-model": PriceSettings(input=10, output=20)}))
        found = begin(CALL | {"model": "no-such-model"}, meter=meter)
        assert found is not None
        assert found.worst_cost == found.input_tokens * 10 + 100 * 20
        assert found.finish("client_gone").cost == found.worst_cost
        assert " + " in found.finish("client_gone").prices

    @pytest.mark.parametrize(
        ("path", "host", "body", "limit"),
        [
            ("/v1/chat/completions", "api.openai.com", {"model": "gpt-4.1", "messages": []}, CEILING),
            ("/v1/chat/completions", "api.openai.com", {"model": "m", "messages": [], "max_tokens": 5, "n": 3}, 15),
            (
                "/v1/chat/completions",
                "h",
                {"model": "m", "messages": [], "max_tokens": 5, "max_completion_tokens": 9},
                9,
            ),
            ("/v1/responses", "api.openai.com", {"model": "m", "input": "x", "max_output_tokens": 7}, 7),
            ("/v1/embeddings", "api.openai.com", {"model": "text-embedding-3-small", "input": "x"}, 0),
            (
                "/v1beta/models/gemini-2.5-pro:generateContent",
                "h",
                {"generationConfig": {"candidateCount": 2}},
                2 * CEILING,
            ),
            ("/model/m/converse", "h", {"inferenceConfig": {"maxTokens": 11}}, 11),
            ("/model/m/invoke", "h", {"textGenerationConfig": {"maxTokenCount": 12}}, 12),
        ],
    )
    def test_the_output_limit_of_each_protocol(self, path: str, host: str, body: Any, limit: int) -> None:
        found = begin(body, path, host)
        assert found is not None
        assert found.max_tokens == limit

    @pytest.mark.parametrize(
        "body",
        [
            {"model": "gpt-4.1", "input": "x", "previous_response_id": "r1"},
            {"model": "gpt-4.1", "input": [{"content": [{"type": "input_file", "file_id": "f"}]}]},
            {"model": "gpt-4.1", "input": "x", "tools": [{"type": "web_search"}]},
        ],
    )
    def test_what_a_request_only_points_to_counts_at_its_most(self, body: Any) -> None:
        found = begin(body, "/v1/responses", "api.openai.com")
        assert found is not None
        assert found.input_tokens > REMOTE

    def test_a_batch_reserves_all_of_its_requests_at_half_the_price(self) -> None:
        body = {"requests": [{"custom_id": str(at), "params": CALL} for at in range(3)]}
        found = begin(body, "/v1/messages/batches")
        assert found is not None
        assert (found.model, found.max_tokens) == ("claude-haiku-4-5", 300)
        assert found.worst_cost == found.input_tokens * 500 + 300 * 2500

    @pytest.mark.parametrize(
        ("path", "host"),
        [
            ("/v1/batches", "api.openai.com"),
            ("/v1/images/generations", "api.openai.com"),
            ("/v1beta/models/gemini-2.5-flash:batchGenerateContent", "generativelanguage.googleapis.com"),
        ],
    )
    def test_what_costs_in_another_way_has_no_price(self, path: str, host: str) -> None:
        found = begin({"model": "gpt-4.1"}, path, host)
        assert found is not None
        assert found.worst_cost is None

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"\xff\xff",
            b'{"model": "claude-haiku-4-5", "model": "claude-opus-4-1", "max_tokens": 1, "messages": []}',
            b'{"model": "claude-haiku-4-5", "max_tokens": 1, "max_tokens": 100000, "messages": []}',
        ],
    )
    def test_what_two_readers_could_read_differently_has_no_price(self, body: bytes) -> None:
        found = begin(body)
        assert found is not None
        assert (found.model, found.worst_cost, found.max_tokens) == ("", None, CEILING)

    def test_a_body_that_goes_on_has_no_price(self) -> None:
        data = json.dumps(CALL).encode()
        found = METER.begin(post("api.anthropic.com", "/v1/messages"), Body(data=data, decoded=data, complete=False))
        assert found is not None
        assert found.worst_cost is None

    @pytest.mark.parametrize(
        ("method", "path", "host", "body"),
        [
            ("GET", "/v1/messages", "api.anthropic.com", CALL),
            ("POST", "/v1/messages/count_tokens", "api.anthropic.com", CALL),
            ("POST", "/surveys/responses", "forms.example.com", {"answer": 1}),
            ("POST", "/v1/messages", "chat.example.com", {"text": "hello"}),
            ("POST", "/v1/messages", "chat.example.com", b"text=hello"),
            ("POST", "/v1/models", "api.openai.com", {}),
        ],
    )
    def test_what_is_no_call(self, method: str, path: str, host: str, body: Any) -> None:
        assert begin(body, path, host, method=method) is None

    def test_a_gateway_is_metered_by_its_protocol(self) -> None:
        found = begin(CALL, "/proxy/v1/messages", "127.0.0.1")
        assert found is not None
        assert (found.provider, found.model) == ("anthropic", "claude-haiku-4-5")

    def test_azure_names_the_model_by_its_deployment(self) -> None:
        found = begin({"messages": []}, "/openai/deployments/o3-mini/chat/completions", "me.openai.azure.com")
        assert found is not None
        assert (found.provider, found.model) == ("azure", "o3-mini")
        assert found.worst_cost is not None

    def test_a_realtime_socket_has_no_price(self) -> None:
        found = begin(b"", "/v1/realtime", "api.openai.com", method="GET", upgrade="websocket")
        assert found is not None
        assert found.worst_cost is None


class TestLimited:
    def test_a_lower_limit_is_sent_and_counts(self) -> None:
        found = begin(CALL)
        assert found is not None
        assert found.worst_cost is not None
        before = found.worst_cost
        sent = found.limited(40)
        assert sent is not None
        assert json.loads(sent) == CALL | {"max_tokens": 40}
        assert found.worst_cost == before - 60 * 5000
        assert found.finish("client_gone").output_tokens == 40

    @pytest.mark.parametrize("limit", [0, 100, 5000])
    def test_a_limit_that_is_no_lower_changes_nothing(self, limit: int) -> None:
        found = begin(CALL)
        assert found is not None
        assert found.limited(limit) is None

    def test_every_answer_shares_the_limit(self) -> None:
        body = {"model": "gpt-4.1", "messages": [], "max_tokens": 50, "max_completion_tokens": 100, "n": 2}
        found = begin(body, "/v1/chat/completions", "api.openai.com")
        assert found is not None
        sent = found.limited(80)
        assert sent is not None
        assert json.loads(sent) == body | {"max_tokens": 40, "max_completion_tokens": 40}

    def test_a_limit_is_put_where_none_was(self) -> None:
        found = begin({"contents": []}, "/v1beta/models/gemini-2.5-flash:generateContent", "h")
        assert found is not None
        sent = found.limited(64)
        assert sent is not None
        assert json.loads(sent) == {"contents": [], "generationConfig": {"maxOutputTokens": 64}}

    @pytest.mark.parametrize(
        ("host", "options", "expected"),
        [
            ("api.openai.com", None, {"include_usage": True}),
            ("api.openai.com", {"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}),
            ("api.openai.com", {"include_usage": True}, None),
            ("api.mistral.ai", None, None),
        ],
    )
    def test_figures_are_asked_for_in_streams(self, host: str, options: Any, expected: Any) -> None:
        body: dict[str, Any] = {"model": "gpt-4.1", "messages": [], "stream": True}
        if options is not None:
            body["stream_options"] = options
        found = begin(body, "/v1/chat/completions", host)
        assert found is not None
        sent = found.limited(0)
        assert (json.loads(sent)["stream_options"] if sent else None) == expected


class TestAfter:
    def test_what_never_left_cost_nothing(self) -> None:
        for aborted in ("connect_failed", "tls_failed", "ssrf", "lease"):
            found = begin(CALL)
            assert found is not None
            got = found.finish(aborted)
            assert (got.cost, got.settled_at_worst) == (0, False)

    def test_an_error_within_a_stream_settles_at_worst(self) -> None:
        found = begin(CALL | {"stream": True})
        assert found is not None
        found.response(ResponseHead(status=200, headers=((b"content-type", SSE),)))
        usage = {"input_tokens": 5, "output_tokens": 1}
        for part in sse(
            ("message_start", {"type": "message_start", "message": {"usage": usage}}),
            ("error", {"type": "error", "error": {"type": "overloaded_error"}}),
        ):
            found.feed(part)
        assert found.finish("").settled_at_worst

    def test_a_frame_with_a_wrong_checksum_settles_at_worst(self) -> None:
        script = converse(random.Random(1), Figures(10, 20), True)
        parts = [bytes([*part[:-1], part[-1] ^ 1]) for part in script.parts]
        assert play(script, parts, random.Random(1)).settled_at_worst

    def test_the_model_that_answered_has_the_price(self) -> None:
        found = begin(CALL)
        assert found is not None
        found.response(ResponseHead(status=200, headers=((b"content-type", JSON),)))
        usage = {"input_tokens": 10, "output_tokens": 10}
        found.feed(json.dumps({"type": "message", "model": "claude-opus-4-1-20250805", "usage": usage}).encode())
        got = found.finish("")
        assert (got.model, got.cost) == ("claude-opus-4-1-20250805", 10 * 15000 + 10 * 75000)

    def test_a_priority_tier_needs_a_price_of_its_own(self) -> None:
        body = {"model": "gpt-4.1", "messages": [], "service_tier": "priority"}
        unknown = begin(body, "/v1/chat/completions", "api.openai.com")
        assert unknown is not None
        assert unknown.worst_cost is None
        meter = PriceMeter(Prices({"openai/gpt-4.1@priority": PriceSettings(input=3500, output=14000)}))
        known = begin(body, "/v1/chat/completions", "api.openai.com", meter=meter)
        assert known is not None
        assert known.price == Price(input=3500, output=14000, cache_read=3500, cache_write=3500)

    def test_audio_has_its_own_price_where_the_list_has_one(self) -> None:
        rates = Rates(price=Price(1, 2, 1, 1), more={"input_audio": 100, "output_audio": 200})
        tally = Tally(input=10, output=10, detail={"input_audio": 4, "output_audio": 3})
        assert charge(rates, tally) == 6 + 400 + 14 + 600
        assert charge(Rates(price=Price(1, 2, 1, 1)), tally) == 10 + 20
        assert charge(Rates(price=Price(1, 2)), Tally(detail={"web_searches": 1})) is None


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=50), max_size=4), st.binary())
    )
)
def test_event_streams_round_trip_in_any_pieces(messages: list[tuple[dict[str, str], bytes]]) -> None:
    messages = [({n: v for n, v in names.items() if len(n.encode()) < 256}, data) for names, data in messages]
    data = b"".join(encode(names, payload) for names, payload in messages)
    one, many = Parser(), Parser()
    assert one.feed(data) == messages
    assert [found for byte in data for found in many.feed(bytes([byte]))] == messages


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([SSE, JSON, CONTENT_TYPE]))
def test_no_answer_breaks_the_meter(data: bytes, kind: bytes) -> None:
    found = begin(CALL | {"stream": True})
    assert found is not None
    found.response(ResponseHead(status=200, headers=((b"content-type", kind),)))
    found.feed(data)
    assert found.finish("").settled_at_worst


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=9), one, max_size=3),
    )
)
def test_no_request_breaks_the_meter(body: Any) -> None:
    for path in ("/v1/messages", "/v1/chat/completions", "/v1/responses", "/model/m/converse", "/v1/messages/batches"):
        data = json.dumps(body).encode()
        call = recognise(post("api.openai.com", path), Body(data=data, decoded=data))
        assert call is None or call.limited(1) is None or json.loads(call.limited(1) or b"")
