"""`llm-budget in-force`: what operators have changed, as far as it still holds."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any, NamedTuple

from llm_budget_mw import operations
from llm_budget_mw._money import format_usd
from llm_budget_mw._windows import in_utc
from llm_budget_mw.cli import moments
from llm_budget_mw.cli.changes import add_target, target_of
from llm_budget_mw.cli.command import Answer, Command, table
from llm_budget_mw.cli.standing import open_guard
from llm_budget_mw.config import Config
from llm_budget_mw.guard import Guard
from llm_budget_mw.operations import Stopped, Target
from llm_budget_mw.types import Limit

_ADDED = ("change", "limit", "amount", "until", "id")
_STOPPED = ("stopped", "until", "reason")
_VERBS = {"credit": "grant", "raise": "raise", "set": "set"}


class Addition(NamedTuple):
    """What was added to a limit, as it is printed."""

    change: str
    """The command that made it."""
    limit: str
    amount: str
    until: str | None
    id: str


class InForce(NamedTuple):
    """Everything that operators changed."""

    additions: tuple[Addition, ...]
    """Of one subject; none if no subject was named."""
    stopped: tuple[Stopped, ...]


def run(config: Config, arguments: argparse.Namespace) -> Answer:
    """Answer with what is in force."""
    target = None if arguments.target is None else target_of(arguments)
    with contextlib.closing(open_guard(config)) as guard:
        additions = () if target is None else _additions(guard, target)
        found = InForce(additions, operations.stopped(guard))
    return Answer(as_text(found), as_data(found))


def _additions(guard: Guard, target: Target) -> tuple[Addition, ...]:
    known = guard.engine.policy.limits_of(target.kind, target.name)
    return tuple(
        Addition(
            _VERBS[each.kind],
            each.limit,
            _amount(known.get(each.limit), each.amount),
            _until(each.until_ms),
            each.id,
        )
        for each in operations.in_force(guard, target)
    )


def _amount(limit: Limit | None, number: int) -> str:
    """Return an amount; of a limit that is not configured any more only the number is known."""
    return format_usd(number) if limit and limit.resource == "cost" else str(number)


def as_text(found: InForce) -> str:
    """Return a table of what was added, and one of what is stopped."""
    parts: list[str] = []
    if found.additions:
        rows = [[text or "-" for text in each] for each in found.additions]
        parts.append(table(_ADDED, rows))
    if found.stopped:
        stops = [
            (_named(each.switch), _shown(each) or "-", each.reason or "-") for each in found.stopped
        ]
        parts.append(table(_STOPPED, stops))
    return "\n\n".join(parts) or "Nothing is changed, nothing is stopped."


def as_data(found: InForce) -> dict[str, Any]:
    """Return the same as one object."""
    return {
        "additions": [each._asdict() for each in found.additions],
        "stopped": [
            {"switch": each.switch, "until": _shown(each), "reason": each.reason}
            for each in found.stopped
        ],
    }


def _named(switch: str) -> str:
    """Return what a switch stops, as it is written in a command."""
    partition, _, name = switch.partition(":")
    if not name:
        return "deployment"
    inside = partition not in (name, name.removeprefix("tenant/"))
    return f"{name} (tenant {partition})" if inside else name


def _shown(stop: Stopped) -> str | None:
    return moments.shown(stop.until) if stop.until else None


def _until(until_ms: int) -> str | None:
    return in_utc(until_ms) if until_ms else None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser, optional=True)


COMMAND = Command(
    "in-force",
    "Print what is stopped and, of a principal, what was added to its limits.",
    _add_arguments,
    run,
)
