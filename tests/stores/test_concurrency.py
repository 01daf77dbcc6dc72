"""Exactly N of M: nobody gets the last token twice, whoever asks at once."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import Charges, Grant
from tests.servers import ValkeyServer
from tests.stores.conftest import store_config
from tests.stores.kit import DAY, NOTHING, UNFIT, limit, limits, plan, tokens

FIT = 40
ASKED = 160
# A day, by the server's own clock: a minute could turn over in the middle.
HUNDRED_EACH = limits(limit(FIT * 100, window=DAY), limit(10_000, "requests", DAY))


def ask(store: Store) -> Grant | None:
    asked = plan(HUNDRED_EACH, offers=[tokens(100)])
    admission = store.admit(asked)
    return Grant(asked, asked.offers[0], 0, admission) if admission.offer else None


def committed_and_held(store: Store) -> tuple[float, float]:
    counters = store.admit(plan(HUNDRED_EACH, offers=[UNFIT])).counters
    return counters[1], counters[2]


@pytest.fixture
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def race(store: Store, threads: int = 16) -> list[Grant]:
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda _: ask(store), range(ASKED)))
    return [grant for grant in answers if grant]


def settle_all(store: Store, grants: list[Grant]) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda grant: store.settle(grant, Charges(1, 30, 0)), grants))


@pytest.mark.usefixtures("eager_switching")
def test_memory_under_threads() -> None:
    """Of 160 calls by 16 threads, 40 get in, as many as fit; settling leaves the exact sum."""
    store = MemoryStore()
    grants = race(store)

    assert len(grants) == FIT
    settle_all(store, grants)
    assert committed_and_held(store) == (FIT * 30, 0)


def test_valkey_under_threads(valkey: ValkeyServer) -> None:
    """The same through one pool of connections that is smaller than the number of threads."""
    store = connect(store_config(valkey.url, connections=8))
    grants = race(store)

    assert len(grants) == FIT
    settle_all(store, grants)
    assert committed_and_held(store) == (FIT * 30, 0)
    store.close()


async def test_valkey_under_tasks(valkey: ValkeyServer) -> None:
    """The same for tasks, whose commands leave together."""
    store = connect_async(store_config(valkey.url))
    plans = [plan(HUNDRED_EACH, offers=[tokens(100)]) for _ in range(ASKED)]
    admissions = await asyncio.gather(*map(store.admit, plans))

    pairs = zip(plans, admissions, strict=True)
    grants = [Grant(asked, asked.offers[0], 0, got) for asked, got in pairs if got.offer]
    assert len(grants) == FIT
    await asyncio.gather(*(store.settle(grant, NOTHING) for grant in grants))
    counters = (await store.admit(plan(HUNDRED_EACH, offers=[UNFIT]))).counters
    assert counters[1:3] == (0, 0)
    await store.close()


def ask_in_a_process(config: StoreConfig) -> int:
    store = connect(config)
    granted = sum(ask(store) is not None for _ in range(ASKED // 4))
    store.close()
    return granted


def test_valkey_under_processes(valkey: ValkeyServer) -> None:
    """The same for processes that share nothing but the server."""
    config = store_config(valkey.url)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        granted = pool.map(ask_in_a_process, [config] * 4, chunksize=1)

    assert sum(granted) == FIT
    store = connect(config)
    assert committed_and_held(store) == (0, FIT * 100)
    store.close()


async def test_more_commands_than_connections(valkey: ValkeyServer) -> None:
    """Of 500 commands at once on 8 connections none fails."""
    store = connect_async(store_config(valkey.url, connections=8))

    async def later(turns: int) -> float:
        for _ in range(turns % 25):
            await asyncio.sleep(0)
        return (await store.admit(plan(HUNDRED_EACH))).offer

    assert await asyncio.gather(*map(later, range(500))) == [1] * 500
    await store.close()
