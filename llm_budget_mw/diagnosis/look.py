"""Looking at this machine and its key servers, as the application will find them."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

from llm_budget_mw.config import Config, JWTConfig
from llm_budget_mw.diagnosis.facts import MachineFacts, PriceFacts
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.identity.authenticators import JWTAuthenticator
from llm_budget_mw.identity.jwks import parse_jwks
from llm_budget_mw.identity.keyserver import fetch
from llm_budget_mw.pricing import Prices
from llm_budget_mw.tokens.vocabulary import VOCABULARIES, cache_directory


def at_prices(config: Config, prices: Prices) -> PriceFacts:
    """Look at how old the prices are."""
    dated = _dated() if config.prices.catalogue else None
    return PriceFacts(prices.version, datetime.now(UTC).date(), dated)


def at_machine(config: Config) -> MachineFacts:
    """Look at vocabularies and keys; key servers are asked."""
    return MachineFacts(
        tokenizer=_has_tokenizer(),
        key_servers={each.jwks_url: _no_keys(each) for each in config.jwt if each.jwks_url},
        key_problem=_key_problem(config),
        secrets=dict(_secrets(config)),
    )


def _dated() -> date | None:
    """Return since when the newest price of the catalogue holds that has a date and holds by now."""
    from genai_prices import data_snapshot
    from genai_prices.types import StartDateConstraint

    today = datetime.now(UTC).date()
    dates = [
        price.constraint.start_date
        for provider in data_snapshot.get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for price in model.prices
        if isinstance(price.constraint, StartDateConstraint)
    ]
    return max((each for each in dates if each <= today), default=None)


def _has_tokenizer() -> bool:
    directory = cache_directory()
    at_hand = any(directory and each.is_in(directory) for each in VOCABULARIES)
    return at_hand or importlib.util.find_spec("toktok") is not None


def _no_keys(issuer: JWTConfig) -> str:
    """Return why an issuer's keys cannot be had; empty if they can."""
    try:
        parse_jwks(fetch(issuer.jwks_url or "", issuer.jwks_timeout_s).body, issuer.algorithms)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error)
    return ""


def _key_problem(config: Config) -> str:
    try:
        if config.jwt:
            JWTAuthenticator(config.jwt)
    except ConfigurationError as error:
        return str(error)
    return ""


def _secrets(config: Config) -> Iterator[tuple[str, str]]:
    for issuer in config.jwt:
        if not any(name.startswith("HS") for name in issuer.algorithms):
            continue
        if issuer.key is not None:
            yield issuer.issuer, issuer.key.get_secret_value()
        elif issuer.key_file is not None:
            with contextlib.suppress(OSError, ValueError):
                yield issuer.issuer, Path(issuer.key_file).read_text(encoding="utf-8")
