"""Tests of `llm_budget_mw.policy`."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.errors import ConfigurationError, RequestError
from llm_budget_mw.policy import Policy
from llm_budget_mw.pricing import Prices
from llm_budget_mw.subjects import subject_of
from llm_budget_mw.types import ModelCall, Principal
from tests.deployment import PRICES, call_of, configured

LADDER = [{"model": "big", "ceiling": "80%"}, {"model": "small"}]
NAMES = st.text(st.characters(exclude_categories=()), min_size=1, max_size=12)


def policy_of(tier: dict[str, Any] | None = None, **sections: Any) -> Policy:
    config = configured(tier, **sections)
    return Policy(config, Prices(config.prices))


def models(policy: Policy, call: ModelCall) -> list[str]:
    tier = policy.tier(Principal("alice"))
    return [rung.model for rung in policy.rungs(tier, call)]


def refusal(policy: Policy, call: ModelCall) -> RequestError:
    with pytest.raises(RequestError) as caught:
        models(policy, call)
    return caught.value


@pytest.mark.parametrize(
    ("name", "found"), [(None, "default"), ("gold", "gold"), ("no-such-tier", "default")]
)
def test_a_principal_without_a_known_tier_has_the_default_one(name: str | None, found: str) -> None:
    """A claim may name any tier; one that is not configured gives nothing."""
    policy = policy_of(tiers={"default": {}, "gold": {}})

    assert policy.tier(Principal("alice", tier=name)).name == found


def test_who_names_no_model_gets_the_whole_ladder() -> None:
    """The tier decides where the caller does not."""
    assert models(policy_of({"offers": LADDER}), call_of(model=None)) == ["big", "small"]


def test_a_task_has_a_ladder_of_its_own() -> None:
    """It counts before the offers and before what the caller asks for."""
    policy = policy_of({"offers": LADDER, "tasks": {"summary": [{"model": "claude-x"}]}})

    assert models(policy, call_of(model="big", task="summary")) == ["claude-x"]
    assert models(policy, call_of(model="big")) == ["big", "small"]


def test_an_offer_of_a_task_needs_a_price_like_any_other() -> None:
    """A budget in money could not count it; the program must not start."""
    with pytest.raises(ConfigurationError, match="'unheard-of' has no known price"):
        policy_of({"budget": "$1/day", "tasks": {"summary": [{"model": "unheard-of"}]}})


def test_who_names_a_model_of_the_ladder_starts_there() -> None:
    """Nobody gets a model above the one asked for."""
    policy = policy_of({"offers": LADDER})

    assert models(policy, call_of(model="big")) == ["big", "small"]
    assert models(policy, call_of(model="small")) == ["small"]


def test_a_model_beside_the_ladder_is_forbidden_unless_it_is_listed() -> None:
    """A ladder says what a tier is for; a dearer model beside it has to be written out."""
    call = call_of(model="claude-x")

    assert refusal(policy_of({"offers": LADDER}), call).code == "model_not_allowed"
    assert models(policy_of({"offers": LADDER, "models": ["*"]}), call) == ["claude-x"]


def test_a_tier_without_offers_needs_a_model_in_the_request() -> None:
    """Nobody guesses which model was meant."""
    error = refusal(policy_of(), call_of(model=None))

    assert (error.status, error.code) == (400, "model_missing")


@pytest.mark.parametrize("model", ["big", "small", "claude-x", "claude-"])
def test_models_can_be_listed_and_begin_with(model: str) -> None:
    """A tier's list holds names and prefixes; offers need not be in it."""
    policy = policy_of({"models": ["big", "claude-*"], "offers": [{"model": "small"}]})

    assert models(policy, call_of(model=model)) == [model]


@pytest.mark.parametrize("model", ["bigger", "bi", "claude", "Big", "b*", "claude-*x", "x" * 256])
def test_a_model_that_is_not_listed_is_forbidden(model: str) -> None:
    """The list is exact; only a configured asterisk stands for more."""
    policy = policy_of({"models": ["big", "claudes-*"]})
    error = refusal(policy, call_of(model=model))

    assert (error.status, error.code) == (403, "model_not_allowed")


def test_the_longest_model_name_a_dialect_takes_is_no_error() -> None:
    """A name longer than a configured one may be is a caller's, not a wrong configuration."""
    policy = policy_of({"tokens": "9/day"})

    assert models(policy, call_of(model="x" * 256)) == ["x" * 256]


def test_an_unknown_price_is_refused_where_a_limit_is_in_money() -> None:
    """A call nobody can price could cost anything."""
    error = refusal(policy_of({"budget": "$1/day"}), call_of(model="nobody-knows"))

    assert (error.status, error.code) == (400, "unknown_price")
    assert "'nobody-knows'" in error.message


def test_an_unknown_service_tier_is_named_in_the_refusal() -> None:
    """It is the tier that has no price, not the model."""
    call = call_of(model="big", service_tier="warp")

    assert "in the service tier 'warp'" in refusal(policy_of({"budget": "$1/day"}), call).message


def test_an_unknown_price_is_free_where_no_limit_is_in_money() -> None:
    """Tokens and requests need no price."""
    policy = policy_of({"tokens": "9/day"})
    [rung] = policy.rungs(policy.tier(Principal("a")), call_of(model="nobody-knows"))

    assert rung.price.bound(1_000) == (0, 0)
    assert not rung.price.known


def test_an_unknown_price_may_be_counted_in_tokens_only() -> None:
    """`tokens-only` admits the call and charges no money."""
    policy = policy_of({"budget": "$1/day"}, prices={**PRICES, "unknown": "tokens-only"})
    [rung] = policy.rungs(policy.tier(Principal("a")), call_of(model="nobody-knows"))

    assert rung.price.bound(1_000) == (0, 0)


def test_an_unknown_price_may_be_given() -> None:
    """A price for whatever has none is charged like any other."""
    prices = {**PRICES, "unknown": {"input": 1, "output": 2}}
    policy = policy_of({"budget": "$1/day"}, prices=prices)
    [rung] = policy.rungs(policy.tier(Principal("a")), call_of(model="nobody-knows"))

    assert rung.price.bound(1_000) == (1_000_000, 2_000)


def test_an_offer_without_a_price_stops_the_start() -> None:
    """Else every request would be told of a model it did not ask for."""
    with pytest.raises(ConfigurationError, match=r"tiers\.default\.offers: .*'nobody-knows'"):
        policy_of({"budget": "$1/day", "offers": [{"model": "nobody-knows"}]})

    policy_of({"tokens": "1/day", "offers": [{"model": "nobody-knows"}]})


def test_an_offer_overrides_the_bounds_of_its_tier() -> None:
    """Its most is never above the tier's; what it leaves out is the tier's."""
    offers = [
        {"model": "big", "max_tokens": 50, "min_tokens": 5},
        {"model": "small", "max_tokens": 5_000},
    ]
    policy = policy_of({"offers": offers, "max_tokens": 100, "min_tokens": 10})
    first, second = policy.rungs(policy.tier(Principal("a")), call_of(model=None))

    assert (first.max_tokens, first.min_tokens) == (50, 5)
    assert (second.max_tokens, second.min_tokens) == (100, 10)


def test_ladders_are_built_once_and_their_number_is_bounded() -> None:
    """Any number of model names from outside is answered, and only so many are kept."""
    policy = policy_of({"tokens": "9/day"})
    tier = policy.tier(Principal("a"))
    for number in range(1_200):
        policy.rungs(tier, call_of(model=f"m{number}"))

    assert len(tier.ladders) == 1_024
    assert policy.rungs(tier, call_of(model="m1")) is policy.rungs(tier, call_of(model="m1"))


def test_a_tier_without_limits_charges_nobody() -> None:
    """Nothing is asked of the store for who has no limit."""
    policy = policy_of()

    assert policy.subjects(Principal("a"), policy.tier(Principal("a"))) == ()


def test_a_principal_is_charged_in_the_partition_of_its_tenant() -> None:
    """All of a tenant's counters are on one server; who has no tenant is a partition alone."""
    policy = policy_of({"requests": "1/day"})
    principal = Principal("alice", tenant="acme")
    [entry] = policy.subjects(principal, policy.tier(principal))

    assert entry.subject == ("acme", "user/alice")
    assert subject_of(None, "alice") == subject_of("", "alice") == ("user/alice", "user/alice")


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_principals_share_a_subject(
    tenant: str, one: str, other_tenant: str, other: str
) -> None:
    """Escaping loses nothing, whatever characters ids are made of."""
    same = (tenant, one) == (other_tenant, other)

    assert (subject_of(tenant, one) == subject_of(other_tenant, other)) is same
    assert subject_of(None, one) != subject_of(tenant, one)


@pytest.mark.parametrize(
    "name",
    ["{acme}:user/bob", "a b\r\n", "\ud800", "é" * 500, "x" * 100_000, "%2F", "=" + "0" * 64],
)
def test_no_name_leaves_its_place_in_a_key(name: str) -> None:
    """Escaped or hashed: no separator, no hash tag, no control character, bounded length."""
    subject = subject_of(name, name)

    assert re.fullmatch(r"=?[A-Za-z0-9%._~-]{1,200}", subject.partition)
    assert subject.name == f"user/{subject.partition}"


def test_ids_that_are_no_unicode_stay_apart() -> None:
    """Half of a surrogate pair is as good a name as any."""
    ids = ["\ud800", "\ud801", "?", "\ufffd"]

    assert len({subject_of(None, name) for name in ids}) == 4


def test_long_ids_stay_apart() -> None:
    """The hash in place of a long id is of all of it, and no short id can be taken for it."""
    long = subject_of(None, "x" * 300)

    assert long != subject_of(None, "x" * 301)
    assert long != subject_of(None, long.name.removeprefix("user/"))


@pytest.mark.parametrize(("tenant", "name"), [(None, 42), (None, ""), (None, None), (7, "alice")])
def test_an_authenticator_that_gives_no_text_is_told_so(tenant: object, name: object) -> None:
    """An id that is a number, or missing, is a mistake in the application and fails closed."""
    with pytest.raises(TypeError, match=r"Principal\.(id|tenant) is "):
        subject_of(cast("Any", tenant), cast("Any", name))
