"""The price of every model: from the configuration, else from the catalogue.

Each model is resolved once, into integers, and remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from llm_budget_mw._money import cost_nano, usd_to_nano
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.pricing.catalogue import (
    ANY_TIER,
    PRICED_TIERS,
    REGIONAL,
    Catalogue,
    spellings,
)
from llm_budget_mw.pricing.price import (
    LongContext,
    ModelPrice,
    PerClass,
    complete_rates,
    writes_unasked,
)
from llm_budget_mw.types import MAX_AMOUNT, Usage

if TYPE_CHECKING:
    from llm_budget_mw.config.prices import LongContextConfig, ModelPriceConfig, PricesConfig

_MAX_NAME_LENGTH = 256
_MAX_REMEMBERED = 4096

_STANDARD_TIERS = frozenset({"auto", "default", "standard", "standard_only", "on_demand"})
# Paid for in advance, or at a discount: what is charged by use is at most the standard price.
_PREPAID_TIERS = frozenset({"scale", "reserved", "provisioned_throughput", "on_demand_offpeak"})


class Prices:
    """Price of a model by name, and cost of a usage.

    Building one imports the catalogue, some 200 ms: do it at start-up. `at` is the moment
    whose prices count, by default now. Safe to share between threads.
    """

    def __init__(self, config: PricesConfig, *, at: datetime | None = None) -> None:
        self._configured = {
            name.lower(): _from_config(name, price) for name, price in config.models.items()
        }
        self._aliases = {name.lower(): model for name, model in config.aliases.items()}
        self._catalogue = Catalogue(at or datetime.now(UTC)) if config.catalogue else None
        self._unknown = _price_of_unknown(config)
        self._reference_model = config.reference_model
        # Names come from callers, so the memory for them is bounded, misses included.
        self._known = lru_cache(_MAX_REMEMBERED)(self._resolve)
        self.version = self._catalogue.version if self._catalogue else "configured"
        """Which prices these are, for the record: `genai-prices/0.2.3` or `configured`."""

    def of(self, model: str, service_tier: str | None = None) -> ModelPrice | None:
        """Return the price to admit `model` at, or None if the call is to be refused.

        A service tier cheaper than the standard one is a wish the provider may not grant,
        so it does not lower the price. One nobody has heard of could cost anything.
        """
        tier = _tier_name(service_tier)
        if tier is None:
            return None
        standard = self._find(model, "")
        asked = self._find(model, tier)
        if standard is None or asked is None:
            return self._unknown
        return max(standard, asked, key=lambda price: price.dearness)

    def cost(self, usage: Usage, fallback_model: str | None) -> int | None:
        """Return what `usage` and its `extra` cost, or None if that cannot be known.

        Priced as the model that answered where that one is known, else as `fallback_model`.
        Of a tier nobody has heard of, the dearest price counts that the model has.
        """
        tier = _tier_name(usage.service_tier)
        tier = ANY_TIER if tier is None else tier
        names = (name for name in (usage.model, fallback_model) if name)
        model = next((name for name in names if self._find(name, tier)), None)
        price = self._find(model, tier) if model else self._unknown
        own = price.cost(usage) if price else None
        return _sum([own, *(self.cost(extra, model) for extra in usage.extra)])

    def saved(self, usage: Usage, fallback_model: str | None) -> int:
        """Return what caching saved, in nano-dollars: the cost as plain input less the cost.

        Negative where writing the cache cost more than reading it saved; 0 if unknown.
        """
        if not _is_cached(usage):
            return 0
        cost = self.cost(usage, fallback_model)
        plain = self.cost(_uncached(usage), fallback_model)
        return 0 if cost is None or plain is None else plain - cost

    def canonical(self, model: str) -> str:
        """Return the model that an alias stands for, or `model` itself."""
        return self._aliases.get(model.lower(), model)

    def base_tokens_nano(self, tokens: int) -> int:
        """Return `tokens` base tokens in nano-dollars: input tokens of the reference model.

        Raises `ConfigurationError` if there is no reference model or it has no price.
        """
        if self._reference_model is None:
            raise ConfigurationError(
                "a budget is written in base_tokens but prices.reference_model is not set: "
                "name the model whose input tokens they are, or write the budget in dollars"
            )
        price = self._find(self._reference_model, "")
        if price is None or price.rates.input == 0:
            raise ConfigurationError(
                f"prices.reference_model = {self._reference_model!r} has no input price: "
                "name another model, or give it a price under prices.models"
            )
        return cost_nano(tokens, price.rates.input)

    def _find(self, model: str, tier: str) -> ModelPrice | None:
        return self._known(model, tier) if len(model) <= _MAX_NAME_LENGTH else None

    def _resolve(self, model: str, tier: str) -> ModelPrice | None:
        target = self.canonical(model)
        for name in [*spellings(model), *spellings(target)]:
            if name in self._configured:
                return self._configured[name]
        return self._catalogue.find(spellings(target), tier) if self._catalogue else None


def _tier_name(service_tier: str | None) -> str | None:
    """Return the tier as the catalogue spells it, "" for standard, None if unheard of."""
    name = (service_tier or "").lower()
    region = REGIONAL if name.startswith(REGIONAL) else ""
    tier = name.removeprefix(REGIONAL)
    if tier in _STANDARD_TIERS or tier in _PREPAID_TIERS:
        return region
    tier = region + tier.removeprefix("on_demand_")
    return tier if tier in PRICED_TIERS else None


def _is_cached(usage: Usage) -> bool:
    cached = usage.cache_read_tokens or usage.cache_write_tokens
    return bool(cached) or any(map(_is_cached, usage.extra))


def _uncached(usage: Usage) -> Usage:
    return replace(
        usage,
        cache_read_tokens=0,
        cache_write_tokens=0,
        cache_write_1h_tokens=0,
        extra=tuple(map(_uncached, usage.extra)),
    )


def _sum(costs: Sequence[int | None]) -> int | None:
    known = [cost for cost in costs if cost is not None]
    return min(MAX_AMOUNT, sum(known)) if len(known) == len(costs) else None


def _price_of_unknown(config: PricesConfig) -> ModelPrice | None:
    if config.unknown == "refuse":
        return None
    if config.unknown == "tokens-only":
        return ModelPrice(PerClass(), source="unknown", known=False)
    return _from_config("", config.unknown, source="unknown")


def _from_config(name: str, config: ModelPriceConfig, source: str = "configured") -> ModelPrice:
    given = config.model_dump(include=set(PerClass._fields), exclude_none=True)
    rates = complete_rates({kind: usd_to_nano(usd) for kind, usd in given.items()})
    return ModelPrice(
        rates,
        (_long_context(rates, config.long_context),) if config.long_context else (),
        web_search_nano=usd_to_nano(config.web_search or Decimal(0)),
        writes_unasked=writes_unasked(name),
        source=source,
    )


def _long_context(rates: PerClass, config: LongContextConfig) -> LongContext:
    """Return the tier; classes it does not price keep their proportion to input or output."""
    new_input, new_output = usd_to_nano(config.input), usd_to_nano(config.output)
    cache_read = config.input if config.cache_read is None else config.cache_read
    long = PerClass(
        input=new_input,
        output=new_output,
        cache_read=usd_to_nano(cache_read),
        cache_write=_in_proportion(rates.cache_write, rates.input, new_input),
        cache_write_1h=_in_proportion(rates.cache_write_1h, rates.input, new_input),
        reasoning=_in_proportion(rates.reasoning, rates.output, new_output),
        input_audio=_in_proportion(rates.input_audio, rates.input, new_input),
        output_audio=_in_proportion(rates.output_audio, rates.output, new_output),
    )
    return LongContext(config.above_tokens, long)


def _in_proportion(rate: int, old: int, new: int) -> int:
    return -(-rate * new // old) if old else max(rate, new)
