"""A server that is slow, silent, gone, full or busy: an error in time, and books that are right."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.types import Charges, Grant, Plan
from tests.servers import Fault, Proxy, ValkeyServer, cut, lose, swallow
from tests.stores.conftest import store_config
from tests.stores.kit import (
    DAY,
    NOTHING,
    UNFIT,
    Driven,
    granted_by,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

DEADLINE_MS = 150
SLACK_S = 1.0
"""What a shared machine may add to any deadline."""
THOUSAND = limits(limit(1000, window=DAY))
KINDS = ["valkey", "valkey-async"]


def asking(fixed: int = 100) -> Plan:
    return plan(THOUSAND, offers=[tokens(fixed)])


def open_store(kind: str, url: str, deadline_ms: int = DEADLINE_MS, connections: int = 4) -> Store:
    config = store_config(url, deadline_ms, connections)
    return connect(config) if kind == "valkey" else Driven(connect_async(config))


def warm_up(store: Store) -> None:
    """Connect, and have the server know the scripts."""
    asked = plan(someone("warm-up", THOUSAND))
    store.settle(granted_by(asked, store.admit(asked)), NOTHING)


def books(store: Store) -> tuple[float, float]:
    """Return what is committed and held of the thousand."""
    counters = store.admit(plan(THOUSAND, offers=[UNFIT])).counters
    return counters[1], counters[2]


@contextlib.contextmanager
def fails_in_time(match: str = ".") -> Iterator[None]:
    """Expect a `StoreError` within the deadline."""
    start = time.monotonic()
    with pytest.raises(StoreError, match=match):
        yield
    assert time.monotonic() - start < DEADLINE_MS / 1000 + SLACK_S


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def store(kind: str, proxy: Proxy) -> Iterator[Store]:
    opened = open_store(kind, proxy.url)
    warm_up(opened)
    yield opened
    opened.close()


# The way to the server


@pytest.mark.parametrize("fault", [lose, cut])
def test_lost_reply_is_asked_for_again(store: Store, proxy: Proxy, fault: Fault) -> None:
    """If a connection breaks with the reply, the call is admitted all the same, and once."""
    asked = asking()
    proxy.once(fault)
    grant = granted_by(asked, store.admit(asked))
    proxy.once(fault)

    assert store.settle(grant, Charges(1, 70, 0)) == "2"  # the first time was heard
    assert books(store) == (70, 0)


def test_lost_reply_to_a_late_charge_is_asked_for_again(store: Store, proxy: Proxy) -> None:
    """A charge without reservation whose reply is lost counts once."""
    asked = asking()
    proxy.once(lose)
    store.settle(Grant(asked, asked.offers[0], 0, None), Charges(1, 70, 0))

    assert books(store) == (70, 0)


def test_every_reply_lost(store: Store, proxy: Proxy) -> None:
    """If all replies are lost it is an error; repeated later, one charge was made."""
    asked = asking()
    proxy.fault = lose
    with fails_in_time("ConnectionError"):
        store.admit(asked)
    assert proxy.accepted <= 5  # one attempt more than the first, each connecting twice at most
    proxy.once(lose)

    assert store.admit(asked).offer == 1
    assert books(store) == (0, 100)


def test_connection_that_was_cut_is_replaced(store: Store, proxy: Proxy) -> None:
    """Connections that died while idle cost nobody an error."""
    proxy.hang_up()

    assert store.admit(asking()).offer == 1


def test_slow_server(store: Store, proxy: Proxy) -> None:
    """Two seconds late is an error in time; the admission that ran all the same is released."""
    asked = asking()
    proxy.delay_s = 2.0
    with fails_in_time():
        store.admit(asked)
    proxy.delay_s = 0.0

    assert store.settle(Grant(asked, asked.offers[0], 0, None), NOTHING) == "1"
    assert store.admit(asked).offer == 0
    assert books(store) == (0, 0)


def test_reply_that_never_comes(store: Store, proxy: Proxy) -> None:
    """A reply lost on an open connection is an error in time, and no reply to the next call."""
    first, second = asking(100), asking(10)
    proxy.once(swallow)
    with fails_in_time():
        store.admit(first)

    assert store.admit(second).counters[2] == 110
    assert store.admit(first).offer == 1
    assert books(store) == (0, 110)


def test_half_open_connection(kind: str, proxy: Proxy) -> None:
    """A server that accepts and never answers is an error in time."""
    proxy.silent = True
    store = open_store(kind, proxy.url)

    with fails_in_time():
        store.admit(asking())
    proxy.silent = False
    assert store.admit(asking()).offer == 1
    store.close()


def test_refused_connection(kind: str, proxy: Proxy) -> None:
    """A server that is not there is an error in time, and the message says so."""
    proxy.close()
    store = open_store(kind, proxy.url)

    with fails_in_time("Error 111|Connect"):
        store.admit(asking())
    store.close()


# The server


@pytest.fixture
def admin(own_valkey: ValkeyServer) -> Iterator[Any]:
    with redis.Redis(port=own_valkey.port) as client:
        yield client


@pytest.fixture
def own_store(kind: str, own_valkey: ValkeyServer) -> Iterator[Store]:
    opened = open_store(kind, own_valkey.url)
    warm_up(opened)
    yield opened
    opened.close()


def test_script_cache_flushed(own_store: Store, admin: Any) -> None:
    """A server that forgot the scripts is given them again."""
    admin.script_flush()
    asked = asking()
    grant = granted_by(asked, own_store.admit(asked))
    admin.script_flush()
    assert own_store.renew(grant)
    admin.script_flush()

    assert own_store.settle(grant, Charges(1, 70, 0)) == "1"
    assert books(own_store) == (70, 0)


def test_server_restarted(own_store: Store, own_valkey: ValkeyServer) -> None:
    """After a restart, scripts and connections are there again, and running calls are charged."""
    asked = asking()
    grant = granted_by(asked, own_store.admit(asked))
    own_valkey.restart()

    assert own_store.settle(grant, Charges(1, 70, 0)) == "4"
    assert books(own_store) == (70, 0)


@contextlib.contextmanager
def setting(admin: Any, name: str, value: str) -> Iterator[None]:
    before = admin.config_get(name)[name]
    admin.config_set(name, value)
    try:
        yield
    finally:
        admin.config_set(name, before)


def test_server_is_a_replica(own_store: Store, admin: Any) -> None:
    """After a failover the old primary refuses to write, and nothing is half written."""
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with fails_in_time("(?i)read.?only"):
            own_store.admit(asking())
    finally:
        admin.execute_command("REPLICAOF", "NO", "ONE")

    assert books(own_store) == (0, 0)


def test_server_out_of_memory(own_store: Store, admin: Any) -> None:
    """A full server is an error that says so; what it holds can still be settled later."""
    asked = asking()
    grant = granted_by(asked, own_store.admit(asked))
    with setting(admin, "maxmemory", "1"):
        with fails_in_time("OOM|OutOfMemory"):
            own_store.admit(asking())
        with fails_in_time("OOM|OutOfMemory"):
            own_store.settle(grant, Charges(1, 70, 0))

    assert own_store.settle(grant, Charges(1, 70, 0)) == "1"
    assert books(own_store) == (70, 0)


def test_server_busy_with_another_script(
    own_store: Store, own_valkey: ValkeyServer, admin: Any
) -> None:
    """A server that runs somebody's endless script is an error in time."""
    connection: Any = redis.Connection(port=own_valkey.port)  # type: ignore[no-untyped-call]
    with setting(admin, "busy-reply-threshold", "1"):
        connection.send_command("EVAL", "while true do end", 0)
        try:
            with fails_in_time("BUSY|no answer within|Timeout"):
                own_store.admit(asking())
        finally:
            _kill_script(admin)
            with pytest.raises(redis.ResponseError, match="killed"):
                connection.read_response()

    connection.disconnect()
    assert books(own_store) == (0, 0)


def _kill_script(admin: Any) -> None:
    """Wait until the script counts as slow, and end it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.ResponseError):
            admin.script_kill()
            return
    raise AssertionError("the script could not be killed")


# Tasks that are cancelled


async def test_cancelled_task_leaves_its_reply_to_nobody(
    proxy: Proxy, valkey: ValkeyServer
) -> None:
    """Whenever a task is cancelled, the next one gets the reply to its own command."""
    store = connect_async(store_config(proxy.url, 5_000, 1))
    for turns in range(12):
        asked = asking(1)
        task = asyncio.create_task(store.admit(asked))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await store.settle(Grant(asked, asked.offers[0], 0, None), NOTHING) in "14"

    assert (await store.admit(asking(7))).counters[1:3] == (0, 7)
    await store.close()


async def test_cancelled_while_the_server_is_slow(proxy: Proxy) -> None:
    """A task that is cancelled while it waits for a reply does not wait for it."""
    store = connect_async(store_config(proxy.url, 5_000, 1))
    await store.admit(asking(1))
    proxy.delay_s = 0.2
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.admit(asking(2)), 0.02)

    assert time.monotonic() - start < 0.15
    assert (await store.admit(asking(4))).counters[2] == 7
    await store.close()


@pytest.mark.parametrize("cancelled", [0, 1, 3])
async def test_first_of_a_turn_is_cancelled(proxy: Proxy, cancelled: int) -> None:
    """Commands that leave together do not depend on the task that gave the first of them."""
    store = connect_async(store_config(proxy.url, 5_000))
    tasks = [asyncio.create_task(store.admit(asking(1))) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[cancelled].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [isinstance(answer, BaseException) for answer in answers].count(True) == 1
    assert isinstance(answers[cancelled], asyncio.CancelledError)
    await store.close()


async def test_deadline_covers_waiting_for_a_connection(proxy: Proxy) -> None:
    """With all connections taken by a silent server, every command fails in time."""
    store = connect_async(store_config(proxy.url, DEADLINE_MS, 2))
    await store.admit(asking(0))
    proxy.silent = True

    async def later(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.admit(asking(1))

    start = time.monotonic()
    answers = await asyncio.gather(*map(later, range(50)), return_exceptions=True)
    assert time.monotonic() - start < DEADLINE_MS / 1000 + SLACK_S
    assert {type(answer) for answer in answers} == {StoreError}
    proxy.silent = False
    assert (await store.admit(asking(1))).offer == 1
    await store.close()


async def test_one_error_in_a_turn_is_of_one_caller(own_valkey: ValkeyServer) -> None:
    """Of commands that leave together, each gets its own error or answer."""
    store = connect_async(store_config(own_valkey.url, 5_000))
    grants = [Grant(asked := asking(1), asked.offers[0], 0, None) for _ in range(3)]
    with redis.Redis(port=own_valkey.port) as admin, setting(admin, "maxmemory", "1"):
        answers = await asyncio.gather(
            store.admit(asking(5000)),  # refused: it writes nothing
            *(store.settle(grant, NOTHING) for grant in grants),
            return_exceptions=True,
        )

    assert [isinstance(answer, StoreError) for answer in answers] == [False, True, True, True]
    await store.close()


def test_one_store_on_several_loops(valkey: ValkeyServer) -> None:
    """A store serves one event loop after the other; each has connections of its own."""
    store = connect_async(store_config(valkey.url))

    async def use() -> float:
        admission = await store.admit(asking(1))
        await store.close()
        return admission.counters[2]

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]


def test_loop_stopped_in_the_middle(proxy: Proxy) -> None:
    """When a loop ends with a command under way, whoever waits is told."""
    store = connect_async(store_config(proxy.url))

    async def leave() -> asyncio.Task[object]:
        proxy.silent = True
        task: asyncio.Task[object] = asyncio.create_task(store.admit(asking(1)))
        await asyncio.sleep(0)
        return task

    assert asyncio.run(leave()).cancelled()
