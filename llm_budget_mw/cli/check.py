"""`llm-budget check`: what the configuration says, in plain words; no store is asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_budget_mw import statement
from llm_budget_mw._money import format_usd
from llm_budget_mw.allowance import share
from llm_budget_mw.cli import doctor, words
from llm_budget_mw.cli.command import Answer, Command, no_arguments, table
from llm_budget_mw.config import Config, OutageConfig, limits_of
from llm_budget_mw.diagnosis import Finding
from llm_budget_mw.outage import exposure
from llm_budget_mw.types import Limit

_HEAD = ("limit", "amount", "window", "while the store is away")


class Table(NamedTuple):
    """A tier, or what principals share, with its limits."""

    title: str
    limits: tuple[Limit, ...]
    outage: str
    """What an outage can cost at most, in a sentence."""


class Checked(NamedTuple):
    """A configuration as it was understood."""

    mode: str
    tables: tuple[Table, ...]
    prices: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    """What is odd about the limits."""


def run(config: Config, arguments: argparse.Namespace) -> Answer:
    """Answer with what a configuration means; raises `ConfigurationError` as the application."""
    checked = understand(config)
    odd = (*checked.prices, *checked.findings)
    return Answer(as_text(checked), as_data(checked), min(1, doctor.status(odd)))


def understand(config: Config) -> Checked:
    """Compile a configuration, as an application does when it starts."""
    from llm_budget_mw.diagnosis import look, machine
    from llm_budget_mw.diagnosis.examine import of_limits
    from llm_budget_mw.policy import Policy
    from llm_budget_mw.pricing import Prices

    prices = Prices(config.prices)
    Policy(config, prices)
    written = [
        *((f"Tier {name}", tier, "") for name, tier in config.tiers.items()),
        *((_shared(table.of, table.only), table, f"{table.of}-") for table in config.limits),
    ]
    tables = [
        (title, limits_of(table, config, prices.base_tokens_nano, prefix))
        for title, table, prefix in written
    ]
    return Checked(
        config.mode,
        tuple(Table(title, limits, outage(limits, config.outage)) for title, limits in tables),
        tuple(machine.prices(look.at_prices(config, prices))),
        tuple(of_limits(config, prices)),
    )


def outage(limits: Sequence[Limit], rule: OutageConfig) -> str:
    """Return what can be spent at most while the store is away."""
    most = exposure(limits, rule)
    enforced = [limit for limit in limits if not limit.shadow]
    closed = next((limit for limit in enforced if limit.on_outage == "closed"), None)
    if closed is not None:
        return f"While the store is away nothing is spent: {closed.name} refuses."
    shares = [
        f"{words.amount(limit, share(limit))} of {limit.name}"
        for limit in enforced
        if limit.on_outage == "local" and limit.resource == "cost"
    ]
    if shares and most is not None:
        return (
            f"While the store is away, all processes together spend at most {', '.join(shares)}: "
            f"an outage costs at most {format_usd(most)}."
        )
    return "While the store is away, nothing bounds what is spent."


def as_text(checked: Checked) -> str:
    """Return a paragraph for each table, and what there is to say of prices and limits."""
    mode = ["Mode shadow: everything is admitted."] if checked.mode == "shadow" else []
    findings = doctor.as_text((*checked.prices, *checked.findings))
    return "\n\n".join([*mode, *map(_paragraph, checked.tables), findings])


def as_data(checked: Checked) -> dict[str, Any]:
    """Return the same as one object."""
    return {
        "mode": checked.mode,
        "tables": [
            {
                "title": each.title,
                "limits": [_fields(limit) for limit in each.limits],
                "outage": each.outage,
            }
            for each in checked.tables
        ],
        "findings": doctor.as_data((*checked.prices, *checked.findings)),
    }


def _shared(kind: str, only: Sequence[str]) -> str:
    if kind == "deployment":
        return "The whole deployment"
    if len(only) == 1:
        return f"The {kind} {only[0]}"
    return f"Each {kind}" + (f" of {', '.join(only)}" if only else "")


def _paragraph(each: Table) -> str:
    rows = [_row(limit) for limit in each.limits]
    limits = [table(_HEAD, rows)] if rows else ["No limits: everything is admitted."]
    return "\n".join([each.title, *limits, *([each.outage] if rows else [])])


def _row(limit: Limit) -> tuple[str, ...]:
    counts = " (only counts)" if limit.shadow else ""
    amount = words.amount(limit, limit.amount) + counts
    return (limit.name, amount, words.window(limit.window), words.outage(limit))


def _fields(limit: Limit) -> dict[str, Any]:
    return {
        "limit": limit.name,
        "amount": statement.number(limit, limit.amount),
        "window": words.window(limit.window),
        "on_outage": limit.on_outage,
        "local_share": limit.local_share,
        "shadow": limit.shadow,
    }


COMMAND = Command(
    "check",
    "Read the configuration and say what it means: limits, outages, prices.",
    no_arguments,
    run,
)
