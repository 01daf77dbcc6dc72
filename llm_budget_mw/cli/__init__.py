"""`llm-budget`: what is configured, what is used, and what is wrong with a deployment.

Exit status: 0 fine, 1 the answer is no or has a warning, 2 it could not be had.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

import structlog

from llm_budget_mw import assembly
from llm_budget_mw.cli import changes, check, doctor, in_force, limits, usage
from llm_budget_mw.config import Config
from llm_budget_mw.errors import BudgetError, ConfigurationError, StoreError

COMMANDS = (
    check.COMMAND,
    limits.COMMAND,
    usage.COMMAND,
    doctor.COMMAND,
    *changes.COMMANDS,
    in_force.COMMAND,
)
_FILE = "llm_budget.toml"
_FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status. Raises `SystemExit` as argparse does."""
    arguments = _parser().parse_args(argv)
    # Standard output is for the answer: what a part of the package logs goes beside it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        answer = arguments.run(_configuration(arguments.config), arguments)
    except StoreError as error:
        return _failed(f"the store does not answer: {error}; `llm-budget doctor` says more")
    except BudgetError as error:
        return _failed(str(error))
    shown = json.dumps(answer.data, indent=2) if arguments.json else answer.text
    print(shown)  # noqa: T201
    return int(answer.status)


def _failed(message: str) -> int:
    print(f"llm-budget: {message}", file=sys.stderr)  # noqa: T201
    return _FAILED


def _configuration(path: str) -> Config:
    if not os.path.exists(path):
        raise ConfigurationError(f"{path} is not there: name the configuration with --config FILE")
    return assembly.configuration(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("llm-budget", description="Budgets for calls to models.")
    parser.add_argument(
        "--config", metavar="FILE", default=_FILE, help=f"the configuration; without it, {_FILE}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; money in dollars, as text")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        one = commands.add_parser(command.name, help=command.help, description=command.help)
        # After the command, too; absent there, it must not take back what stands before.
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser
