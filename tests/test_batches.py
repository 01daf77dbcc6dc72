"""Tests of `llm_budget_mw.batches`: reserved when made, settled hours later in another process."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import openai.types
import pytest

from llm_budget_mw.batches import (
    reserve_batch,
    reserve_batch_async,
    settle_batch,
    settle_batch_async,
)
from llm_budget_mw.errors import BudgetExceeded, RequestError
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import Charges, Grade, Principal
from tests.deployment import (
    ALICE,
    NOON_MS,
    Recorder,
    SwitchStore,
    async_store,
    configured,
    engine_of,
)
from tests.servers import ValkeyServer

DAY_MS = 86_400_000
TIER = {"tokens": "100000/day", "budget": "$20/day", "concurrency": 1, "max_tokens": 100}
QUESTION = {"model": "big", "messages": [{"role": "user", "content": "how are you?"}]}
HELD_INPUT = 35
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
ENDED = openai.types.Batch(
    id="batch_1",
    status="completed",
    completion_window="24h",
    created_at=1,
    endpoint="/v1/chat/completions",
    input_file_id="file_1",
    object="batch",
)


def line(number: int, **body: Any) -> dict[str, Any]:
    url = "/v1/chat/completions"
    return {"custom_id": str(number), "method": "POST", "url": url, "body": {**QUESTION, **body}}


def result(number: int, usage: Any = USAGE, status: int = 200) -> dict[str, Any]:
    body = {"id": "c", "model": "big", "choices": [], "usage": usage}
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": str(number), "response": response, "error": None}


def jsonl(*entries: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


class World:
    """A guard whose clock can be moved."""

    def __init__(self, **tier: Any) -> None:
        self.now_ms = NOON_MS
        self.store = SwitchStore()
        self.store._clock = lambda: self.now_ms
        self.sink = Recorder()
        self.config = configured({**TIER, **tier})
        self.guard = self.another()

    def another(self) -> Guard:
        """Return the guard of another process."""
        return Guard(engine_of(self.config), self.config, self.store, [self.sink])

    def used(self, principal: Principal = ALICE) -> dict[str, int]:
        return {status.limit.name: status.used for status in self.guard.limits(principal)}


def test_a_batch_is_held_whole_and_charged_what_it_used() -> None:
    """Half price, every line by itself, in another process hours later."""
    world = World()
    batch = reserve_batch(world.guard, ALICE, [line(1), line(2, max_tokens=40)], feature="nightly")
    assert world.used()["tokens-per-day"] == 2 * HELD_INPUT + 100 + 40

    world.now_ms += 5 * 3_600_000
    assert world.used()["concurrency"] == 0  # its lease is over, which has charged it
    settled = settle_batch(world.another(), batch.ticket, ENDED, jsonl(result(1), result(2)))

    assert world.used()["tokens-per-day"] == 60
    assert (settled.grade, settled.charges.tokens) == (Grade.EXACT, 60)
    (event,) = world.sink.named("budget.settled")
    assert (event["feature"], event["route"]) == ("nightly", "batch")


def test_the_provider_is_given_lines_with_a_bound() -> None:
    """Everything else of a line stays; lines may be bytes of a file."""
    batch = reserve_batch(
        World().guard, ALICE, jsonl(line(1), line(2, max_tokens=900)).splitlines()
    )

    first, second = map(json.loads, batch.content.splitlines())
    assert first == line(1, max_completion_tokens=100) or first == line(1, max_tokens=100)
    assert second == line(2, max_tokens=100)


def test_the_discount_is_given_when_the_provider_gave_it() -> None:
    """Held at the standard price, charged at that of the service tier `batch`."""
    world = World()
    catalogue = configured(TIER, prices={"catalogue": True})
    world.guard = Guard(engine_of(catalogue), catalogue, world.store, [world.sink])
    batch = reserve_batch(world.guard, ALICE, [line(1, model="gpt-4o")])

    settled = settle_batch(world.guard, batch.ticket, ENDED, [result(1)])

    assert settled.charges.cost_nano == (10 * 2_500 + 20 * 10_000) // 2


def test_anthropics_batches_are_read_as_well() -> None:
    """Requests with `params`, results with a message; `ended` is their word."""
    world = World()
    entries = [
        {
            "custom_id": "1",
            "params": {**QUESTION, "model": "claude-x", "max_tokens": 50},
        }
    ]
    batch = reserve_batch(world.guard, ALICE, entries)
    usage = {"input_tokens": 9, "output_tokens": 3}
    message = {"type": "message", "model": "claude-x", "content": [], "usage": usage}
    results = [
        {"custom_id": "1", "result": {"type": "succeeded", "message": message}},
        {"custom_id": "2", "result": {"type": "errored", "error": {}}},
    ]

    settled = settle_batch(world.guard, batch.ticket, {"processing_status": "ended"}, results)

    assert settled.charges.tokens == 12


def test_a_batch_is_charged_once_however_often_it_is_settled() -> None:
    """Two workers may find it ended at the same time."""
    world = World()
    batch = reserve_batch(world.guard, ALICE, [line(1)])

    for _ in range(2):
        settle_batch(world.another(), batch.ticket, ENDED, [result(1)])

    assert world.used()["tokens-per-day"] == 30
    assert world.store.charged() == Charges(1, 30, 10 * 2500 + 20 * 10_000)


@pytest.mark.parametrize(
    ("results", "tokens"),
    [
        ([], 0),
        (b"", 0),
        ([result(1, status=500)], 0),
        ([{"custom_id": "1", "response": None, "error": {"code": "batch_expired"}}], 0),
        ([result(1, usage=None)], HELD_INPUT + 100),
        ([result(1), result(2, usage={"prompt_tokens": "many"})], HELD_INPUT + 100),
        ([{"custom_id": "1", "response": "?"}], 0),
    ],
    ids=["none", "empty file", "failed", "expired", "no usage", "garbage", "no response"],
)
def test_lines_that_failed_cost_nothing_and_unknown_usage_keeps_the_hold(
    results: Any, tokens: int
) -> None:
    """What is unknown is never zero."""
    world = World()
    batch = reserve_batch(world.guard, ALICE, [line(1)])

    settle_batch(world.guard, batch.ticket, ENDED, results)

    assert world.used()["tokens-per-day"] == tokens


def test_a_batch_that_does_not_fit_is_refused_whole() -> None:
    """Nothing is held for the part that would."""
    world = World(tokens="200/day")

    with pytest.raises(BudgetExceeded):
        reserve_batch(world.guard, ALICE, [line(1), line(2)])

    assert world.used()["tokens-per-day"] == 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "one line or more"),
        ([b"{"], "Line 1: It is no JSON"),
        ([b"[]"], "Line 1: It is no JSON object"),
        ([line(1), {"url": "/v1/other", "body": {}}], "Line 2: It needs `params`"),
        ([{"url": "/v1/chat/completions"}], "Line 1: It needs"),
        ([line(1, stream=True)], "Line 1: A batch cannot stream"),
        ([line(1, messages=[])], "Line 1: messages"),
        ([line(1, model="?")], "Line 1: The model '\\?' has no known price"),
        ([line(1), {"params": {**QUESTION, "max_tokens": 5}}], "all to one endpoint"),
    ],
)
def test_lines_that_cannot_be_bounded_are_named(entries: list[Any], message: str) -> None:
    """Before anything is uploaded or reserved."""
    world = World()

    with pytest.raises(RequestError, match=message):
        reserve_batch(world.guard, ALICE, entries)

    assert world.used()["tokens-per-day"] == 0


@pytest.mark.parametrize("status", ["in_progress", None, "validating"])
def test_a_batch_that_is_running_cannot_be_settled(status: str | None) -> None:
    """Its results are not whole yet."""
    world = World()
    batch = reserve_batch(world.guard, ALICE, [line(1)])

    with pytest.raises(ValueError, match="settle it when it has ended"):
        settle_batch(world.guard, batch.ticket, {"status": status})


def test_a_ticket_that_is_none_is_refused() -> None:
    """It is kept by the application, which may mix up its columns."""
    with pytest.raises(ValueError, match="no ticket"):
        settle_batch(World().guard, '{"id": 1}', ENDED)


def test_a_ticket_outlives_a_change_of_the_limits() -> None:
    """Those it was admitted under are charged, whether or not they are configured still."""
    world = World()
    batch = reserve_batch(world.guard, ALICE, [line(1)])
    changed = {**TIER, "requests": "9/day", "budget": [], "tokens": "50000/day"}
    world.config = configured(changed)
    world.guard = world.another()

    settle_batch(world.guard, batch.ticket, ENDED, [result(1)])

    assert world.used() == {"requests-per-day": 0, "tokens-per-day": 30, "concurrency": 0}


def test_an_event_loop_does_the_same() -> None:
    """Only the lines that wait differ."""

    async def job() -> int:
        world = World()
        store = async_store(world.store)
        guard = AsyncGuard(engine_of(world.config), world.config, store, [world.sink])
        batch = await reserve_batch_async(guard, ALICE, [line(1)])
        settled = await settle_batch_async(guard, batch.ticket, ENDED, [result(1)])
        return settled.charges.tokens

    assert asyncio.run(job()) == 30


def test_a_batch_in_valkey_is_settled_by_the_script() -> None:
    """The scripts take the same ticket, also after a limit has come and another has gone."""
    with ValkeyServer() as server:
        store = {"url": server.url, "prefix": secrets.token_hex(6), "deadline_ms": 2000}
        config = configured(TIER, store=store)
        guard = Guard.open(config, sinks=())
        batch = reserve_batch(guard, ALICE, [line(1), line(2)])
        guard.close()

        changed = {**TIER, "requests": "9/day", "budget": []}
        guard = Guard.open(configured(changed, store=store), sinks=())
        settle_batch(guard, batch.ticket, ENDED, [result(1)])
        used = {status.limit.name: status.used for status in guard.limits(ALICE)}
        guard.close()

    assert used == {"requests-per-day": 0, "tokens-per-day": 30, "concurrency": 0}


def test_a_batch_without_limits_needs_no_store() -> None:
    """Its event is told all the same."""
    config = configured()
    sink = Recorder()
    guard = Guard(engine_of(config), config, MemoryStore(), [sink])
    batch = reserve_batch(guard, ALICE, [line(1)])

    settle_batch(guard, batch.ticket, ENDED, [result(1)])

    assert sink.names == ["budget.settled"]
