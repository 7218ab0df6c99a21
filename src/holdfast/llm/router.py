"""Which provider a model belongs to, with which key: what stands behind ``ctx.llm``.

The keys and addresses are the node's (or a tenant's vault's), never the agent's: ``env`` is what the operator set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from holdfast.action import Price
from holdfast.config import LLMSettings
from holdfast.errors import ConfigError
from holdfast.llm import answers, prices
from holdfast.llm.base import BeforeDial, Delta, LLMFailure, LLMRequest, LLMResponse, Provider, Usage
from holdfast.llm.http import Timing


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where a call goes."""

    provider: str
    model: str


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    base: str
    default_model: str
    prefixes: tuple[str, ...]


PROVIDERS = {
    "anthropic": _Known(
        key="ANTHROPIC_API_KEY",
        base="ANTHROPIC_BASE_URL",
        default_model="claude-sonnet-5-5",
        prefixes=("claude",),
    ),
    "openai": _Known(
        key="OPENAI_API_KEY",
        base="OPENAI_BASE_URL",
        default_model="gpt-5.4-mini",
        prefixes=("gpt-", "chatgpt-", "o1", "o3", "o4"),
    ),
}


class LLM:
    """The models of one tenant. Belongs to the event loop that makes its first call."""

    def __init__(
        self,
        settings: LLMSettings,
        env: Mapping[str, str],
        *,
        timing: Timing | None = None,
        price_cache: Path | None = None,
    ) -> None:
        self._settings = settings
        self._env = env
        self._timing = timing or Timing()
        self._prices = prices.Prices(settings.prices, price_cache)
        self._open: dict[str, Provider] = {}

    def route(self, model: str = "") -> Route:
        """The provider and model that a call's model name stands for; an empty one is the configured one.

        ``anthropic/NAME`` and ``openai/NAME`` name the provider outright. A configured provider with an address of
        its own is a gateway: it takes every model. Otherwise the name's beginning decides, then the configuration,
        then the keys.
        """
        settings = self._settings
        name = model or settings.model
        head, slash, rest = name.partition("/")
        if slash and head in PROVIDERS and rest:
            return Route(provider=head, model=rest)
        if settings.provider and settings.base_url:
            provider = settings.provider
        else:
            provider = self._by_prefix(name) or settings.provider or self._by_key()
        return Route(provider=provider, model=name or PROVIDERS[provider].default_model)

    def _by_prefix(self, name: str) -> str:
        return next((one for one, known in PROVIDERS.items() if name.startswith(known.prefixes)), "")

    def _by_key(self) -> str:
        return next((one for one, known in PROVIDERS.items() if self._env.get(known.key, "").strip()), "anthropic")

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
        """Make one attempt at the provider that the request's model belongs to.

        Args:
            operation: generate, chat, classify or extract. request: as the author's code made it; an empty model is
            filled in. idempotency_key: stable over retries. timeout: of the whole attempt, in seconds. before_dial:
            called once the connection stands and before the first byte leaves, with the seconds that sending may
            take; what it raises ends the attempt with nothing sent. on_delta: called with each piece of text; the
            answer is then streamed.

        Raises:
            LLMFailure: see there. Without a key: not retryable, not sent, and it says which to set.
        """
        route = self.route(request.model)
        provider = self._provider(route.provider)
        if request.model != route.model:
            request = msgspec.structs.replace(request, model=route.model)
        return await provider.complete(
            operation,
            request,
            idempotency_key=idempotency_key,
            timeout=timeout,
            before_dial=before_dial,
            on_delta=on_delta,
        )

    def check(self, operation: str, request: LLMRequest) -> None:
        """Refuse what cannot be sent, before anything is decided or reserved: a bad request, a missing key.

        Raises:
            LLMFailure: not retryable, not sent.
        """
        answers.check(operation, request)
        self._provider(self.route(request.model).provider)

    @property
    def price_table(self) -> prices.Prices:
        """What models cost, with the operator's own prices."""
        return self._prices

    def price(self, route: Route, input_tokens: int = 0) -> Price | None:
        """The price of a call (see :meth:`holdfast.llm.prices.Prices.price_of`)."""
        return self._prices.price_of(route.provider, route.model, input_tokens)

    def cost(self, route: Route, usage: Usage) -> int | None:
        """What a call cost by the provider's figures, in nano-dollars; None when the price or the figures are not
        known."""
        price = self.price(route, usage.input + usage.cache_read + usage.cache_write)
        return prices.cost(price, usage) if price is not None and usage.reported else None

    def _provider(self, name: str) -> Provider:
        found = self._open.get(name)
        if found is None:
            found = self._open[name] = self._build(name)
        return found

    def _build(self, name: str) -> Provider:
        known, settings = PROVIDERS[name], self._settings
        # The file's address and key are those of one provider: the one it names, or the one that its model leads to.
        own = name == (settings.provider or self.route().provider)
        variable = (settings.api_key_env if own else "") or known.key
        key = self._env.get(variable, "").strip()
        if not key:
            raise LLMFailure(
                f"no key for {name}: set {variable} or [llm] api_key_env in holdfast.toml", retryable=False, sent=False
            )
        if not (key.isascii() and key.isprintable()):
            raise LLMFailure(
                f"the key in {variable} holds characters that no key has: set it again", retryable=False, sent=False
            )
        source = "[llm] base_url" if own and settings.base_url else known.base
        base = (settings.base_url if own else "") or self._env.get(known.base, "").strip()
        if base:
            check_url(base, source)
        build = _BUILDERS[name]
        return build(key, base, variable, self._timing, self._env)

    async def aclose(self) -> None:
        """Close the connections."""
        providers, self._open = list(self._open.values()), {}
        for provider in providers:
            await provider.aclose()


def check_url(url: str, source: str) -> None:
    """Refuse a base URL that cannot be meant.

    Raises:
        ConfigError: names ``source`` and the cure; does not repeat the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{source} is not an http or https address; write it like https://host/path")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(f"{source} may hold a host, a port and a path only; the key has its own variable")


def _anthropic(key: str, base: str, variable: str, timing: Timing, env: Mapping[str, str]) -> Provider:
    from holdfast.llm.anthropic import BASE_URL, Anthropic

    return Anthropic(key, base or BASE_URL, key_name=variable, timing=timing, env=env)


def _openai(key: str, base: str, variable: str, timing: Timing, env: Mapping[str, str]) -> Provider:
    from holdfast.llm.openai import BASE_URL, OpenAI

    return OpenAI(key, base or BASE_URL, key_name=variable, timing=timing, env=env)


_BUILDERS: dict[str, Callable[[str, str, str, Timing, Mapping[str, str]], Provider]] = {
    "anthropic": _anthropic,
    "openai": _openai,
}
