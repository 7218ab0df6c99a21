"""What a model costs, in integer nano-dollars per token, and an upper bound of what a request holds.

The list is genai-prices. Importing it takes a third of a second, so it is imported when a model is first priced, and
what was found for that model is kept in a file until the list or the date of a price change makes it stale.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import msgspec

from holdfast.action import Price
from holdfast.config import PriceSettings
from holdfast.llm import answers
from holdfast.llm.base import LLMRequest, Usage

MAX_KNOWN = 1000
"""Models that are remembered; their names come from inside boundaries."""
MESSAGE_OVERHEAD = 16
"""Tokens that a message's role and frame may take, at most."""
TOOL_OVERHEAD = 1024
"""Tokens of the prompt that a provider adds around tools (Anthropic documents 290 to 804, by model), at most."""


MORE = {
    "cache_write_1h": ("cache_write_1h_mtok", 1000),
    "input_audio": ("input_audio_mtok", 1000),
    "output_audio": ("output_audio_mtok", 1000),
    "web_searches": ("web_searches_kcount", 1_000_000),
}
"""Unit to its name in the list, and the nano-dollars for one unit of one dollar there."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What one call is charged by: nano-dollars for each token, and for each unit of :data:`MORE`."""

    price: Price
    more: Mapping[str, int] = {}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The prices of one model: from each number of input tokens on, exclusively, lowest first."""

    tiers: tuple[tuple[int, Price], ...] = ()
    """Empty: the list does not know the model."""
    more: tuple[dict[str, int], ...] = ()
    """For each tier what beyond tokens of text has a price of its own: see :data:`MORE`."""
    until: str = ""
    """ISO date from which another price holds; empty: none is announced."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    cards: dict[str, Card]


class Prices:
    """Prices of models: the operator's, else the list's. ``cache`` is the file that keeps what was looked up."""

    def __init__(self, overrides: Mapping[str, PriceSettings] | None = None, cache: Path | None = None) -> None:
        self._overrides = {name.lower(): _own(price) for name, price in (overrides or {}).items()}
        self._cache = cache
        self._cards: dict[str, Card] | None = None

    def price_of(self, provider: str, model: str, input_tokens: int = 0) -> Price | None:
        """The price of a call with so many input tokens, cached ones counted in; None when the model is not known.

        Where a provider charges long prompts more, the tier of ``input_tokens`` counts: give the upper bound for a
        reservation and the provider's figure for a settlement.
        """
        rates = self.rates_of(provider, model, input_tokens)
        return rates.price if rates is not None else None

    def rates_of(self, provider: str, model: str, input_tokens: int = 0) -> Rates | None:
        """The price of a call with everything that is charged beside text; None when the model is not known."""
        name = model.lower()
        key = f"{provider}/{name}"
        if own := self.own_rates(provider, model):
            return own
        card = self._card(key, provider, name)
        rates = None
        for (start, price), more in zip(card.tiers, card.more, strict=True):
            if rates is None or input_tokens > start:
                rates = Rates(price=price, more=more)
        return rates

    def own_rates(self, provider: str, model: str) -> Rates | None:
        """The operator's own price of a model; None when there is none."""
        name = model.lower()
        own = self._overrides.get(f"{provider}/{name}") or self._overrides.get(name)
        return Rates(price=own) if own is not None else None

    @property
    def version(self) -> str:
        """Names the table: the list's version, and a digest of the operator's own prices where there are any."""
        listed = f"genai-prices {importlib.metadata.version('genai-prices')}"
        if not self._overrides:
            return listed
        own = msgspec.json.encode(sorted(self._overrides.items()))
        return f"{listed} + {hashlib.sha256(own).hexdigest()[:12]}"

    def _card(self, key: str, provider: str, name: str) -> Card:
        if self._cards is None:
            self._cards = self._read()
        today = datetime.datetime.now(datetime.UTC).date()
        card = self._cards.get(key)
        if card is None or (card.until and today.isoformat() >= card.until):
            card = look_up(provider, name, today) if len(name) <= 200 else Card()
            if len(self._cards) >= MAX_KNOWN:
                self._cards.clear()
            self._cards[key] = card
            self._write()
        return card

    def _read(self) -> dict[str, Card]:
        if self._cache is None:
            return {}
        try:
            kept = msgspec.json.decode(self._cache.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return {}
        return kept.cards if kept.source == _source() else {}

    def _write(self) -> None:
        if self._cache is None or self._cards is None:
            return
        data = msgspec.json.encode(_Kept(source=_source(), cards=self._cards))
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self._cache.parent, prefix=self._cache.name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(path, self._cache)
            except OSError:
                os.unlink(path)
        except OSError:
            # Only a shortcut: a home that cannot be written costs the import again.
            return


def _source() -> str:
    """What the cache was made from: changes when the list's package does. Does not import it."""
    spec = importlib.util.find_spec("genai_prices")
    if spec is None or spec.origin is None:
        return ""
    status = (Path(spec.origin).parent / "data.py").stat()
    return f"2:{status.st_size}:{status.st_mtime_ns}"


def look_up(provider: str, model: str, today: datetime.date) -> Card:
    """What genai-prices says of a model on a day."""
    from genai_prices import data, types

    known = next((item for item in data.providers if item.id == provider), None)
    found = known.find_model(model) if known else None
    if found is None:
        return Card()
    conditional = found.prices if isinstance(found.prices, list) else [types.ConditionalPrice(prices=found.prices)]
    chosen: list[Any] = [conditional[0].prices]
    until = ""
    by_hour = []
    for item in conditional:
        limit = item.constraint
        if limit is None or (isinstance(limit, types.StartDateConstraint) and limit.start_date <= today):
            chosen = [item.prices]
        elif isinstance(limit, types.StartDateConstraint):
            until = min(filter(None, (until, limit.start_date.isoformat())))
        else:
            by_hour.append(item.prices)
    # A price that depends on the hour counts at its highest: a reservation must not be too small.
    tiers, more = _tiers(chosen + by_hour, types.TieredPrices)
    return Card(tiers=tiers, more=more, until=until)


def _tiers(prices: list[Any], tiered: type[Any]) -> tuple[tuple[tuple[int, Price], ...], tuple[dict[str, int], ...]]:
    starts = {0}
    for price in prices:
        for value in vars(price).values():
            if isinstance(value, tiered):
                starts.update(tier.start for tier in value.tiers)

    def at(name: str, start: int, factor: int = 1000) -> int | None:
        found = []
        for price in prices:
            value = vars(price).get(name)
            if isinstance(value, tiered):
                value = next((tier.price for tier in reversed(value.tiers) if start >= tier.start > 0), value.base)
            if value is not None:
                found.append(_nano(value, factor))
        return max(found, default=None)

    table = []
    more = []
    for start in sorted(starts):
        read_in, out = at("input_mtok", start), at("output_mtok", start)
        if read_in is None or out is None:
            return (), ()
        cached, written = at("cache_read_mtok", start), at("cache_write_mtok", start)
        table.append(
            (
                start,
                Price(
                    input=read_in,
                    output=out,
                    cache_read=read_in if cached is None else cached,
                    cache_write=read_in if written is None else written,
                ),
            )
        )
        units = {unit: at(listed, start, factor) for unit, (listed, factor) in MORE.items()}
        more.append({unit: nano for unit, nano in units.items() if nano is not None})
    return tuple(table), tuple(more)


def _nano(dollars: Decimal, factor: int) -> int:
    """Rounded up: a budget is never charged less than the provider does."""
    return int((dollars * factor).to_integral_value(ROUND_CEILING))


def _own(price: PriceSettings) -> Price:
    return Price(
        input=price.input,
        output=price.output,
        cache_read=price.cache_read or price.input,
        cache_write=price.cache_write or price.input,
    )


def cost(price: Price, usage: Usage) -> int:
    """What a call cost, in nano-dollars."""
    return (
        price.input * usage.input
        + price.output * usage.output
        + price.cache_read * usage.cache_read
        + price.cache_write * usage.cache_write
    )


def estimate_tokens(text: str) -> int:
    """An upper bound of a text's tokens: its UTF-8 bytes.

    A token of a byte-level BPE, and of a SentencePiece model with byte fallback, stands for at least one byte, so no
    text has more tokens than bytes, whatever the vocabulary. Usual text has a quarter of that; the rest is freed at
    settlement.
    """
    return len(text.encode("utf-8", "surrogatepass"))


def estimate_request(operation: str, request: LLMRequest) -> int:
    """An upper bound of a request's input tokens: texts, frames of messages, and tools where the operation forces
    one."""
    total = estimate_tokens(answers.system(operation, request)) + MESSAGE_OVERHEAD
    for turn in request.messages:
        total += estimate_tokens(turn.content) + MESSAGE_OVERHEAD
    if form := answers.form(operation, request):
        total += TOOL_OVERHEAD + len(msgspec.json.encode(form.schema)) + estimate_tokens(form.name + form.description)
    return total
