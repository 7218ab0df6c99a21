"""A scripted model server, and calls to it through the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from holdfast.config import LLMSettings
from holdfast.llm.base import LLMRequest, LLMResponse, Turn
from holdfast.llm.http import Timing
from holdfast.llm.router import LLM

KEY = "sk-test-0123456789"


class Caller:
    """Calls of one provider. ``dials`` are the deadlines it was asked about, ``pieces`` what was streamed."""

    def __init__(self, provider: str, url: str, timing: Timing | None = None) -> None:
        name = provider.upper()
        self.provider = provider
        self.llm = LLM(LLMSettings(provider=provider), {f"{name}_API_KEY": KEY, f"{name}_BASE_URL": url}, timing=timing)
        self.dials: list[float] = []
        self.pieces: list[str] = []

    async def call(
        self,
        operation: str = "generate",
        text: str = "hello",
        *,
        stream: bool = False,
        timeout: float = 60.0,
        before_dial: Callable[[float], None] | None = None,
        **request: Any,
    ) -> LLMResponse:
        async def piece(text: str) -> None:
            self.pieces.append(text)

        made = LLMRequest(messages=(Turn(role="user", content=text),), **request)
        return await self.llm.complete(
            operation,
            made,
            idempotency_key="key-1",
            timeout=timeout,
            before_dial=before_dial or self.dials.append,
            on_delta=piece if stream else None,
        )


@pytest.fixture
def run() -> Callable[[Caller, Callable[[Caller], Coroutine[Any, Any, None]]], None]:
    """Run a test's body with a caller, and close the caller's connections."""

    def go(caller: Caller, body: Callable[[Caller], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            try:
                async with asyncio.timeout(110):
                    await body(caller)
            finally:
                await caller.llm.aclose()

        uvloop.run(main())

    return go


@pytest.fixture
def caller() -> type[Caller]:
    """Makes callers."""
    return Caller


@pytest.fixture(params=["anthropic", "openai"])
def provider(request: pytest.FixtureRequest) -> str:
    """Both protocols."""
    return str(request.param)
