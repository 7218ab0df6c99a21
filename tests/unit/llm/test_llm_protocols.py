"""Both providers against the scripted server: what is sent, what is understood, and what each failure means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from holdfast.llm.base import LLMFailure, LLMRequest, Turn, Usage
from holdfast.llm.http import Timing
from holdfast.testing import model_wire
from holdfast.testing.model_server import Figures, ModelServer, Reply, Request, Rule

KEY = "sk-test-0123456789"
SCHEMA = {
    "type": "object",
    "properties": {"amount": {"type": "integer"}, "payee": {"type": "string"}},
    "required": ["amount"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_generate(run: Any, caller: Any, provider: str, stream: bool) -> None:
    usage = Figures(input=10, output=4, cache_read=3, cache_write=2 if provider == "anthropic" else 0)
    with ModelServer([Rule(text="Two of three match. Ünïcode ✓", usage=usage)]) as server:

        async def body(call: Any) -> None:
            answer = await call.call(
                "generate",
                "how many?",
                system="Be brief.",
                temperature=0.5,
                stop=("END",),
                max_tokens=99,
                stream=stream,
            )
            assert answer.text == "Two of three match. Ünïcode ✓"
            assert answer.value is None
            assert answer.stop_reason == "end_turn"
            assert answer.request_id
            assert answer.usage == Usage(input=10, output=4, cache_read=3, cache_write=usage.cache_write)
            assert "".join(call.pieces) == (answer.text if stream else "")
            assert len(call.pieces) > 1 or not stream
            assert call.dials == [5.0]

        run(caller(provider, server.url), body)
        (seen,) = server.requests
    assert seen.protocol == provider
    assert seen.key == KEY
    assert seen.headers["idempotency-key"] == "key-1"
    assert (seen.last, seen.system, seen.max_tokens, seen.stream) == ("how many?", "Be brief.", 99, stream)
    assert seen.body["temperature"] == 0.5
    if provider == "anthropic":
        assert seen.headers["anthropic-version"] == "2023-06-01"
        assert seen.body["stop_sequences"] == ["END"]
    else:
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert seen.body["stop"] == ["END"]
        assert ("stream_options" in seen.body) == stream


def test_chat_keeps_the_conversation(run: Any, caller: Any, provider: str) -> None:
    turns = (
        Turn(role="user", content="one"),
        Turn(role="assistant", content="two"),
        Turn(role="user", content="three"),
    )
    with ModelServer([Rule(text="four")]) as server:

        async def body(call: Any) -> None:
            answer = await call.llm.complete(
                "chat",
                LLMRequest(messages=turns, model=f"{provider}/some-model"),
                idempotency_key="k",
                timeout=60.0,
                before_dial=call.dials.append,
            )
            assert (answer.text, answer.model) == ("four", "some-model")

        run(caller(provider, server.url), body)
        (seen,) = server.requests
    assert [(m["role"], m["content"]) for m in seen.body["messages"]] == [(t.role, t.content) for t in turns]


@pytest.mark.parametrize("stream", [False, True])
def test_classify(run: Any, caller: Any, provider: str, stream: bool) -> None:
    with ModelServer([{"match": "duplicate", "category": "flagged"}, {"category": "approved"}]) as server:

        async def body(call: Any) -> None:
            names = ("approved", "flagged")
            first = await call.call("classify", "a duplicate", categories=names, stream=stream)
            other = await call.call("classify", "rent", categories=names, stream=stream)
            assert (first.value, other.value) == ("flagged", "approved")

        run(caller(provider, server.url), body)
        seen = server.requests[0]
    assert seen.operation == "classify"
    assert seen.categories == ("approved", "flagged")


WORDS = [
    ("approved", "approved"),
    (" Approved.\n", "approved"),
    ('"flagged"', "flagged"),
    ('{"category": "flagged"}', "flagged"),
    ('```json\n{"category": "flagged"}\n```', "flagged"),
    ("not approved", None),
    ("approved or flagged", None),
    ("APPROVED, I think", None),
    ("", None),
    ('{"category": "other"}', None),
    ('{"category": ["approved"]}', None),
]


@pytest.mark.parametrize(("said", "category"), WORDS)
def test_classify_in_words_takes_the_bare_name_only(
    run: Any, caller: Any, provider: str, said: str, category: str | None
) -> None:
    with ModelServer([Rule(text=said, usage=Figures(input=7, output=3))]) as server:

        async def body(call: Any) -> None:
            if category:
                assert (await call.call("classify", categories=("approved", "flagged"))).value == category
                return
            with pytest.raises(LLMFailure, match="none of the categories") as caught:
                await call.call("classify", categories=("approved", "flagged"))
            assert (caught.value.retryable, caught.value.sent) == (True, True)
            assert caught.value.usage == Usage(input=7, output=3)

        run(caller(provider, server.url), body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_category_off_the_list_never_comes_back(run: Any, caller: Any, provider: str, stream: bool) -> None:
    with ModelServer([Rule(category="Approved")]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure, match="none of the categories"):
                await call.call("classify", categories=("approved", "flagged"), stream=stream)

        run(caller(provider, server.url), body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"amount": 5, "payee": "x"}, ""),
        ({"amount": "5"}, "breaks 'type' at \\$.amount"),
        ({}, "breaks 'required' at \\$"),
        ({"amount": 5, "secret": 1}, "breaks 'additionalProperties' at \\$"),
    ],
)
def test_extract(run: Any, caller: Any, provider: str, stream: bool, said: dict[str, Any], fault: str) -> None:
    with ModelServer([Rule(json=said)]) as server:

        async def body(call: Any) -> None:
            if not fault:
                assert (await call.call("extract", schema=SCHEMA, stream=stream)).value == said
                return
            with pytest.raises(LLMFailure, match=fault) as caught:
                await call.call("extract", schema=SCHEMA, stream=stream)
            assert (caught.value.retryable, caught.value.sent) == (True, True)

        run(caller(provider, server.url), body)


@pytest.mark.parametrize("operation", ["classify", "extract"])
@pytest.mark.parametrize(("stop", "words"), [("max_tokens", "cut off at max_tokens=1024"), ("refusal", "declined")])
def test_an_answer_that_another_try_cannot_mend(
    run: Any, caller: Any, provider: str, operation: str, stop: str, words: str
) -> None:
    with ModelServer([Rule(text="I", stop_reason=stop)]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure, match=words) as caught:
                await call.call(operation, categories=("a", "b"), schema=SCHEMA)
            assert not caught.value.retryable

        run(caller(provider, server.url), body)


STATUSES = [
    # status, type, retry-after, words, retryable, retry_after_us
    (400, "", "", "answered 400", False, 0),
    (401, "", "", "check {KEY}", False, 0),
    (403, "", "", "check {KEY}", False, 0),
    (404, "", "", "check the model's name and the base URL", False, 0),
    (302, "", "", "redirects", False, 0),
    (409, "", "", "answered 409", True, 0),
    (413, "", "", "answered 413", False, 0),
    (429, "", "3", "answered 429", True, 3_000_000),
    (429, "", "0.5", "answered 429", True, 500_000),
    (429, "", "soon", "answered 429", True, 0),
    (429, "", "9999999", "answered 429", True, 3_600_000_000),
    (500, "", "", "answered 500", True, 0),
    (503, "", "2", "answered 503", True, 2_000_000),
    (529, "overloaded_error", "", "overloaded_error", True, 0),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind", "retry_after", "words", "retryable", "after"), STATUSES)
def test_statuses(
    run: Any,
    caller: Any,
    provider: str,
    stream: bool,
    status: int,
    kind: str,
    retry_after: str,
    words: str,
    retryable: bool,
    after: int,
) -> None:
    reply = Rule(error=status, error_type=kind, retry_after=retry_after, message=f"key {KEY} \x1b[31m is\n wrong")
    with ModelServer([reply]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure) as caught:
                await call.call(stream=stream)
            failure = caught.value
            assert words.replace("{KEY}", f"{provider.upper()}_API_KEY") in str(failure)
            assert (failure.retryable, failure.sent, failure.retry_after_us) == (retryable, True, after)
            assert KEY not in str(failure)
            assert str(failure).isprintable()

        run(caller(provider, server.url), body)


def test_no_credit_is_not_tried_again(run: Any, caller: Any) -> None:
    with ModelServer([Rule(error=429, error_type="insufficient_quota", retry_after="1")]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure, match="billing") as caught:
                await call.call()
            assert (caught.value.retryable, caught.value.retry_after_us) == (False, 0)

        run(caller("openai", server.url), body)


FAULTS = [
    ("disconnect", False, "broke the connection before it answered"),
    ("disconnect", True, "broke the connection before it answered"),
    ("cut", False, "broke the connection in the middle"),
    ("cut", True, "broke the connection in the middle"),
    ("malformed", False, "not of its protocol"),
    ("malformed", True, "not of its protocol"),
    ("stream_error", True, "broke off its answer: overloaded_error"),
]


@pytest.mark.parametrize(("fault", "stream", "words"), FAULTS)
def test_faults(run: Any, caller: Any, provider: str, fault: str, stream: bool, words: str) -> None:
    with ModelServer([Rule(text="one two three four", fault=fault)]) as server:

        async def body(call: Any) -> None:
            with pytest.raises(LLMFailure, match=words) as caught:
                await call.call(stream=stream)
            failure = caught.value
            assert (failure.retryable, failure.sent, failure.timeout) == (True, True, False)
            assert failure.usage is None or not failure.usage.reported

        run(caller(provider, server.url), body)


@pytest.mark.parametrize(
    ("fault", "stream", "timing", "words"),
    [
        ("hang", False, Timing(), "did not answer within"),
        ("hang", True, Timing(), "did not answer within"),
        ("stall", True, Timing(stall=0.2), "stopped in the middle of its answer"),
        ("stall", False, Timing(stall=0.2), "stopped in the middle of its answer"),
    ],
)
def test_time_outs(run: Any, caller: Any, provider: str, fault: str, stream: bool, timing: Timing, words: str) -> None:
    with ModelServer([Rule(text="one two three", fault=fault)]) as server:

        async def body(call: Any) -> None:
            # On a busy machine the request may not even have left within a short time.
            for timeout in (0.3, 3.0, 30.0):
                with pytest.raises(LLMFailure) as caught:
                    await call.call(stream=stream, timeout=60.0 if fault == "stall" else timeout)
                if caught.value.sent and "take the request" not in str(caught.value):
                    break
            failure = caught.value
            assert words in str(failure)
            assert (failure.retryable, failure.sent, failure.timeout) == (True, True, True)

        run(caller(provider, server.url, timing), body)


def test_a_stream_without_figures_is_not_reported(run: Any, caller: Any, provider: str) -> None:
    with ModelServer([Rule(text="hi", usage=Figures(missing=True))]) as server:

        async def body(call: Any) -> None:
            for stream in (False, True):
                answer = await call.call(stream=stream)
                assert answer.text == "hi"
                assert not answer.usage.reported

        run(caller(provider, server.url), body)


def test_a_server_that_does_not_stream_is_understood(run: Any, caller: Any, provider: str) -> None:
    original = model_wire.read

    def plain(number: int, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Request:
        """Read a request as if no stream had been asked for."""
        return original(number, path, headers, {**body, "stream": False})

    with pytest.MonkeyPatch.context() as patch, ModelServer([Rule(text="in one piece")]) as server:
        patch.setattr(model_wire, "read", plain)

        async def body(call: Any) -> None:
            assert (await call.call(stream=True)).text == "in one piece"
            assert call.pieces == ["in one piece"]

        run(caller(provider, server.url), body)


def test_the_name_of_the_limit_is_learnt(run: Any, caller: Any) -> None:
    def script(request: Request) -> Reply:
        if "max_tokens" in request.body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model."
            return Reply(error=400, error_type="unsupported_parameter", message=text)
        return Reply(text="ok")

    with ModelServer(script) as server:

        async def body(call: Any) -> None:
            await call.call(max_tokens=77)
            await call.call(max_tokens=78)
            assert len(call.dials) == 3

        run(caller("openai", server.url), body)
        seen = server.requests
    assert [("max_tokens" in r.body, r.max_tokens) for r in seen] == [(True, 77), (False, 77), (False, 78)]


@pytest.mark.parametrize(
    ("base", "path"), [("", "/v1/chat/completions"), ("/", "/v1/chat/completions"), ("/v1", "/v1/chat/completions")]
)
def test_openai_base_urls(run: Any, caller: Any, base: str, path: str) -> None:
    with ModelServer([Rule(text="ok")]) as server:

        async def body(call: Any) -> None:
            await call.call()

        run(caller("openai", server.url + base), body)
        assert server.requests[0].path == path


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/"])
def test_anthropic_base_urls(run: Any, caller: Any, base: str) -> None:
    with ModelServer([Rule(text="ok")]) as server:

        async def body(call: Any) -> None:
            await call.call()

        run(caller("anthropic", server.url + base), body)
        assert server.requests[0].path == "/v1/messages"
