"""`llm-budget` in this process: what each command prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_budget_mw import Guard, Principal, Usage
from llm_budget_mw.cli import main
from tests.cli.program import TIERS, Program
from tests.servers import free_port

MESSAGES = [{"role": "user", "content": "Hi"}]


def test_a_configuration_in_plain_words(command: Program) -> None:
    """Limits of tiers and shared ones, and what an outage can cost."""
    status = command("check")
    lines = [" ".join(line.split()) for line in command.out.splitlines()]

    assert (status, command.err) == (0, "")
    assert "Tier default" in lines
    assert "requests-per-minute 20 requests any minute admits" in lines
    assert "tokens-per-7-days 90000 tokens (only counts) week admits" in lines
    assert "budget-per-month $5.00 calendar month (UTC) all processes admit $0.25" in lines
    assert "concurrency 4 calls at the same time admits" in lines
    spends = "While the store is away, all processes together spend at most"
    costs = "an outage costs at most $0.05"
    assert f"{spends} $0.025 of budget-per-day, $0.25 of budget-per-month: {costs}." in lines
    assert "While the store is away nothing is spent: budget-per-month refuses." in lines
    assert "No limits: everything is admitted." in lines
    assert "The tenant acme" in lines
    assert "tenant-requests-per-2-hours 1000 requests 2 hours admits" in lines
    assert "While the store is away, nothing bounds what is spent." in lines
    assert any("prices.age: prices of genai-prices/" in line for line in lines)


def test_a_configuration_as_json(command: Program) -> None:
    """The same for programs; money as text."""
    assert command("check", "--json") == 0
    default = command.data["tables"][0]

    assert command.data["mode"] == "enforce"
    assert default["title"] == "Tier default"
    assert default["limits"][2] == {
        "limit": "budget-per-day",
        "amount": "0.50",
        "window": "calendar day (UTC)",
        "on_outage": "local",
        "local_share": 0.05,
        "shadow": False,
    }


def test_a_mode_that_admits_everything_is_said(command: Program) -> None:
    """First of all."""
    command.configure('mode = "shadow"', TIERS)

    assert command("check") == 0
    assert command.out.startswith("Mode shadow: everything is admitted.")


def test_odd_limits_are_an_answer_of_no(command: Program) -> None:
    """They are not wrong enough not to start."""
    command.configure('[tiers.default]\ntokens = "10/day"\nmin_tokens = 11')

    assert command("check") == 1
    assert "limits.too_small" in command.out


def test_every_wrong_option_is_named(command: Program) -> None:
    """On standard error, with nothing on standard output."""
    command.configure('[tiers.default]\nconcurrency = 0\nrequests = "some"\nbugdet = "$1/day"')

    assert command("check") == 2
    assert command.out == ""
    assert command.err.startswith("llm-budget: ")
    assert "tiers.default.concurrency: found 0" in command.err
    assert "tiers.default.requests" in command.err
    assert "did you mean `budget`?" in command.err


def test_what_only_compiling_shows_is_wrong_too(command: Program) -> None:
    """A model without a price cannot be offered for money."""
    command.configure('[tiers.default]\nbudget = "$1/day"\noffers = [{ model = "no-such" }]')

    assert command("check") == 2
    assert "'no-such' has no known price" in command.err


def test_a_missing_file_is_named(command: Program) -> None:
    """With the way to name another."""
    command.path.unlink()

    assert command("check") == 2
    assert str(command.path) in command.err
    assert "--config" in command.err
    assert len(command.err.splitlines()) == 1


@pytest.mark.parametrize("argv", [[], ["no-such"], ["limits"], ["limits", "a", "--no-such"]])
def test_a_wrong_use(argv: list[str], command: Program, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told as argparse tells it."""
    with pytest.raises(SystemExit) as ended:
        command(*argv)

    assert ended.value.code == 2
    assert "usage: llm-budget" in capsys.readouterr().err


def test_the_limits_of_a_principal(stored: Program) -> None:
    """Its own and those it shares, in text and in JSON."""
    assert stored("limits", "alice", "--tenant", "acme") == 0
    text = [line.split() for line in stored.out.splitlines()]
    assert stored("--json", "limits", "alice", "--tenant", "acme", "--tier", "closed") == 0

    assert text[0] == ["of", "limit", "amount", "window", "remaining"]
    assert text[1][:4] == ["user/alice", "requests-per-minute", "20", "requests"]
    assert text[-1][:2] == ["tenant/acme", "tenant-requests-per-2-hours"]
    assert [each["limit"] for each in stored.data] == [
        "budget-per-month",
        "tenant-requests-per-2-hours",
    ]
    assert stored.data[0]["remaining"] == "1.00"
    assert stored.data[0]["window"] == "calendar month (UTC)"


def test_a_principal_without_limits(stored: Program) -> None:
    """Is an answer, too."""
    assert stored("limits", "alice", "--tier", "open") == 0
    assert stored.out == "No limits.\n"


def test_an_unknown_tier_is_the_default_one(stored: Program) -> None:
    """As in the application, and said beside the answer."""
    assert stored("limits", "alice", "--tier", "gold", "--json") == 0
    assert len(stored.data) == 5
    assert "there is no tier 'gold'" in stored.err


def test_what_a_principal_has_used(stored: Program) -> None:
    """By the same counters as the application's."""
    guard = Guard.open(stored.path, sinks=[])
    with guard.call(Principal("bob"), model="gpt-4o-mini", messages=MESSAGES) as call:
        call.record(Usage(1_000_000, 0))
    guard.close()

    assert stored("usage", "bob", "--json") == 0
    used = {each["limit"]: each["used"] for each in stored.data}
    assert used["budget-per-day"] == used["budget-per-month"] == "0.15"
    assert (used["requests-per-minute"], used["tokens-per-7-days"]) == (1, 1_000_000)
    assert stored("usage", "bob") == 0
    assert stored.out.split()[:4] == ["limit", "amount", "used", "remaining"]


@pytest.mark.parametrize("name", ["limits", "usage"])
def test_counters_inside_other_processes_cannot_be_read(name: str, command: Program) -> None:
    """A command would only see its own, which are always new."""
    assert command(name, "alice") == 2
    assert "where no command can look" in command.err


@pytest.mark.parametrize("name", ["limits", "usage"])
def test_a_store_that_is_away(name: str, command: Program) -> None:
    """One line, no traceback."""
    command.configure(f'[store]\nurl = "redis://127.0.0.1:{free_port()}"', TIERS)

    assert command(name, "alice") == 2
    assert command.out == ""
    assert len(command.err.splitlines()) == 1
    assert "store" in command.err


def test_an_empty_principal(stored: Program) -> None:
    """Nobody has that name."""
    assert stored("limits", "") == 2
    assert "PRINCIPAL is empty" in stored.err


def test_a_doctor_who_finds_something(stored: Program) -> None:
    """The worst first, each with its remedy; a server that keeps nothing is a warning."""
    assert stored("doctor") == 1
    lines = stored.out.splitlines()

    assert lines[0].startswith("warning  store.persistence: appendonly and save are off")
    assert lines[1].strip().startswith("-> appendonly yes")
    assert any(line.startswith("ok       store.scripts") for line in lines)


def test_a_doctor_who_finds_a_danger(command: Program) -> None:
    """Nobody answers: the rest is looked at all the same."""
    command.configure(f'[store]\nurl = "redis://127.0.0.1:{free_port()}"', TIERS)

    assert command("doctor", "--json") == 2
    assert command.data[0]["check"] == "store.reachable"
    assert command.data[0]["severity"] == "danger"
    assert set(command.data[0]) == {"check", "severity", "seen", "remedy"}
    assert "prices.age" in {finding["check"] for finding in command.data}


def test_the_example_of_an_organisation_means_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared limits are named for whom they are, and none of them is a mistake."""
    monkeypatch.delenv("LLM_BUDGET_JWT_KEY", raising=False)
    example = Path(__file__).parents[2] / "examples" / "organisation.toml"

    assert main(["--config", str(example), "check"]) == 0
    said = capsys.readouterr().out
    assert "The whole deployment" in said
    assert "The feature chat" in said
    assert "feature-budget-per-month  $2000.00" in said
    assert "2000000 tokens (only counts)" in said
