"""Retries around the guard, and the queue inside it, under a real SDK."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx2
import openai
import pytest

from llm_budget_mw.clients.errand import Errand
from llm_budget_mw.clients.library import Library, joined, library_of
from llm_budget_mw.clients.pace import AsyncPace, Pace, PaceExceeded
from llm_budget_mw.clients.queued import AsyncQueued, Queued
from llm_budget_mw.clients.recent import UpstreamLimit
from llm_budget_mw.clients.retries import AsyncRetrying, Retries, Retrying
from llm_budget_mw.current import charge
from tests.clients.provider import failing
from tests.clients.world import World
from tests.deployment import ALICE

LIMIT = UpstreamLimit("big", tokens=1000)
ASK: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
QUICK = Retries(first_s=0.001)
KNOWN = cast("Library", library_of(httpx2.Client))


def sdk(world: World, pace: Pace) -> Any:
    inner = joined(Queued, KNOWN.transport)(httpx2.HTTPTransport(), pace, KNOWN)
    client = world.guarded(httpx2.Client, transport=inner)
    client._transport = joined(Retrying, KNOWN.transport)(client._transport, QUICK, KNOWN)
    return openai.OpenAI(api_key="x", base_url=f"{world.url}/v1", http_client=client, max_retries=0)


def async_sdk(world: World, pace: AsyncPace) -> Any:
    inner = joined(AsyncQueued, KNOWN.async_transport)(httpx2.AsyncHTTPTransport(), pace, KNOWN)
    client = world.guarded(httpx2.AsyncClient, transport=inner)
    outer = joined(AsyncRetrying, KNOWN.async_transport)
    client._transport = outer(client._transport, QUICK, KNOWN)
    return openai.AsyncOpenAI(
        api_key="x", base_url=f"{world.url}/v1", http_client=client, max_retries=0
    )


def test_every_attempt_has_its_price_and_its_turn(world: World) -> None:
    """Attempts that failed cost a turn and nothing else; the queue counts what was used."""
    pace = Pace(LIMIT, max_wait_s=0.1)
    client = sdk(world, pace)
    world.stage.faults.extend([failing(500), failing(503)])
    with charge(world.guard, ALICE):
        answer = client.chat.completions.create(**ASK)

    assert [entry.tokens for entry in pace._recent._entries] == [0, 0, answer.usage.total_tokens]
    assert [event["grade"] for event in world.sink.settled] == ["released", "released", "exact"]
    assert world.open_reservations == 0


def test_a_call_whose_turn_does_not_come_costs_nothing(world: World) -> None:
    """Its reservation is given back, it is not tried again, and never reaches the provider."""
    pace = Pace(LIMIT, max_wait_s=0.05)
    pace.enter(Errand("other", "big", 1000))
    with charge(world.guard, ALICE), pytest.raises((PaceExceeded, openai.APIConnectionError)):
        sdk(world, pace).chat.completions.create(**ASK)

    assert [event["grade"] for event in world.sink.settled] == ["released"]
    assert world.open_reservations == 0
    assert world.stage.seen == []


async def test_a_stream_counts_what_it_used(world: World) -> None:
    """Also after an attempt that failed."""
    pace = AsyncPace(LIMIT)
    world.stage.faults.append(failing(500))
    with charge(world.waiting, ALICE):
        stream = await async_sdk(world, pace).chat.completions.create(**ASK, stream=True)
        async for _ in stream:
            pass

    charges = [charges.tokens for _, charges, _ in world.store.settled]
    assert [entry.tokens for entry in pace._recent._entries] == charges
    assert world.open_reservations == 0


async def test_a_call_cancelled_in_the_line_costs_nothing(world: World) -> None:
    """Nobody was asked, and the guard knows."""
    pace = AsyncPace(LIMIT)
    await pace.enter(Errand("other", "big", 1000))
    with charge(world.waiting, ALICE):
        task = asyncio.create_task(async_sdk(world, pace).chat.completions.create(**ASK))
        async with asyncio.timeout(10):
            while not pace.waiting:  # noqa: ASYNC110 (nothing tells when a task has come to wait)
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert [event["grade"] for event in world.sink.settled] == ["released"]
    assert world.open_reservations == 0
    assert pace.waiting == 0
