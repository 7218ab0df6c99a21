"""The two wire protocols as a provider speaks them: requests read, answers and streams written. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from holdfast.testing.model_script import Reply, Request

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
PATHS = {"/v1/messages": "anthropic", "/v1/chat/completions": "openai"}


def read(number: int, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Request:
    """A request of either protocol, told by its path."""
    protocol = PATHS[path.partition("?")[0]]
    messages = [item for item in body.get("messages") or [] if isinstance(item, dict)]
    if protocol == "anthropic":
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        system = _text(body.get("system"))
        tools = {str(tool.get("name")): tool.get("input_schema") for tool in body.get("tools") or []}
        forced = (body.get("tool_choice") or {}).get("name", "")
        limit = body.get("max_tokens") or 0
    else:
        key = headers.get("authorization", "").removeprefix("Bearer ")
        system = "\n".join(_text(m.get("content")) for m in messages if m.get("role") in ("system", "developer"))
        functions = [tool.get("function") or {} for tool in body.get("tools") or []]
        tools = {str(function.get("name")): function.get("parameters") for function in functions}
        choice = body.get("tool_choice")
        forced = (choice.get("function") or {}).get("name", "") if isinstance(choice, dict) else ""
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    categories = _categories(tools.get(forced)) if forced else ()
    return Request(
        number=number,
        protocol=protocol,
        path=path,
        headers=headers,
        key=key,
        body=body,
        model=str(body.get("model", "")),
        system=system,
        last=next((_text(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), ""),
        operation="classify" if categories else "extract" if forced else "text",
        categories=categories,
        tools=(forced, *(name for name in tools if name != forced)) if forced else tuple(tools),
        stream=body.get("stream") is True,
        max_tokens=limit if type(limit) is int else 0,
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return ""


def _categories(schema: Any) -> tuple[str, ...]:
    members = list(((schema or {}).get("properties") or {}).values())
    return tuple(members[0].get("enum") or ()) if len(members) == 1 and isinstance(members[0], dict) else ()


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """A reply in the terms that both protocols share."""

    text: str
    tool: str
    tool_input: Any
    stop_reason: str
    input: int
    output: int
    cache_read: int
    cache_write: int
    reported: bool


def speak(request: Request, reply: Reply) -> Spoken:
    """What a reply says to a request: text or a tool call, and its figures, cut at the request's ``max_tokens``."""
    text, tool, tool_input = reply.text, reply.tool, reply.json
    if reply.category is not None:
        tool_input = {"category": reply.category}
        if request.tools:
            tool = request.tools[0]
        else:
            text, tool_input = reply.category, None
    elif tool_input is not None and not tool:
        if request.tools:
            tool = request.tools[0]
        else:
            text, tool_input = msgspec.json.encode(tool_input).decode(), None
    said = len(text.encode()) + (len(msgspec.json.encode(tool_input)) if tool else 0)
    usage, output = reply.usage, reply.usage.output
    output = -(-said // 4) if output is None else output
    stop = reply.stop_reason or ("tool_use" if tool else "end_turn")
    if request.max_tokens and output > request.max_tokens:
        output, stop = request.max_tokens, "max_tokens"
        if reply.usage.output is None:
            text = text.encode()[: output * 4].decode(errors="ignore")
    asked = len(msgspec.json.encode(request.body.get("messages"))) + len(request.system.encode())
    return Spoken(
        text=text,
        tool=tool,
        tool_input=tool_input if tool else None,
        stop_reason=stop,
        input=-(-asked // 4) if usage.input is None else usage.input,
        output=output,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        reported=not usage.missing,
    )


def whole(request: Request, said: Spoken) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    if request.protocol == "anthropic":
        content: list[dict[str, Any]] = [{"type": "text", "text": said.text}] if said.text else []
        if said.tool:
            block = {"type": "tool_use", "id": f"toolu_scripted_{request.number}", "name": said.tool}
            content.append({**block, "input": said.tool_input})
        message = {**_message(request), "content": content, "stop_reason": said.stop_reason}
        return {**message, "usage": _anthropic_usage(said)} if said.reported else message
    message = {"role": "assistant", "content": said.text or None, "refusal": None}
    if said.tool:
        message["tool_calls"] = [{**_call(request, said), "function": _function(said)}]
    choice = {"index": 0, "message": message, "finish_reason": _finish(said), "logprobs": None}
    answer = {**_completion(request, "chat.completion"), "choices": [choice]}
    return {**answer, "usage": _openai_usage(said)} if said.reported else answer


def events(request: Request, said: Spoken, chunk: int = 0) -> Iterator[bytes]:
    """The events of a streamed answer, one frame each."""
    yield from (_anthropic if request.protocol == "anthropic" else _openai)(request, said, chunk)


def error(request_protocol: str, status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    kind = kind or ERROR_TYPES.get(status, "api_error")
    if request_protocol == "openai":
        return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    return {"type": "error", "error": {"type": kind, "message": message}}


def _pieces(text: str, chunk: int) -> list[str]:
    if chunk:
        return [text[at : at + chunk] for at in range(0, len(text), chunk)]
    return re.findall(r"\s*\S+\s*\Z|\s*\S+|\s+", text)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode({"type": name, **data}) + b"\n\n"


def _data(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def _anthropic(request: Request, said: Spoken, chunk: int) -> Iterator[bytes]:
    started = {**_message(request), "content": [], "stop_reason": None}
    if said.reported:
        started["usage"] = {**_anthropic_usage(said), "output_tokens": 1}
    yield _event("message_start", {"message": started})
    yield _event("ping", {})
    blocks: list[tuple[dict[str, Any], str, str]] = []
    if said.text or not said.tool:
        blocks.append(({"type": "text", "text": ""}, "text", said.text))
    if said.tool:
        block = {"type": "tool_use", "id": f"toolu_scripted_{request.number}", "name": said.tool, "input": {}}
        blocks.append((block, "partial_json", msgspec.json.encode(said.tool_input).decode()))
    for index, (block, member, content) in enumerate(blocks):
        yield _event("content_block_start", {"index": index, "content_block": block})
        kind = "text_delta" if member == "text" else "input_json_delta"
        for piece in _pieces(content, chunk):
            yield _event("content_block_delta", {"index": index, "delta": {"type": kind, member: piece}})
        yield _event("content_block_stop", {"index": index})
    ended: dict[str, Any] = {"delta": {"stop_reason": said.stop_reason, "stop_sequence": None}}
    if said.reported:
        ended["usage"] = {"output_tokens": said.output}
    yield _event("message_delta", ended)
    yield _event("message_stop", {})


def _openai(request: Request, said: Spoken, chunk: int) -> Iterator[bytes]:
    head = _completion(request, "chat.completion.chunk")

    def part(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _data({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield part({"role": "assistant", "content": ""})
    for piece in _pieces(said.text, chunk):
        yield part({"content": piece})
    if said.tool:
        function = _function(said)
        call = {**_call(request, said), "index": 0, "function": {"name": said.tool, "arguments": ""}}
        yield part({"tool_calls": [call]})
        for piece in _pieces(function["arguments"], chunk):
            yield part({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    yield part({}, _finish(said))
    if said.reported and (request.body.get("stream_options") or {}).get("include_usage"):
        yield _data({**head, "choices": [], "usage": _openai_usage(said)})
    yield b"data: [DONE]\n\n"


def _message(request: Request) -> dict[str, Any]:
    return {
        "id": f"msg_scripted_{request.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "stop_sequence": None,
    }


def _completion(request: Request, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-scripted-{request.number}", "object": kind, "created": 0, "model": request.model}


def _anthropic_usage(said: Spoken) -> dict[str, int]:
    return {
        "input_tokens": said.input,
        "output_tokens": said.output,
        "cache_read_input_tokens": said.cache_read,
        "cache_creation_input_tokens": said.cache_write,
    }


def _openai_usage(said: Spoken) -> dict[str, Any]:
    # OpenAI counts cached tokens in, Anthropic apart.
    asked = said.input + said.cache_read
    return {
        "prompt_tokens": asked,
        "completion_tokens": said.output,
        "total_tokens": asked + said.output,
        "prompt_tokens_details": {"cached_tokens": said.cache_read},
    }


def _call(request: Request, said: Spoken) -> dict[str, Any]:
    return {"id": f"call_scripted_{request.number}", "type": "function"}


def _function(said: Spoken) -> dict[str, str]:
    return {"name": said.tool, "arguments": msgspec.json.encode(said.tool_input).decode()}


def _finish(said: Spoken) -> str:
    names = {"tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
    return names.get(said.stop_reason, "stop")
