"""Many requests at once: exactly what fits is admitted, in one process and in several."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope

from llm_budget_mw.asgi import BudgetMiddleware
from tests.asgi.driver import STREAMED, Site, UvicornServer, settings, until
from tests.edge.driver import (
    ANSWER,
    CHAT,
    DONE,
    ISSUER,
    QUESTION,
    USAGE_EVENT,
    Exchange,
    answering,
    delta,
    streaming,
)
from tests.servers import ValkeyServer, free_port

MANY = 100
WORKERS = 2


class Upstream:
    """An application that counts the calls it gets, and keeps each until all are decided."""

    def __init__(self) -> None:
        self.calls = 0
        self.release = asyncio.Event()
        self.app = answering(json.dumps(ANSWER).encode(), before=self._hold)

    async def _hold(self, scope: Scope, receive: Receive) -> None:
        self.calls += scope["type"] == "http"
        await self.release.wait()


@pytest.fixture(params=["memory", "valkey"])
def url(request: pytest.FixtureRequest, valkey: ValkeyServer) -> str:
    return "memory://" if request.param == "memory" else valkey.url


async def at_once(site: Site, upstream: Upstream, body: Any = QUESTION) -> list[Exchange]:
    """Return a hundred exchanges that were all decided before the first one ended."""
    exchanges = [Exchange(body) for _ in range(MANY)]
    tasks = [asyncio.create_task(exchange.run(site.app)) for exchange in exchanges]
    pending = set(tasks)
    while len(pending) > upstream.calls:
        _, pending = await asyncio.wait(pending, timeout=0.01)
    upstream.release.set()
    await asyncio.gather(*tasks)
    return exchanges


# A call holds 16 + 4 + 3 + 12 = 35 tokens of input and 40 of output: 487,500 nano-dollars.
TIERS = [
    pytest.param({"requests": "3/day"}, id="requests"),
    pytest.param({"concurrency": 3}, id="concurrency"),
    pytest.param({"tokens": "230/day", "min_tokens": 40}, id="tokens"),
    pytest.param({"budget": "$0.0015/day", "min_tokens": 40}, id="money"),
    pytest.param(
        {"requests": ["50/hour", "3/day"], "tokens": "100000/minute", "concurrency": 90},
        id="the tightest of several",
    ),
]


@pytest.mark.parametrize("tier", TIERS)
async def test_of_a_hundred_at_once_exactly_three_fit(tier: dict[str, Any], url: str) -> None:
    """Three calls reach the provider, and 97 are refused with a status that says so."""
    upstream = Upstream()
    site = Site(upstream.app, tier, url=url)

    exchanges = await at_once(site, upstream)
    await site.guard.close()

    assert upstream.calls == 3
    assert sorted(exchange.status for exchange in exchanges) == [200] * 3 + [429] * 97


async def test_what_is_left_is_shared_and_never_given_twice(url: str) -> None:
    """Shorter answers are granted from what is left; together they do not pass the limit."""
    upstream = Upstream()
    site = Site(upstream.app, {"tokens": "230/day", "min_tokens": 1}, url=url)

    await at_once(site, upstream)
    await site.guard.close()

    held = [event["held_tokens"] for event in site.sink.named("budget.settled")]
    assert upstream.calls == len(held) >= 3
    assert sum(held) <= 230


async def test_refused_requests_leave_nothing_behind(url: str) -> None:
    """After the three have ended there is room for what they did not use."""
    upstream = Upstream()
    site = Site(upstream.app, {"tokens": "230/day", "min_tokens": 40}, url=url)
    await at_once(site, upstream)

    again = Exchange()
    await again.run(site.app)
    await site.guard.close()

    assert again.status == 200
    assert int(again.headers["x-ratelimit-remaining-tokens"]) == 230 - 3 * 42 - 75


async def test_just_under_the_limit_the_answer_is_shorter(url: str) -> None:
    """What is left is granted, down to the minimum, and only below it is refused."""
    granted: list[int] = []

    async def look(scope: Scope, receive: Receive) -> None:
        granted.append(json.loads((await receive())["body"])["max_tokens"])

    tier = {"tokens": "200/day", "min_tokens": 10}
    site = Site(answering(json.dumps(ANSWER).encode(), before=look), tier, url=url)
    statuses = []
    for _ in range(5):
        exchange = Exchange({**QUESTION, "max_tokens": 90})
        await exchange.run(site.app)
        statuses.append(exchange.status)
    await site.guard.close()

    # Each is charged 42, and holds 35 for its input.
    assert granted == [90, 90, 200 - 2 * 42 - 35, 200 - 3 * 42 - 35]
    assert statuses == [200] * 4 + [429]


async def test_over_its_ceiling_a_model_gives_way_to_a_cheaper_one(url: str) -> None:
    """The application is told another model, and the caller pays its price."""
    models: list[str] = []

    async def look(scope: Scope, receive: Receive) -> None:
        models.append(scope["state"]["llm_budget"].model)
        assert json.loads((await receive())["body"])["model"] == models[-1]

    offers = [{"model": "big", "ceiling": "50%", "min_tokens": 40}, {"model": "small"}]
    tier = {"budget": "$0.0015/day", "offers": offers}
    app = streaming(delta("hello"), USAGE_EVENT, DONE, before=look)
    site = Site(app, tier, url=url)
    for _ in range(4):
        await Exchange(STREAMED).run(site.app)
    await site.guard.close()

    assert models == ["big", "small", "small", "small"]
    assert [e["cost_nano"] for e in site.sink.named("budget.settled")] == [330_000] + [19_800] * 3


def _serve(config: dict[str, Any], port: int, calls: Any) -> None:
    """Serve a guarded application in a process of its own."""

    async def count(scope: Scope, receive: Receive) -> None:
        with calls.get_lock():
            calls.value += 1
        await receive()

    app = BudgetMiddleware(answering(json.dumps(ANSWER).encode(), before=count), config=config)
    uvicorn.run(app, port=port, log_level="critical")


class Workers:
    """Two processes that serve the same limits."""

    def __init__(self, tier: dict[str, Any], url: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.calls: Any = spawn.Value("i", 0)
        self.ports = [free_port() for _ in range(WORKERS)]
        config = settings(tier, url)
        self._processes = [
            spawn.Process(target=_serve, args=(config, port, self.calls), daemon=True)
            for port in self.ports
        ]

    def __enter__(self) -> Workers:
        for process in self._processes:
            process.start()
        until(lambda: all(map(_listens, self.ports)), "both workers")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join(20)


def _listens(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}{CHAT}", trust_env=False)
    except httpx2.TransportError:
        return False
    return True


@pytest.fixture(scope="module")
def workers(valkey: ValkeyServer) -> Iterator[Workers]:
    with Workers({"requests": "3/day", "concurrency": 90}, valkey.url) as running:
        yield running


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_two_processes_admit_exactly_three_of_a_hundred(workers: Workers, who: str) -> None:
    """For each user, over both workers together."""
    before = workers.calls.value
    headers = {"authorization": f"Bearer {ISSUER.token(who)}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
        urls = [f"http://127.0.0.1:{port}{CHAT}" for port in workers.ports * (MANY // WORKERS)]
        answers = await asyncio.gather(*(http.post(url, json=QUESTION) for url in urls))

    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 97
    assert workers.calls.value - before == 3


async def test_a_hundred_sockets_at_once_are_decided_like_a_hundred_calls(
    valkey: ValkeyServer,
) -> None:
    """The same through a real server, in which reading bodies and admissions interleave."""
    upstream = Upstream()
    upstream.release.set()
    site = Site(upstream.app, {"requests": "3/day"}, url=valkey.url)
    headers = {"authorization": f"Bearer {ISSUER.token('alice')}"}
    with UvicornServer(site.app) as running:
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
            asked = [http.post(f"{running.url}{CHAT}", json=QUESTION) for _ in range(MANY)]
            answers = await asyncio.gather(*asked)

    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 97
    assert upstream.calls == 3
