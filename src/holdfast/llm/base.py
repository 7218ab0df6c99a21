"""What ``ctx.llm`` asks for and what comes back, whatever the provider's protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    """user or assistant."""
    content: str


class LLMRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A model call as the author's code made it. The worker sends it; the node validates and completes it."""

    messages: tuple[Turn, ...]
    system: str = ""
    model: str = ""
    """Empty: the configured one."""
    max_tokens: int = 1024
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    """classify: the answer is one of these."""
    schema: dict[str, Any] | None = None
    """extract: the answer is an object of this JSON Schema."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The provider's own figures, in tokens. ``input`` is without cached ones."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reported: bool = True
    """False: the provider gave none; settled at the reservation."""


class LLMResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer."""

    text: str
    model: str
    usage: Usage
    value: Any = None
    """classify: the category. extract: the object. Otherwise None."""
    stop_reason: str = ""
    request_id: str = ""


class LLMFailure(Exception):
    """A call that failed. ``retryable`` says whether trying again can help; ``sent`` whether it may have been charged.

    ``usage`` holds the provider's figures where it answered and the answer could not be used: that call was charged.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        sent: bool,
        retry_after_us: int = 0,
        timeout: bool = False,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.sent = sent
        self.retry_after_us = retry_after_us
        self.timeout = timeout
        self.usage = usage


Delta = Callable[[str], Awaitable[None]]
"""Called with each piece of text of a stream; awaiting it is the back-pressure."""

BeforeDial = Callable[[float], None]
"""Called right before bytes leave, with the dial's deadline in seconds; raises when this node may no longer send."""


class Provider(Protocol):
    """A model provider's wire protocol."""

    name: str

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
        """Make one attempt. ``operation``: generate, chat, classify or extract.

        Raises:
            LLMFailure: refused, unreachable, malformed, timed out, or (classify, extract) an answer that is not
            allowed.
        """

    async def aclose(self) -> None:
        """Close the connections."""
