"""One behaviour in every framework: the same requests, the same answers, counters and events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llm_budget_mw.guard import Guard
from llm_budget_mw.testing import Issuer
from llm_budget_mw.types import Principal
from tests.behaviour import model
from tests.behaviour.client import Case, Client, Seen
from tests.behaviour.servers import REFERENCE, SERVERS, started
from tests.deployment import PRICES
from tests.servers import ValkeyServer

MESSAGES = [{"role": "user", "content": "how are you?"}]
ASKED: dict[str, Any] = {"model": "big", "messages": MESSAGES, "max_tokens": 40}
STREAM = {**ASKED, "stream": True}
ASKING = {**STREAM, "stream_options": {"include_usage": True}}
HELD = 35 + 40
"""Tokens a question holds: a bound on its input, and its output."""
DONE = "exact complete"
DENIED = "budget.denied"
REFUSED = "budget.refused"
CASES = {
    "answer": Case(ASKED, 200, DONE, 42),
    "answer in few tokens": Case({**ASKED, "max_tokens": 5}, 200, DONE, 17),
    "answer clamped": Case({**ASKED, "max_tokens": 9000}, 200, DONE, 42),
    "stream": Case(ASKING, 200, DONE, 42),
    "stream that does not ask for usage": Case(STREAM, 200, DONE, 42),
    "compressed": Case(ASKED, 200, DONE, 42, encoding="gzip"),
    "chunked": Case(ASKED, 200, DONE, 42, chunked=True),
    "own format, reported": Case({"user": "report"}, 200, DONE, 12, path=model.OWN),
    "own format, silent": Case({}, 200, "estimated unreported", 166, path=model.OWN),
    "unguarded": Case(ASKED, 200, "", 0, path=model.OPEN, token=None, events=0),
    "no credential": Case(ASKED, 401, DENIED, 0, token=None),
    "bad credential": Case(ASKED, 401, DENIED, 0, token="e30.e30.e30"),
    "broken JSON": Case(b'{"model": ', 400, DENIED, 0),
    "not an object": Case(b"[]", 400, DENIED, 0),
    "no prompt": Case({"model": "big"}, 400, DENIED, 0),
    "unknown model": Case({**ASKED, "model": "none"}, 400, DENIED, 0),
    "too large": Case(b" " * 9000, 413, DENIED, 0),
    "a bomb": Case(b" " * 90_000, 413, DENIED, 0, encoding="gzip"),
    "unknown encoding": Case(ASKED, 415, DENIED, 0, encoding="br"),
    "never fits": Case({**ASKED, "n": 60}, 413, REFUSED, 0),
    "spent": Case(ASKED, 429, REFUSED, 3 * 42, before=3),
    "a bug": Case({**ASKED, "user": "fail"}, 500, "released not_called", 0),
    "a time-out": Case({**ASKED, "user": "timeout"}, 500, "estimated cut", HELD),
    "refused upstream": Case({**ASKED, "user": "refused"}, 429, "released refused_upstream", 0),
    "a call too much inside": Case(
        {**ASKED, "user": "more"}, 413, "released not_called", 0, events=2
    ),
    "own limits": Case(b"", 200, "", 0, path=model.LIMITS, method="GET", events=0),
    "own limits, head": Case(b"", 200, "", 0, path=model.LIMITS, method="HEAD", events=0),
    "own limits, posted": Case(b"", 405, "", 0, path=model.LIMITS, events=0),
    "limits of nobody": Case(b"", 401, DENIED, 0, path=model.LIMITS, method="GET", token=None),
    "a client that leaves": Case(
        {**ASKING, "user": "endless"}, 200, "counted cut", None, leaves=True
    ),
}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with ValkeyServer() as server:
        yield server.url


Configure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def configure(issuer: Issuer, store: str) -> Configure:
    def build(**tier: Any) -> dict[str, Any]:
        return {
            "max_body_bytes": 8192,
            "limits_path": model.LIMITS,
            "routes": [
                {"path": model.CHAT, "dialect": "openai_chat"},
                {
                    "path": model.OWN,
                    "dialect": "custom",
                    "feature": "own",
                    "model": "big",
                    "input_tokens": 100,
                    "max_tokens": 50,
                },
            ],
            "tiers": {"default": {"max_tokens": 200, "min_tokens": 40, **tier}},
            "jwt": issuer.config(),
            "prices": PRICES,
            "tokens": {"exact": False},
            "events": {"principal": "plain", "metrics": False, "span": False},
            "store": {"url": store, "prefix": secrets.token_hex(6), "deadline_ms": 2000},
        }

    return build


LIMITS = {"requests": "3/day", "tokens": "2000/day", "budget": "$20/day", "concurrency": 8}


def observe(name: str, config: dict[str, Any], issuer: Issuer, events: Path) -> dict[str, Seen]:
    """Run the whole table on one server."""
    guard = Guard.open(config)
    environment = {
        model.CONFIG_VARIABLE: json.dumps(config),
        model.EVENTS_VARIABLE: str(events),
    }
    try:
        with started(name, environment) as url:
            client = Client(url, issuer, guard, events)
            return {name: client.see(name, case) for name, case in CASES.items()}
    finally:
        guard.close()


@pytest.fixture(scope="module")
def reference(
    configure: Configure, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Seen]:
    events = tmp_path_factory.mktemp("reference") / "events"
    return observe(REFERENCE, configure(**LIMITS), issuer, events)


def test_every_request_of_the_table_is_answered_and_charged_as_expected(
    reference: dict[str, Seen],
) -> None:
    """Status, charge and the last event of each, on one server; the others are compared with it."""
    found = {
        name: (seen.status, _outcome(seen), _used(seen, CASES[name]))
        for name, seen in reference.items()
    }

    assert found == {name: (case.status, case.outcome, case.used) for name, case in CASES.items()}
    assert all("ratelimit" in reference[name].headers for name in ("answer", "stream", "spent"))


@pytest.mark.parametrize("server", [name for name in SERVERS if name != REFERENCE])
def test_frameworks_do_not_differ(
    server: str, reference: dict[str, Seen], configure: Configure, issuer: Issuer, tmp_path: Path
) -> None:
    """Status, headers, body, counters and events are the same, byte for byte."""
    seen = observe(server, configure(**LIMITS), issuer, tmp_path / "events")

    differing = {
        name: {
            field: (getattr(seen[name], field), getattr(reference[name], field))
            for field in Seen._fields
            if getattr(seen[name], field) != getattr(reference[name], field)
        }
        for name in CASES
    }
    assert {name: fields for name, fields in differing.items() if fields} == {}


@pytest.mark.parametrize("server", SERVERS)
def test_two_processes_never_exceed_a_limit_together(
    server: str, configure: Configure, issuer: Issuer, tmp_path: Path
) -> None:
    """64 requests at once, one counter: exactly as many are served as the limit allows."""
    config = configure(requests="17/day", tokens="100000/day")
    environment = {
        model.CONFIG_VARIABLE: json.dumps(config),
        model.EVENTS_VARIABLE: str(tmp_path / "events"),
    }
    guard = Guard.open(config)
    with started(server, environment, workers=2) as url, ThreadPoolExecutor(64) as pool:
        client = Client(url, issuer, guard, tmp_path / "events")
        sends = [pool.submit(client.send, CASES["answer"], "all") for _ in range(64)]
        statuses = [send.result()[0] for send in sends]

    assert sorted(statuses) == [200] * 17 + [429] * 47
    assert guard.limits(Principal("all"))[0].used == 17
    guard.close()


def _outcome(seen: Seen) -> str:
    if not seen.events:
        return ""
    last = seen.events[-1]
    return f"{last['grade']} {last['ending']}" if "grade" in last else last["event"]


def _used(seen: Seen, case: Case) -> int | None:
    return None if case.leaves else {name: used for name, used, _ in seen.limits}["tokens-per-day"]
