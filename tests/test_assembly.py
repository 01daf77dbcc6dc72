"""Tests of `llm_budget_mw.assembly`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_budget_mw import assembly
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.identity.authenticators import AsyncJWTAuthenticator, JWTAuthenticator
from llm_budget_mw.sinks.callback import CallbackSink
from llm_budget_mw.sinks.log import LogSink
from llm_budget_mw.sinks.telemetry import MetricsSink, SpanSink
from llm_budget_mw.sinks.webhook import WebhookSink
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.stores.redis import AsyncRedisStore, RedisStore
from llm_budget_mw.types import Grant, Principal
from tests.deployment import PRICES, call_of, configured

JWT = {"algorithms": ["HS256"], "issuer": "i", "audience": "a", "key": "k" * 32}


def test_a_configuration_may_be_a_file_a_mapping_or_itself(tmp_path: Path) -> None:
    """All three are the same one."""
    config = configured({"concurrency": 3})
    file = tmp_path / "budget.toml"
    file.write_text("[tiers.default]\nconcurrency = 3\n")

    assert assembly.configuration(config) is config
    from_mapping = assembly.configuration({"tiers": {"default": {"concurrency": 3}}})
    assert assembly.configuration(file) == assembly.configuration(str(file)) == from_mapping


def test_a_wrong_configuration_is_an_error_at_the_start() -> None:
    """Naming the option."""
    with pytest.raises(ConfigurationError, match=r"tiers\.default\.concurrency"):
        assembly.configuration({"tiers": {"default": {"concurrency": 0}}})


def test_an_engine_has_the_prices_tiers_and_lease_of_the_configuration() -> None:
    """Everything a plan says comes from it."""
    store = {"lease_s": 30, "charge_on_expiry": False}
    config = configured({"requests": "7/day"}, store=store)
    plan = assembly.build_engine(config).plan(Principal("alice"), call_of("x" * 84))

    assert (plan.lease_ms, plan.charge_on_expiry) == (30_000, False)
    assert plan.subjects[0].limits.names == ("requests-per-day",)
    assert plan.offers[0].fixed_nano == 250_000


def test_an_engine_counts_if_it_is_configured_to() -> None:
    """With a real tokenizer, the same text is fewer tokens than bytes."""
    engine = assembly.build_engine(configured({"tokens": "9/day"}, tokens={"exact": True}))
    text = "The quick brown fox jumps over the lazy dog. " * 10
    plan = engine.plan(Principal("alice"), call_of())

    assert 0 < engine.count(text, Grant(plan, plan.offers[0], 9999, None)) < len(text) / 3


@pytest.mark.parametrize(
    ("wanted", "built"),
    [
        ({}, [LogSink, MetricsSink, SpanSink]),
        ({"log": False}, [MetricsSink, SpanSink]),
        ({"metrics": False}, [LogSink, SpanSink]),
        ({"span": False}, [LogSink, MetricsSink]),
        ({"log": False, "metrics": False, "span": False}, []),
    ],
)
def test_the_sinks_are_those_of_the_configuration(
    wanted: dict[str, bool], built: list[type]
) -> None:
    """All three, unless one is turned off."""
    sinks = assembly.build_sinks(configured(events=wanted))

    assert [type(sink) for sink in sinks] == built


def test_alerts_are_sent_only_if_there_is_an_address() -> None:
    """The table alone turns on events; the function comes beside whatever sinks there are."""
    address = {"webhook": "https://a.example/", "webhook_secret": "s" * 16}
    sending, quiet = configured(alerts=address), configured(alerts={})

    assert [type(sink) for sink in assembly.build_sinks(sending)] == [WebhookSink]
    assert assembly.build_sinks(quiet) == ()
    assert [type(sink) for sink in assembly.choose_sinks(sending, None, print)] == [
        WebhookSink,
        CallbackSink,
    ]
    assert assembly.choose_sinks(sending, [], None) == []


@pytest.mark.parametrize(
    ("url", "store", "async_store"),
    [
        ("memory://", MemoryStore, AsyncMemoryStore),
        ("redis://127.0.0.1:1/0", RedisStore, AsyncRedisStore),
    ],
)
def test_the_url_names_the_store(url: str, store: type, async_store: type) -> None:
    """Building one connects to nothing."""
    config = configured(store={"url": url})

    assert isinstance(assembly.build_store(config), store)
    assert isinstance(assembly.build_async_store(config), async_store)


@pytest.mark.parametrize("issuers", [JWT, [JWT, {**JWT, "issuer": "j"}]])
def test_the_issuers_are_verified_on_both_sides(issuers: Any) -> None:
    """For threads and for an event loop."""
    config = configured(jwt=issuers, prices=PRICES)

    assert isinstance(assembly.build_authenticator(config), JWTAuthenticator)
    assert isinstance(assembly.build_async_authenticator(config), AsyncJWTAuthenticator)


@pytest.mark.parametrize(
    "build", [assembly.build_authenticator, assembly.build_async_authenticator]
)
def test_without_an_issuer_somebody_else_has_to_verify(build: Any) -> None:
    """The error names both remedies."""
    with pytest.raises(ConfigurationError, match=r"add a \[jwt\] table, or pass an authenticator"):
        build(configured())
