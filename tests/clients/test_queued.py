"""The transports that wait for their turn, in real clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from llm_budget_mw.clients.errand import EXTENSION, Errand, errand_of
from llm_budget_mw.clients.library import joined, library_of
from llm_budget_mw.clients.pace import AsyncPace, Pace, PaceExceeded
from llm_budget_mw.clients.queued import AsyncQueued, Queued
from llm_budget_mw.clients.recent import UpstreamLimit
from tests.clients.provider import failing
from tests.clients.world import World

LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
LIMIT = UpstreamLimit("big", tokens=1000)
PATH = "/v1/chat/completions"
BODY = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}


def carrying(errand: Errand) -> dict[str, Any]:
    """Return what a guarded transport passes on."""
    return {"json": BODY, "extensions": {EXTENSION: errand}}


def client_of(world: World, library: ModuleType, pace: Pace) -> Any:
    known = library_of(library.Client)
    assert known is not None
    transport = joined(Queued, known.transport)(library.HTTPTransport(), pace, known)
    return world.plain(library.Client, transport=transport, base_url=world.url)


def async_client_of(world: World, library: ModuleType, pace: AsyncPace) -> Any:
    known = library_of(library.AsyncClient)
    assert known is not None
    inner = library.AsyncHTTPTransport()
    transport = joined(AsyncQueued, known.async_transport)(inner, pace, known)
    return world.plain(library.AsyncClient, transport=transport, base_url=world.url)


def most_left(pace: Pace | AsyncPace) -> int:
    """Return the tokens that would go now."""
    now = pace._recent._entries[-1].at
    return next(size for size in range(1000, -1, -1) if not pace._recent.wait_s(size, now))


async def eventually(holds: Callable[[], bool]) -> None:
    """Let other tasks run until this holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 (nothing tells when a task has come to wait)
            await asyncio.sleep(0)


@LIBRARIES
def test_a_call_counts_what_it_used_once_its_body_is_read(
    world: World, library: ModuleType
) -> None:
    """Before that it counts its estimate."""
    pace = Pace(LIMIT)
    errand = Errand("a", "big", 700)
    client = client_of(world, library, pace)
    with client.stream("POST", PATH, **carrying(errand)) as answer:
        assert most_left(pace) == 300
        for _ in answer.iter_raw():
            errand.used_tokens = 38
    assert answer.status_code == 200
    assert not errand.queued
    with client.stream("POST", PATH, **carrying(Errand("a", "big", 1))):
        assert most_left(pace) == 1000 - 39


@LIBRARIES
async def test_a_call_on_a_loop_counts_what_it_used(world: World, library: ModuleType) -> None:
    """The same in a coroutine."""
    pace = AsyncPace(LIMIT)
    errand = Errand("a", "big", 700)
    client = async_client_of(world, library, pace)
    async with client.stream("POST", PATH, **carrying(errand)) as answer:
        assert most_left(pace) == 300
        async for _ in answer.aiter_raw():
            errand.used_tokens = 38
        assert most_left(pace) == 1000 - 38
    assert answer.status_code == 200


@LIBRARIES
def test_an_error_of_the_provider_uses_no_tokens(world: World, library: ModuleType) -> None:
    """The request counts, and what its headers say holds back the next."""
    pace = Pace(LIMIT, max_wait_s=0.05)
    client = client_of(world, library, pace)
    world.stage.faults.append(failing(429, **{"retry-after": "30"}))
    assert client.post(PATH, **carrying(Errand("a", "big", 700))).status_code == 429
    assert most_left(pace) == 1000
    with pytest.raises(PaceExceeded):
        client.post(PATH, **carrying(Errand("a", "big", 700)))
    assert client.post(PATH, **carrying(Errand("a", "other", 700))).status_code == 200


@LIBRARIES
async def test_an_error_of_the_connection_uses_no_tokens(world: World, library: ModuleType) -> None:
    """Nothing was sent; what may have been sent keeps its estimate."""
    pace = AsyncPace(LIMIT)
    client = async_client_of(world, library, pace)
    with pytest.raises(library.ConnectError):
        await client.post("http://127.0.0.1:1/", **carrying(Errand("a", "big", 700)))
    assert most_left(pace) == 1000
    world.stage.faults.append("hang")
    with pytest.raises(library.ReadTimeout):
        await client.post(PATH, timeout=0.05, **carrying(Errand("a", "big", 700)))
    assert most_left(pace) == 300


def test_an_error_of_the_connection_in_a_thread_uses_no_tokens(world: World) -> None:
    """The same in a thread."""
    pace = Pace(LIMIT)
    with pytest.raises(httpx2.ConnectError):
        client_of(world, httpx2, pace).post(
            "http://127.0.0.1:1/", **carrying(Errand("a", "big", 700))
        )
    assert most_left(pace) == 1000


@LIBRARIES
async def test_a_call_cancelled_in_the_line_is_not_sent(world: World, library: ModuleType) -> None:
    """Its errand says so, for whoever has to settle its reservation."""
    pace = AsyncPace(LIMIT)
    client = async_client_of(world, library, pace)
    async with client.stream("POST", PATH, **carrying(Errand("a", "big", 1000))):
        errand = Errand("b", "big", 1000)
        waiting = asyncio.create_task(client.post(PATH, **carrying(errand)))
        await eventually(lambda: pace.waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert errand.queued
    assert pace.waiting == 0
    assert len(world.stage.seen) == 1


@LIBRARIES
async def test_what_calls_no_model_passes(world: World, library: ModuleType) -> None:
    """Also while the line is full."""
    full = Pace(UpstreamLimit("none", requests=1), max_wait_s=0.01)
    full.enter(Errand("a", "m", 0))
    with client_of(world, library, full) as client:
        assert client.get("/v1/models").status_code == 200
    waiting = AsyncPace(UpstreamLimit("none", requests=1), max_wait_s=0.01)
    await waiting.enter(Errand("a", "m", 0))
    async with async_client_of(world, library, waiting) as client:
        assert (await client.get("/v1/models")).status_code == 200


def test_an_extension_of_somebody_else_is_no_errand() -> None:
    """Only what a guarded transport made counts."""
    assert errand_of({EXTENSION: "mine"}) is None
    assert errand_of({}) is None
