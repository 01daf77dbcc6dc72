"""Retries around the guard, and the queue inside it, under a real SDK."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from typing import Any

import httpx2
import openai
import pytest

from llm_budget_mw import BudgetExceeded, ConfigurationError
from llm_budget_mw.clients import (
    AsyncPace,
    Pace,
    PaceExceeded,
    Retries,
    UpstreamLimit,
    guarded,
)
from llm_budget_mw.clients.errand import Errand
from llm_budget_mw.current import charge
from tests.clients.provider import failing
from tests.clients.sdks import HI, async_openai, claude_client, openai_client
from tests.clients.world import World
from tests.deployment import ALICE

LIMIT = UpstreamLimit("big", tokens=1000)
ASK: dict[str, Any] = {"model": "big", "messages": HI}
QUICK = Retries(first_s=0.001)


def sdk(world: World, pace: Pace | None = None, **options: Any) -> Any:
    make = functools.partial(world.guarded, retries=QUICK, pace=pace)
    return openai_client(world, make, **options)


def async_sdk(world: World, pace: AsyncPace | None = None, **options: Any) -> Any:
    make = functools.partial(world.guarded, retries=QUICK, pace=pace)
    return async_openai(world, make, **options)


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
    with charge(world.guard, ALICE), pytest.raises(PaceExceeded):
        sdk(world, pace, max_retries=2).chat.completions.create(**ASK)

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


async def test_a_call_on_a_loop_whose_turn_does_not_come_costs_nothing(world: World) -> None:
    """Whichever client sends it."""
    pace = AsyncPace(LIMIT, max_wait_s=0.05)
    await pace.enter(Errand("other", "big", 1000))
    plain = world.guarded(httpx2.AsyncClient, retries=QUICK, pace=pace)
    with charge(world.waiting, ALICE):
        with pytest.raises(PaceExceeded):
            await async_sdk(world, pace, max_retries=2).chat.completions.create(**ASK)
        with pytest.raises(PaceExceeded):
            await plain.post(f"{world.url}/v1/chat/completions", json=ASK)

    assert [event["ending"] for event in world.sink.settled] == ["not_called", "not_called"]
    assert (world.open_reservations, world.stage.seen) == (0, [])


def test_a_spent_budget_is_never_retried(world: World) -> None:
    """Neither by ours nor by the SDK's own retries: two requests fit, and the third is refused."""
    world = world.limited(requests="2/day")
    client = sdk(world, max_retries=2)
    with charge(world.guard, ALICE):
        for _ in range(2):
            client.chat.completions.create(**ASK)
        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(**ASK)

    assert len(world.sink.refused) == 1
    assert len(world.stage.seen) == 2


def test_attempts_stop_where_the_budget_does(world: World) -> None:
    """What hung may have been billed, so each attempt takes its part until one is refused."""
    world = world.limited(requests="2/day")
    world.stage.faults.extend(["hang"] * 3)
    with charge(world.guard, ALICE), pytest.raises(BudgetExceeded):
        sdk(world, timeout=0.05).chat.completions.create(**ASK)

    assert [event["grade"] for event in world.sink.settled] == ["estimated", "estimated"]
    assert (len(world.stage.seen), len(world.sink.refused)) == (2, 1)


@pytest.mark.parametrize(("own", "sent"), [(0, 3), (2, 9)])
def test_retries_of_an_sdk_multiply_ours(world: World, own: int, sent: int) -> None:
    """So they are turned off; every attempt is given back, whoever made it."""
    world.stage.faults.extend([failing(503, **{"retry-after-ms": "1"}) for _ in range(sent)])
    with charge(world.guard, ALICE), pytest.raises(openai.InternalServerError):
        sdk(world, max_retries=own).chat.completions.create(**ASK)

    assert len(world.stage.seen) == sent
    assert {event["grade"] for event in world.sink.settled} == {"released"}
    assert world.store.charged().requests == world.open_reservations == 0


def test_the_sdk_of_anthropic_is_retried_too(world: World) -> None:
    """The same transport is under it."""
    world.stage.faults.append(failing(529))
    client = claude_client(world, functools.partial(world.guarded, retries=QUICK))
    with charge(world.guard, ALICE):
        client.messages.create(model="claude-x", messages=HI, max_tokens=9)

    assert [event["grade"] for event in world.sink.settled] == ["released", "exact"]


def test_proxies_are_retried_and_paced_too(world: World) -> None:
    """A call through one is no way around."""
    pace = Pace(LIMIT)
    world.stage.faults.append(failing(500))
    make = functools.partial(world.guarded, retries=QUICK, pace=pace, proxy=world.url)
    with charge(world.guard, ALICE):
        make(httpx2.Client).post("http://model.example/v1/chat/completions", json=ASK)

    assert [entry.tokens > 0 for entry in pace._recent._entries] == [False, True]


# --- making a client


@pytest.mark.parametrize(
    ("kind", "option", "named"),
    [
        (httpx2.Client, {"pace": AsyncPace(LIMIT)}, "pace: a synchronous .* Pace, not .*AsyncPace"),
        (httpx2.AsyncClient, {"pace": Pace(LIMIT)}, "pace: an asynchronous .*pace=AsyncPace"),
        (httpx2.Client, {"pace": LIMIT}, "pace: .*not with UpstreamLimit"),
        (httpx2.Client, {"retries": 3}, r"retries: .*not 3; write retries=Retries\(attempts=3\)"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(kind: type, option: Any, named: str) -> None:
    """With its value, and what to write instead."""
    with pytest.raises(ConfigurationError, match=named):
        guarded(kind, **option)


def test_retries_need_their_package_and_nothing_else_does() -> None:
    """The rest of the clients works without it."""
    program = (
        "import sys; sys.modules['tenacity'] = None\n"
        "import httpx2\n"
        "from llm_budget_mw import clients\n"
        "clients.guarded(httpx2.Client).close()\n"
        "try:\n    clients.Retries\n"
        "except clients.construction.ConfigurationError as error:\n    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout

    assert "install llm-budget-mw[clients]" in told


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    from llm_budget_mw import clients

    with pytest.raises(AttributeError, match="no attribute 'Retry'"):
        _ = clients.Retry
