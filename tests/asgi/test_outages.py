"""The store stops, comes back, or is slow, while requests keep coming."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope

from tests.asgi.driver import PATIENCE_S, STREAMED, RawClient, Site, UvicornServer, until
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
from tests.servers import Proxy, ValkeyServer, deliver, swallow

FINE = answering(json.dumps(ANSWER).encode())
DEADLINE_MS = 300
MANY = 10**8
HELD = 75
"""Tokens one question holds; it uses 42."""
FAST = {"failures": 2, "open_s": 0.1, "max_open_s": 0.2}


@pytest.fixture
def own() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def tier(rule: str, **limits: Any) -> dict[str, Any]:
    """Return limits that all follow one rule while the store is away."""
    return {"tokens": f"{MANY}/day", **limits, "on_outage": {"tokens": rule}}


def site_on(url: str, rule: str, app: Any = FINE, **limits: Any) -> Site:
    """Return a guarded application on a store that may go away."""
    return Site(
        app, tier(rule, **limits), url=url, deadline_ms=DEADLINE_MS, sections={"outage": FAST}
    )


async def post(site: Site) -> tuple[Exchange, float]:
    """Return an exchange, and the seconds it took."""
    exchange, began = Exchange(), time.monotonic()
    await exchange.run(site.app)
    return exchange, time.monotonic() - began


async def balanced(site: Site, lost: int = 0) -> bool:
    """Ask until every settled call but the lost ones is in the books, and is so once more."""
    deadline = time.monotonic() + PATIENCE_S
    for _ in range(2):
        while used((await post(site))[0]) != charged(site) - lost:
            assert time.monotonic() < deadline, site.sink.names[-10:]
    await site.guard.close()
    return True


def used(exchange: Exchange) -> int:
    """Return the tokens used before this call, as its answer has it."""
    left = exchange.headers.get("x-ratelimit-remaining-tokens")
    return MANY - int(left) - HELD if left else -1


def charged(site: Site) -> int:
    """Return the tokens of all settled calls but the last one."""
    return 42 * (len(site.sink.named("budget.settled")) - 1)


@pytest.mark.parametrize(("rule", "status"), [("closed", 503), ("open", 200), ("local", 200)])
async def test_without_a_store_the_rule_decides_within_the_deadline(
    rule: str, status: int, own: ValkeyServer
) -> None:
    """The first request learns it, and those after it do not wait at all."""
    site = site_on(own.url, rule, tokens={"limit": "10000/day", "local_share": 0.5})
    assert (await post(site))[0].status == 200
    own.stop()

    answers = [await post(site) for _ in range(10)]
    await site.guard.close()

    assert [exchange.status for exchange, _ in answers] == [status] * 10
    # Each may wait once to be admitted and once to be settled.
    assert max(took for _, took in answers) < 2 * DEADLINE_MS / 1000 + 0.3
    assert site.sink.names.count("budget.store_down") == 1


@pytest.mark.parametrize("rule", ["open", "local"])
async def test_what_was_used_meanwhile_is_in_the_books_afterwards(
    rule: str, own: ValkeyServer
) -> None:
    """Every call once: the ones before, during and after the outage."""
    site = site_on(own.url, rule)
    await post(site)
    own.stop()
    statuses = [(await post(site))[0].status for _ in range(5)]
    own.start()  # empty: what it knew is lost with it, what waits here is not

    assert statuses == [200] * 5
    assert await balanced(site, lost=42)  # the first, with the server


async def test_a_closed_limit_charges_nothing_for_what_it_refused(own: ValkeyServer) -> None:
    """Requests that were turned away are not in the books, nor is anything held."""
    site = site_on(own.url, "closed")
    await post(site)
    own.stop()
    for _ in range(5):
        await post(site)
    own.start()

    assert await balanced(site, lost=42)


async def test_a_local_share_is_spent_and_no_more(own: ValkeyServer) -> None:
    """A twentieth of 2000 tokens is one question; the second has to wait for the store."""
    site = site_on(own.url, "local", tokens="2000/day", min_tokens=40)
    own.stop()

    statuses = [(await post(site))[0].status for _ in range(4)]
    await site.guard.close()

    assert statuses == [200, 503, 503, 503]


async def test_a_store_that_goes_during_a_call_gets_its_charge_later(own: ValkeyServer) -> None:
    """Admitted with it, settled without it, delivered when it is back."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive) -> None:
        begun.set()
        await go.wait()

    site = site_on(own.url, "open", answering(json.dumps(ANSWER).encode(), before=wait))
    request = asyncio.create_task(post(site))
    await begun.wait()
    own.stop()
    go.set()
    exchange, _ = await request
    waiting = site.guard.outage.waiting
    own.start()

    assert exchange.status == 200
    assert waiting == 1
    assert await balanced(site)


async def test_a_shutdown_delivers_what_waits(own: ValkeyServer) -> None:
    """The charge of a call admitted by the outage rule outlives the process that made it."""
    site = site_on(own.url, "open")
    await post(site)
    own.stop()
    await post(site)
    own.start()

    await site.guard.close()

    later = Site(FINE, tier("open"), url=own.url, prefix=site.guard.config.store.prefix)
    exchange, _ = await post(later)
    await later.guard.close()
    assert used(exchange) == 42


@pytest.fixture
async def slow(own: ValkeyServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(own.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize(("rule", "status"), [("closed", 503), ("open", 200)])
async def test_a_store_that_is_too_slow_is_as_good_as_none(
    rule: str, status: int, slow: Proxy
) -> None:
    """The deadline holds, and the script that runs late is undone or corrected."""
    site = site_on(slow.url, rule)
    await post(site)
    slow.fault = swallow

    exchange, took = await post(site)
    slow.fault = deliver

    assert exchange.status == status
    assert took < 2 * DEADLINE_MS / 1000 + 0.3
    assert await balanced(site)


async def test_a_store_slower_than_usual_is_waited_for(slow: Proxy) -> None:
    """Within the deadline nothing is an outage."""
    site = site_on(slow.url, "closed")
    await post(site)
    slow.delay_s = 0.05

    answers = [await post(site) for _ in range(3)]
    await site.guard.close()

    assert [exchange.status for exchange, _ in answers] == [200] * 3
    assert "budget.store_down" not in site.sink.names


def test_a_slow_settlement_does_not_hold_up_the_last_byte(slow: Proxy) -> None:
    """The client has its whole answer while the store has not said a word."""
    app = streaming(delta("hello"), USAGE_EVENT, DONE)
    site = Site(app, tier("open"), url=slow.url, deadline_ms=10_000)

    with UvicornServer(site.app) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        client.read_until(b"hello")
        slow.silent = True
        client.ask(STREAMED)
        client.leave()
        slow.silent = False
        site.settled()

    assert client.seen.count(DONE) >= 1


async def test_a_store_stopped_and_started_in_mid_traffic_loses_no_charge(
    own: ValkeyServer,
) -> None:
    """Over sockets, with callers that do not wait for each other: every call is settled once."""
    site = site_on(own.url, "open")
    headers = {"authorization": f"Bearer {ISSUER.token('alice')}"}
    statuses: list[int] = []
    over = asyncio.Event()

    async def caller(http: httpx2.AsyncClient, url: str) -> None:
        while not over.is_set():
            statuses.append((await http.post(url, json=QUESTION)).status_code)

    with UvicornServer(site.app) as running:
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
            url = f"{running.url}{CHAT}"
            callers = [asyncio.create_task(caller(http, url)) for _ in range(4)]
            await _more(statuses, 20)
            await asyncio.to_thread(own.stop)
            await _more(statuses, 20)
            await asyncio.to_thread(own.start)
            await asyncio.to_thread(until, lambda: "budget.store_up" in site.sink.names, "recovery")
            await _more(statuses, 20)
            over.set()
            await asyncio.gather(*callers)
        settled = site.settled(len(statuses))

    assert set(statuses) == {200}
    assert len(settled) == len(statuses)
    assert not site.guard.outage.waiting
    assert not site.guard.outage.lost


async def _more(statuses: list[int], count: int) -> None:
    goal = len(statuses) + count
    await asyncio.to_thread(until, lambda: len(statuses) >= goal, f"{count} more answers")
