"""A guarded Django site on the servers people run it on, against a real Valkey."""

from __future__ import annotations

import gzip
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llm_budget_mw import Guard, Principal
from llm_budget_mw.types import LimitStatus
from tests.adapters import django_site
from tests.deployment import PRICES
from tests.edge.driver import CHAT, ISSUER, LIMITS, QUESTION, delta
from tests.processes import START_S, running
from tests.servers import ValkeyServer

SITE = "tests.adapters.django_site"
SERVERS = {
    "gunicorn": (
        *("gunicorn", "--log-level", "critical", "--bind", "127.0.0.1:{port}"),
        *("--worker-class", "gthread", "--threads", "4", f"{SITE}:wsgi"),
    ),
    "uvicorn": ("uvicorn", "--log-level", "critical", "--port", "{port}", f"{SITE}:asgi"),
}
HEADERS = {"Authorization": f"Bearer {ISSUER.token('alice')}", "Content-Type": "application/json"}
ASKED = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}


class Site:
    """A site on a server of its own, and a look at its counters."""

    def __init__(self, url: str, guard: Guard) -> None:
        # A server hangs up on who sends a body that it does not read.
        one_way = httpx2.Limits(max_keepalive_connections=0)
        self.client = httpx2.Client(
            base_url=url, headers=HEADERS, trust_env=False, timeout=20, limits=one_way
        )
        self._guard = guard

    def standing(self) -> dict[str, LimitStatus]:
        """Return every limit of Alice by its name."""
        return {status.limit.name: status for status in self._guard.limits(Principal("alice"))}

    def used(self) -> int:
        """Return the tokens used, once nothing is in flight."""
        deadline = time.monotonic() + START_S
        while (limits := self.standing())["concurrency"].used:
            assert time.monotonic() < deadline, "a request is never settled"
            time.sleep(0.01)  # the only way to learn that another process has settled
        return limits["tokens-per-day"].used


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[Site]:
    config = {
        "store": {"url": valkey.url, "prefix": f"t{secrets.token_hex(6)}"},
        "tiers": {"default": {**LIMITS, "tokens": "9000000/day", "budget": "$900/day"}},
        "routes": [{"path": CHAT, "dialect": "openai_chat"}],
        "jwt": ISSUER.config(),
        "prices": PRICES,
        "tokens": {"exact": False},
        "events": {"log": False, "metrics": False},
        "max_body_bytes": 4_000_000,
    }
    guard = Guard.open(config)
    setting = {django_site.VARIABLE: json.dumps(config)}
    with running(*SERVERS[request.param], **setting) as url:
        site = Site(url, guard)
        with site.client:
            yield site
    guard.close()


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    """Give the site with nobody in it, and see that nobody is left."""
    server.used()
    yield server
    server.used()


def test_an_answer_is_settled(site: Site) -> None:
    """The view sees the grant, the client its limits, the store what was used."""
    before = site.used()

    answer = site.client.post(CHAT, json=QUESTION)

    assert (answer.status_code, answer.json()["granted"]) == (200, 40)
    assert answer.headers["ratelimit"]
    assert site.used() - before == 42


def test_a_stream_is_settled(site: Site) -> None:
    """It arrives whole, and piece by piece."""
    before = site.used()

    with site.client.stream("POST", CHAT, json=ASKED) as answer:
        pieces = list(answer.iter_raw())

    assert b"".join(pieces).startswith(delta("abcd"))
    assert pieces[-1].endswith(b"data: [DONE]\n\n")
    assert len(pieces) > 1
    assert site.used() - before == 42


def test_a_client_that_hangs_up_pays_for_what_was_made(site: Site) -> None:
    """The stream would go on for ten seconds; it is settled as soon as nobody listens."""
    before, began = site.used(), time.monotonic()
    endless = {**ASKED, "user": "endless", "max_tokens": 4000}

    with site.client.stream("POST", CHAT, json=endless) as answer:
        next(answer.iter_raw())
    used = site.used() - before

    assert 0 < used < 4000
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (json.dumps(QUESTION).encode(), {}, 200),
        (gzip.compress(json.dumps(QUESTION).encode()), {"Content-Encoding": "gzip"}, 200),
        (json.dumps({**QUESTION, "user": "A" * 3_000_000}).encode(), {}, 200),
        (b"{" + b" " * 5_000_000 + b"}", {}, 413),
        (gzip.compress(b" " * 5_000_000), {"Content-Encoding": "gzip"}, 413),
        (b'{"model": ', {}, 400),
        (json.dumps(QUESTION).encode(), {"Authorization": "Bearer no.thing.known"}, 401),
    ],
    ids=["plain", "compressed", "3 MB", "5 MB", "a bomb", "broken", "unknown"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_bodies_are_read_however_they_come(
    site: Site, body: bytes, headers: dict[str, str], status: int, chunked: bool
) -> None:
    """Within the bound of the configuration, not within Django's."""
    before = site.used()
    content: Any = iter([body[:5], body[5:]]) if chunked else body

    answer = site.client.post(CHAT, content=content, headers=headers)

    assert answer.status_code == status, answer.text[:200]
    assert site.used() - before == (42 if status == 200 else 0)


def test_an_unguarded_path_needs_no_credential(site: Site) -> None:
    """Django answers as ever."""
    answer = site.client.get("/health", headers={"Authorization": ""})

    assert answer.text == "fine"
