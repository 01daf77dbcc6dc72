"""Thresholds and unusual spending, found while calls are settled, told once by whoever is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_budget_mw import events
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import Guard
from llm_budget_mw.operations import Change, apply, of_principal
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import Principal, Usage
from tests.deployment import ALICE, NOON_MS, PRICES, Recorder, call_of
from tests.servers import ValkeyServer, fresh_prefix

DAY_MS = 86_400_000
Open = Callable[..., Guard]


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["memory", "valkey"])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    guards: list[Guard] = []
    prefix = fresh_prefix().replace(":", "-")

    def open_guard(**sections: Any) -> Guard:
        url = "memory://"
        if request.param == "valkey":
            url = request.getfixturevalue("valkey").url
        data: dict[str, Any] = {
            "tiers": {"default": {"tokens": "1000/day", "max_tokens": 1000}},
            "alerts": {},
            "prices": PRICES,
            "tokens": {"exact": False},
            "events": {"principal": "plain"},
            "store": {"url": url, "prefix": prefix, "deadline_ms": 5000},
            **sections,
        }
        guards.append(Guard.open(data, sinks=[Recorder()]))
        return guards[-1]

    yield open_guard
    for guard in guards:
        guard.close()


def recorder(guard: Guard) -> Recorder:
    [sink] = guard._sinks
    assert isinstance(sink, Recorder)
    return sink


def use(guard: Guard, tokens: int, who: Principal = ALICE) -> None:
    """Make a call that uses so many tokens, whatever it was granted."""
    origin = Origin(who, call_of(model="small", max_output=10))
    held = guard.hold(guard.decide(origin), origin)
    assert held is not None
    guard.settle(held, Outcome(Ending.COMPLETE, Usage(tokens - 10, 10)))


def told(guard: Guard) -> list[Any]:
    return [each["threshold_percent"] for each in recorder(guard).named(events.THRESHOLD)]


def test_each_threshold_is_told_once(opened: Open) -> None:
    """Half, most, all and more of a limit, each by the settlement that crosses it."""
    guard = opened()
    for _ in range(4):
        use(guard, 150)
    assert told(guard) == [50]
    use(guard, 250)
    assert told(guard) == [50, 80]
    use(guard, 600)
    assert told(guard) == [50, 80, 100, 120]
    first = recorder(guard).named(events.THRESHOLD)[0]
    assert first["subject"] == "user/alice"
    assert (first["limit"], first["used"], first["amount"]) == ("tokens-per-day", 600, 1000)


def test_who_crosses_it_does_not_matter(opened: Open) -> None:
    """Two processes and many threads: every threshold of every subject is told once in all."""
    if "memory" in str(opened().config.store.url):
        pytest.skip("the store in memory is of one process")
    guards = [opened(limits=[{"of": "deployment", "tokens": "8000/day"}]) for _ in range(2)]
    people = [Principal(f"p{number}") for number in range(8)]

    def work(guard: Guard, who: Principal) -> None:
        for _ in range(5):
            use(guard, 100, who)

    threads = [
        threading.Thread(target=work, args=(guard, who)) for who in people for guard in guards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_told = [each for guard in guards for each in recorder(guard).named(events.THRESHOLD)]
    seen = sorted((each["subject"], each["threshold_percent"]) for each in all_told)
    expected = [(f"user/{who.id}", percent) for who in people for percent in (50, 80, 100)]
    assert seen == sorted([*expected, *[("deployment", percent) for percent in (50, 80, 100)]])


def test_a_raised_amount_counts(opened: Open) -> None:
    """Thresholds are parts of what the limit has, additions included."""
    guard = opened()
    apply(guard, Change("raise", of_principal("alice"), "tokens-per-day", 1000))
    use(guard, 900)
    assert told(guard) == []
    use(guard, 200)
    assert told(guard) == [50]
    assert recorder(guard).named(events.THRESHOLD)[0]["amount"] == 2000


def test_without_a_table_nothing_is_told(opened: Open) -> None:
    """Alerts are off until they are asked for."""
    guard = opened(alerts=None)
    use(guard, 990)
    assert recorder(guard).names == [events.SETTLED]


class Shifted(MemoryStore):
    """A store whose clock is moved by hand."""

    def __init__(self) -> None:
        self.now = NOON_MS
        super().__init__(lambda: self.now)


@pytest.fixture
def watched() -> Iterator[tuple[Guard, Shifted]]:
    store = Shifted()
    data: dict[str, Any] = {
        "tiers": {"default": {"budget": "$100/month", "max_tokens": 1000}},
        "alerts": {"thresholds": [], "anomaly": True, "anomaly_min_usd": "0.001"},
        "prices": PRICES,
        "tokens": {"exact": False},
    }
    guard = Guard.open(data, store=store, sinks=[Recorder()])
    yield guard, store
    guard.close()


def test_a_day_spent_in_minutes_is_told_once(watched: tuple[Guard, Shifted]) -> None:
    """After some days it is known what is usual; then a loop is told at its first day's worth."""
    guard, store = watched
    for _ in range(5):
        for _ in range(4):
            use(guard, 10_000)
            store.now += 30 * 60_000
        store.now += DAY_MS - 2 * 3_600_000
    assert recorder(guard).named(events.ANOMALY) == []

    for _ in range(3):
        use(guard, 20_000)
    use(guard, 20_000)
    [alert] = recorder(guard).named(events.ANOMALY)
    assert alert["spent"] > alert["usual_in_a_day"] > 0
    store.now += DAY_MS
    for _ in range(5):
        use(guard, 20_000)
    assert len(recorder(guard).named(events.ANOMALY)) == 2


def test_nothing_is_unusual_for_the_unknown(watched: tuple[Guard, Shifted]) -> None:
    """Who came yesterday has no usual day yet."""
    guard, store = watched
    use(guard, 100)
    store.now += DAY_MS
    use(guard, 900_000)
    assert recorder(guard).named(events.ANOMALY) == []
