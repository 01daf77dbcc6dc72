"""What operators change by commands: it holds for a guard that is open, and can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from llm_budget_mw import BudgetExceeded, ConfigurationError, Guard, Principal, Usage
from llm_budget_mw.cli import moments
from tests.cli.program import TIERS, Program
from tests.servers import free_port

ALICE = Principal("alice")
ACME = Principal("alice", "acme")
MESSAGES = [{"role": "user", "content": "Hi"}]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def guard(stored: Program) -> Iterator[Guard]:
    """Open what an application has open all the time."""
    opened = Guard.open(stored.path, sinks=[])
    yield opened
    opened.close()


def amounts(guard: Guard, principal: Principal = ALICE) -> dict[str, int]:
    return {status.limit.name: status.remaining for status in guard.limits(principal)}


def refused(guard: Guard, principal: Principal = ALICE) -> str:
    """Return why a call is refused; empty if it is admitted."""
    try:
        with guard.call(principal, model="gpt-4o-mini", messages=MESSAGES):
            return ""
    except BudgetExceeded as error:
        return error.refusal.reason


def test_a_grant_holds_at_once_and_can_be_taken_back(stored: Program, guard: Guard) -> None:
    """Twice under one id is once."""
    arguments = ("grant", "alice", "budget-per-month", "$20", "--id", "order-17", "--for", "7d")

    assert stored(*arguments) == 0
    assert stored.out.startswith("grant user/alice budget-per-month $20 until 2")
    assert ": done.\nTake it back with --id order-17.\n" in stored.out
    assert amounts(guard)["budget-per-month"] == 25_000_000_000
    assert stored(*arguments) == 0
    assert "the id is known" in stored.out
    assert amounts(guard)["budget-per-month"] == 25_000_000_000

    assert stored("take-back", "alice", "--id", "order-17") == 0
    assert amounts(guard)["budget-per-month"] == 5_000_000_000
    assert stored("take-back", "alice", "--id", "order-17") == 1
    assert "nothing to end" in stored.out


def test_raising_and_setting(stored: Program, guard: Guard) -> None:
    """A raise comes on top, a set takes the place; both as JSON."""
    assert stored("--json", "raise", "alice", "requests-per-minute", "5") == 0
    assert stored.data["changed"] is True
    assert stored.data["until"] is None
    assert amounts(guard)["requests-per-minute"] == 25
    assert stored("take-back", "alice", "--id", stored.data["id"]) == 0
    assert stored("set", "alice", "requests-per-minute", "7") == 0
    assert amounts(guard)["requests-per-minute"] == 7


def test_what_is_shared_can_be_granted_to(stored: Program, guard: Guard) -> None:
    """To a tenant, and to a principal of one, which is another than without."""
    name = "tenant-requests-per-2-hours"
    assert stored("grant", "--shared", "tenant/acme", name, "50") == 0
    assert stored("grant", "alice", "--tenant", "acme", "requests-per-minute", "1") == 0

    assert amounts(guard, ACME)[name] == 1050
    assert amounts(guard, ACME)["requests-per-minute"] == 21
    assert amounts(guard)["requests-per-minute"] == 20


def test_a_block_and_its_end(stored: Program, guard: Guard) -> None:
    """Only this principal, and only until it is unblocked."""
    assert stored("block", "alice", "--reason", "chargeback", "--actor", "ops") == 0
    assert refused(guard) == "stopped"
    assert refused(guard, Principal("bob")) == ""
    # The event goes to the configured sinks, and not into the answer.
    assert "budget.changed" in stored.err
    assert "chargeback" in stored.err
    assert "actor=ops" in stored.err
    assert "budget.changed" not in stored.out

    assert stored("unblock", "alice") == 0
    assert refused(guard) == ""
    assert stored("unblock", "alice") == 1


@pytest.mark.parametrize("what", ["deployment", "model/gpt-4o-mini", "tenant/acme"])
def test_a_stop_and_its_end(what: str, stored: Program, guard: Guard) -> None:
    """Whatever principals share can be stopped."""
    assert stored("stop", what, "--until", "2100-01-01", "--reason", "prices went up") == 0
    assert refused(guard, ACME) == "stopped"
    assert stored("in-force") == 0
    assert stored.out.split()[3:5] == [what, "2100-01-01T00:00:00Z"]
    assert stored("stop", what, "--until", "2100-01-01", "--reason", "prices went up") == 0
    assert "it is stopped already" in stored.out

    assert stored("resume", what) == 0
    assert refused(guard, ACME) == ""
    assert stored("resume", what) == 1


def test_a_reset_forgets_what_was_used(stored: Program, guard: Guard) -> None:
    """Of one limit, or of all."""
    new = amounts(guard)
    with guard.call(ALICE, model="gpt-4o-mini", messages=MESSAGES) as call:
        call.record(Usage(1_000_000, 0))
    day, month = "budget-per-day", "budget-per-month"
    used = amounts(guard)

    assert (used[day], used[month]) == (new[day] - 150_000_000, new[month] - 150_000_000)
    assert stored("reset", "alice", day) == 0
    assert (amounts(guard)[day], amounts(guard)[month]) == (new[day], used[month])
    assert stored("reset", "alice") == 0
    assert amounts(guard) == new


def test_what_is_in_force(stored: Program) -> None:
    """What was added, by the command that did it, and what is stopped."""
    assert stored("in-force", "alice") == 0
    assert stored.out == "Nothing is changed, nothing is stopped.\n"
    stored("grant", "alice", "budget-per-month", "$2.50", "--id", "a")
    stored("set", "alice", "concurrency", "9", "--id", "b", "--until", "2100-01-01T01:00+01:00")
    stored("block", "bob", "--tenant", "acme")

    assert stored("in-force", "alice", "--json") == 0
    assert sorted(each["id"] for each in stored.data["additions"]) == ["a", "b"]
    assert stored("in-force", "alice") == 0
    lines = [line.split() for line in stored.out.splitlines()]
    assert ["grant", "budget-per-month", "$2.50", "-", "a"] in lines
    assert ["set", "concurrency", "9", "2100-01-01T00:00:00Z", "b"] in lines
    assert ["user/bob", "(tenant", "acme)", "-", "-"] in lines


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["grant", "alice", "no-such", "$1"], "its limits are requests-per-minute"),
        (["grant", "alice", "budget-per-month", "1,5"], "is not an amount of money"),
        (["grant", "alice", "budget-per-month", "$1", "--id", "a b"], "without blanks"),
        (["grant", "", "budget-per-month", "$1"], "PRINCIPAL is empty"),
        (["grant", "alice", "budget-per-month", "$1", "--for", "soon"], "write 90m"),
        (["grant", "alice", "budget-per-month", "$1", "--until", "soon"], "write 2027"),
        (["block", "alice", "--until", "2020-01-01"], "is over already"),
        (["stop", "gpt-4o"], "model/gpt-4o"),
        (["stop", "team/red"], "is not a kind of subject here"),
    ],
)
def test_what_is_not_understood_changes_nothing(
    argv: list[str], said: str, stored: Program
) -> None:
    """One line says how to write it."""
    assert stored(*argv) == 2
    assert stored.out == ""
    assert said in stored.err
    assert len(stored.err.splitlines()) == 1
    assert stored("in-force", "alice") == 0
    assert stored.out == "Nothing is changed, nothing is stopped.\n"


def test_changes_need_a_store_that_answers(command: Program) -> None:
    """In memory they would be gone with the command."""
    assert command("block", "alice") == 2
    assert "where no command can look" in command.err
    command.configure(f'[store]\nurl = "redis://127.0.0.1:{free_port()}"', TIERS)
    assert command("block", "alice") == 2
    assert "`llm-budget doctor` says more" in command.err


@pytest.mark.parametrize(
    ("until", "duration", "end"),
    [
        (None, None, None),
        (None, "90m", NOW + timedelta(minutes=90)),
        (None, "2 w", NOW + timedelta(weeks=2)),
        ("2027-01-31", None, datetime(2027, 1, 30, 23, tzinfo=UTC)),
        ("2027-07-01T18:00", None, datetime(2027, 7, 1, 16, tzinfo=UTC)),
        ("2027-07-01T18:00Z", None, datetime(2027, 7, 1, 18, tzinfo=UTC)),
    ],
)
def test_when_a_change_ends(until: str | None, duration: str | None, end: datetime | None) -> None:
    """Days and times without a zone are in that of the configuration."""
    assert moments.end(until, duration, "Europe/Berlin", NOW) == end


@pytest.mark.parametrize("duration", ["0s", "-1h", "1", "h", "1y", "999999w", "1h30m", ""])
def test_what_is_no_duration(duration: str) -> None:
    """The error names it and shows some."""
    with pytest.raises(ConfigurationError, match="--for"):
        moments.end(None, duration, "UTC", NOW)
