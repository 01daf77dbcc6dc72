"""Who is over a limit is refused without a round trip, and never a moment too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from llm_budget_mw import decision
from llm_budget_mw.stores._spent import KEPT_MS, Spent
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.types import NOTHING, Admission, Charges, Decision, Plan, Refusal, Subject
from tests.servers import ValkeyServer
from tests.stores.conftest import store_config
from tests.stores.kit import (
    DAY,
    DAY_MS,
    SLIDING,
    START_MS,
    UNFIT,
    Driven,
    granted,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

HUNDRED = limits(limit(100, window=DAY, name="tokens"))


@pytest.fixture(params=["threads", "loop"])
def store(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Iterator[Store]:
    """Give a store that goes by the clock of the server, as in use."""
    config = store_config(valkey.url)
    made: Store = connect(config) if request.param == "threads" else Driven(connect_async(config))
    yield made
    made.close()


def scripts(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return sum(stats[name]["calls"] for name in stats if name.startswith("cmdstat_eval"))


def ask(store: Store, fixed: int, who: str = "alice") -> Decision:
    asked = plan(someone(who, HUNDRED), offers=[tokens(fixed)])
    return decision.decide(asked, store.admit(asked))


def spend(store: Store, used: int, who: str = "alice") -> None:
    store.settle(granted(ask(store, used, who)), Charges(1, used, used))


def test_a_loop_of_refused_calls_asks_once(store: Store, client: redis.Redis) -> None:
    """A thousand calls of one who is over a limit: one round trip, the same refusal."""
    spend(store, 95)
    first = ask(store, 10)
    before = scripts(client)
    answers = [ask(store, 10) for _ in range(1000)]

    assert isinstance(first, Refusal)
    assert all(isinstance(each, Refusal) and each.reason is first.reason for each in answers)
    assert scripts(client) - before <= 2  # one more if a second has passed


def test_what_still_fits_is_asked_for(store: Store) -> None:
    """A smaller call of the same principal is admitted, and so is another principal's."""
    spend(store, 95)
    assert not ask(store, 10).admitted
    assert ask(store, 5).admitted
    assert ask(store, 10, "bob").admitted


def test_what_is_only_held_is_not_remembered(store: Store) -> None:
    """A call in flight may end at any time: whoever waits for it is told by the store."""
    held = granted(ask(store, 95))
    assert not ask(store, 10).admitted
    store.settle(held, NOTHING)
    assert ask(store, 10).admitted


@pytest.mark.parametrize(
    ("verb", "what"),
    [("add", "credit tokens 50 0 a"), ("add", "set tokens 500 0 b"), ("reset", "tokens")],
)
def test_an_operators_change_holds_when_it_returns(
    valkey: ValkeyServer, verb: Any, what: str
) -> None:
    """Another process that remembers a refusal admits once the change is reported as made."""
    config = store_config(valkey.url)
    here, there = connect(config), connect(config)
    spend(here, 95)
    stop = time.monotonic() + 0.2
    while time.monotonic() < stop:
        assert not ask(there, 10).admitted
    assert here.amend(Subject("acme", "alice"), verb, what).changed == 1
    assert ask(there, 10).admitted
    here.close()
    there.close()


def test_looking_is_never_answered_from_memory(store: Store) -> None:
    """Who asks how things stand is told how they stand."""
    spend(store, 95)
    assert not ask(store, 10).admitted
    other = plan(someone("alice", limits(limit(9, "requests", DAY, name="r"))), offers=[tokens(1)])
    store.admit(other)
    answer = store.admit(plan(someone("alice", HUNDRED), offers=[UNFIT]))
    assert answer.counters[1] == 95


def refused(asked: Plan, used: int, now_ms: int = START_MS, start_ms: int = START_MS) -> Admission:
    assert asked.subjects
    return Admission(now_ms, 0, 0, tuple(map(float, (start_ms, used, 0, 0, 0))))


def test_a_second_is_the_longest() -> None:
    """After it the store is asked again, also where a clock was set back."""
    memory, asked = Spent(), plan(HUNDRED, offers=[tokens(10)])
    memory.note(asked, refused(asked, 95))
    assert memory.answer(asked, START_MS + KEPT_MS - 1)
    assert memory.answer(asked, START_MS + KEPT_MS) is None
    memory.note(asked, refused(asked, 95))
    assert memory.answer(asked, START_MS - 1) is None


def test_a_window_that_ends_is_forgotten() -> None:
    """The last moment of a window says nothing of the next one's first."""
    memory, asked = Spent(), plan(HUNDRED, offers=[tokens(10)])
    late = START_MS + DAY_MS - 1
    memory.note(asked, refused(asked, 95, late))
    assert memory.answer(asked, late)
    assert memory.answer(asked, late + 1) is None


def test_the_past_of_a_sliding_window_is_no_reason() -> None:
    """What weighs from the window before may still be corrected, and fades."""
    memory, asked = Spent(), plan(limits(limit(100, window=SLIDING)), offers=[tokens(10)])
    answer = Admission(START_MS, 0, 0, (START_MS, 0.0, 0.0, START_MS - 60_000.0, 100.0))
    memory.note(asked, answer)
    assert memory.answer(asked, START_MS) is None


def test_memory_is_bounded() -> None:
    """However many are refused, some ten thousand are remembered."""
    memory = Spent()
    for number in range(10_001):
        asked = plan(someone(f"u{number}", HUNDRED), offers=[tokens(10)])
        memory.note(asked, refused(asked, 95))
    assert len(memory._kept) == 1


def test_a_stop_is_not_remembered(valkey: ValkeyServer) -> None:
    """What is resumed goes on with the next call."""

    async def run() -> None:
        store = connect_async(store_config(valkey.url))
        asked = plan(HUNDRED)._replace(switches=("model/x", "*"))
        await store.switch("stop", "*", "0 now")
        assert (await store.admit(asked)).offer < 0
        await store.switch("resume", "*")
        assert (await store.admit(asked)).offer == 1
        await store.close()

    asyncio.run(run())
