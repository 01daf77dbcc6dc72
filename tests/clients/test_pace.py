"""The queue before a provider: never over its limits, fair, bounded, and gone when cancelled."""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from llm_budget_mw import BudgetExceeded, ConfigurationError
from llm_budget_mw.clients import pace as pace_module
from llm_budget_mw.clients.errand import Errand
from llm_budget_mw.clients.line import Line
from llm_budget_mw.clients.pace import AsyncPace, Pace, PaceExceeded
from llm_budget_mw.clients.recent import UpstreamLimit
from llm_budget_mw.config import StoreConfig
from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores.base import AsyncStore
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.testing import ManualClock
from llm_budget_mw.types import Admission, Charges, Grant, Plan, RefusalReason
from tests.clients import simulated
from tests.clients.simulated import Traffic
from tests.servers import ValkeyServer

PER_MINUTE = UpstreamLimit("gpt", requests=500)
IN_TOKENS = UpstreamLimit("gpt", requests=500, tokens=100_000)
ONE = UpstreamLimit("one", requests=1)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def _prefix() -> str:
    return f"pace-{secrets.token_hex(6)}"


def errand(principal: str = "a", tokens: int = 0) -> Errand:
    return Errand(principal, "m", tokens)


class _Switch(MemoryStore):
    """A store that can be away."""

    down = False

    def admit(self, plan: Plan) -> Admission:
        self._reach()
        return super().admit(plan)

    def settle(self, grant: Grant, charges: Charges) -> str:
        self._reach()
        return super().settle(grant, charges)

    def _reach(self) -> None:
        if self.down:
            raise StoreError("away")


def shared() -> AsyncStore:
    return AsyncMemoryStore(MemoryStore(simulated.now_ms))


@pytest.mark.parametrize("processes", [0, 1, 4])
def test_a_limit_of_requests_is_never_passed_and_nearly_all_used(processes: int) -> None:
    """In no 60 seconds are there more, by whatever clock; without a store, and over one."""

    async def work() -> list[simulated.Arrival]:
        store = shared() if processes else None
        paces = [AsyncPace(PER_MINUTE, store=store, max_wait_s=300) for _ in range(processes or 1)]
        return await simulated.send(Traffic(1000), paces)

    arrived = simulated.run(work)

    assert len(arrived) == 1000
    assert simulated.most_requests(arrived, PER_MINUTE) == 500
    assert simulated.part_used(arrived, 500, 60) >= 0.95


@pytest.mark.parametrize("processes", [0, 3])
def test_a_limit_of_tokens_counts_what_was_used_in_place_of_estimates(processes: int) -> None:
    """Estimates four times too high bind only while their calls are under way."""

    async def work() -> list[simulated.Arrival]:
        store = shared() if processes else None
        paces = [AsyncPace(IN_TOKENS, store=store, max_wait_s=900) for _ in range(processes or 1)]
        return await simulated.send(Traffic(800, estimate=2000, used=500), paces)

    arrived = simulated.run(work)

    assert len(arrived) == 800
    assert simulated.most_tokens(arrived, IN_TOKENS) <= 100_000
    # By estimates alone it would be a quarter; some 35 calls are under way at a time.
    assert simulated.part_used(arrived, 100_000, 60, 500) > 0.5


def test_principals_take_turns_and_keep_their_order() -> None:
    """Who brings ten calls does not keep another waiting for all of them."""
    line: Line[str] = Line(100)
    for place in ("a1", "a2", "a3", "b1", "b2", "c1"):
        assert line.join(place[0], place)

    order: list[str] = []
    while line.head:
        order.append(line.head)
        line.leave(order[-1][0], order[-1], served=True)

    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(line) == 0


def test_a_place_that_is_given_up_costs_its_principal_no_turn() -> None:
    """The next of the same principal moves up."""
    line: Line[str] = Line(3)
    for place in ("a1", "a2", "b1"):
        line.join(place[0], place)
    assert not line.join("c", "c1")

    line.leave("a", "a1", served=False)

    assert line.head == "a2"


def test_a_call_that_waits_too_long_is_refused_and_was_not_sent() -> None:
    """The refusal is a budget's, says when to come back, and takes no place."""

    async def work() -> None:
        pace = AsyncPace(ONE, max_wait_s=5)
        await pace.enter(errand())
        late = errand("b")
        with pytest.raises(PaceExceeded) as caught:
            await pace.enter(late)
        refusal = caught.value.refusal
        assert isinstance(caught.value, BudgetExceeded)
        assert refusal.reason is RefusalReason.BUSY
        assert refusal.retry_after_ms == pytest.approx(55_600, abs=10)
        assert late.queued
        assert pace.waiting == 0
        assert asyncio.get_running_loop().time() == pytest.approx(5)

    simulated.run(work)


def test_a_full_line_refuses_at_once() -> None:
    """Memory is bounded, and who comes last does not wait for nothing."""

    async def work() -> None:
        pace = AsyncPace(ONE, max_wait_s=5, max_waiting=2)
        await pace.enter(errand())
        waiting = [asyncio.create_task(pace.enter(errand())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(PaceExceeded, match="too many"):
            await pace.enter(errand())
        assert asyncio.get_running_loop().time() == 0
        await asyncio.gather(*waiting, return_exceptions=True)

    simulated.run(work)


@pytest.mark.parametrize("with_store", [False, True])
def test_a_call_cancelled_while_it_waits_leaves_no_place_taken(*, with_store: bool) -> None:
    """Whoever is behind it goes as if it had never been there."""

    async def work() -> None:
        pace = AsyncPace(
            UpstreamLimit("two", requests=2), store=shared() if with_store else None, max_wait_s=100
        )
        await pace.enter(errand())
        await asyncio.sleep(30)
        await pace.enter(errand())
        first, second = (asyncio.create_task(pace.enter(errand(name))) for name in "bc")
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert not second.cancelled()
        assert second.result().entry is not None
        assert asyncio.get_running_loop().time() < 62
        assert pace.waiting == 0

    simulated.run(work)


class _Slow(AsyncMemoryStore):
    """Holds at once what it is asked to, and answers after a second."""

    async def admit(self, plan: Plan) -> Admission:
        admission = await super().admit(plan)
        await asyncio.sleep(1)
        return admission


def test_a_call_cancelled_while_the_store_answers_is_given_back() -> None:
    """Another process finds the room free as soon as the answer is there."""

    async def work() -> None:
        store = _Slow(MemoryStore(simulated.now_ms))
        pace, other = (AsyncPace(ONE, store=store, max_wait_s=10) for _ in range(2))
        asking = asyncio.create_task(pace.enter(errand()))
        await asyncio.sleep(0.5)
        asking.cancel()
        await asyncio.wait([asking])
        await pace.close()
        await other.enter(errand())
        assert asyncio.get_running_loop().time() < 5

    simulated.run(work)


def test_a_process_that_vanishes_gives_its_room_back_after_a_window() -> None:
    """Nobody settles for it: the leases end."""

    async def work() -> float:
        store = shared()
        for _ in range(2):
            pace = AsyncPace(UpstreamLimit("two", requests=2), store=store, max_wait_s=100)
            await asyncio.gather(pace.enter(errand()), pace.enter(errand()))
        return asyncio.get_running_loop().time()

    assert 60 < simulated.run(work) < 63


def test_a_store_keeps_no_marks_of_calls_long_gone() -> None:
    """Over ten minutes at the limit its memory stays what one minute needs."""

    async def work() -> int:
        store = MemoryStore(simulated.now_ms)
        limit = UpstreamLimit("fifty", requests=50, tokens=50_000)
        pace = AsyncPace(limit, store=AsyncMemoryStore(store), max_wait_s=1000)
        await simulated.send(Traffic(500, estimate=1000, used=800), [pace])
        return sum(len(account.holds) for account in store._accounts.values())

    assert simulated.run(work) <= 100


def test_threads_leave_no_marks_in_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent a window ago is cleared away after the next calls."""
    clock = ManualClock()
    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: clock() / 1000))
    store = MemoryStore(clock)
    pace = Pace(UpstreamLimit("t", requests=20), store=store)
    for _ in range(5):
        for _ in range(20):
            pace.settle(pace.enter(errand()))
        clock.advance(61_000)

    assert sum(len(account.holds) for account in store._accounts.values()) <= 21


def test_while_the_store_is_away_each_process_keeps_its_own_pace() -> None:
    """What went out before counts on, and no call fails."""

    async def work() -> list[simulated.Arrival]:
        store = _Switch(simulated.now_ms)
        limit = UpstreamLimit("ten", requests=10)
        pace = AsyncPace(limit, store=AsyncMemoryStore(store), max_wait_s=300)
        arrived = await simulated.send(Traffic(5), [pace])
        store.down = True
        arrived += await simulated.send(Traffic(25), [pace])
        store.down = False
        return arrived + await simulated.send(Traffic(5), [pace])

    arrived = simulated.run(work)

    assert len(arrived) == 35
    assert simulated.most(arrived, 60, lambda _: 1) <= 10


def test_a_call_larger_than_the_whole_limit_goes_alone() -> None:
    """An estimate is an upper bound: its provider may well take the call."""

    async def work() -> float:
        pace = AsyncPace(UpstreamLimit("small", tokens=100), max_wait_s=100)
        await pace.enter(errand(tokens=1))
        await pace.enter(errand(tokens=10**9))
        return asyncio.get_running_loop().time()

    assert simulated.run(work) > 60


def test_a_call_that_used_more_than_estimated_counts_in_full() -> None:
    """Also in the shared store, where it does not fit: the next of any process waits."""

    async def work() -> float:
        store, limit = shared(), UpstreamLimit("t", tokens=100)
        pace, other = (AsyncPace(limit, store=store, max_wait_s=100) for _ in range(2))
        small = errand(tokens=10)
        place = await pace.enter(small)
        small.used_tokens = 1000
        pace.settle(place)
        pace.settle(place)
        await pace.close()
        await other.enter(errand(tokens=10))
        return asyncio.get_running_loop().time()

    assert 60 < simulated.run(work) < 63


def test_an_answer_that_outlasts_the_window_changes_nothing() -> None:
    """What it used counts no more, as its request does not."""

    async def work() -> None:
        store = shared()
        limit = UpstreamLimit("t", tokens=100)
        pace, other = (AsyncPace(limit, store=store, max_wait_s=1) for _ in range(2))
        long = errand(tokens=100)
        place = await pace.enter(long)
        await asyncio.sleep(100)
        await pace.enter(errand(tokens=50))
        long.used_tokens = 90
        pace.settle(place)
        await pace.close()
        await other.enter(errand(tokens=50))
        with pytest.raises(PaceExceeded):
            await pace.enter(errand(tokens=1))

    simulated.run(work)


def test_a_process_counts_no_call_twice_that_outlasts_the_window() -> None:
    """What its own window holds is right, also where the estimate was not."""

    async def work() -> None:
        pace = AsyncPace(UpstreamLimit("t", tokens=100), max_wait_s=1)
        long = errand(tokens=100)
        place = await pace.enter(long)
        await asyncio.sleep(100)
        await pace.enter(errand(tokens=50))
        long.used_tokens = 0
        pace.settle(place)
        with pytest.raises(PaceExceeded):
            await pace.enter(errand(tokens=51))

    simulated.run(work)


def test_a_brake_holds_a_call_back_and_no_longer_than_it_says() -> None:
    """What its provider says is left comes on top of the limits."""

    async def work() -> float:
        loop = asyncio.get_running_loop()
        pace = AsyncPace(PER_MINUTE)
        await pace.enter(errand(), lambda: max(0.0, 7 - loop.time()))
        return loop.time()

    assert simulated.run(work) == pytest.approx(7)


@pytest.mark.parametrize("kind", ["own", "valkey"])
def test_threads_wait_for_their_turn(kind: str, request: pytest.FixtureRequest) -> None:
    """Each goes in the end, and the line is empty after it."""
    limit = UpstreamLimit("quick", requests=5, tokens=500, per_s=0.1)
    prefix = _prefix()
    stores = [_store(kind, request, prefix) for _ in range(2)]
    paces = [Pace(limit, store=store) for store in stores]

    def call(number: int) -> None:
        pace, mine = paces[number % 2], errand(f"p{number % 3}", 90)
        place = pace.enter(mine)
        mine.used_tokens = 80
        pace.settle(place)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(call, range(30)))

    assert [pace.waiting for pace in paces] == [0, 0]
    for store in stores:
        if store:
            store.close()


def _store(kind: str, request: pytest.FixtureRequest, prefix: str) -> Any:
    if kind == "own":
        return None
    server: ValkeyServer = request.getfixturevalue("valkey")
    return connect(StoreConfig(url=server.url, prefix=prefix))


def test_processes_share_a_limit_on_a_real_store(valkey: ValkeyServer) -> None:
    """What one has sent, another has to wait for, until it turns out to be less."""
    limit = UpstreamLimit("shared/é", requests=100, tokens=100, per_s=60)
    config = StoreConfig(url=valkey.url, prefix=_prefix())
    one, other = connect(config), connect(config)
    pace = Pace(limit, store=one)
    large = errand(tokens=100)
    place = pace.enter(large)
    with pytest.raises(PaceExceeded):
        Pace(limit, store=other, max_wait_s=0.05).enter(errand(tokens=50))

    large.used_tokens = 40
    pace.settle(place)

    Pace(limit, store=other).enter(errand(tokens=50))
    with pytest.raises(PaceExceeded):
        Pace(limit, store=other, max_wait_s=0.05).enter(errand(tokens=50))
    one.close()
    other.close()


async def test_a_loop_shares_a_limit_on_a_real_store(valkey: ValkeyServer) -> None:
    """The same, asynchronously."""
    limit = UpstreamLimit("shared", requests=2, per_s=0.2)
    store = connect_async(StoreConfig(url=valkey.url, prefix=_prefix()))
    paces = [AsyncPace(limit, store=store) for _ in range(2)]
    places = await asyncio.gather(*(paces[n % 2].enter(errand()) for n in range(6)))
    for number, place in enumerate(places):
        paces[number % 2].settle(place)
    for pace in paces:
        await pace.close()
    await store.close()
    assert all(place.grant for place in places)


def test_a_store_away_holds_no_thread_up() -> None:
    """The process keeps its own pace, and asks again later."""
    store = _Switch()
    store.down = True
    pace = Pace(UpstreamLimit("two", requests=2), store=store, max_wait_s=0.05)
    pace.enter(errand())
    pace.enter(errand())
    with pytest.raises(PaceExceeded):
        pace.enter(errand())


def test_a_store_that_goes_away_in_between_is_no_error() -> None:
    """Neither for a settlement, nor for a call that is cancelled while it is asked."""

    class Failing(_Switch):
        def admit(self, plan: Plan) -> Admission:
            admission = super().admit(plan)
            self.down = True
            return admission

    class Slow(AsyncMemoryStore):
        async def admit(self, plan: Plan) -> Admission:
            await asyncio.sleep(1)
            raise StoreError("away")

    async def work() -> None:
        limit = UpstreamLimit("t", tokens=100)
        pace = AsyncPace(limit, store=AsyncMemoryStore(Failing(simulated.now_ms)))
        mine = errand(tokens=100)
        place = await pace.enter(mine)
        mine.used_tokens = 10
        pace.settle(place)
        await pace.close()
        await pace.enter(errand(tokens=90))
        slow = AsyncPace(limit, store=Slow())
        asking = asyncio.create_task(slow.enter(errand()))
        await asyncio.sleep(0.5)
        asking.cancel()
        await asyncio.wait([asking])
        await slow.close()
        assert slow.waiting == 0

    simulated.run(work)


def test_a_settlement_the_store_does_not_take_is_no_error() -> None:
    """The lease ends what is held."""
    store = _Switch()
    pace = Pace(UpstreamLimit("t", tokens=100), store=store, max_wait_s=0.05)
    mine = errand(tokens=100)
    place = pace.enter(mine)
    mine.used_tokens = 10
    store.down = True
    pace.settle(place)

    store.down = False
    with pytest.raises(PaceExceeded):
        pace.enter(errand(tokens=50))


def test_a_thread_that_leaves_wakes_the_next() -> None:
    """A settlement gives room back at once, not at the next look."""
    pace = Pace(UpstreamLimit("t", tokens=100), max_wait_s=20)
    first, second = errand(tokens=100), errand("b", tokens=100)
    place = pace.enter(first)
    gone = threading.Event()

    def wait() -> None:
        pace.enter(second)
        gone.set()

    thread = threading.Thread(target=wait)
    thread.start()
    first.used_tokens = 0
    pace.settle(place)

    assert gone.wait(10)
    thread.join()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: UpstreamLimit("", requests=1), "name"),
        (lambda: UpstreamLimit("x"), "requests"),
        (lambda: UpstreamLimit("x", requests=0), "requests"),
        (lambda: UpstreamLimit("x", tokens=-5), "tokens"),
        (lambda: UpstreamLimit("x", tokens=2**60), "tokens"),
        (lambda: UpstreamLimit("x", tokens=True), "tokens"),
        (lambda: UpstreamLimit("x", requests=1, per_s=0), "per_s"),
        (lambda: UpstreamLimit("x", requests=1, per_s=math.nan), "per_s"),
        (lambda: Pace(ONE, max_wait_s=0), "max_wait_s"),
        (lambda: Pace(ONE, max_wait_s=math.inf), "max_wait_s"),
        (lambda: AsyncPace(ONE, max_waiting=0), "max_waiting"),
    ],
    ids=range(11),
)
def test_a_limit_that_cannot_be_kept_is_a_clear_error(
    make: Callable[[], object], named: str
) -> None:
    """It names the option."""
    with pytest.raises(ConfigurationError, match=named):
        make()
