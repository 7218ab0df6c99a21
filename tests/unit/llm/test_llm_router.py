"""Which provider, which model, which key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast.config import LLMSettings, PriceSettings
from holdfast.errors import ConfigError
from holdfast.llm.base import LLMFailure, LLMRequest, Turn, Usage
from holdfast.llm.router import LLM, PROVIDERS, Route
from holdfast.testing.model_server import ModelServer, Rule

BOTH = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}
ROUTES = [
    # settings, keys, model, provider, model that is asked
    ({}, BOTH, "", "anthropic", PROVIDERS["anthropic"].default_model),
    ({}, {"OPENAI_API_KEY": "o"}, "", "openai", PROVIDERS["openai"].default_model),
    ({}, {}, "", "anthropic", PROVIDERS["anthropic"].default_model),
    ({}, {}, "claude-opus-5", "anthropic", "claude-opus-5"),
    ({}, {"ANTHROPIC_API_KEY": "a"}, "gpt-5", "openai", "gpt-5"),
    ({}, {}, "o3-mini", "openai", "o3-mini"),
    ({}, {"OPENAI_API_KEY": "o"}, "mistral-large", "openai", "mistral-large"),
    ({"provider": "openai"}, BOTH, "", "openai", PROVIDERS["openai"].default_model),
    ({"provider": "openai"}, BOTH, "claude-opus-5", "anthropic", "claude-opus-5"),
    ({"provider": "openai"}, BOTH, "llama-4", "openai", "llama-4"),
    ({"provider": "openai", "base_url": "http://gate"}, BOTH, "claude-opus-5", "openai", "claude-opus-5"),
    ({"provider": "openai", "base_url": "http://gate"}, BOTH, "anthropic/claude-opus-5", "anthropic", "claude-opus-5"),
    ({"model": "gpt-5"}, BOTH, "", "openai", "gpt-5"),
    ({"model": "openai/llama-4"}, BOTH, "", "openai", "llama-4"),
    ({"model": "gpt-5"}, BOTH, "claude-haiku-4-5", "anthropic", "claude-haiku-4-5"),
    ({"provider": "openai"}, BOTH, "meta/llama-4", "openai", "meta/llama-4"),
]


@pytest.mark.parametrize(("settings", "env", "model", "provider", "asked"), ROUTES)
def test_routes(settings: dict[str, Any], env: dict[str, str], model: str, provider: str, asked: str) -> None:
    assert LLM(LLMSettings(**settings), env).route(model) == Route(provider=provider, model=asked)


def request(**more: Any) -> LLMRequest:
    return LLMRequest(**{"messages": (Turn(role="user", content="x"),), **more})


KEYS = [
    ({}, {}, "", "no key for anthropic: set ANTHROPIC_API_KEY or [llm] api_key_env in holdfast.toml"),
    ({}, {"ANTHROPIC_API_KEY": " "}, "", "no key for anthropic: set ANTHROPIC_API_KEY"),
    ({"provider": "openai"}, {}, "", "no key for openai: set OPENAI_API_KEY"),
    ({"api_key_env": "MY_KEY"}, {}, "", "no key for anthropic: set MY_KEY"),
    ({"api_key_env": "MY_KEY"}, BOTH, "", "no key for anthropic: set MY_KEY"),
    ({"api_key_env": "MY_KEY"}, {"MY_KEY": "m"}, "gpt-5", "no key for openai: set OPENAI_API_KEY"),
    ({}, {"ANTHROPIC_API_KEY": "a\nb"}, "", "holds characters that no key has"),
    ({}, {"ANTHROPIC_API_KEY": "schlüssel"}, "", "holds characters that no key has"),
]


@pytest.mark.parametrize(("settings", "env", "model", "words"), KEYS)
def test_a_missing_key_says_which_to_set(settings: dict[str, Any], env: dict[str, str], model: str, words: str) -> None:
    with pytest.raises(LLMFailure) as caught:
        LLM(LLMSettings(**settings), env).check("generate", request(model=model))
    assert words in str(caught.value)
    assert (caught.value.retryable, caught.value.sent) == (False, False)
    assert "schl" not in str(caught.value)


URLS = [
    "ftp://x",
    "localhost:80",
    "http://",
    "https://user:pw@x",
    "https://x?a=b",
    "https://x#f",
    "http://[::1",
    "http://x:0",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("where", ["file", "env"])
def test_a_base_url_that_cannot_be_meant(url: str, where: str) -> None:
    settings = LLMSettings(base_url=url) if where == "file" else LLMSettings()
    env = BOTH if where == "file" else {**BOTH, "ANTHROPIC_BASE_URL": url}
    with pytest.raises(ConfigError, match="base_url" if where == "file" else "ANTHROPIC_BASE_URL") as caught:
        LLM(settings, env).check("generate", request())
    assert "pw" not in str(caught.value)


def test_the_files_address_and_key_are_one_providers() -> None:
    with ModelServer([Rule(text="file")]) as own, ModelServer([Rule(text="variable")]) as other:
        settings = LLMSettings(provider="openai", base_url=f"{own.url}/v1", api_key_env="MY_KEY")
        env = {"MY_KEY": "mine", "ANTHROPIC_API_KEY": "theirs", "ANTHROPIC_BASE_URL": other.url}

        async def body() -> None:
            llm = LLM(settings, env)
            try:
                for model, text in (("llama-4", "file"), ("anthropic/claude-opus-5", "variable")):
                    answer = await llm.complete(
                        "generate",
                        request(model=model),
                        idempotency_key="k",
                        timeout=60.0,
                        before_dial=lambda seconds: None,
                    )
                    assert answer.text == text
            finally:
                await llm.aclose()

        asyncio.run(body())
        assert [seen.key for seen in own.requests] == ["mine"]
        assert [seen.key for seen in other.requests] == ["theirs"]


BAD = [
    ("paint", {}, "no such operation"),
    ("generate", {"messages": ()}, "no message"),
    ("generate", {"messages": (Turn(role="system", content="x"),)}, "give instructions as system="),
    ("generate", {"messages": (Turn(role="user", content=" "),)}, "a message is empty"),
    ("generate", {"max_tokens": 0}, "max_tokens is 0"),
    ("generate", {"max_tokens": 10**9}, "max_tokens is 1000000000"),
    ("generate", {"temperature": float("nan")}, "temperature is nan"),
    ("generate", {"temperature": -1.0}, "temperature is -1"),
    ("generate", {"stop": ("a",) * 5}, "at most 4 stop sequences"),
    ("generate", {"stop": ("",)}, "at most 4 stop sequences"),
    ("classify", {}, "categories have to be"),
    ("classify", {"categories": ("a", "a")}, "categories have to be"),
    ("classify", {"categories": ("a", "")}, "categories have to be"),
    ("classify", {"categories": tuple(map(str, range(1000)))}, "categories have to be"),
    ("extract", {}, "no schema"),
    ("extract", {"schema": {"type": "array"}}, "has to describe an object"),
]


@pytest.mark.parametrize(("operation", "more", "words"), BAD)
def test_a_request_that_cannot_be_sent(operation: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(LLMFailure, match=words) as caught:
        LLM(LLMSettings(), BOTH).check(operation, request(**more))
    assert (caught.value.retryable, caught.value.sent) == (False, False)


def test_cost_by_the_providers_figures() -> None:
    settings = LLMSettings(
        prices={"my-model": PriceSettings(input=3000, output=15000, cache_read=300, cache_write=3750)}
    )
    llm = LLM(settings, BOTH)
    route = Route(provider="openai", model="my-model")
    assert llm.cost(route, Usage(input=10, output=2, cache_read=5, cache_write=1)) == 30000 + 30000 + 1500 + 3750
    assert llm.cost(route, Usage(input=10, output=2, reported=False)) is None
    assert llm.cost(Route(provider="openai", model="nobody-knows-it"), Usage(input=1)) is None
