"""`llm-budget limits`: which limits a principal has, and what it has left."""

from __future__ import annotations

import argparse
from typing import Any

from llm_budget_mw import statement
from llm_budget_mw.cli import words
from llm_budget_mw.cli.command import Answer, Command, table
from llm_budget_mw.cli.standing import Standing, add_arguments, ask
from llm_budget_mw.config import Config
from llm_budget_mw.types import LimitStatus

_HEAD = ("of", "limit", "amount", "window", "remaining")


def run(config: Config, arguments: argparse.Namespace) -> Answer:
    """Answer with the limits of a principal."""
    standing = ask(config, arguments)
    return Answer(as_text(standing), as_data(standing))


def as_text(standing: Standing) -> str:
    """Return a line for each limit."""
    rows = [_row(status) for status in standing.statuses]
    return table(_HEAD, rows) if rows else "No limits."


def as_data(standing: Standing) -> list[dict[str, Any]]:
    """Return an object for each limit."""
    return [
        {
            "of": status.subject.name,
            "window": words.window(status.limit.window),
            **statement.fields(status, standing.now_ms),
        }
        for status in standing.statuses
    ]


def _row(status: LimitStatus) -> tuple[str, ...]:
    limit = status.limit
    return (
        status.subject.name,
        limit.name,
        words.amount(limit, limit.amount),
        words.window(limit.window),
        words.amount(limit, status.remaining),
    )


COMMAND = Command(
    "limits",
    "Print every limit of a principal, and what is left of it. Nothing is reserved.",
    add_arguments,
    run,
)
