"""Findings on limits, machines and processes: facts in, findings out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from llm_budget_mw import assembly
from llm_budget_mw.config import Config
from llm_budget_mw.diagnosis import Finding, Severity, ask, look, machine, worst
from llm_budget_mw.diagnosis.examine import Start, examine, of_limits
from llm_budget_mw.diagnosis.facts import MachineFacts, PriceFacts
from llm_budget_mw.diagnosis.processes import memory_store_shared
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.pricing import Prices
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from tests.deployment import configured
from tests.servers import ValkeyServer, free_port

OK, NOTE, WARNING, DANGER = Severity
STRONG = "wT4zuGmQ0pXnB1kLhV7sYcRe9aJ5dF3o"


def about(tier: Mapping[str, Any], **sections: Any) -> list[tuple[str, Severity]]:
    config = configured(tier, **sections)
    return [found[:2] for found in of_limits(config, Prices(config.prices))]


@pytest.mark.parametrize(
    "tier",
    [
        {},
        {"requests": "20/minute;1000/day", "concurrency": 4},
        {"tokens": "2000/minute", "min_tokens": 2000, "max_tokens": 2000},
        {"budget": ["$0.50/day", "$5/month"]},
        # A minute of sliding weight on each side, and a day that is 25 hours long.
        {"requests": "10/minute;15000/day"},
        {"offers": [{"model": "big"}, {"model": "small"}], "budget": "$0.01/day"},
    ],
)
def test_limits_that_are_in_order(tier: Any) -> None:
    """About these there is nothing to say."""
    assert about(tier) == []


@pytest.mark.parametrize(
    "tier",
    [
        {"requests": "10/minute;15030/day"},
        {"tokens": "100/minute;5000000/month"},
        {"budget": ["$1/day", "$34/month"]},
        {"requests": [{"limit": "1/hour", "window": "fixed"}, "10000/year"]},
    ],
)
def test_a_limit_that_another_one_always_reaches_first(tier: Any) -> None:
    """It never refuses anything."""
    assert about(tier) == [("limits.never_reached", NOTE)]


def test_limits_that_only_count_hold_back_no_other() -> None:
    """A shadow refuses nothing, and is not asked to."""
    tier = {"requests": [{"limit": "10/minute", "shadow": True}, "100000/day"]}

    assert about(tier) == []
    assert about({"requests": "10/minute;100000/day"}, mode="shadow") == []


@pytest.mark.parametrize(
    "tier",
    [
        {"tokens": "100/minute", "min_tokens": 101},
        # 100 tokens of the smaller model cost 60,000 nano-dollars.
        {"budget": "$0.00005/day", "min_tokens": 100, "offers": [{"model": "small"}]},
        {
            "budget": "$0.0001/day",
            "min_tokens": 100,
            "offers": [{"model": "small", "ceiling": "50%"}],
        },
        {"tokens": "100/day", "offers": [{"model": "small", "min_tokens": 101}]},
    ],
)
def test_a_limit_smaller_than_the_least_call(tier: Any) -> None:
    """Every call is refused, which nobody can want."""
    assert about(tier)[0] == ("limits.too_small", DANGER)


def test_an_offer_that_is_never_chosen() -> None:
    """The other one is: that is only a warning."""
    offers = [{"model": "big"}, {"model": "small"}]
    tier = {"budget": "$0.0005/day", "min_tokens": 100, "offers": offers}

    assert about(tier) == [("limits.too_small", WARNING)]


def test_a_limit_of_nothing_may_be_meant() -> None:
    """It is said, and nothing else about it."""
    assert about({"budget": "$0/day"}) == [("limits.nothing", NOTE)]


def test_a_share_too_small_for_a_call() -> None:
    """What is local for an outage is closed in fact."""
    assert about({"requests": "10/day", "on_outage": {"requests": "local"}}) == [
        ("limits.share_too_small", NOTE)
    ]


def test_shared_limits_are_looked_at_too() -> None:
    """Under the names they have in the store."""
    config = configured(limits=[{"of": "deployment", "requests": "10/minute;100000/day"}])
    [finding] = of_limits(config, Prices(config.prices))

    assert "limits of 'deployment': deployment-requests-per-minute lets" in finding.seen


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"WEB_CONCURRENCY": "4"}, "WEB_CONCURRENCY=4"),
        ({"UVICORN_WORKERS": "2"}, "UVICORN_WORKERS=2"),
        ({"GUNICORN_CMD_ARGS": "--bind :80 --workers 3"}, "GUNICORN_CMD_ARGS with 3"),
        ({"GUNICORN_CMD_ARGS": "--workers=3"}, "GUNICORN_CMD_ARGS with 3"),
        ({"GUNICORN_CMD_ARGS": "-w 3"}, "GUNICORN_CMD_ARGS with 3"),
        ({"GUNICORN_CMD_ARGS": "-w3 --reload"}, "GUNICORN_CMD_ARGS with 3"),
        ({"GUNICORN_CMD_ARGS": "--reload", "WEB_CONCURRENCY": "2"}, "WEB_CONCURRENCY=2"),
    ],
)
def test_several_workers_are_seen(environ: dict[str, str], seen: str) -> None:
    """Each way to ask for them in the environment."""
    reason = memory_store_shared(environ)

    assert reason is not None
    assert reason.startswith(seen)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WEB_CONCURRENCY": "1"},
        {"WEB_CONCURRENCY": ""},
        {"WEB_CONCURRENCY": "many"},
        {"WEB_CONCURRENCY": "-4"},
        {"GUNICORN_CMD_ARGS": "--worker-class gthread --threads 8"},
        {"GUNICORN_CMD_ARGS": "--workers"},
        {"GUNICORN_CMD_ARGS": "'"},
        {"GUNICORN_CMD_ARGS": "-w 1", "WEB_CONCURRENCY": "4"},
    ],
)
def test_one_worker_is_not_taken_for_several(environ: dict[str, str]) -> None:
    """What cannot be told with certainty is let be."""
    assert memory_store_shared(environ) is None


@pytest.mark.parametrize("build", [assembly.build_store, assembly.build_async_store])
def test_several_workers_need_a_store_they_share(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one each would spend the whole; who wants just that has to write it down."""
    monkeypatch.setenv("WEB_CONCURRENCY", "2")

    with pytest.raises(ConfigurationError, match=r"WEB_CONCURRENCY=2 .*memory://\?each-process"):
        build(configured())
    apart = build(configured(store={"url": "memory://?each-process"}))
    watching = build(configured(mode="shadow"))

    assert isinstance(apart, MemoryStore | AsyncMemoryStore)
    assert isinstance(watching, MemoryStore | AsyncMemoryStore)


def severities(findings: Iterable[Finding]) -> dict[str, Severity]:
    return {finding.check: finding.severity for finding in findings}


@pytest.mark.parametrize(
    ("url", "environ", "severity"),
    [
        ("memory://", {}, WARNING),
        ("memory://", {"WEB_CONCURRENCY": "2"}, DANGER),
        ("memory://?each-process", {"WEB_CONCURRENCY": "2"}, NOTE),
    ],
)
def test_a_store_in_memory(url: str, environ: dict[str, str], severity: Severity) -> None:
    """How bad it is depends on who else counts."""
    found = severities(machine.processes(configured(store={"url": url}), environ))

    assert found["store.memory_only"] is severity


def test_pseudonyms_agree_only_with_a_secret() -> None:
    """Which matters most where there are several processes."""
    several, events = {"WEB_CONCURRENCY": "2"}, "events.id_secret"

    def found(environ: dict[str, str], **options: Any) -> Severity | None:
        return severities(machine.processes(configured(events=options), environ)).get(events)

    assert found({}) is NOTE
    assert found(several) is WARNING
    assert found(several, id_secret="x" * 16) is None
    assert found(several, principal="plain") is None


@pytest.mark.parametrize(("days", "severity"), [(90, OK), (91, NOTE), (181, WARNING)])
def test_prices_grow_old(days: int, severity: Severity) -> None:
    """By the newest that has a date and holds by now."""
    today = date(2026, 11, 21)
    facts = PriceFacts("genai-prices/1", today, today - timedelta(days=days))
    [finding] = machine.prices(facts)

    assert finding.severity is severity
    assert f"{days} days" in finding.seen
    assert severities(machine.prices(replace_dated(facts, None))) == {"prices.age": OK}


def replace_dated(facts: PriceFacts, dated: date | None) -> PriceFacts:
    return facts._replace(dated=dated)


def test_the_installed_prices_have_a_date() -> None:
    """The catalogue's structure is still the one it is read from."""
    config = configured(prices={})
    facts = look.at_prices(config, Prices(config.prices))

    assert facts.dated is not None
    assert date(2024, 1, 1) < facts.dated <= facts.today
    assert look.at_prices(configured(), Prices(configured().prices)).dated is None


@pytest.mark.parametrize(
    ("tokens", "at_hand", "severity"),
    [
        ({"exact": True}, True, OK),
        ({"exact": True}, False, WARNING),
        ({"exact": True, "download": True}, False, NOTE),
        ({"exact": False}, False, NOTE),
    ],
)
def test_a_vocabulary_should_be_there(tokens: Any, at_hand: bool, severity: Severity) -> None:
    """Where input is to be counted."""
    [finding] = machine.tokenizer(configured(tokens=tokens), MachineFacts(tokenizer=at_hand))

    assert finding.severity is severity


def test_the_vocabulary_of_this_machine_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiktoken's directory, and among the packages."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert not look.at_machine(configured()).tokenizer


@pytest.mark.parametrize(
    ("secret", "weak"),
    [
        (STRONG, False),
        ("k" * 32, True),
        ("changeme-changeme-changeme-changeme", True),
        ("Example-Key-6f1e9b0a4d7c-do-not-use", True),
    ],
)
def test_a_secret_that_can_be_guessed(secret: str, weak: bool) -> None:
    """Whoever guesses it can be anybody; the report does not repeat it."""
    findings = list(machine.keys(MachineFacts(secrets={"https://login.example": secret})))

    assert worst(findings) is (DANGER if weak else OK)
    assert secret not in str(findings)


def test_keys_are_read_where_they_are(tmp_path: Path) -> None:
    """A secret in a file counts as one in the configuration; a file that is not there is named."""
    issuer = {"algorithms": ["HS256"], "issuer": "i", "audience": "a"}
    path = tmp_path / "secret"
    path.write_text("k" * 32)
    there = look.at_machine(configured(jwt={**issuer, "key_file": str(path)}))
    given = look.at_machine(configured(jwt={**issuer, "key": STRONG}))
    path.unlink()
    missing = look.at_machine(configured(jwt={**issuer, "key_file": str(path)}))

    assert severities(machine.keys(there)) == {"jwt.key": DANGER}
    assert given.secrets == {"i": STRONG}
    assert STRONG not in repr(given)
    assert str(path) in missing.key_problem
    assert severities(machine.keys(missing)) == {"jwt.key": DANGER}


def test_a_key_server_that_is_away() -> None:
    """It is asked, within its own time-out."""
    url = f"http://127.0.0.1:{free_port()}/keys"
    config = configured(jwt={"issuer": "i", "audience": "a", "jwks_url": url})
    facts = look.at_machine(config)

    assert facts.key_servers[url]
    assert severities(machine.keys(facts)) == {"jwt.key_server": DANGER}
    well = replace(facts, key_servers={url: ""})
    assert severities(machine.keys(well)) == {"jwt.key_server": OK}


# All of it together, and at the start of a process.


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as entries:
        yield entries


def test_every_part_is_examined(valkey: ValkeyServer) -> None:
    """One finding at least of each kind of check."""
    config = configured({"budget": "$0/day"}, store={"url": valkey.url, "deadline_ms": 5000})
    found = examine(config, Prices(config.prices), {})

    assert {finding.check.partition(".")[0] for finding in found} == {
        "store", "limits", "events", "prices", "tokens",
    }  # fmt: skip


def started(config: Config) -> Start:
    return Start(config, Prices(config.prices))


def test_a_start_names_what_is_dangerous(log: list[Any]) -> None:
    """And nothing that is not."""
    started(configured({"tokens": "100/minute;9999999/hour", "min_tokens": 101}))

    assert [entry["check"] for entry in log] == ["limits.too_small"]
    assert (log[0]["event"], log[0]["log_level"]) == ("deployment.danger", "critical")
    assert log[0]["remedy"]


def wait_for(log: list[Any]) -> None:
    deadline = time.monotonic() + 20
    while not log:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # another thread writes it


def test_the_store_is_looked_at_with_the_first_call(log: list[Any]) -> None:
    """Once, and without the call waiting for it."""
    start = started(configured(store={"url": f"redis://127.0.0.1:{free_port()}"}))
    assert not log

    start.call_begins()
    start.call_begins()
    wait_for(log)

    assert [entry["check"] for entry in log] == ["store.reachable"]


def test_a_look_that_fails_harms_nothing(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the log."""

    def broken(config: object, *, scripts: bool) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ask, "at_store", broken)
    started(configured(store={"url": "redis://127.0.0.1:1"})).call_begins()
    wait_for(log)

    assert log[0]["event"] == "deployment.not_examined"


def test_a_store_in_memory_is_not_asked(log: list[Any]) -> None:
    """There is nobody to ask."""
    start = started(configured())
    start.call_begins()

    assert log == []


def test_every_check_is_documented() -> None:
    """The table of the operations page has the name of each."""
    root = Path(__file__).parents[1]
    modules = (root / "llm_budget_mw" / "diagnosis").glob("*.py")
    kinds = "store|limits|events|prices|tokens|jwt"
    names = {
        name
        for module in modules
        for name in re.findall(rf'"((?:{kinds})\.[a-z_]+)"', module.read_text())
    }
    operations = (root / "docs" / "operations.md").read_text()
    section = operations.partition("## Doctor")[2].partition("\n## ")[0]
    documented = set(re.findall(rf"`((?:{kinds})\.[a-z_]+)`", section))

    assert len(names) > 15
    assert documented - {"store.deadline_ms"} == names
