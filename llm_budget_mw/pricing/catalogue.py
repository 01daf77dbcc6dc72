"""The price list of the genai-prices package, read into `ModelPrice`.

It goes around the package's own look-up, which remembers every name it is ever asked for:
here names come from callers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from llm_budget_mw._money import usd_to_nano
from llm_budget_mw.pricing.price import (
    LongContext,
    ModelPrice,
    PerClass,
    complete_rates,
    writes_unasked,
)

if TYPE_CHECKING:
    from genai_prices import types as genai

_CLASS_OF_UNIT: Mapping[str, str] = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    # Usage does not tell images and video from text, so the dearest sets the price of all.
    "cache_image_read_mtok": "cache_read",
    "input_image_mtok": "input",
    "input_video_mtok": "input",
    "output_image_mtok": "output",
    "output_video_mtok": "output",
}
_AUDIO_UNITS = frozenset({"input_audio_mtok", "output_audio_mtok"})
# Covered by a dearer class above, or counted in something no answer reports.
_UNITS_LEFT_OUT = frozenset(
    {
        "cache_audio_read_mtok",
        "output_citation_mtok",
        "storage_searches_kcount",
    }
)

# What no list has, at the most any provider is known to ask (November 2026).
_SEARCHES_UNLISTED_USD = Decimal(35)
"""A thousand searches."""
_SEARCHES_ITSELF = re.compile("-search-(?:preview|api)").search
"""Models that search once for each request, and do not report it."""
_DRAWS = re.compile(r"^gpt-image-\d").match
_DEAREST_THAT_DRAWS = "gpt-image-1"
"""Stands in for those the list does not have yet: nobody asks for them by name, tools use them."""
_LONG_WRITE_UNLISTED = Decimal("2.5")
_LONG_WRITE_UNLISTED_CLAUDE = Decimal(2)
"""Times input, for writes that a cache keeps longer than usual."""

# Where to look for a name that its maker's own price list does not have.
_RESELLERS = ("openai", "cohere", "perplexity", "aws", "groq", "together", "openrouter")

_CONTEXT_OF_TIER: Mapping[str, Mapping[str, str]] = {
    "": {},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "batch": {"processing": "batch"},
    "ultrafast": {"service_tier": "ultrafast"},
    "optimized": {"service_tier": "optimized"},
}
# Percent of the standard price where the list has none for a tier that is dearer: the most that
# is known, of the provider or of any. A cheaper tier without a price costs as the standard one.
_MARKUP_UNLISTED: Mapping[str, int] = {
    "priority": 250,
    "fast": 600,
    "ultrafast": 600,
    "optimized": 125,
}
_MARKUP_UNLISTED_AT: Mapping[tuple[str, str], int] = {
    ("aws", "priority"): 175,
    ("google", "priority"): 180,
    ("openai", "fast"): 250,
}
REGIONAL = "regional_"
"""Beginning of a tier that is bound to a region, which no list prices."""
_REGIONAL_PERCENT = 110
PRICED_TIERS = frozenset({*_CONTEXT_OF_TIER, *(REGIONAL + tier for tier in _CONTEXT_OF_TIER)})
"""Service tiers that may have prices of their own; the empty one is the standard tier."""
ANY_TIER = "?"
"""In place of a tier nobody has heard of."""

# What can be wrapped around a model's name: on Bedrock region, vendor and version
# (https://docs.aws.amazon.com/bedrock/latest/userguide/models-supported.html), on Vertex AI
# `publishers/google/models/` and `@date`, elsewhere a date or `-latest`.
_WRAPPINGS = (
    re.compile(r"^(?:arn:.*/|.*\bmodels/)"),
    re.compile(r"^(?:us|us-gov|eu|apac|ap|au|ca|jp|sa|global)\."),
    re.compile(r"^(?:anthropic|amazon|cohere|meta|mistral)\."),
    re.compile(r"(?:-v\d+)?:\d+$"),
    re.compile(r"(?:-latest|@[a-z]+|[-@]\d{4}-?\d{2}-?\d{2})$"),
)


def spellings(model: str) -> list[str]:
    """Return the name in lower case, then with one wrapping after the other taken off."""
    names = [model.lower()]
    for wrapping in _WRAPPINGS:
        names.append(wrapping.sub("", names[-1]) or names[-1])
    return list(dict.fromkeys(names))


class _Sale(NamedTuple):
    """A model on the list of a provider."""

    provider: str
    model: genai.ModelInfo


class Catalogue:
    """The prices that count at one moment; what depends on the time of day, at its dearest.

    Building one imports genai-prices, some 200 ms.
    """

    def __init__(self, at: datetime) -> None:
        import genai_prices
        from genai_prices import data_snapshot

        self.version = f"genai-prices/{genai_prices.__version__}"
        self._at = at
        self._providers = data_snapshot.get_snapshot().providers
        self._by_id = {provider.id: provider for provider in self._providers}

    def find(self, names: Iterable[str], tier: str) -> ModelPrice | None:
        """Return the price of the first of `names` that has one, at a tier of `PRICED_TIERS`.

        A bare name has its maker's own price if there is one. Otherwise, and for names like
        `openai/gpt-4o` that several providers sell, the dearest price counts. `ANY_TIER` is
        the dearest tier the model has a price for.
        """
        for name in _with_stand_in(names):
            for sales in self._candidates(name):
                prices = [
                    price
                    for sale in sales
                    if (price := self._price(name, sale, tier.removeprefix(REGIONAL)))
                ]
                if prices:
                    dearest = max(prices, key=_dearness)
                    regional = tier.startswith(REGIONAL)
                    return dearest.marked_up(_REGIONAL_PERCENT) if regional else dearest
        return None

    def _candidates(self, name: str) -> Iterator[list[_Sale]]:
        if "/" not in name:
            yield list(self._sold_by_maker(name))
        yield [*self._sold_by_maker(name), *self._resold(name)]

    def _sold_by_maker(self, name: str) -> Iterator[_Sale]:
        provider, slash, rest = name.partition("/")
        if slash and provider in self._by_id:
            makers, name = [self._by_id[provider]], rest
        else:
            makers = [p for p in self._providers if p.model_match and p.model_match.is_match(name)]
        for maker in makers[:1]:
            if found := maker.find_model(name):
                yield _Sale(maker.id, found)

    def _resold(self, name: str) -> Iterator[_Sale]:
        for reseller in _RESELLERS:
            provider = self._by_id.get(reseller)
            if provider and (model := provider.find_model(name)):
                yield _Sale(reseller, model)

    def _price(self, name: str, sale: _Sale, tier: str) -> ModelPrice | None:
        listed = self._listed(name, sale.model, tier)
        markup = _MARKUP_UNLISTED_AT.get((sale.provider, tier), _MARKUP_UNLISTED.get(tier))
        if listed and markup and listed == self._listed(name, sale.model, ""):
            return listed.marked_up(markup)
        return listed

    def _listed(self, name: str, model: genai.ModelInfo, tier: str) -> ModelPrice | None:
        contexts = _CONTEXT_OF_TIER.values() if tier == ANY_TIER else [_CONTEXT_OF_TIER[tier]]
        moments = [self._at, *_turning_points(model, self._at)]
        lists = [model.get_prices(moment, context) for moment in moments for context in contexts]
        prices = [price for found in lists if (price := self._convert(name, found))]
        return max(prices, key=_dearness, default=None)

    def _convert(self, name: str, found: genai.ModelPrice) -> ModelPrice | None:
        """Return None if there is no token price, or a unit this package cannot count."""
        units = {unit: price for unit, price in vars(found).items() if price is not None}
        tokens = {unit: units.pop(unit) for unit in _CLASS_OF_UNIT if unit in units}
        searches = units.pop("web_searches_kcount", _SEARCHES_UNLISTED_USD)
        fee = _SEARCHES_UNLISTED_USD if _SEARCHES_ITSELF(name) else Decimal(0)
        requests = units.pop("requests_kcount", fee)
        if not tokens or units.keys() - _UNITS_LEFT_OUT:
            return None
        if "audio" in name and _AUDIO_UNITS.isdisjoint(tokens):
            # A model for sound, of which the list has the price of text alone.
            return None
        starts = sorted({start for price in tokens.values() for start in _tier_starts(price)})
        long_write = _LONG_WRITE_UNLISTED_CLAUDE if "claude" in name else _LONG_WRITE_UNLISTED
        return ModelPrice(
            _rates_at(tokens, 0, long_write),
            tuple(LongContext(start, _rates_at(tokens, start + 1, long_write)) for start in starts),
            web_search_nano=usd_to_nano(_at(searches, 0) / 1000),
            request_nano=usd_to_nano(_at(requests, 0) / 1000),
            writes_unasked=writes_unasked(name),
            source=self.version,
        )


def _with_stand_in(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield name
        if _DRAWS(name):
            yield _DEAREST_THAT_DRAWS


def _turning_points(model: genai.ModelInfo, at: datetime) -> Iterator[datetime]:
    """Yield the moments of a day at which the prices change."""
    from genai_prices.types import TimeOfDateConstraint

    for condition in model.prices if isinstance(model.prices, list) else ():
        daily = condition.constraint
        if isinstance(daily, TimeOfDateConstraint):
            yield datetime.combine(at, daily.start_time)
            yield datetime.combine(at, daily.end_time)


def _rates_at(
    prices: Mapping[str, Decimal | genai.TieredPrices], input_tokens: int, long_write: Decimal
) -> PerClass:
    given: dict[str, int] = {}
    for unit, price in prices.items():
        rate = usd_to_nano(_at(price, input_tokens))
        given[_CLASS_OF_UNIT[unit]] = max(rate, given.get(_CLASS_OF_UNIT[unit], 0))
    write = given.get("cache_write", 0)
    if write > given.get("input", 0):
        # Where a write costs more than input, one that is kept longer costs more than that.
        unlisted = math.ceil(given.get("input", 0) * long_write)
        given.setdefault("cache_write_1h", max(write, unlisted))
    return complete_rates(given)


def _dearness(price: ModelPrice) -> int:
    return price.dearness


def _tier_starts(price: Decimal | genai.TieredPrices) -> list[int]:
    return [] if isinstance(price, Decimal) else [tier.start for tier in price.tiers]


def _at(price: Decimal | genai.TieredPrices, input_tokens: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    return [price.base, *(tier.price for tier in price.tiers if input_tokens > tier.start)][-1]
