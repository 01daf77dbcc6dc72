"""`flask llm-budget limits`, run as a user runs it."""

from __future__ import annotations

import json

import pytest
from click.testing import Result

from tests.adapters.flask_bench import FlaskBench
from tests.edge.driver import ANSWER, CHAT

TIERS = {"default": {"requests": "9/day", "budget": "$5/month", "concurrency": 2}, "free": {}}


def run(bench: FlaskBench, *arguments: str) -> Result:
    """Run a command of the group."""
    return bench.app.test_cli_runner().invoke(args=["llm-budget", *arguments])


@pytest.fixture
def bench() -> FlaskBench:
    """Return an application of which alice has made one call."""
    bench = FlaskBench(tiers=TIERS)
    bench.app.add_url_rule(CHAT, "chat", lambda: ANSWER, methods=["POST"])
    bench.post()
    return bench


def test_the_limits_of_a_principal_are_printed(bench: FlaskBench) -> None:
    """A line for each: amount, use, rest and end of its window, money in dollars."""
    result = run(bench, "limits", "alice")

    head, *rows = [line.split() for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert head == ["limit", "amount", "used", "remaining", "resets", "in", "over", "on"]
    assert [row[:4] for row in rows] == [
        ["requests-per-day", "9", "1", "8"],
        ["budget-per-month", "$5.00", "$0.00033", "$4.99967"],
        ["concurrency", "2", "0", "2"],
    ]
    assert rows[0][4:] == ["12:00:00", "-"]
    assert rows[2][4:] == ["-", "-"]


def test_the_limits_are_printed_for_programs(bench: FlaskBench) -> None:
    """As JSON, exact, with money as text."""
    result = run(bench, "limits", "alice", "--json")

    requests, budget, concurrency = json.loads(result.stdout)
    assert requests == {
        "limit": "requests-per-day",
        "amount": 9,
        "used": 1,
        "remaining": 8,
        "reset_ms": 43_200_000,
        "exhausted_at": None,
    }
    assert (budget["amount"], budget["used"], budget["remaining"]) == ("5.00", "0.00033", "4.99967")
    assert concurrency["reset_ms"] is None


def test_counters_of_this_process_alone_are_no_answer(bench: FlaskBench) -> None:
    """Without a store that all processes share, the command says what it cannot see."""
    shared = FlaskBench(store={"url": "redis://localhost:1/0"})

    assert "others are not seen" in run(bench, "limits", "alice").stderr
    assert run(shared, "limits", "alice").stderr == ""


def test_looking_reserves_nothing(bench: FlaskBench) -> None:
    """Twice the same."""
    assert run(bench, "limits", "alice").stdout == run(bench, "limits", "alice").stdout


@pytest.mark.parametrize(
    ("arguments", "said", "warned"),
    [
        (["limits", "bob", "--tier", "free"], "No limits.", ""),
        (["limits", "bob", "--tier", "gold"], "requests-per-day", "no tier 'gold'"),
        (["limits", "bob", "--tenant", "acme"], "requests-per-day", ""),
    ],
)
def test_tenant_and_tier_are_those_of_the_credential(
    bench: FlaskBench, arguments: list[str], said: str, warned: str
) -> None:
    """An unknown tier is the default one, as it is for a request; that is said."""
    result = run(bench, *arguments)

    assert result.exit_code == 0
    assert said in result.stdout
    assert warned in result.stderr


def test_a_store_that_is_away_is_said(bench: FlaskBench) -> None:
    """One clear line, and the exit status 2."""
    bench.store.down = True

    result = run(bench, "limits", "alice")

    assert result.exit_code == 2
    assert result.stderr.endswith("Error: the store does not answer: no answer within 100 ms\n")
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["limits"], ["limits", "a", "b"]])
def test_a_wrong_command_line_is_explained(bench: FlaskBench, arguments: list[str]) -> None:
    """By click, with the usage."""
    result = run(bench, *arguments)

    assert result.exit_code == 2
    assert "Usage:" in result.output
