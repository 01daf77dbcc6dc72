"""How the limits of one principal stand, for the commands that show it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from llm_budget_mw import assembly
from llm_budget_mw.config import Config
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.events import Sink
from llm_budget_mw.guard import Guard
from llm_budget_mw.types import LimitStatus, Principal


class Standing(NamedTuple):
    """The limits of a principal at a moment."""

    statuses: tuple[LimitStatus, ...]
    now_ms: int
    """The store's clock at that moment."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says whose limits."""
    parser.add_argument("principal", metavar="PRINCIPAL", help="such as the subject of a token")
    parser.add_argument("--tenant", help="the tenant the principal belongs to")
    parser.add_argument("--tier", help="the tier in its token; without it, `default`")


def ask(config: Config, arguments: argparse.Namespace) -> Standing:
    """Ask the store; nothing is reserved. Raises `ConfigurationError`, `StoreError`."""
    if not arguments.principal:
        raise ConfigurationError("PRINCIPAL is empty: write an id, such as the subject of a token")
    if arguments.tier is not None and arguments.tier not in config.tiers:
        known = ", ".join(config.tiers)
        # As the application does with such a token.
        print(  # noqa: T201
            f"llm-budget: there is no tier {arguments.tier!r} among {known}: "
            "these are the limits of `default`",
            file=sys.stderr,
        )
    principal = Principal(arguments.principal, tenant=arguments.tenant, tier=arguments.tier)
    with contextlib.closing(open_guard(config)) as guard:
        return Standing(guard.limits(principal), guard.store.now_ms())


def open_guard(config: Config, sinks: Sequence[Sink] = ()) -> Guard:
    """Open a guard that shares counters with the application.

    Raises `ConfigurationError` where there are none to share.
    """
    if config.store.url.startswith("memory:"):
        raise ConfigurationError(
            f"store.url = {config.store.url!r}: the counters are inside each process of the "
            "application, where no command can look; name a Redis or Valkey that all share"
        )
    # No input is counted here, and a tokenizer takes long to load.
    tokens = config.tokens.model_copy(update={"exact": False})
    config = config.model_copy(update={"tokens": tokens})
    return Guard(assembly.build_engine(config), config, assembly.build_store(config), sinks)
