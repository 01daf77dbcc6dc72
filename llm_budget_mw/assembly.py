"""A configuration as running parts; at start-up only, since this is where heavy imports are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_budget_mw.config import Config, load
from llm_budget_mw.diagnosis.processes import check_store
from llm_budget_mw.engine import Engine
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.events import OnAlert, Sink
from llm_budget_mw.policy import Policy
from llm_budget_mw.pricing import Prices
from llm_budget_mw.tokens.estimate import Estimator

if TYPE_CHECKING:
    from llm_budget_mw.identity.authenticators import AsyncJWTAuthenticator, JWTAuthenticator
    from llm_budget_mw.stores.base import AsyncStore, Store

Source = Config | Path | str | Mapping[str, Any] | None
"""A configuration, or where one is: a TOML file, a mapping, or None for keywords and environment."""


def configuration(source: Source) -> Config:
    """Return the configuration; raises `ConfigurationError` naming every wrong option."""
    return source if isinstance(source, Config) else load(source)


def build_engine(config: Config) -> Engine:
    """Build the rules: prices, tokenizer and compiled tiers."""
    from llm_budget_mw.tokens.exact import load_counter

    prices = Prices(config.prices)
    return Engine(
        Policy(config, prices),
        prices,
        Estimator(config.tokens, load_counter(config.tokens)),
        config.store.lease_s * 1000,
        charge_on_expiry=config.store.charge_on_expiry,
    )


def build_sinks(config: Config) -> tuple[Sink, ...]:
    """Build the sinks the configuration asks for."""
    sinks: list[Sink] = []
    if config.events.log:
        from llm_budget_mw.sinks.log import LogSink

        sinks.append(LogSink())
    if config.events.metrics or config.events.span:
        from llm_budget_mw.sinks.telemetry import MetricsSink, SpanSink

        sinks += [MetricsSink()] if config.events.metrics else []
        sinks += [SpanSink()] if config.events.span else []
    alerts = config.alerts
    if alerts is not None and alerts.webhook is not None and alerts.webhook_secret is not None:
        from llm_budget_mw.sinks.webhook import WebhookSink

        secret = alerts.webhook_secret.get_secret_value().encode()
        sinks.append(WebhookSink(alerts.webhook, secret))
    return tuple(sinks)


def choose_sinks(
    config: Config, given: Sequence[Sink] | None, on_alert: OnAlert | None
) -> Sequence[Sink]:
    """Return the sinks of a guard: the given or the configured ones, and a function for alerts."""
    sinks = build_sinks(config) if given is None else given
    if on_alert is None:
        return sinks
    from llm_budget_mw.sinks.callback import CallbackSink

    return (*sinks, CallbackSink(on_alert))


def build_store(config: Config) -> Store:
    """Build the store the configuration names, for threads.

    Raises `ConfigurationError` for `memory://` where the environment speaks of several workers.
    """
    from llm_budget_mw.stores.connect import connect

    check_store(config, os.environ)
    return connect(config.store)


def build_async_store(config: Config) -> AsyncStore:
    """Build the store the configuration names, for an event loop; see `build_store`."""
    from llm_budget_mw.stores.connect import connect_async

    check_store(config, os.environ)
    return connect_async(config.store)


def build_authenticator(config: Config) -> JWTAuthenticator:
    """Build the verifier of the configured issuers, for threads."""
    from llm_budget_mw.identity.authenticators import JWTAuthenticator

    return JWTAuthenticator(_issuers(config))


def build_async_authenticator(config: Config) -> AsyncJWTAuthenticator:
    """Build the verifier of the configured issuers, for an event loop."""
    from llm_budget_mw.identity.authenticators import AsyncJWTAuthenticator

    return AsyncJWTAuthenticator(_issuers(config))


def _issuers(config: Config) -> tuple[Any, ...]:
    if not config.jwt:
        raise ConfigurationError(
            "jwt: no issuer is configured; add a [jwt] table, or pass an authenticator"
        )
    return config.jwt
