"""Meters calls of models: what each may cost at most, and what it did cost by the provider's own figures.

Money is in nano-dollars, from a price table compiled to integers (:mod:`holdfast.llm.prices`). A call that broke off,
or came back without figures, counts as the worst case: the provider may charge for it. A model that is not in the table
has no price, and where money is limited such a call is denied, unless the operator declares its price.
"""

from __future__ import annotations

from holdfast.action import Price
from holdfast.egress.base import Body, RequestHead, ResponseHead, Usage
from holdfast.egress.calls import Call, recognise
from holdfast.egress.usage import Source, Tally, invoke, source
from holdfast.llm.prices import Prices, Rates

HALF = frozenset({"batch", "flex"})
"""Tiers that cost half, at every provider that has them."""
NEVER_SENT = frozenset({"connect_failed", "tls_failed", "ssrf", "lease"})
"""Ends before a byte of the request left: nothing was used."""


class PriceMeter:
    """Knows calls of models and their prices: a :class:`holdfast.egress.base.Meter`."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._version = prices.version

    def begin(self, head: RequestHead, body: Body) -> Exchange | None:
        """The state for one exchange; None: not a call of a model."""
        call = recognise(head, body)
        return None if call is None else Exchange(call, self._prices, self._version)


class Exchange:
    """Meters one exchange: a :class:`holdfast.egress.base.MeterState`."""

    def __init__(self, call: Call, prices: Prices, version: str) -> None:
        self._call = call
        self._prices = prices
        self._version = version
        self.provider = call.provider
        self.model = call.model
        self.max_tokens = call.max_tokens
        self.input_tokens = call.input_tokens
        self.price: Price | None = None
        """What a token costs at most; None: not known."""
        self.worst_cost: int | None = None
        rates = self._rates(call.model, call.tier, call.input_tokens)
        if rates is not None:
            dearest, output = _dearest(rates, call)
            self.price = Price(input=dearest, output=output, cache_read=dearest, cache_write=dearest)
            self.worst_cost = dearest * call.input_tokens + output * call.max_tokens
        self._allowed = call.max_tokens
        self._tally = Tally(model=call.model)
        self._source: Source | None = None
        self._status = 0
        self._unreadable = False

    def limited(self, max_tokens: int) -> bytes | None:
        """The request's body with a lower output limit (0: the same) and usage in streams switched on; None: as it was.

        It has no content coding: a request that had one is sent without.
        """
        if max_tokens and max_tokens < self._allowed and self.worst_cost is not None and self.price is not None:
            lowered = max(max_tokens, self._call.answers)
            self.worst_cost -= self.price.output * (self._allowed - lowered)
            self._allowed = lowered
        return self._call.limited(max_tokens)

    def response(self, head: ResponseHead) -> None:
        """The response begins."""
        self._status = head.status
        self._source = source(head)
        if self._call.read is invoke:
            given, taken = (head.get(b"x-amzn-bedrock-%s-token-count" % one) for one in (b"input", b"output"))
            if given is not None and taken is not None and given.isdigit() and taken.isdigit():
                self._tally.input, self._tally.output = int(given), int(taken)
                self._tally.seen = self._tally.complete = True

    def feed(self, data: bytes) -> None:
        """The next bytes of it, without content coding."""
        if self._source is None or self._unreadable:
            return
        try:
            for event, found in self._source.feed(data):
                self._call.read(self._tally, found, event)
        except ValueError:
            self._unreadable = True

    def finish(self, aborted: str) -> Usage:
        """It ended; ``aborted`` is empty when it ended well. What was used, by the provider's figures where they are
        final."""
        tally = self._tally
        if aborted in NEVER_SENT:
            return self._usage(Tally(model=tally.model), 0)
        if self._source is not None and not self._unreadable and not aborted:
            for event, found in self._source.finish():
                self._call.read(tally, found, event)
        if self._status >= 400 and not tally.seen and not aborted:
            return self._usage(tally, 0)
        final = tally.complete or (tally.seen and not aborted and not tally.failed and not self._unreadable)
        cost = self._cost(tally) if final else None
        if cost is None and not final:
            return self._worst()
        return self._usage(tally, cost)

    def _worst(self) -> Usage:
        tally = self._tally
        worst = Tally(model=tally.model, input=self.input_tokens, output=self._allowed, detail=tally.detail)
        return self._usage(worst, self.worst_cost, at_worst=True)

    def _usage(self, tally: Tally, cost: int | None, *, at_worst: bool = False) -> Usage:
        return Usage(
            provider=self.provider,
            model=tally.model or self.model,
            input_tokens=tally.input,
            output_tokens=tally.output,
            cache_read_tokens=tally.cache_read,
            cache_write_tokens=tally.cache_write,
            detail=dict(tally.detail),
            cost=cost,
            prices=self._version,
            settled_at_worst=at_worst,
        )

    def _cost(self, tally: Tally) -> int | None:
        """The price of a tally; None where a part of it has no known price."""
        tokens = tally.input + tally.cache_read + tally.cache_write
        tier = tally.tier or self._call.tier
        # The model that answered has the price; a name that only this provider's own list lacks is the one asked for.
        rates = self._rates(tally.model, tier, tokens) or self._rates(self.model, tier, tokens)
        return None if rates is None else charge(rates, tally)

    def _rates(self, model: str, tier: str, tokens: int) -> Rates | None:
        if not model:
            return None
        own = self._prices.own_rates(self.provider, f"{model}@{tier}") if tier else None
        if own is not None:
            return own
        if tier == "priority" and self.provider == "openai":
            return None
        rates = self._prices.rates_of(self.provider, model, tokens)
        return _halved(rates) if rates is not None and tier in HALF else rates


def charge(rates: Rates, tally: Tally) -> int | None:
    """What figures cost, in nano-dollars; None where a unit that is charged for has no known price."""
    price, more, detail = rates.price, rates.more, tally.detail
    if "web_searches" in detail and "web_searches" not in more:
        return None
    hour = min(tally.cache_write, detail.get("cache_write_1h", 0))
    heard = min(tally.input, detail.get("input_audio", 0)) if "input_audio" in more else 0
    spoken = min(tally.output, detail.get("output_audio", 0)) if "output_audio" in more else 0
    return (
        price.input * (tally.input - heard)
        + price.output * (tally.output - spoken)
        + price.cache_read * tally.cache_read
        + price.cache_write * (tally.cache_write - hour)
        + more.get("cache_write_1h", 2 * price.input) * hour
        + more.get("input_audio", 0) * heard
        + more.get("output_audio", 0) * spoken
        + more.get("web_searches", 0) * detail.get("web_searches", 0)
    )


def _dearest(rates: Rates, call: Call) -> tuple[int, int]:
    """What a token in and a token out cost at most."""
    price, more = rates.price, rates.more
    read, said = max(price.input, price.cache_read), price.output
    if call.caches:
        read = max(read, price.cache_write, more.get("cache_write_1h", 2 * price.input))
    if call.speaks:
        read, said = max(read, more.get("input_audio", 0)), max(said, more.get("output_audio", 0))
    return read, said


def _halved(rates: Rates) -> Rates:
    def half(nano: int) -> int:
        return -(-nano // 2)

    price = rates.price
    return Rates(
        price=Price(
            input=half(price.input),
            output=half(price.output),
            cache_read=half(price.cache_read),
            cache_write=half(price.cache_write),
        ),
        more={unit: nano if unit == "web_searches" else half(nano) for unit, nano in rates.more.items()},
    )
