"""What a command is: its name, its arguments, and a function that answers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llm_budget_mw.config import Config


class Answer(NamedTuple):
    """An answer in both of its renderings."""

    text: str
    data: Any
    """The same for programs, as JSON holds it."""
    status: int = 0


class Command(NamedTuple):
    """One command of the program."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Config, argparse.Namespace], Answer]
    """Raises `BudgetError` for what is wrong; its text is printed."""


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the configuration is named before the command."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns, below the names of these."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
