"""`llm-budget usage`: what a principal has used, and when that will be all."""

from __future__ import annotations

import argparse

from llm_budget_mw import statement
from llm_budget_mw.cli.command import Answer, Command
from llm_budget_mw.cli.standing import add_arguments, ask
from llm_budget_mw.config import Config


def run(config: Config, arguments: argparse.Namespace) -> Answer:
    """Answer with the statement of a principal."""
    statuses, now_ms = ask(config, arguments)
    return Answer(
        statement.as_table(statuses, now_ms),
        [statement.fields(status, now_ms) for status in statuses],
    )


COMMAND = Command(
    "usage",
    "Print what a principal has used of each limit, and when it will be used up at this rate.",
    add_arguments,
    run,
)
