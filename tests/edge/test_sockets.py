"""The middleware on real servers and sockets, driven by the SDKs people use."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import redis

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.testing import FakeProvider, Issuer
from tests.deployment import PRICES, Recorder
from tests.servers import ValkeyServer, free_port
from tests.serving import serving

ISSUER = Issuer()
ASK: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi there"}]}
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def settings(tier: dict[str, Any], url: str = "memory://", **store: Any) -> dict[str, Any]:
    """Return a configuration with one tier and one guarded route."""
    return {
        "store": {"url": url, "prefix": f"t{token_hex(6)}", "deadline_ms": 2000, **store},
        "jwt": ISSUER.config(),
        "routes": [
            {"path": "/v1/chat/completions", "dialect": "openai_chat"},
            {"path": "/v1/messages", "dialect": "anthropic_messages"},
        ],
        "tiers": {"default": tier},
        "prices": PRICES,
        "tokens": {"exact": False},
        "events": {"log": False, "metrics": False, "span": False},
    }


class Served:
    """A guarded provider on a socket, and what its sink was told."""

    def __init__(self, tier: dict[str, Any], *, delay_s: float = 0.0, **store: Any) -> None:
        self.provider = FakeProvider(
            output_tokens=30, delay_s=delay_s, prices={"big": ("2.50", "10")}
        )
        self.sink = Recorder()
        self.guard = AsyncGuard.open(settings(tier, **store), sinks=[self.sink])
        self.app = BudgetMiddleware(self.provider, guard=self.guard)

    def settled(self, count: int = 1) -> list[dict[str, Any]]:
        """Return the settlements, as soon as there are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self.sink.named("budget.settled")) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} settled"
            time.sleep(0.01)  # another thread settles
        return found


def client(url: str, who: str = "alice", **options: Any) -> openai.OpenAI:
    """Return OpenAI's own client for the guarded application."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=ISSUER.token(who), **options)


def test_a_call_with_the_sdk_is_charged_what_the_provider_bills() -> None:
    """Plain and streamed: the books and the bill are equal to the nano-dollar."""
    served = Served({"budget": "$1/day", "max_tokens": 100})
    with serving(served.app) as url:
        sdk = client(url)
        answer = sdk.chat.completions.create(**ASK)
        text = "".join(
            chunk.choices[0].delta.content or ""
            for chunk in sdk.chat.completions.create(**ASK, stream=True)
        )
        settled = served.settled(2)

    assert answer.choices[0].message.content
    assert text
    assert [event["grade"] for event in settled] == ["exact", "exact"]
    assert sum(event["cost_nano"] for event in settled) == served.provider.cost_nano


def test_a_stream_shows_usage_only_to_who_asks() -> None:
    """The SDK sees the usage chunk exactly if its caller asked for one."""
    with serving(Served({"tokens": "100000/minute"}).app) as url:
        sdk = client(url)
        silent = list(sdk.chat.completions.create(**ASK, stream=True))
        asking = sdk.chat.completions.create(
            **ASK, stream=True, stream_options={"include_usage": True}
        )
        asked = list(asking)

    assert all(chunk.usage is None and chunk.choices for chunk in silent)
    assert [chunk.usage is not None for chunk in asked] == [False] * (len(asked) - 1) + [True]


def test_the_sdk_gives_up_on_a_spent_budget() -> None:
    """One request, one exception with the code; no retries against a wall."""
    served = Served({"budget": "$0.0005/month", "min_tokens": 30, "max_tokens": 30})
    with serving(served.app) as url:
        sdk = client(url)
        sdk.chat.completions.create(**ASK)
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(**ASK)

    assert caught.value.code == "budget_exceeded"
    assert len(served.sink.named("budget.refused")) == 1


def test_the_sdk_comes_back_after_a_short_wait() -> None:
    """A rate that has room again in a second is retried, and then admitted."""
    served = Served({"requests": {"limit": "1/second", "window": "fixed"}})
    with serving(served.app) as url:
        sdk = client(url)
        for _ in range(3):
            sdk.chat.completions.create(**ASK)

    assert len(served.provider.calls) == 3


def test_anthropics_sdk_understands_a_refusal() -> None:
    """Its own exception, at once: it would sleep through any Retry-After."""
    served = Served({"budget": "$0/month"})
    with serving(served.app) as url:
        sdk = anthropic.Anthropic(base_url=url, auth_token=ISSUER.token("alice"), api_key=None)
        with pytest.raises(anthropic.APIStatusError) as caught:
            sdk.messages.create(
                model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
            )

    assert caught.value.status_code in (413, 429)
    assert len(served.sink.named("budget.refused")) == 1


def test_who_is_just_under_the_limit_gets_a_shorter_answer() -> None:
    """No error: the answer is cut to what is left, and says so."""
    with serving(Served({"tokens": "60/minute", "max_tokens": 100}).app) as url:
        answer = client(url).chat.completions.create(**ASK)

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 30


def test_past_its_ceiling_a_model_gives_way_to_the_cheaper_one() -> None:
    """The second offer is taken where the first may not be used any more."""
    offers = [{"model": "big", "ceiling": "50%", "min_tokens": 30}, {"model": "small"}]
    tier = {"budget": "$0.0015/month", "offers": offers, "max_tokens": 30}
    with serving(Served(tier).app) as url:
        models = [client(url).chat.completions.create(**ASK).model for _ in range(4)]

    assert models[0] == "big"
    assert models[-1] == "small"


def test_a_client_that_hangs_up_in_mid_stream_is_charged_what_was_sent() -> None:
    """Over a real socket, at least the input, and its slot is free again."""
    served = Served({"concurrency": 1, "tokens": "100000/minute"}, delay_s=0.02)
    with serving(served.app) as url:
        sdk = client(url, max_retries=0)
        stream = sdk.chat.completions.create(**ASK, stream=True)
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        stream.close()
        (cut,) = served.settled()
        sdk.chat.completions.create(**ASK)

    assert (cut["grade"], cut["ending"]) == ("counted", "cut")
    assert 0 < cut["output_tokens"] < cut["max_tokens"]
    assert cut["input_tokens"] > 0


async def test_a_hundred_at_once_are_admitted_as_far_as_the_money_goes(
    valkey: ValkeyServer,
) -> None:
    """Exactly three reach the provider, though all ask in the same moment."""
    served = Served({"requests": "3/day"}, delay_s=0.01, url=valkey.url)
    with serving(served.app) as url:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key=ISSUER.token("alice"), max_retries=0
        ) as sdk:
            asked = [sdk.chat.completions.create(**ASK) for _ in range(100)]
            answers = await asyncio.gather(*asked, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refused) == 97
    assert len(served.provider.calls) == 3


def _worker(config: dict[str, Any], port: int, calls: Any) -> None:
    """Serve the guarded provider in a process of its own."""
    import uvicorn

    class Counting(FakeProvider):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with calls.get_lock():
                calls.value += 1
            await super().__call__(scope, receive, send)

    app = BudgetMiddleware(Counting(output_tokens=3), config=config)
    uvicorn.run(app, port=port, log_level="error", lifespan="off")


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code > 0
    except httpx2.TransportError:
        return False


async def test_two_processes_share_one_limit(valkey: ValkeyServer) -> None:
    """Sixty-four at once over two workers: seven are admitted, by both together."""
    spawn = multiprocessing.get_context("spawn")
    calls = spawn.Value("i", 0)
    config = settings({"requests": "7/day"}, valkey.url)
    ports = [free_port(), free_port()]
    workers = [
        spawn.Process(target=_worker, args=(config, port, calls), daemon=True) for port in ports
    ]
    for worker in workers:
        worker.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            for port in ports:
                while not await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}/nothing"):
                    pass  # another process starts
        before = calls.value
        headers = {"authorization": f"Bearer {ISSUER.token('alice')}"}
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
            urls = [f"http://127.0.0.1:{port}/v1/chat/completions" for port in ports * 32]
            answers = await asyncio.gather(*(http.post(url, json=ASK) for url in urls))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join(PATIENCE_S)

    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [429] * 57
    assert calls.value - before == 7


def test_strangers_cause_no_command(valkey: ValkeyServer) -> None:
    """Whoever is not let in costs the store nothing: not one script is run."""
    served = Served({"requests": "3/day"}, url=valkey.url)
    stats = redis.Redis.from_url(valkey.url)
    bad = [None, "a.b.c", ISSUER.token("alice", expires_in=-200), "x" * 20_000]

    def scripts() -> int:
        known = stats.info("commandstats")
        return sum(known.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))

    before = scripts()
    with serving(served.app) as url:
        for credential in bad:
            headers = {"authorization": f"Bearer {credential}"} if credential else {}
            answer = httpx2.post(
                f"{url}/v1/chat/completions", json=ASK, headers=headers, trust_env=False
            )
            assert answer.status_code in (400, 401)

    assert scripts() == before


def test_the_store_may_go_and_come_back() -> None:
    """Calls go on by the outage rule, and every charge is in the books afterwards."""
    tier = {"budget": "$1/day", "on_outage": {"budget": "open"}}
    with ValkeyServer() as own:
        served = Served(tier, url=own.url, deadline_ms=200)
        with serving(served.app) as url:
            client(url, "bob").chat.completions.create(**ASK)
            own.stop()
            sdk = client(url)
            for _ in range(3):
                sdk.chat.completions.create(**ASK)
            own.start()
            deadline = time.monotonic() + PATIENCE_S
            while "budget.store_up" not in served.sink.names or served.guard.outage.waiting:
                assert time.monotonic() < deadline
                sdk.chat.completions.create(**ASK)
            served.settled(len(served.provider.calls))
            last = sdk.chat.completions.with_raw_response.create(**ASK)

    alices = [event["cost_nano"] for event in served.settled()[1:-1]]
    left = last.headers["ratelimit"].partition('"budget-per-day";r=')[2].partition(";")[0]
    booked = 10**9 - int(left) * 1000 - served.settled()[-1]["held_cost_nano"]
    assert "budget.unchecked" in served.sink.names
    assert abs(booked - sum(alices)) < 1000  # the header shows whole micro-dollars
