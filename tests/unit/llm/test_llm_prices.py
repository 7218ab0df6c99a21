"""Prices in nano-dollars against the list itself, and the bounds of the estimate."""

from __future__ import annotations

import datetime
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import genai_prices
import pytest
from genai_prices import data, types
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.action import Price
from holdfast.config import PriceSettings
from holdfast.llm import prices
from holdfast.llm.base import LLMRequest, Turn, Usage
from holdfast.llm.prices import Prices, cost, estimate_request, estimate_tokens
from holdfast.llm.router import PROVIDERS

TODAY = datetime.datetime.now(datetime.UTC)


def listed(provider: str, model: str, usage: Usage) -> Decimal:
    """What genai-prices itself makes of a usage, in nano-dollars. It counts cached tokens in."""
    asked = genai_prices.Usage(
        input_tokens=usage.input + usage.cache_read + usage.cache_write,
        output_tokens=usage.output,
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write,
    )
    found = genai_prices.calc_price(asked, model, provider_id=provider, genai_request_timestamp=TODAY)
    return found.total_price * 1_000_000_000


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_every_priced_model_costs_what_the_list_says(provider: str) -> None:
    table = Prices()
    known = next(one for one in data.providers if one.id == provider)
    seen = 0
    for model in known.models:
        for usage in (
            Usage(input=1000, output=500),
            Usage(input=1000, output=500, cache_read=300),
            Usage(input=700_000, output=500, cache_read=300),
        ):
            total = usage.input + usage.cache_read
            price = table.price_of(provider, model.id, total)
            if price is None:
                continue
            seen += 1
            ours, theirs = cost(price, usage), listed(provider, model.id, usage)
            assert ours >= theirs, model.id
            if price.cache_read != price.input or not usage.cache_read:
                assert ours - theirs <= usage.input + usage.output + usage.cache_read, model.id
    assert seen > 30


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_default_models_are_priced(provider: str) -> None:
    price = Prices().price_of(provider, PROVIDERS[provider].default_model)
    assert price is not None
    assert price.input > 0
    assert price.output > 0


def test_a_long_prompt_takes_its_tier() -> None:
    table = Prices()
    at = {count: table.price_of("anthropic", "claude-sonnet-4-5", count) for count in (0, 200_000, 200_001)}
    assert at[0] == at[200_000] == Price(input=3000, output=15000, cache_read=300, cache_write=3750)
    assert at[200_001] == Price(input=6000, output=22500, cache_read=600, cache_write=7500)


def test_names_are_matched_as_the_list_does() -> None:
    table = Prices()
    assert table.price_of("anthropic", "claude-haiku-4-5-20251001") == table.price_of("anthropic", "Claude-Haiku-4-5")
    assert table.price_of("openai", "claude-haiku-4-5") is None
    assert table.price_of("anthropic", "no-such-model") is None
    assert table.price_of("nobody", "claude-haiku-4-5") is None
    assert table.price_of("anthropic", "claude-haiku-4-5" + "x" * 500) is None


def test_the_operators_price_comes_first() -> None:
    table = Prices(
        {
            "Claude-Haiku-4-5": PriceSettings(input=1, output=2),
            "openai/mine": PriceSettings(input=3, output=4, cache_read=5, cache_write=6),
        }
    )
    assert table.price_of("anthropic", "claude-haiku-4-5") == Price(input=1, output=2, cache_read=1, cache_write=1)
    assert table.price_of("openai", "mine") == Price(input=3, output=4, cache_read=5, cache_write=6)
    assert table.price_of("anthropic", "mine") is None


def day(text: str) -> types.StartDateConstraint:
    return types.StartDateConstraint(start_date=datetime.date.fromisoformat(text))


def price_list(prices_of: list[types.ConditionalPrice]) -> list[types.Provider]:
    model = types.ModelInfo(id="m", match=types.ClauseEquals(equals="m"), prices=prices_of)
    return [types.Provider(id="p", name="P", api_pattern="x", models=[model])]


def flat(dollars: str) -> types.ModelPrice:
    return types.ModelPrice(input_mtok=Decimal(dollars), output_mtok=Decimal(dollars))


@pytest.mark.parametrize(
    ("today", "nano", "until"),
    [("2026-01-01", 1000, "2026-03-01"), ("2026-03-01", 2000, "2026-05-01"), ("2027-01-01", 3000, "")],
)
def test_a_price_holds_until_the_next(monkeypatch: pytest.MonkeyPatch, today: str, nano: int, until: str) -> None:
    steps = [
        types.ConditionalPrice(prices=flat("1")),
        types.ConditionalPrice(constraint=day("2026-03-01"), prices=flat("2")),
        types.ConditionalPrice(constraint=day("2026-05-01"), prices=flat("3")),
    ]
    monkeypatch.setattr(data, "providers", price_list(steps))
    card = prices.look_up("p", "m", datetime.date.fromisoformat(today))
    assert card.tiers == ((0, Price(nano, nano, nano, nano)),)
    assert card.until == until


def test_a_price_by_the_hour_counts_at_its_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    night = types.TimeOfDateConstraint(start_time=datetime.time(1), end_time=datetime.time(5))
    steps = [
        types.ConditionalPrice(prices=flat("2")),
        types.ConditionalPrice(constraint=night, prices=flat("1")),
    ]
    monkeypatch.setattr(data, "providers", price_list(steps))
    assert prices.look_up("p", "m", datetime.date(2026, 1, 1)).tiers == ((0, Price(2000, 2000, 2000, 2000)),)


def test_fractions_are_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "providers", price_list([types.ConditionalPrice(prices=flat("0.0371"))]))
    assert prices.look_up("p", "m", datetime.date(2026, 1, 1)).tiers == ((0, Price(38, 38, 38, 38)),)


def test_a_model_without_an_output_price_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    half = types.ModelPrice(input_mtok=Decimal(1))
    monkeypatch.setattr(data, "providers", price_list([types.ConditionalPrice(prices=half)]))
    assert prices.look_up("p", "m", datetime.date(2026, 1, 1)).tiers == ()


def test_what_was_looked_up_is_kept_without_the_list(tmp_path: Path) -> None:
    """A second process prices the same model from the file and does not import the list."""
    cache = tmp_path / "deep" / "prices.json"
    code = (
        "import sys; from pathlib import Path; from holdfast.llm.prices import Prices\n"
        "price = Prices(cache=Path(sys.argv[1])).price_of('anthropic', 'claude-haiku-4-5')\n"
        "print(price.input, price.output, 'genai_prices' in sys.modules)"
    )
    lines = [
        subprocess.run(
            [sys.executable, "-c", code, str(cache)], capture_output=True, text=True, timeout=100, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert lines == [["1000", "5000", "True"], ["1000", "5000", "False"]]


@pytest.mark.parametrize("text", [b"", b"{", b'{"source":"another","cards":{}}', b"[]", b"\xff"])
def test_a_cache_that_cannot_be_used_is_made_again(tmp_path: Path, text: bytes) -> None:
    cache = tmp_path / "prices.json"
    cache.write_bytes(text)
    assert Prices(cache=cache).price_of("anthropic", "claude-haiku-4-5") is not None
    assert b"claude-haiku-4-5" in cache.read_bytes()
    assert list(tmp_path.iterdir()) == [cache]


def test_a_stale_card_is_looked_up_again(tmp_path: Path) -> None:
    cache = tmp_path / "prices.json"
    Prices(cache=cache).price_of("anthropic", "claude-haiku-4-5")
    stale = cache.read_bytes().replace(b'"until":""', b'"until":"2020-01-01"').replace(b"1000", b"7")
    assert b"2020-01-01" in stale
    cache.write_bytes(stale)
    price = Prices(cache=cache).price_of("anthropic", "claude-haiku-4-5")
    assert price is not None
    assert price.input == 1000


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Prices(cache=tmp_path / "file" / "prices.json").price_of("anthropic", "claude-haiku-4-5") is not None
    assert Prices(cache=tmp_path).price_of("anthropic", "claude-haiku-4-5") is not None


def test_names_from_inside_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "MAX_KNOWN", 10)
    table = Prices()
    for number in range(35):
        table.price_of("anthropic", f"made-up-{number}")
    assert table._cards is not None
    assert len(table._cards) <= 10


@settings(deadline=None)
@given(st.text())
def test_the_estimate_is_at_least_a_token_a_character(text: str) -> None:
    assert estimate_tokens(text) >= len(text)


@settings(deadline=None)
@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_the_estimate_of_a_request_covers_each_part(system: str, text: str, categories: list[str]) -> None:
    request = LLMRequest(messages=(Turn(role="user", content=text),) * 2, system=system, categories=tuple(categories))
    plain = estimate_request("generate", request)
    assert plain >= 2 * estimate_tokens(text) + estimate_tokens(system) + 2
    assert estimate_request("classify", request) > plain + sum(map(estimate_tokens, categories))
