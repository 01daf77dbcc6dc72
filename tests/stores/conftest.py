"""Every store there is, behind one fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis
import redis.asyncio

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.stores.memory import MemoryStore
from tests.servers import Proxy, ValkeyServer, fresh_prefix
from tests.stores.kit import Bench, Driven, ManualClock

# Read now: the fixture that keeps settings out of tests takes it away.
REDIS_URL = os.environ.get("LLM_BUDGET_TEST_REDIS_URL")
STORES = ["memory", "valkey", "valkey-async", *(["redis"] if REDIS_URL else [])]


def store_config(url: str, deadline_ms: int = 5_000, connections: int = 64) -> StoreConfig:
    """Return a configuration whose prefix no user could write."""
    config = StoreConfig(url=url, deadline_ms=deadline_ms, max_connections=connections)
    return config.model_copy(update={"prefix": fresh_prefix()})


def make_bench(kind: str, url: str, clock: ManualClock | None = None) -> Bench:
    """Return a store of its own that goes by a manual clock."""
    clock = clock or ManualClock()
    if kind == "memory":
        return Bench(MemoryStore(clock), clock)
    config = store_config(REDIS_URL if REDIS_URL and kind == "redis" else url)
    if kind == "valkey-async":
        return Bench(Driven(connect_async(config, test_clock=clock)), clock)
    return Bench(connect(config, test_clock=clock), clock)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def own_valkey() -> Iterator[ValkeyServer]:
    """Start a server for tests that restart it, or configure it away."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    """Look at what a store wrote."""
    with redis.Redis(port=valkey.port) as bare:
        yield bare


@pytest.fixture
def proxy(valkey: ValkeyServer) -> Iterator[Proxy]:
    between = Proxy(valkey.port)
    yield between
    between.close()


@pytest.fixture(params=STORES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind: str = request.param
    url = "" if kind == "memory" else request.getfixturevalue("valkey").url
    made = make_bench(kind, url)
    yield made
    made.store.close()
