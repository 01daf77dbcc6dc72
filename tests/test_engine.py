"""Tests of `llm_budget_mw.engine`: the numbers are worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from llm_budget_mw import decision
from llm_budget_mw.assembly import build_engine
from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.engine import Ending, Engine, Outcome
from llm_budget_mw.errors import RequestError
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import (
    MAX_AMOUNT,
    Charges,
    Decision,
    Grade,
    Grant,
    Media,
    ModelCall,
    Offer,
    Principal,
    Prompt,
    Settlement,
    Usage,
)
from tests.deployment import ALICE, HIDDEN, NOON_MS, FourBytes, call_of, configured, engine_of

MONEY = {"budget": "$20/day", "tokens": "100000/day", "max_tokens": 500}


def build(tier: dict[str, Any] | None = None, counter: FourBytes | None = None) -> Engine:
    exact = {"exact": counter is not None}
    return engine_of(configured({**MONEY, **(tier or {})}, tokens=exact), counter)


def offer_for(call: ModelCall, principal: Principal = ALICE, **tier: Any) -> Offer:
    """Return the one offer that is made for a call."""
    [offer] = build(tier).plan(principal, call).offers
    return offer


def grant_for(call: ModelCall, engine: Engine) -> Grant:
    plan = engine.plan(ALICE, call)
    decided = decide(engine, call)
    assert isinstance(decided, Grant)
    return decided._replace(plan=plan)


def decide(engine: Engine, call: ModelCall, store: MemoryStore | None = None) -> Decision:
    plan = engine.plan(ALICE, call)
    return decision.decide(plan, (store or MemoryStore(lambda: NOON_MS)).admit(plan))


def test_a_call_is_bounded_by_its_bytes_and_the_tier() -> None:
    """Input is a token for each byte and what models add; the tier bounds the output."""
    offer = offer_for(call_of("x" * 84))

    assert offer == Offer(
        model="big",
        max_output=500,
        min_output=1,
        ceiling=1.0,
        fixed_tokens=84 + HIDDEN,
        per_output_tokens=1,
        fixed_nano=100 * 2_500,
        per_output_nano=10_000,
    )


def test_every_sampling_costs_output_and_only_one_costs_input() -> None:
    """Three samplings triple what one granted output token costs, and nothing else."""
    offer = offer_for(call_of("x" * 84, samplings=3))

    assert (offer.fixed_tokens, offer.per_output_tokens) == (100, 3)
    assert (offer.fixed_nano, offer.per_output_nano) == (250_000, 30_000)


@pytest.mark.parametrize(("asked", "granted"), [(None, 500), (100, 100), (9_000, 500), (0, 0)])
def test_the_caller_may_ask_for_less_than_the_tier_never_for_more(
    asked: int | None, granted: int
) -> None:
    """The output bound is the smaller of the caller's and the tier's."""
    assert offer_for(call_of(max_output=asked)).max_output == granted


def test_who_is_urgent_gets_a_multiple_of_the_tiers_output() -> None:
    """The multiplier counts for urgent principals only, and rounds down."""
    urgent = Principal("alice", urgent=True)

    assert offer_for(call_of(), urgent, urgent="1.501").max_output == 750
    assert offer_for(call_of(), ALICE, urgent="1.501").max_output == 500
    assert offer_for(call_of(max_output=40), urgent, urgent="1.501").max_output == 40


def test_a_caller_who_wants_little_is_not_refused_for_wanting_little() -> None:
    """The least useful output is never more than what the caller asks for."""
    assert offer_for(call_of(), min_tokens=50).min_output == 50
    assert offer_for(call_of(max_output=20), min_tokens=50).min_output == 20


def test_a_surcharge_reserves_hidden_input() -> None:
    """What a server tool reads is input at the model's price."""
    call = call_of("x" * 84, surcharges=frozenset({"web_search", "mcp"}))
    offer = offer_for(call, surcharges={"web_search": 5_000, "mcp": 0})

    assert (offer.fixed_tokens, offer.fixed_nano) == (5_100, 5_100 * 2_500)


def test_a_feature_without_a_surcharge_is_refused() -> None:
    """What a feature adds has no bound unless the configuration gives it one."""
    with pytest.raises(RequestError, match="does not allow mcp") as caught:
        offer_for(call_of(surcharges=frozenset({"mcp"})))

    assert (caught.value.status, caught.value.code) == (400, "feature_not_allowed")


@pytest.mark.parametrize(
    ("asked", "nano"),
    [((), 3_000), (("cache_write",), 3_750), (("cache_write_1h",), 6_000)],
)
def test_input_to_be_cached_is_held_at_the_price_of_writing(
    asked: tuple[str, ...], nano: int
) -> None:
    """A cache write costs no hidden tokens, but the dearest price of its input."""
    offer = offer_for(call_of("x" * 84, model="claude-x", surcharges=frozenset(asked)))

    assert (offer.fixed_tokens, offer.fixed_nano) == (100, 100 * nano)


def test_a_sound_in_the_prompt_is_held_at_the_price_of_sound() -> None:
    """Input with audio costs its own price."""
    prices = {"catalogue": False, "models": {"m": {"input": 1, "output": 1, "input_audio": 32}}}
    engine = engine_of(configured(MONEY, prices=prices))
    call = ModelCall("m", Prompt(media=(Media("audio", size=1_000),)), None)

    [offer] = engine.plan(ALICE, call).offers

    assert offer.fixed_nano == offer.fixed_tokens * 32_000


def test_the_ladder_is_offered_from_the_requested_model_down() -> None:
    """Each rung is an offer with its own bounds and its own price."""
    ladder = [
        {"model": "big", "ceiling": "80%", "min_tokens": 200},
        {"model": "small", "max_tokens": 100},
    ]
    first, second = build({"offers": ladder}).plan(ALICE, call_of("x" * 84)).offers

    assert first == Offer("big", 500, 200, 0.8, 100, 1, 250_000, 10_000)
    assert second == Offer("small", 100, 1, 1.0, 100, 1, 15_000, 600)


def test_a_plan_has_an_id_of_its_own() -> None:
    """Reservation ids are 24 hexadecimal digits and never repeat."""
    engine = build()
    ids = {engine.plan(ALICE, call_of()).id for _ in range(100)}

    assert len(ids) == 100
    assert all(len(key) == 24 and int(key, 16) >= 0 for key in ids)


def test_an_exact_plan_counts_the_input() -> None:
    """With a tokenizer input is counted, by the factor of the model's family."""
    engine = build(counter=FourBytes())
    [offer] = engine.plan(ALICE, call_of("x" * 400), exact=True).offers

    assert offer.fixed_tokens == 135 + HIDDEN  # 100 tokens, and 35 % for a foreign tokenizer
    assert offer.fixed_nano == 151 * 2_500


@pytest.mark.parametrize(
    ("size", "worth"), [(100, False), (10_000, True)], ids=["small input", "large input"]
)
def test_input_is_counted_where_it_is_a_large_part_of_the_charge(size: int, worth: bool) -> None:
    """Counting what is small next to the output cannot lower a reservation by much."""
    engine = build(counter=FourBytes())
    call = call_of("x" * size)

    assert engine.worth_counting(engine.plan(ALICE, call), call) is worth


def test_without_prices_the_part_of_the_input_is_that_of_its_tokens() -> None:
    """A tier without money weighs input and output in tokens."""
    config = configured({"tokens": "9000/day", "max_tokens": 500}, tokens={"exact": True})
    engine = engine_of(config, FourBytes())
    call = call_of("x" * 984, model="nobody-knows")

    assert engine.worth_counting(engine.plan(ALICE, call), call)
    assert not engine.worth_counting(engine.plan(ALICE, call_of(model="nobody-knows")), call_of())


def test_a_call_refused_for_its_bytes_might_fit_when_counted() -> None:
    """Refusals by a token or money limit are worth another look, if text made the bound."""
    engine = build({"tokens": "700/day", "budget": []}, FourBytes())
    call = call_of("x" * 800)

    assert engine.might_fit(decide(engine, call), call)


def test_what_counting_cannot_change_is_not_counted() -> None:
    """An admission, a refusal by requests, and one for fixed tokens stand as they are."""
    engine = build({"requests": "1/day", "tokens": "700/day", "budget": []}, FourBytes())
    store = MemoryStore(lambda: NOON_MS)
    small, overhead = call_of("x"), ModelCall("big", Prompt(overhead_tokens=900), None)

    assert not engine.might_fit(decide(engine, small, store), small)
    assert not engine.might_fit(decide(engine, small, store), small)
    assert not engine.might_fit(decide(engine, overhead), overhead)


def test_a_closed_store_is_not_asked_again_for_a_better_count() -> None:
    """A refusal without a binding limit has nothing to do with the size of the input."""
    engine = build(counter=FourBytes())
    plan = engine.plan(ALICE, call_of("x" * 900))
    refusal = decision.store_down(plan, plan.subjects[0].limits.limits[0])

    assert not engine.might_fit(refusal, call_of("x" * 900))


def test_generated_text_counts_without_what_a_provider_adds_to_input() -> None:
    """No text is no tokens; four bytes are one, times the family's factor."""
    engine = build(counter=FourBytes())
    grant = grant_for(call_of(max_output=500), engine)

    assert engine.count("", grant) == 0
    assert engine.count("x" * 400, grant) == 135
    assert build().count("x" * 400, grant) == 400


def test_what_was_granted_bounds_a_count_in_bytes() -> None:
    """Without the model's own tokenizer a cut stream is charged no more than its provider could generate."""
    engine = build()
    grant = grant_for(call_of(max_output=50, samplings=2), engine)

    assert engine.count("x" * 400, grant) == 100
    assert engine.count("x" * 60, grant) == 60


# --- settlement: 100 input tokens and 500 output tokens are held, so 5,250,000 nano-dollars


def settled(
    ending: Ending,
    usage: Usage | None = None,
    counted: int | None = None,
    call: ModelCall | None = None,
) -> Settlement:
    engine = build()
    call = call or call_of("x" * 84)
    outcome = Outcome(ending, usage, counted_output=counted)
    return engine.settle(grant_for(call, engine), outcome, call)


def test_a_complete_answer_is_charged_exactly() -> None:
    """The provider's own numbers replace the reservation."""
    done = settled(Ending.COMPLETE, Usage(40, 60))

    assert (done.grade, done.ending) == (Grade.EXACT, "complete")
    assert done.charges == Charges(1, 100, 40 * 2_500 + 60 * 10_000)
    assert not done.overrun


def test_a_complete_stream_without_usage_is_counted() -> None:
    """Input keeps its bound, output is what was seen."""
    done = settled(Ending.COMPLETE, None, counted=60)

    assert done.grade is Grade.COUNTED
    assert done.charges == Charges(1, 160, 250_000 + 600_000)


@pytest.mark.parametrize(
    ("usage", "counted", "tokens"),
    [
        pytest.param(Usage(40, 60), None, 100, id="last cumulative usage"),
        pytest.param(Usage(40, None), 7, 47, id="input reported, output counted"),
        pytest.param(None, 7, 107, id="counted"),
        pytest.param(None, 0, 100, id="at least the input"),
    ],
)
def test_a_cut_answer_is_charged_for_what_was_seen(
    usage: Usage | None, counted: int | None, tokens: int
) -> None:
    """The client left, or upstream broke: seen tokens count, and are called counted."""
    done = settled(Ending.CUT, usage, counted)

    assert (done.grade, done.charges.tokens) == (Grade.COUNTED, tokens)


@pytest.mark.parametrize("ending", [Ending.CUT, Ending.UNREPORTED, Ending.COMPLETE])
def test_unknown_usage_is_never_zero(ending: Ending) -> None:
    """Where nothing is known, the reservation is kept."""
    done = settled(ending)

    assert done.grade is Grade.ESTIMATED
    assert done.charges == Charges(1, 600, 5_250_000)
    assert not done.overrun


@pytest.mark.parametrize("ending", [Ending.NOT_CALLED, Ending.REFUSED_UPSTREAM])
def test_a_call_that_did_not_happen_is_released(ending: Ending) -> None:
    """Nothing was used, not even a request."""
    done = settled(ending)

    assert (done.grade, done.charges) == (Grade.RELEASED, Charges(0, 0, 0))
    assert (done.usage.input_tokens, done.usage.output_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("usage", "grade", "tokens"),
    [
        (Usage(40, 5), Grade.EXACT, 45),
        (Usage(40, None), Grade.ESTIMATED, 540),
        (Usage(None, 5), Grade.COUNTED, 105),
    ],
)
def test_an_error_that_reports_usage_is_charged(usage: Usage, grade: Grade, tokens: int) -> None:
    """A refusing provider that bills all the same is believed; one side is filled in."""
    done = settled(Ending.REFUSED_UPSTREAM, usage)

    assert (done.grade, done.charges.tokens) == (grade, tokens)


@pytest.mark.parametrize("usage", [Usage(40, 700), Usage(40, 560, cache_write_tokens=40)])
def test_an_overrun_is_charged_and_said(usage: Usage) -> None:
    """More than was held, in tokens or in money, is recorded in full."""
    done = settled(Ending.COMPLETE, usage)

    assert done.overrun
    assert done.charges.tokens == (usage.input_tokens or 0) + (usage.output_tokens or 0)


def test_the_model_that_answered_sets_the_price() -> None:
    """A gateway that fell back to another model is charged at that model's price."""
    known = settled(Ending.COMPLETE, Usage(40, 60, model="small"))
    unknown = settled(Ending.COMPLETE, Usage(40, 60, model="big-2026-01-01-unheard-of"))

    assert known.charges.cost_nano == 40 * 150 + 60 * 600
    assert unknown.charges.cost_nano == 40 * 2_500 + 60 * 10_000


def test_usage_beside_the_call_is_charged_too() -> None:
    """Advisors and further calls of a handler add up, each at its own price."""
    usage = Usage(40, 60, extra=(Usage(10, 20, model="small"),))
    done = settled(Ending.COMPLETE, usage)

    assert done.charges == Charges(1, 130, 100_000 + 600_000 + 1_500 + 12_000)


def test_absurd_usage_stays_within_what_a_store_can_count() -> None:
    """A provider that reports garbage cannot break the counters."""
    usage = Usage(MAX_AMOUNT, MAX_AMOUNT)
    done = settled(Ending.COMPLETE, usage)

    assert done.charges == Charges(1, MAX_AMOUNT, MAX_AMOUNT)


def test_a_call_without_a_price_keeps_what_it_held() -> None:
    """Where no limit is in money, an unknown price costs nothing, and its tokens count."""
    engine = engine_of(configured({"tokens": "9000/day"}))
    grant = grant_for(call_of(model="nobody-knows"), engine)
    done = engine.settle(grant, Outcome(Ending.COMPLETE, Usage(40, 60)), call_of())

    assert done.charges == Charges(1, 100, 0)


@pytest.mark.parametrize(
    ("asked", "answered", "charged"),
    [
        ("priority", None, "priority"),
        ("priority", "default", "default"),
        ("default", None, "default"),
        ("flex", None, "default"),
        ("no-such-tier", None, "priority"),
    ],
)
def test_a_dearer_service_tier_counts_unless_the_answer_says_otherwise(
    asked: str, answered: str | None, charged: str
) -> None:
    """Who asks for priority and leaves before the usage arrives pays for priority."""
    engine = engine_of(configured(MONEY, prices={"catalogue": True}))
    grant = grant_for(call_of(model="gpt-4o"), engine)
    usage = Usage(16, 100, service_tier=answered)

    done = engine.settle(grant, Outcome(Ending.CUT, usage), call_of(service_tier=asked))

    expected = Usage(16, 100, service_tier=charged)
    assert done.charges.cost_nano == engine.prices.cost(expected, "gpt-4o")


def test_what_caching_saved_is_settled_at_the_tier_that_is_charged() -> None:
    """The event can tell what the cache took off the very cost it shows."""
    engine = engine_of(configured(MONEY, prices={"catalogue": True}))
    grant = grant_for(call_of(model="gpt-4o"), engine)
    outcome = Outcome(Ending.COMPLETE, Usage(1_000, 10, 600))

    plain = engine.settle(grant, outcome, call_of())
    urgent = engine.settle(grant, outcome, call_of(service_tier="priority"))

    # Per million: input $2.50 and $4.25, read from the cache at half of it.
    assert (plain.cache_saved_nano, urgent.cache_saved_nano) == (600 * 1_250, 600 * 2_125)


def test_a_tier_asked_for_without_any_price_changes_nothing() -> None:
    """An unknown model stays unknown in every service tier."""
    engine = engine_of(configured({"tokens": "9000/day"}))
    grant = grant_for(call_of(model="nobody-knows"), engine)
    outcome = Outcome(Ending.COMPLETE, Usage(1, 1))

    assert engine.settle(grant, outcome, call_of(service_tier="flex")).charges == Charges(1, 2, 0)


def test_a_real_request_is_planned_and_settled() -> None:
    """What a dialect reads is what is held, and what is reported is what is charged."""
    body = b'{"model":"claude-x","max_tokens":50,"messages":[{"role":"user","content":"hello"}]}'
    call = AnthropicMessages().read_request(RequestHead("POST", "/v1/messages"), body)
    engine = build()
    grant = grant_for(call, engine)

    done = engine.settle(grant, Outcome(Ending.COMPLETE, Usage(9, 3, model="claude-x")), call_of())

    assert grant.output == 50
    assert done.charges == Charges(1, 12, 9 * 3_000 + 3 * 15_000)


def test_an_aliased_deployment_is_counted_as_the_model_it_stands_for() -> None:
    """A deployment's own name must not cost it the tokenizer of its model."""
    aliased = build_engine(configured(prices={"aliases": {"my-deployment": "gpt-4o"}}))
    words = "the quick brown fox jumps over the lazy dog " * 20

    def counted(model: str) -> int:
        call = ModelCall(model, Prompt((words,)), 10)
        return aliased.plan(ALICE, call, exact=True).offers[0].fixed_tokens

    assert counted("my-deployment") == counted("gpt-4o")


def test_the_input_of_a_cut_call_is_counted_where_it_can_be() -> None:
    """A client that leaves is charged the input there was, not the bound on it."""
    engine = engine_of(configured(), FourBytes())
    call = call_of("word" * 100, max_output=40)
    grant = decision.decide(plan := engine.plan(ALICE, call), MemoryStore().admit(plan))
    assert isinstance(grant, Grant)

    done = engine.settle(grant, Outcome(Ending.CUT, counted_output=0), call)

    assert done.charges.tokens < grant.offer.fixed_tokens
    assert done.usage.input_tokens == engine.estimator.count(call.prompt, "big").tokens


def test_hidden_input_of_a_cut_call_stays_charged() -> None:
    """What a server tool read cannot be counted, so its surcharge is kept."""
    engine = engine_of(configured({"surcharges": {"web_search": 500}}), FourBytes())
    call = call_of("word" * 100, surcharges=frozenset({"web_search"}))
    grant = decision.decide(plan := engine.plan(ALICE, call), MemoryStore().admit(plan))
    assert isinstance(grant, Grant)

    done = engine.settle(grant, Outcome(Ending.CUT, counted_output=0), call)

    assert done.usage.input_tokens == grant.offer.fixed_tokens


def test_an_answer_shorter_than_its_provider_takes_is_not_offered() -> None:
    """The call is refused by the limit instead of by the provider; who asks for less gets that."""
    engine = engine_of(configured({"max_tokens": 100}))

    assert engine.plan(ALICE, call_of("hi", min_output=16)).offers[0].min_output == 16
    assert engine.plan(ALICE, call_of("hi", min_output=16, max_output=5)).offers[0].min_output == 5
