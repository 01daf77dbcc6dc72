"""Tests of `llm_budget_mw.pricing`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import TimeOfDateConstraint
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.config.prices import PricesConfig
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.pricing import LongContext, ModelPrice, PerClass, Prices
from llm_budget_mw.types import MAX_AMOUNT, Usage

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
SIMPLE_UNITS = {
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "output_reasoning_mtok",
    "web_searches_kcount",
    "storage_searches_kcount",
    "requests_kcount",
}
CATALOGUE = Prices(PricesConfig(), at=AT)

COUNTS = st.integers(min_value=0, max_value=3_000_000)
RATES = st.integers(min_value=0, max_value=600_000_000_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Usage whose subsets are no larger than their whole."""
    read, write, fresh, text, reasoning = (draw(COUNTS) for _ in range(5))
    return Usage(
        input_tokens=read + write + fresh,
        output_tokens=text + reasoning,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=draw(st.integers(0, write)),
        reasoning_tokens=reasoning,
    )


def configured(**settings: Any) -> Prices:
    return Prices(PricesConfig.model_validate({"catalogue": False, **settings}))


def price_of(model: str, prices: Prices = CATALOGUE) -> ModelPrice:
    price = prices.of(model)
    assert price is not None
    return price


def nano(usd: str) -> int:
    return int(Decimal(usd) * 10**9)


def simple_models() -> Iterator[tuple[str, str]]:
    """Every model of one seller whose units are all counted one to one, as (provider, model)."""
    providers = {provider.id: provider for provider in get_snapshot().providers}
    resellers = [providers[name] for name in ("openrouter", "groq", "together")]
    for provider in providers.values():
        for model in provider.models:
            found = provider.find_model(model.id)
            if not found or (isinstance(found.prices, list) and has_hours(found.prices)):
                continue
            if any(reseller.find_model(f"{provider.id}/{model.id}") for reseller in resellers):
                continue
            units = {u for u, price in vars(found.get_prices(AT)).items() if price is not None}
            # Of a model for sound or searches, the price of text alone is no price.
            if "audio" in model.id or "-search-" in model.id:
                continue
            if units and units <= SIMPLE_UNITS and units & {"input_mtok", "output_mtok"}:
                yield provider.id, model.id


def listed_units(name: str) -> set[str]:
    """Return what the catalogue itself has a price for, of a `provider/model`."""
    provider, _, model = name.partition("/")
    found = get_snapshot().find_provider_model(model, None, provider, None)[1]
    return {u for u, price in vars(found.get_prices(AT)).items() if price is not None}


@functools.cache
def catalogue_models() -> list[tuple[str, str]]:
    return list(simple_models())


def has_hours(prices: list[Any]) -> bool:
    return any(isinstance(price.constraint, TimeOfDateConstraint) for price in prices)


def catalogue_cost(usage: Usage, provider: str, model: str, context: dict[str, str]) -> Decimal:
    """Return what genai-prices itself asks for, in nano-dollars."""
    calculation = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            output_reasoning_tokens=usage.reasoning_tokens,
            web_searches=usage.web_searches,
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=AT,
        price_context=context,
    )
    return calculation.total_price * 10**9


@pytest.mark.parametrize("input_tokens", [1_000, 150_000, 700_000])
def test_every_catalogue_model_costs_what_the_catalogue_says(input_tokens: int) -> None:
    """For all models the integer cost is the catalogue's, rounded up by at most 1 nano-dollar."""
    models = catalogue_models()

    for provider, model in models:
        usage = Usage(input_tokens, 321, 500, 300, reasoning_tokens=7)
        units = listed_units(f"{provider}/{model}")
        if "cache_write_1h_mtok" in units:
            usage = dataclasses.replace(usage, cache_write_1h_tokens=100)
        if "web_searches_kcount" in units:
            usage = dataclasses.replace(usage, web_searches=3)
        expected = catalogue_cost(usage, provider, model, {})
        cost = CATALOGUE.cost(usage, f"{provider}/{model}")
        assert cost is not None
        # One for the sum and less than one for all rates, which are rounded up too.
        assert expected <= cost < expected + 2, (provider, model)
    assert len(models) > 1500


@pytest.mark.parametrize(
    ("model", "tier", "context"),
    [
        ("gpt-4o", "priority", {"service_tier": "priority"}),
        ("gpt-5.5", "flex", {"service_tier": "flex"}),
        ("gpt-5.5", "default", {}),
        ("gpt-5.5", "batch", {"processing": "batch"}),
    ],
)
def test_the_tier_that_answered_sets_the_price(
    model: str, tier: str, context: dict[str, str]
) -> None:
    """A usage that names its service tier is priced at that tier."""
    usage = Usage(300_000, 1_000, 10_000, model=model, service_tier=tier)

    assert CATALOGUE.cost(usage, None) == catalogue_cost(usage, "openai", model, context)


def test_an_unheard_of_tier_in_an_answer_is_priced_at_the_dearest_tier() -> None:
    """A call that took place has a price, whatever its answer calls the tier: no low one."""
    usage = Usage(1_000, 100, model="gpt-4o", service_tier="new")
    priority = Usage(1_000, 100, model="gpt-4o", service_tier="priority")
    untiered = Usage(1_000, 100, model="command-a-03-2025")

    assert CATALOGUE.cost(usage, None) == CATALOGUE.cost(priority, None)
    assert CATALOGUE.cost(dataclasses.replace(untiered, service_tier="new"), None) == (
        CATALOGUE.cost(untiered, None)
    )


@pytest.mark.parametrize(
    ("model", "tier", "percent"),
    [
        ("gemini-2.5-pro", "priority", 180),
        ("us.amazon.nova-pro-v1:0", "priority", 175),
        ("us.amazon.nova-pro-v1:0", "optimized", 125),
        ("claude-opus-4-6", "fast", 600),
        ("gpt-5.5", "ultrafast", 600),
        ("gpt-3.5-turbo", "priority", 250),
        ("gpt-3.5-turbo", "fast", 250),
        ("gemini-2.5-pro", "flex", 100),
        ("gemini-2.5-pro", "ON_DEMAND_OFFPEAK", 100),
        ("claude-opus-4-8", "regional_standard", 110),
        ("claude-opus-4-8", "regional_fast", 220),
    ],
)
def test_a_dearer_tier_the_catalogue_lacks_costs_a_multiple(
    model: str, tier: str, percent: int
) -> None:
    """A tier without a listed price is never as cheap as the standard one, unless it is cheaper."""
    standard = CATALOGUE.cost(Usage(1_000_000, 100_000, 1_000), model)
    cost = CATALOGUE.cost(Usage(1_000_000, 100_000, 1_000, service_tier=tier), model)
    reserved = CATALOGUE.of(model, tier)

    assert standard is not None
    assert cost == standard * percent // 100
    assert reserved is not None
    assert reserved.cost(Usage(1_000_000, 100_000, 1_000)) == cost


def test_sound_without_a_listed_price_is_no_price() -> None:
    """A model for sound that is listed with the price of its text is not sold at that."""
    assert CATALOGUE.of("gpt-4o-audio-preview") is None
    assert CATALOGUE.of("gpt-audio") is not None


def test_a_model_that_searches_by_itself_has_a_fee_for_each_request() -> None:
    """Nothing in the answer says that it searched."""
    assert price_of("gpt-4o-mini-search-preview-2025-03-11").request_nano == nano("0.035")
    assert price_of("gpt-5-search-api").request_nano == nano("0.035")


def test_a_newer_model_that_draws_costs_as_the_dearest_one() -> None:
    """The image tool's default model may be newer than the list."""
    assert price_of("gpt-image-9") == price_of("gpt-image-1")
    assert price_of("gpt-image-2") != price_of("gpt-image-1")


def test_a_cached_image_costs_more_than_cached_text() -> None:
    """Usage does not tell them apart, so the dearer price bounds both."""
    assert price_of("gpt-image-1").rates.cache_read == nano("2.50")


def test_long_cache_writes_without_a_listed_price_cost_more_than_short_ones() -> None:
    """Kept for twelve hours, input costs up to 2.5 times its price with OpenAI."""
    gpt = price_of("gpt-5.6")

    assert gpt.rates.cache_write_1h == gpt.rates.input * 5 // 2
    assert gpt.long_context[0].rates.cache_write_1h == gpt.long_context[0].rates.input * 5 // 2
    claude = price_of("global.anthropic.claude-sonnet-4-20250514-v1:0")
    assert claude.rates.cache_write_1h == claude.rates.input * 2
    old = price_of("gpt-4o")
    assert old.rates.cache_write_1h == old.rates.input


def test_searches_without_a_listed_price_cost_as_the_dearest() -> None:
    """A search is never free because a list does not know it."""
    assert price_of("gpt-5.3-codex").web_search_nano == nano("0.035")


def test_a_dearer_tier_raises_the_admission_price_and_a_cheaper_one_does_not_lower_it() -> None:
    """Admission reserves at least the standard price: `flex` may be answered as `default`."""
    standard = CATALOGUE.of("gpt-5.5")

    assert standard is not None
    assert CATALOGUE.of("gpt-5.5", "flex") == standard
    assert CATALOGUE.of("gpt-5.5", "auto") == standard
    assert CATALOGUE.of("gpt-5.5", "scale") == standard
    dearer = CATALOGUE.of("gpt-5.5", "ON_DEMAND_PRIORITY")
    assert dearer is not None
    assert dearer.rates.output > standard.rates.output


@pytest.mark.parametrize("unknown", ["refuse", "tokens-only"])
def test_a_tier_that_could_cost_anything_is_refused(unknown: str) -> None:
    """A caller cannot get a cheaper bound by naming a tier without a price."""
    prices = Prices(PricesConfig.model_validate({"unknown": unknown}), at=AT)

    assert prices.of("gpt-4o", "hyperfast") is None
    assert prices.of("gpt-4o", "?") is None


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("GPT-4o", "openai/gpt-4o"),
        ("gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("gpt-4o-mini-2031-01-01", "openai/gpt-4o-mini"),
        ("models/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("publishers/google/models/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("claude-3-5-haiku@20241022", "anthropic/claude-3-5-haiku"),
        ("text-embedding-3-small", "openai/text-embedding-3-small"),
        ("llama-3.3-70b-versatile", "groq/llama-3.3-70b-versatile"),
        ("eu.amazon.nova-lite-v1:0", "aws/amazon.nova-lite-v1:0"),
        (
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "aws/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        (
            "arn:aws:bedrock:us-east-1:1:inference-profile/eu.amazon.nova-lite-v1:0",
            "aws/amazon.nova-lite-v1:0",
        ),
    ],
)
def test_wrapped_model_names_are_recognised(name: str, same_as: str) -> None:
    """Dates, regions, versions and paths around a name do not hide the model."""
    assert price_of(name).rates == price_of(same_as).rates


def test_a_model_sold_by_several_is_priced_at_the_dearest() -> None:
    """The bound holds at whichever provider serves the call."""
    price = price_of("openai/gpt-oss-120b")

    sellers = ("groq", "openrouter", "together")
    prices = [price_of(f"{seller}/openai/gpt-oss-120b") for seller in sellers]
    assert len({seller.dearness for seller in prices}) > 1
    assert price.dearness == max(seller.dearness for seller in prices)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "no-such-model",
        "gpt-99",
        "ft:gpt-4o:acme::x",
        "whisper-1",
        "tts-1",
        "eleven_realtime_v1_mini",
        "elevenlabs/eleven_realtime_v1_mini",
        "/",
        "openai/",
        "x" * 257,
    ],
)
def test_models_without_a_token_price_are_refused(model: str) -> None:
    """What cannot be priced by tokens has no price, never the price zero."""
    assert CATALOGUE.of(model) is None
    assert CATALOGUE.cost(Usage(1, 1), model) is None


def test_hostile_names_do_not_push_out_the_answer() -> None:
    """Thousands of invented names leave prices right."""
    prices = configured(models={"mine": {"input": "1", "output": "2"}})

    assert not any(prices.of(f"invented-{n}") for n in range(5_000))
    assert prices.of("mine") is not None


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-v4-pro"])
@pytest.mark.parametrize("hour", [2, 5, 12, 20])
def test_a_price_that_depends_on_the_hour_counts_at_its_dearest(model: str, hour: int) -> None:
    """Whenever the program started and the call takes place, it costs at most the price."""
    info = get_snapshot().find_provider_model(model, None, None, None)[1]
    usage = genai_prices.Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    lists = [info.get_prices(AT.replace(hour=at)) for at in range(24)]
    hourly = [found.calc_price(usage)["total_price"] for found in lists]

    cost = Prices(PricesConfig(), at=AT.replace(hour=hour)).cost(Usage(10**6, 10**6), model)

    assert len(set(hourly)) > 1
    assert cost == max(hourly) * 10**9


def test_image_output_is_priced_for_all_output_of_a_model_that_draws() -> None:
    """Usage does not tell images from text, so the dearer price bounds both."""
    assert price_of("gemini-2.5-flash-image").rates.output == nano("30")


def test_a_fee_for_each_request_is_part_of_bound_and_cost() -> None:
    """Perplexity charges a request besides its tokens."""
    price = price_of("sonar")

    assert price.request_nano > 0
    assert price.bound(0)[0] == price.request_nano
    assert price.cost(Usage(0, 0)) == price.request_nano


def test_the_catalogue_is_named_with_its_version() -> None:
    """Events can tell which prices were used."""
    assert CATALOGUE.version == f"genai-prices/{genai_prices.__version__}"
    assert price_of("gpt-4o").source == CATALOGUE.version
    assert configured().version == "configured"


def test_configured_prices_are_stronger_than_the_catalogue() -> None:
    """A negotiated price holds for the model's dated names too."""
    prices = Prices(PricesConfig.model_validate({"models": {"GPT-4o": {"input": 1, "output": 2}}}))

    price = price_of("gpt-4o-2024-08-06", prices)

    assert (price.rates.input, price.rates.output) == (nano("1"), nano("2"))
    assert price.source == "configured"
    assert prices.of("gpt-4o-mini") == Prices(PricesConfig()).of("gpt-4o-mini")


def test_an_alias_has_the_price_of_its_model() -> None:
    """Azure deployments are named by their owners."""
    prices = Prices(PricesConfig(aliases={"Prod-Chat": "gpt-4o"}), at=AT)

    assert prices.of("prod-chat") == price_of("gpt-4o")
    assert prices.canonical("prod-chat") == "gpt-4o"
    assert prices.canonical("other") == "other"


def test_a_configured_deployment_is_stronger_than_its_alias() -> None:
    """The price written for the very name wins."""
    models = {"prod": {"input": 1, "output": 1}, "base": {"input": 9, "output": 9}}
    prices = configured(models=models, aliases={"prod": "base", "other": "base"})

    assert price_of("prod", prices).rates.input == nano("1")
    assert price_of("other", prices).rates.input == nano("9")


def test_tokens_only_admits_unknown_models_at_no_price() -> None:
    """The operator chose to count their tokens; the price says it is not known."""
    price = price_of("no-such-model", configured(unknown="tokens-only"))

    assert not price.known
    assert price.bound(1_000_000) == (0, 0)
    assert price.cost(Usage(5, 5)) == 0


def test_unknown_models_can_have_a_price_of_their_own() -> None:
    """The configured price for the rest applies, but not to a known fallback."""
    prices = configured(
        models={"known": {"input": 1, "output": 1}}, unknown={"input": 50, "output": 100}
    )

    assert price_of("no-such-model", prices).source == "unknown"
    assert prices.cost(Usage(1, 1, model="no-such-model"), None) == nano("0.00015")
    assert prices.cost(Usage(1, 1, model="no-such-model"), "known") == nano("0.000002")


def test_missing_rates_cost_as_the_class_they_are_part_of() -> None:
    """Without rates of their own cached input is input and reasoning is output."""
    prices = configured(models={"m": {"input": 3, "output": 7, "cache_write": 4}})

    assert price_of("m", prices).rates == PerClass(
        *map(nano, ("3", "7", "3", "4", "4", "7", "3", "7"))
    )


def test_long_context_prices_the_entire_request() -> None:
    """Above the threshold every token costs the higher rate, cached ones in proportion."""
    long = {"above_tokens": 1_000, "input": 4, "output": 9}
    model = {"input": 2, "output": 6, "cache_write": "2.5", "long_context": long}
    price = price_of("m", configured(models={"m": model}))

    assert price.cost(Usage(1_000, 10)) == 1_000 * 2_000 + 10 * 6_000
    assert price.cost(Usage(1_001, 10)) == 1_001 * 4_000 + 10 * 9_000
    assert price.cost(Usage(2_000, 0, 0, 2_000)) == 2_000 * 5_000
    assert price.cost(Usage(2_000, 0, 2_000)) == 2_000 * 4_000


def test_a_free_model_may_have_a_long_context_price() -> None:
    """No proportion can be kept to zero: the tier's own rate counts."""
    long = {"above_tokens": 10, "input": 1, "output": 2, "cache_read": "0.5"}
    model = {"input": 0, "output": 0, "long_context": long}
    price = price_of("m", configured(models={"m": model}))

    assert price.cost(Usage(10, 1)) == 0
    assert price.cost(Usage(11, 1, 11)) == 11 * 500 + 2_000


def test_classes_are_disjoint_and_cache_writes_are_split_by_age() -> None:
    """No token is charged twice, however the provider nests its counts."""
    rates = PerClass(1_000_000, 10_000_000, 2_000_000, 3_000_000, 4_000_000, 20_000_000)
    usage = Usage(100, 50, 30, 20, 5, 40)

    cost = ModelPrice(rates).cost(usage)

    assert cost == 50 * 1 + 30 * 2 + 15 * 3 + 5 * 4 + 10 * 10 + 40 * 20


def test_sound_is_charged_at_its_own_rate_even_where_cached() -> None:
    """Cached sound is not reported apart, so it is priced as new."""
    rates = PerClass(1_000_000, 1_000_000, 0, 0, 0, 0, 9_000_000, 7_000_000)

    assert ModelPrice(rates).cost(Usage(100, 0, input_audio_tokens=40)) == 60 + 40 * 9
    assert ModelPrice(rates).cost(Usage(100, 0, 80, input_audio_tokens=40)) == 40 * 9
    assert ModelPrice(rates).cost(Usage(0, 10, output_audio_tokens=4)) == 6 + 4 * 7


@pytest.mark.parametrize("usage", [Usage(None, 5), Usage(5, None), Usage()])
def test_unknown_counts_have_no_cost(usage: Usage) -> None:
    """Usage that is absent is unknown, never zero."""
    assert price_of("gpt-4o").cost(usage) is None


def test_extra_usage_is_added_at_its_own_models_price() -> None:
    """An advisor or a compaction is billed beside the answer."""
    advisor = Usage(1_000, 100, model="gpt-4o-mini")
    compaction = Usage(2_000, 10)
    usage = Usage(10, 10, model="gpt-4o", extra=(advisor, compaction))

    parts = [(Usage(10, 10), "gpt-4o"), (advisor, None), (compaction, "gpt-4o")]
    costs = [CATALOGUE.cost(part, model) or 0 for part, model in parts]
    assert min(costs) > 0
    assert CATALOGUE.cost(usage, None) == sum(costs)
    assert CATALOGUE.cost(Usage(10, 10, extra=(Usage(),)), "gpt-4o") is None


def test_an_answer_from_an_unknown_name_costs_as_the_model_asked_for() -> None:
    """A provider's own name for a deployment does not make a call free."""
    usage = Usage(1_000, 10, model="internal-build-7", extra=(Usage(5, 5),))

    assert CATALOGUE.cost(usage, "gpt-4o") == CATALOGUE.cost(
        Usage(1_000, 10, extra=(Usage(5, 5),)), "gpt-4o"
    )


def test_searches_are_charged_each() -> None:
    """A web search has a price beside its tokens."""
    prices = configured(models={"m": {"input": 0, "output": 0, "web_search": "0.01"}})

    assert prices.cost(Usage(0, 0, web_searches=3), "m") == nano("0.03")


def test_absurd_counts_cost_at_most_the_largest_amount() -> None:
    """A garbage answer cannot produce a number the store cannot hold."""
    usage = Usage(10**30, 10**30, extra=(Usage(10**30, 1),))

    assert CATALOGUE.cost(usage, "gpt-4o") == MAX_AMOUNT


@given(usage=usages(), rates=st.tuples(*[RATES] * 6), long=st.tuples(*[RATES] * 6))
def test_the_bound_is_never_below_the_cost(
    usage: Usage, rates: tuple[int, ...], long: tuple[int, ...]
) -> None:
    """Whatever the input turns out to be, up to the estimate, the reservation covers it."""
    tiers = (LongContext(1_000_000, PerClass(*long)),)
    price = ModelPrice(PerClass(*rates), tiers, request_nano=5)

    fixed, per_output = price.bound((usage.input_tokens or 0) + 7, cache_writes_1h=True, audio=True)

    cost = price.cost(usage)
    assert cost is not None
    assert cost <= fixed + per_output * (usage.output_tokens or 0)


def test_the_bound_holds_below_a_threshold_it_exceeds() -> None:
    """Fewer tokens than estimated may end in a tier where each of them costs more."""
    price = ModelPrice(PerClass(9, 9), (LongContext(1_000_000, PerClass(1, 1)),))

    assert price.cost(Usage(1_000_000, 0)) == 9
    assert price.bound(1_000_001) == (10, 1)


def test_the_bound_counts_cache_writes_and_sound_where_they_may_occur() -> None:
    """Dearer classes of input are reserved only where a request or a provider makes them."""
    rates = PerClass(input=1, cache_write=2, cache_write_1h=3, input_audio=4)

    price = ModelPrice(rates)

    assert price.bound(1_000_000)[0] == 1
    assert price.bound(1_000_000, cache_writes=True)[0] == 2
    assert price.bound(1_000_000, cache_writes_1h=True)[0] == 3
    assert price.bound(1_000_000, audio=True)[0] == 4
    assert ModelPrice(rates, writes_unasked=True).bound(1_000_000)[0] == 2


def test_claude_is_charged_for_cache_writes_only_when_asked() -> None:
    """OpenAI's newer models write their cache unasked and charge more than input for it."""
    claude, gpt = price_of("claude-opus-4-7"), price_of("gpt-5.6")

    assert claude.bound(1_000)[0] == 1_000 * claude.rates.input // 10**6
    assert gpt.bound(1_000)[0] == 1_000 * gpt.rates.cache_write // 10**6
    assert gpt.rates.cache_write > gpt.rates.input


def test_what_caching_saved_is_the_difference_to_plain_input() -> None:
    """Reads save, writes cost: together they may come to less than nothing."""
    models = {"m": {"input": 4, "output": 9, "cache_read": "0.4", "cache_write": 5}}
    prices = configured(models=models)

    assert prices.saved(Usage(1_000, 50, 600), "m") == 600 * 3_600
    assert prices.saved(Usage(1_000, 50, 0, 600), "m") == -600 * 1_000
    assert prices.saved(Usage(1_000, 50, 500, 400, 400), "m") == 500 * 3_600 - 400 * 1_000
    advisor = Usage(1_000, 1, 1_000)
    assert prices.saved(Usage(10, 10, extra=(advisor,)), "m") == 1_000 * 3_600


@pytest.mark.parametrize(
    "usage", [Usage(10, 5), Usage(None, 5, 10), Usage(10, 5, extra=(Usage(),))]
)
def test_nothing_is_said_to_be_saved_where_nothing_is_known(usage: Usage) -> None:
    """Without cached tokens, or without a cost, caching saved 0."""
    assert CATALOGUE.saved(usage, "gpt-4o") == 0
    assert CATALOGUE.saved(dataclasses.replace(usage, cache_read_tokens=5), "no-such-model") == 0


def test_base_tokens_are_input_tokens_of_the_reference_model() -> None:
    """A budget in base tokens is a budget in money."""
    prices = Prices(PricesConfig(reference_model="gpt-4o"), at=AT)

    assert prices.base_tokens_nano(1_000_000) == nano("2.50")


@pytest.mark.parametrize("reference", [None, "no-such-model"])
def test_base_tokens_without_a_priced_model_name_the_option(reference: str | None) -> None:
    """The error says which option to set."""
    with pytest.raises(ConfigurationError, match=r"prices\.reference_model"):
        configured(reference_model=reference).base_tokens_nano(1)
