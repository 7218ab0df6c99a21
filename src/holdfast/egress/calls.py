"""Which requests are calls of a model, by the protocols' own paths, and what each may cost at most. Pure.

A call is known by where it goes and what it looks like, not by its host alone: gateways and proxies speak these
protocols too. What has the path of a call and cannot be read is a call whose price nobody knows.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

import msgspec

from holdfast.egress import usage
from holdfast.egress.base import Body, RequestHead

CEILING = 131_072
"""Output tokens that count for a call that names no limit: more than a model gives in one answer."""
REMOTE = 1_000_000
"""Input tokens that count for what a request only points to: the largest context that is offered."""
IMAGE = 8192
"""Input tokens of one image, at most; those of a page of a document."""
FRAME = 2048
"""Input tokens that a provider adds around a request and its tools, at most."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a model."""

    provider: str
    """As genai-prices calls it."""
    model: str
    read: usage.Reader
    max_tokens: int
    """Over all answers that are asked for."""
    input_tokens: int
    tier: str = ""
    caches: bool = False
    """Whether it may write to a cache, which costs more than reading text."""
    speaks: bool = False
    """Whether it may hold sound, or ask for it."""
    limits: tuple[tuple[str, ...], ...] = ()
    """Where in the body the output limit stands, or is put; empty: it has none."""
    answers: int = 1
    ask_usage: bool = False
    """Whether the figures of a stream have to be asked for."""
    data: dict[str, Any] | None = None
    """The body; None: it could not be read."""

    def limited(self, max_tokens: int) -> bytes | None:
        """The body with at most so many output tokens (0: as many as it says), and figures in streams; None: as it
        was."""
        if self.data is None:
            return None
        data, changed = dict(self.data), False
        each = max(1, max_tokens // self.answers)
        if max_tokens and self.limits and each * self.answers < self.max_tokens:
            for place in self.limits:
                _put(data, place, min(each, _number(_at(data, place)) or each))
            changed = True
        if self.ask_usage:
            options = data.get("stream_options")
            data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
            changed = True
        return json.dumps(data, separators=(",", ":")).encode() if changed else None


class _Protocol(msgspec.Struct, frozen=True, kw_only=True):
    path: re.Pattern[str]
    provider: str
    read: usage.Reader
    needs: tuple[str, ...] = ()
    """Members without which a request on this path is something else."""
    limits: tuple[tuple[str, ...], ...] = ()
    """Where the output limit may stand; the first is where a new one is put."""
    output: bool = True
    batch: bool = False
    """Whether it holds requests to be answered later, at half the price."""
    fixed: bool = False
    """Whether the path alone is enough: no other interface has such a one."""


_CHAT = (("max_completion_tokens",), ("max_tokens",))
_PROTOCOLS = (
    _Protocol(
        path=re.compile(r"/v1/messages$"),
        provider="anthropic",
        read=usage.anthropic,
        needs=("model", "messages"),
        limits=(("max_tokens",),),
    ),
    _Protocol(
        path=re.compile(r"/v1/messages/batches$"),
        provider="anthropic",
        read=usage.anthropic,
        needs=("requests",),
        limits=(("max_tokens",),),
        batch=True,
    ),
    _Protocol(
        # Azure names the model by its deployment.
        path=re.compile(r"(/deployments/(?P<model>[^/]+))?/chat/completions$"),
        provider="openai",
        read=usage.openai_chat,
        needs=("messages",),
        limits=_CHAT,
    ),
    _Protocol(
        path=re.compile(r"/v1/completions$"),
        provider="openai",
        read=usage.openai_chat,
        needs=("model", "prompt"),
        limits=(("max_tokens",),),
    ),
    _Protocol(
        path=re.compile(r"/embeddings$"),
        provider="openai",
        read=usage.openai_chat,
        needs=("model", "input"),
        output=False,
    ),
    _Protocol(
        path=re.compile(r"/responses$"),
        provider="openai",
        read=usage.openai_responses,
        needs=("model",),
        limits=(("max_output_tokens",),),
    ),
    _Protocol(
        path=re.compile(r"/publishers/anthropic/models/(?P<model>[^/:]+):(rawPredict|streamRawPredict)$"),
        provider="google",
        read=usage.anthropic,
        limits=(("max_tokens",),),
        fixed=True,
    ),
    _Protocol(
        path=re.compile(r"/models/(?P<model>[^/:]+):(generateContent|streamGenerateContent)$"),
        provider="google",
        read=usage.gemini,
        limits=(("generationConfig", "maxOutputTokens"),),
        fixed=True,
    ),
    _Protocol(
        path=re.compile(r"/model/(?P<model>[^/]+)/converse(-stream)?$"),
        provider="aws",
        read=usage.converse,
        limits=(("inferenceConfig", "maxTokens"),),
        fixed=True,
    ),
    _Protocol(
        path=re.compile(r"/model/(?P<model>[^/]+)/invoke(-with-response-stream)?$"),
        provider="aws",
        read=usage.invoke,
        limits=(
            ("max_tokens",),
            ("inferenceConfig", "maxTokens"),
            ("inferenceConfig", "max_new_tokens"),
            ("max_gen_len",),
            ("textGenerationConfig", "maxTokenCount"),
        ),
        fixed=True,
    ),
)
_HOSTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^api\.anthropic\.com$"), "anthropic"),
    (re.compile(r"^api\.openai\.com$"), "openai"),
    (re.compile(r"\.openai\.azure\.com$"), "azure"),
    (re.compile(r"^api\.mistral\.ai$"), "mistral"),
    (re.compile(r"(^|[.-])aiplatform\.googleapis\.com$|^generativelanguage\.googleapis\.com$"), "google"),
    (re.compile(r"^bedrock-runtime[.-].*\.amazonaws\.com$"), "aws"),
    (re.compile(r"^api\.deepseek\.com$"), "deepseek"),
    (re.compile(r"^api\.groq\.com$"), "groq"),
    (re.compile(r"^api\.x\.ai$"), "x-ai"),
    (re.compile(r"^openrouter\.ai$"), "openrouter"),
    (re.compile(r"^api\.together\.xyz$"), "together"),
    (re.compile(r"^api\.fireworks\.ai$"), "fireworks"),
    (re.compile(r"^api\.cerebras\.ai$"), "cerebras"),
)
"""Hosts of providers whose prices the list has, where the protocol alone would name another."""
_UNKNOWN = re.compile(
    r"/(images|audio|videos|fine_tuning|batches|threads|assistants|realtime|moderations/batch)(/|$)"
    r"|:(batchGenerateContent|predict|predictLongRunning|embedContent|batchEmbedContents|interactions)$"
    r"|/model-invocation-job$|/async-invoke$|/v1/(complete|ocr|fim/completions|agents/completions)$"
)
"""Paths at providers that cost money in a way that is not metered here: a call whose price nobody knows."""
_POINTERS = frozenset(
    {
        "previous_response_id", "conversation", "prompt_id", "file_id", "file_url", "fileData", "file_data",
        "cachedContent", "s3Location", "s3_location", "container", "mcp_servers", "vector_store_ids", "fileUri",
    }
)  # fmt: skip
"""Members by which a request takes in what is not in it."""
_CACHES = re.compile(r'"(cache_control|cachePoint)"')
_SOUND = re.compile(r"audio", re.IGNORECASE)
_MARKS = re.compile(r'"type"\s*:\s*"(web_search|web_fetch|mcp|file_search|code_interpreter|computer)')
_IMAGES = re.compile(r'"(image|image_url|input_image|inlineData|inline_data|input_audio)"')
_DOCUMENTS = re.compile(r'"(document|input_file|file|video)"|application/pdf|"mimeType"\s*:\s*"(video|audio)/')


def recognise(head: RequestHead, body: Body) -> Call | None:
    """The call that a request is; None: it is none."""
    if head.method != "POST" and not head.upgrade:
        return None
    path = unquote(head.path)
    host = next((name for pattern, name in _HOSTS if pattern.search(head.host)), "")
    for protocol in _PROTOCOLS:
        # A model's name may hold an escaped slash (an ARN): it is looked for in the path as it was sent.
        found = protocol.path.search(head.path) or protocol.path.search(path)
        if found is not None:
            data = _members(body)
            if data is None:
                # Not JSON, on a path that other interfaces have too, at a host that nobody knows: not a call.
                if body.complete and not (host or protocol.fixed or body.decoded.lstrip()[:1] in (b"{", b"[")):
                    return None
                return _unreadable(host or protocol.provider, protocol)
            if not (host or protocol.fixed) and not all(name in data for name in protocol.needs):
                return None
            placed = found.groupdict().get("model")
            named = _model(unquote(placed)) if placed else data.get("model")
            if protocol.batch:
                return _batch(host or protocol.provider, protocol, data)
            return _call(host or protocol.provider, protocol, named if isinstance(named, str) else "", data)
    return _unreadable(host, _PROTOCOLS[0]) if host and _UNKNOWN.search(path) else None


def _call(provider: str, protocol: _Protocol, model: str, data: dict[str, Any]) -> Call:
    asked_for = (data.get("n"), data.get("best_of"), _at(data, ("generationConfig", "candidateCount")))
    answers = max(1, *map(_number, asked_for))
    limits = {place: count for place in protocol.limits if (count := _number(_at(data, place)))}
    limit = max(limits.values(), default=CEILING)
    stream = data.get("stream") is True
    asked = data.get("stream_options")
    # Written anew, so that no escape hides what is in it.
    text = json.dumps(data, ensure_ascii=False)
    asks = protocol.read is usage.openai_chat and stream and provider != "mistral"
    return Call(
        provider=provider,
        model=model,
        read=protocol.read,
        max_tokens=limit * answers if protocol.output else 0,
        input_tokens=_input(data, text),
        tier=_tier(data.get("service_tier")),
        caches=_CACHES.search(text) is not None,
        speaks=_SOUND.search(text) is not None,
        limits=(tuple(limits) or protocol.limits[:1]) if protocol.output else (),
        answers=answers,
        ask_usage=asks and not (isinstance(asked, dict) and asked.get("include_usage") is True),
        data=data,
    )


def _batch(provider: str, protocol: _Protocol, data: dict[str, Any]) -> Call:
    """Many requests at once. Their answers come later and elsewhere, so that the worst case is what counts."""
    given = data.get("requests")
    requests = [_at(one, ("params",)) for one in given] if isinstance(given, list) else []
    if not requests or not all(isinstance(one, dict) for one in requests):
        return _unreadable(provider, protocol)
    calls = [_call(provider, protocol, str(one.get("model", "")), one) for one in requests]
    models = {call.model for call in calls}
    return Call(
        provider=provider,
        model=models.pop() if len(models) == 1 else "",
        read=protocol.read,
        max_tokens=sum(call.max_tokens for call in calls),
        input_tokens=sum(call.input_tokens for call in calls),
        tier="batch",
        caches=any(call.caches for call in calls),
        speaks=any(call.speaks for call in calls),
        data=data,
    )


def _unreadable(provider: str, protocol: _Protocol) -> Call:
    return Call(provider=provider, model="", read=protocol.read, max_tokens=CEILING, input_tokens=REMOTE)


def _members(body: Body) -> dict[str, Any] | None:
    """The body's members; None where it cannot be read, or where two readers could read it differently."""
    if not body.complete:
        return None
    try:
        found = json.loads(body.decoded, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _input(data: dict[str, Any], text: str) -> int:
    """A token stands for at least one byte; what is only pointed to, and images, count at their most."""
    total = len(text.encode("utf-8", "surrogatepass")) + FRAME + IMAGE * len(_IMAGES.findall(text))
    if _DOCUMENTS.search(text) or _MARKS.search(text) or _points(data):
        total += REMOTE
    return total


def _points(data: Any, depth: int = 0) -> bool:
    if isinstance(data, dict):
        return any(
            (name in _POINTERS and value) or (depth < 12 and _points(value, depth + 1)) for name, value in data.items()
        )
    return isinstance(data, list) and depth < 12 and any(_points(one, depth + 1) for one in data)


def _model(name: str) -> str:
    """The model of a path: of an ARN, what stands after the last slash."""
    return name.rpartition("/")[2]


def _number(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _tier(value: Any) -> str:
    return value if value in ("batch", "flex", "priority") else ""


def _at(data: Any, place: tuple[str, ...]) -> Any:
    value: Any = data
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _put(data: dict[str, Any], place: tuple[str, ...], value: int) -> None:
    for name in place[:-1]:
        inner = data.get(name)
        data[name] = dict(inner) if isinstance(inner, dict) else {}
        data = data[name]
    data[place[-1]] = value
