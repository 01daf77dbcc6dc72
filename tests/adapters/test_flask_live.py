"""Flask on gunicorn's threads, against a real store, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from llm_budget_mw.guard import Guard
from llm_budget_mw.types import LimitStatus
from tests.adapters.flask_live import environment
from tests.asgi.driver import STREAMED, RawClient, chunked, head, settings, until
from tests.deployment import ALICE
from tests.edge.driver import ANSWER, CHAT, DONE, ISSUER, QUESTION, delta
from tests.processes import on_gunicorn
from tests.servers import ValkeyServer

TIER = {"requests": "20/day", "tokens": "1000000/day", "concurrency": 30}
APP = "tests.adapters.flask_live:create_app()"
HEADERS = {"authorization": f"Bearer {ISSUER.token('alice')}"}


class Live:
    """A running application, and a look into its store."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = {**config, "max_body_bytes": 100_000}
        self.url = ""
        self.guard = Guard.open(self.config)

    def limit(self, name: str) -> LimitStatus:
        """Return one limit of alice as it stands."""
        return {status.limit.name: status for status in self.guard.limits(ALICE)}[name]

    def tokens(self) -> int:
        """Return what alice has been charged, as soon as nothing of hers is running."""
        until(lambda: self.limit("concurrency").used == 0, "the requests are settled")
        return self.limit("tokens-per-day").used


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def live(valkey: ValkeyServer) -> Iterator[Live]:
    live = Live(settings(TIER, valkey.url))
    options = ("--workers", "2", "--threads", "8")
    with on_gunicorn(APP, *options, **environment(live.config)) as live.url:
        yield live
    live.guard.close()


def test_threads_of_two_processes_never_exceed_a_limit_together(live: Live) -> None:
    """64 at once under a limit of 20: 20 are served, and each is charged its usage."""

    def ask(_: int) -> int:
        answer = httpx2.post(live.url + CHAT, json=QUESTION, headers=HEADERS, trust_env=False)
        assert answer.status_code == 429 or answer.json() == ANSWER
        return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(ask, range(64)))

    assert sorted(statuses) == [200] * 20 + [429] * 44
    assert live.tokens() == 20 * 42


def test_what_comes_over_a_socket_is_what_is_sent(live: Live) -> None:
    """A stream, a chunked request, an async view, HEAD, a stranger and a client that hangs up."""
    with httpx2.Client(base_url=live.url, headers=HEADERS, trust_env=False) as client:
        stream = client.post(CHAT, json=STREAMED)
        own = client.post("/own", content=iter([b"in ", b"pieces"]))
        stranger = client.post(CHAT, json=QUESTION, headers={"authorization": "Bearer x"})
        other = client.head(CHAT)

    assert stream.content == delta("hel") + delta("lo") + DONE
    assert own.json() == {"body": "in pieces", "model": "big"}
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_token")
    assert other.status_code == 405
    assert live.tokens() == 2 * 42

    asked = {**STREAMED, "max_tokens": 400, "messages": [{"role": "user", "content": "for ever"}]}
    with RawClient(live.url) as client:
        client.ask(asked, CHAT, "content-type: application/json")
        client.read_until(delta("x" * 100))
        client.leave()

    assert live.tokens() > 2 * 42 + 103
    assert live.limit("requests-per-day").used == 3


def test_hostile_bodies_are_refused_and_hold_nothing(live: Live) -> None:
    """Without a length, without an end, too large or cut off; the next request is served."""
    cases: list[tuple[bytes, bytes, bytes]] = [
        (head(CHAT, "transfer-encoding: chunked"), chunked(b" " * 100_001, 50_000), b" 413 "),
        (head(CHAT, "transfer-encoding: chunked"), chunked(b"", 1), b" 400 "),
        (head(CHAT, "content-length: 1000000"), b"", b" 413 "),
        (head(CHAT, "content-length: 5", who=None), b"", b" 401 "),
        (head(CHAT, "content-length: 2"), b"{]", b" 400 "),
    ]
    for start, body, status in cases:
        with RawClient(live.url) as client:
            client.say(start + body)
            assert status in client.read_until(b"\r\n\r\n").split(b"\r\n", 1)[0]
    with RawClient(live.url) as client:
        client.say(head(CHAT, "content-length: 1000") + b'{"model"')
        client.leave()

    with RawClient(live.url) as client:
        raw = json.dumps(QUESTION).encode()
        kind = "content-type: application/json"
        client.say(head(CHAT, "transfer-encoding: chunked", kind, "connection: close"))
        client.say(chunked(raw, 7))
        assert client.read_all().startswith(b"HTTP/1.1 200")
    assert live.tokens() == 42
    assert live.limit("requests-per-day").used == 1
