"""`llm-budget grant`, `block`, `stop` and their like: what operators change while calls run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import getpass
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from llm_budget_mw import assembly, operations
from llm_budget_mw.cli import moments
from llm_budget_mw.cli.command import Answer, Command
from llm_budget_mw.cli.standing import open_guard
from llm_budget_mw.config import Config
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.operations import Applied, Change, Operation, Target

_UNCHANGED = {
    "credit": "the id is known, nothing was changed",
    "raise": "the id is known, nothing was changed",
    "set": "the id is known, nothing was changed",
    "stop": "it is stopped already",
}
_ENDING = ("take_back", "resume")
"""Of these, having nothing to do is a no: something was expected to be there."""


class Made(NamedTuple):
    """A change, and what became of it."""

    verb: str
    """The command's name."""
    change: Change
    applied: Applied


def add_target(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add what says whom it is about."""
    parser.add_argument(
        "target",
        metavar="PRINCIPAL",
        nargs="?" if optional else None,
        help="such as the subject of a token",
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="not a principal, but what principals share: deployment, tenant/acme, feature/chat",
    )
    parser.add_argument("--tenant", help="the tenant it belongs to")


def target_of(arguments: argparse.Namespace) -> Target:
    """Return whom it is about; raises `ConfigurationError` for what is not understood."""
    name: str = arguments.target
    if not name:
        raise ConfigurationError("PRINCIPAL is empty: write an id, such as the subject of a token")
    if not arguments.shared:
        return operations.of_principal(name, arguments.tenant)
    try:
        return operations.of_shared(name, arguments.tenant)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def run(verb: str, operation: Operation, config: Config, arguments: argparse.Namespace) -> Answer:
    """Make a change, and answer with what became of it."""
    change = change_of(operation, config, arguments, datetime.now(UTC))
    guard = open_guard(config, assembly.build_sinks(config))
    with contextlib.closing(guard):
        try:
            made = Made(verb, change, operations.apply(guard, change))
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
    return Answer(as_text(made), as_data(made), status(made))


def change_of(
    operation: Operation, config: Config, arguments: argparse.Namespace, now: datetime
) -> Change:
    """Return the change that arguments ask for; raises `ConfigurationError`."""
    given = vars(arguments)
    return Change(
        operation,
        target_of(arguments),
        given.get("limit"),
        given.get("amount"),
        moments.end(given.get("until"), given.get("duration"), config.time_zone, now),
        given.get("id"),
        arguments.actor or _login(),
        arguments.reason,
    )


def status(made: Made) -> int:
    """Return 1 where there was nothing to end; a repetition of anything else is fine."""
    return int(made.change.operation in _ENDING and not made.applied.changed)


def as_text(made: Made) -> str:
    """Return what happened, in a line or two."""
    change, applied = made.change, made.applied
    if status(made):
        return f"{made.verb}: there was nothing to end for {_whom(change)}."
    done = "done" if applied.changed else _UNCHANGED.get(change.operation, "nothing to change")
    until = f" until {moments.shown(change.until)}" if change.until else ""
    what = " ".join(str(each) for each in (change.limit, change.amount) if each is not None)
    first = f"{made.verb} {_whom(change)}{' ' * bool(what)}{what}{until}: {done}."
    back = f"\nTake it back with --id {applied.id}." if applied.id else ""
    return first + back


def as_data(made: Made) -> dict[str, Any]:
    """Return the same as one object."""
    change = made.change
    return {
        "command": made.verb,
        "of": _whom(change),
        "limit": change.limit,
        "amount": None if change.amount is None else str(change.amount),
        "until": moments.shown(change.until) if change.until else None,
        "id": made.applied.id,
        "changed": made.applied.changed,
    }


def _whom(change: Change) -> str:
    target = change.target
    return target.kind if target.kind == "deployment" else f"{target.kind}/{target.name}"


def _login() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return None


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--actor", help="who does this, for the event; without it, your login")
    parser.add_argument("--reason", default="", help="why, for the event")


def _add_end(parser: argparse.ArgumentParser) -> None:
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--for", dest="duration", metavar="DURATION", help="such as 90m, 2h or 7d")
    end.add_argument("--until", metavar="TIME", help="such as 2027-01-31 or 2027-01-31T18:00+01:00")


def _add_addition(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("limit", metavar="LIMIT", help="its name, such as budget-per-month")
    parser.add_argument("amount", metavar="AMOUNT", help="such as $20, or a number of tokens")
    parser.add_argument("--id", help="makes a repetition harmless; without it, a random one")
    _add_end(parser)
    _add_audit(parser)


def _add_taking_back(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--id", required=True, help="the id that was given or printed")
    _add_audit(parser)


def _add_reset(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("limit", metavar="LIMIT", nargs="?", help="its name; without it, all")
    _add_audit(parser)


def _add_principal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="PRINCIPAL", help="such as the subject of a token")
    parser.add_argument("--tenant", help="the tenant it belongs to")
    parser.set_defaults(shared=False)
    _add_audit(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="WHAT", help="deployment, model/gpt-4o, feature/chat, tenant/acme"
    )
    parser.add_argument("--tenant", help="the tenant it belongs to")
    parser.set_defaults(shared=True)
    _add_audit(parser)


def _ending(
    add: Callable[[argparse.ArgumentParser], None],
) -> Callable[[argparse.ArgumentParser], None]:
    """Return what adds the same, and when it is over."""

    def add_both(parser: argparse.ArgumentParser) -> None:
        add(parser)
        _add_end(parser)

    return add_both


def _command(
    name: str,
    operation: Operation,
    help_text: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
) -> Command:
    return Command(name, help_text, add_arguments, functools.partial(run, name, operation))


COMMANDS = (
    _command("grant", "credit", "Add to a limit once: what is unused stays.", _add_addition),
    _command("raise", "raise", "Add to a limit in every window.", _add_addition),
    _command("set", "set", "Replace the amount of a limit.", _add_addition),
    _command("take-back", "take_back", "End a grant, raise or set.", _add_taking_back),
    _command("reset", "reset", "Forget what was used of a limit.", _add_reset),
    _command("block", "stop", "Refuse every call of a principal.", _ending(_add_principal)),
    _command("unblock", "resume", "Let a principal call again.", _add_principal),
    _command("stop", "stop", "Refuse every call of a model, a tenant, ...", _ending(_add_shared)),
    _command("resume", "resume", "Let what was stopped go on.", _add_shared),
)
