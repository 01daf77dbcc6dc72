"""All checks of a deployment: for a command, and for the log of a process that starts."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import structlog

from llm_budget_mw.config import Config, limits_of
from llm_budget_mw.diagnosis import limits, machine, server
from llm_budget_mw.diagnosis.finding import Finding, Severity
from llm_budget_mw.pricing import Prices

_log: Any = structlog.get_logger("llm_budget_mw")


def examine(config: Config, prices: Prices, environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """Return what every check says; asks the store and the key servers, for seconds at most."""
    from llm_budget_mw.diagnosis import look

    facts = look.at_machine(config)
    return (
        *_of_store(config, scripts=True),
        *of_limits(config, prices),
        *machine.processes(config, environ),
        *machine.prices(look.at_prices(config, prices)),
        *machine.tokenizer(config, facts),
        *machine.keys(facts),
    )


def of_limits(config: Config, prices: Prices) -> Iterator[Finding]:
    """Yield what is wrong with the limits of tiers, and with shared ones."""
    slots = config.outage.processes
    for name, tier in config.tiers.items():
        compiled = limits_of(tier, config, prices.base_tokens_nano)
        yield from limits.findings(f"tier {name!r}", tier, compiled, prices, slots)
    for table in config.limits:
        compiled = limits_of(table, config, prices.base_tokens_nano, f"{table.of}-")
        yield from limits.findings(f"limits of {table.of!r}", table, compiled, prices, slots)


class Start:
    """The checks of a process that starts: what is dangerous is named in the log.

    What needs nobody is looked at when it is made. The store is looked at with the first call,
    in a thread: a process that forks its workers must not have threads before it does.
    """

    def __init__(self, config: Config, prices: Prices) -> None:
        self._config = config
        self._due = not config.store.url.startswith("memory:")
        if self._due:  # no request is to wait for an import
            importlib.import_module("llm_budget_mw.diagnosis.ask")
        _report([*of_limits(config, prices), *machine.processes(config, os.environ)])

    def call_begins(self) -> None:
        """Look at the store, once, without waiting for it; the calls themselves try the scripts."""
        if self._due:
            self._due = False
            threading.Thread(target=self._look, name="llm-budget-diagnosis", daemon=True).start()

    def _look(self) -> None:
        try:
            _report(_of_store(self._config, scripts=False))
        except Exception:  # noqa: BLE001 (a check that fails must not end up anywhere else)
            _log.warning("deployment.not_examined", exc_info=True)


def _of_store(config: Config, *, scripts: bool) -> Iterable[Finding]:
    if config.store.url.startswith("memory:"):
        return ()
    from llm_budget_mw.diagnosis import ask

    return server.findings(ask.at_store(config.store, scripts=scripts))


def _report(findings: Iterable[Finding]) -> None:
    for found in findings:
        if found.severity is Severity.DANGER:
            _log.critical(
                "deployment.danger", check=found.check, seen=found.seen, remedy=found.remedy
            )
