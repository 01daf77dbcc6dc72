"""What one model costs, in integers.

Every division rounds up and every doubt is decided for the dearer price, because an
estimate below the bill makes a budget a wish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import mul
from typing import NamedTuple

from llm_budget_mw._money import cost_nano, per_token_nano
from llm_budget_mw.types import MAX_AMOUNT, Usage


class PerClass(NamedTuple):
    """A number for each class of tokens, every token being in exactly one class.

    Either rates, in nano-dollars per million tokens, or counts of tokens.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    input_audio: int = 0
    output_audio: int = 0


class LongContext(NamedTuple):
    """Rates of a whole request whose input exceeds `above_tokens`."""

    above_tokens: int
    rates: PerClass


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What one model costs."""

    rates: PerClass
    long_context: tuple[LongContext, ...] = ()
    """By rising `above_tokens`; the last one exceeded prices the entire request."""
    web_search_nano: int = 0
    request_nano: int = 0
    """Charged once for each request, whatever its size."""
    writes_unasked: bool = False
    """Whether the provider may charge cache writes nobody asked for."""
    source: str = "configured"
    """Where the numbers are from: `configured`, `unknown`, or the catalogue's version."""
    known: bool = True
    """False if the model has no price and is counted in tokens only."""

    @property
    def dearness(self) -> int:
        """A number that orders prices of the same model."""
        return self.rates.input + self.rates.output

    def marked_up(self, percent: int) -> ModelPrice:
        """Return this price with all rates at so many percent, and fees as they are."""
        tiers = [LongContext(at, _at_percent(rates, percent)) for at, rates in self.long_context]
        return replace(self, rates=_at_percent(self.rates, percent), long_context=tuple(tiers))

    def bound(
        self,
        input_tokens: int,
        *,
        cache_writes: bool = False,
        cache_writes_1h: bool = False,
        audio: bool = False,
    ) -> tuple[int, int]:
        """Return the most a request may cost, as `(fixed_nano, per_output_nano)`.

        `input_tokens` is an upper bound; `cache_writes` says that the request asks for
        its input to be cached, `cache_writes_1h` that it may ask for longer than usual,
        `audio` that some of the input is sound.
        """
        # The real input may be less and end in any tier up to the one of the bound.
        reached = (
            [self.rates, *self._long_rates(input_tokens)] if self.long_context else [self.rates]
        )
        writes = cache_writes or cache_writes_1h or self.writes_unasked
        dearest_input = max(
            max(
                rates.input,
                rates.cache_read,
                rates.cache_write if writes else 0,
                rates.cache_write_1h if cache_writes_1h else 0,
                rates.input_audio if audio else 0,
            )
            for rates in reached
        )
        dearest_output = max(max(r.output, r.reasoning, r.output_audio) for r in reached)
        fixed = self.request_nano + cost_nano(input_tokens, dearest_input)
        return fixed, per_token_nano(dearest_output)

    def cost(self, usage: Usage) -> int | None:
        """Return the price of `usage` without its `extra`, rounded up once.

        None if the input or the output tokens are unknown.
        """
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        rates = [self.rates, *self._long_rates(usage.input_tokens)][-1]
        counts = _split(usage, usage.input_tokens, usage.output_tokens)
        # A sum of products per million is the price of one token at that sum.
        tokens_nano = cost_nano(1, sum(map(mul, counts, rates)))
        searches_nano = usage.web_searches * self.web_search_nano
        return min(MAX_AMOUNT, tokens_nano + searches_nano + self.request_nano)

    def _long_rates(self, input_tokens: int) -> list[PerClass]:
        return [tier.rates for tier in self.long_context if input_tokens > tier.above_tokens]


def complete_rates(given: Mapping[str, int]) -> PerClass:
    """Return rates for all classes; one that is not given costs as the class it is part of."""
    input_rate, output_rate = given.get("input", 0), given.get("output", 0)
    write_rate = given.get("cache_write", input_rate)
    return PerClass(
        input=input_rate,
        output=output_rate,
        cache_read=given.get("cache_read", input_rate),
        cache_write=write_rate,
        cache_write_1h=given.get("cache_write_1h", write_rate),
        reasoning=given.get("reasoning", output_rate),
        input_audio=given.get("input_audio", input_rate),
        output_audio=given.get("output_audio", output_rate),
    )


def _at_percent(rates: PerClass, percent: int) -> PerClass:
    return PerClass(*[-(-rate * percent // 100) for rate in rates])


def writes_unasked(model: str) -> bool:
    """Return whether a provider caches input, and may charge for it, without being asked."""
    # Claude and Nova cache only what a request marks.
    name = model.lower()
    return "claude" not in name and "nova" not in name


def _split(usage: Usage, input_tokens: int, output_tokens: int) -> PerClass:
    """Put each token into one class; subsets that exceed their whole leave 0, not less."""
    uncached = max(0, input_tokens - usage.cache_read_tokens - usage.cache_write_tokens)
    audio = usage.input_audio_tokens
    # Nobody says which audio tokens came from a cache, so all of them are priced as new.
    cached_audio = max(0, audio - uncached)
    return PerClass(
        input=max(0, uncached - audio),
        output=max(0, output_tokens - usage.reasoning_tokens - usage.output_audio_tokens),
        cache_read=max(0, usage.cache_read_tokens - cached_audio),
        cache_write=max(0, usage.cache_write_tokens - usage.cache_write_1h_tokens),
        cache_write_1h=usage.cache_write_1h_tokens,
        reasoning=usage.reasoning_tokens,
        input_audio=audio,
        output_audio=usage.output_audio_tokens,
    )
