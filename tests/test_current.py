"""Tests of `llm_budget_mw.current`: what a handler sees, and what its calls draw upon."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import pytest

from llm_budget_mw import events
from llm_budget_mw.calls import SCOPE, Call
from llm_budget_mw.current import CURRENT, Budget, charge, current_budget
from llm_budget_mw.errors import BudgetExceeded
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.shell import Held
from llm_budget_mw.stores.memory import AsyncMemoryStore
from llm_budget_mw.types import Charges, Grade, Usage
from tests.deployment import ALICE, Recorder, SwitchStore, call_of, configured, engine_of

TIER = {"requests": "9/day", "tokens": "100000/day", "budget": "$1/day", "max_tokens": 100}
MESSAGES = [{"role": "user", "content": "hi"}]
"""Read as 25 input tokens at most."""


class Handler:
    """A handler in the middle of an admitted request."""

    def __init__(self, **tier: Any) -> None:
        self.store, self.sink = SwitchStore(), Recorder()
        config = configured({**TIER, **tier})
        store = AsyncMemoryStore(self.store)
        self.guard = AsyncGuard(engine_of(config), config, store, [self.sink])

    async def budget(self, size: int = 1_000, *, dialect: str = "openai_chat") -> Budget:
        """Admit a request with this much input; it holds 100 output tokens besides."""
        return Budget(await self.hold(size), dialect, self.guard)

    async def hold(self, size: int) -> Held:
        origin = Origin(ALICE, call_of("x" * (size - 16)), "/ask", "chat")
        held = self.guard.hold(await self.guard.decide(origin), origin)
        assert held is not None
        return held


def test_outside_a_request_there_is_no_budget() -> None:
    """The error says what to look at."""
    with pytest.raises(LookupError, match="is its path among `routes`"):
        current_budget()


async def test_inside_a_request_the_budget_is_at_hand() -> None:
    """In the task of the request, and in those it starts."""
    budget = await Handler().budget()

    async def look() -> Budget:
        return current_budget()

    async def handle() -> Budget:
        CURRENT.set(budget)
        return await asyncio.create_task(look())

    assert await asyncio.create_task(handle(), context=copy_context()) is budget
    assert CURRENT.get() is None


async def test_a_handler_sees_what_was_granted() -> None:
    """Who, which model, how much output, and what is left of every limit."""
    budget = await Handler(concurrency=2).budget()

    assert (budget.principal, budget.model, budget.max_tokens) == (ALICE, "big", 100)
    assert not budget.streams
    assert budget.grant.charges.tokens == 1_100
    assert [status.limit.name for status in budget.limits] == list(budget.remaining)
    assert budget.remaining == {
        "requests-per-day": 8,
        "tokens-per-day": 98_900,
        "budget-per-day": 1_000_000_000 - 1_000 * 2_500 - 100 * 10_000,
        "concurrency": 1,
    }


async def test_reports_of_a_handler_add_up() -> None:
    """Each call it made by itself is charged at its own model's price."""
    handler = Handler()
    budget = await handler.budget()
    budget.record(Usage(10, 1, model="big"))
    budget.record({"model": "small", "usage": {"prompt_tokens": 20, "completion_tokens": 2}})
    budget.record(Usage(30, 3))

    usage = budget.usage
    assert usage == Usage(10, 1, model="big", extra=(Usage(20, 2, model="small"), Usage(30, 3)))
    assert handler.guard.engine.prices.cost(Usage(10, 1, extra=usage.extra), "big") == (
        40 * 2_500 + 4 * 10_000 + 20 * 150 + 2 * 600
    )


async def test_the_first_call_draws_on_the_requests_reservation() -> None:
    """No second admission: the request's own hold becomes the call's charge."""
    handler = Handler()
    budget = await handler.budget()
    async with budget.call(model="small", messages=MESSAGES) as call:
        assert (call.model, call.max_tokens) == ("small", 100)
        call.record(Usage(9, 3))

    assert (budget.reservation.handed_over, budget.calls) == (True, 1)
    assert len(handler.store.plans) == 1
    assert handler.store.charged() == Charges(1, 12, 9 * 150 + 3 * 600)
    assert handler.store.settled[0][0] == budget.grant.plan.id
    [event] = handler.sink.named(events.SETTLED)
    assert (event["requested_model"], event["route"], event["feature"]) == ("small", "/ask", "chat")


async def test_every_further_call_is_admitted_by_itself() -> None:
    """A retry or a fallback has its own reservation, and nothing is charged twice."""
    handler = Handler()
    budget = await handler.budget()
    for _ in range(3):
        async with budget.call(model="small", messages=MESSAGES) as call:
            call.record(Usage(9, 3))

    assert budget.calls == 3
    assert len(handler.store.plans) == 3
    assert handler.store.charged() == Charges(3, 36, 3 * (9 * 150 + 3 * 600))
    assert len({key for key, _, _ in handler.store.settled}) == 3


async def test_calls_side_by_side_share_nothing() -> None:
    """Only one of them gets the reservation."""
    handler = Handler()
    budget = await handler.budget()

    async def ask() -> None:
        async with budget.call(model="small", messages=MESSAGES) as call:
            await asyncio.sleep(0)
            call.record(Usage(9, 3))

    await asyncio.gather(ask(), ask())

    assert handler.store.charged().requests == 2
    assert {outcome for _, _, outcome in handler.store.settled} == {"1"}


@pytest.mark.parametrize(
    ("size", "model", "drawn"),
    [
        pytest.param(30, "big", 100, id="covered in full"),
        pytest.param(30, "claude-x", 66, id="a dearer model gets less output"),
        pytest.param(17, "big", 92, id="a longer prompt gets less output"),
    ],
)
async def test_a_call_gets_what_the_reservation_covers(size: int, model: str, drawn: int) -> None:
    """In tokens and in money; big holds 1,075,000 nano-dollars for 30 and 100 tokens."""
    handler = Handler()
    budget = await handler.budget(size)
    async with budget.call(model=model, messages=MESSAGES) as call:
        granted = call.max_tokens
        call.record(Usage(1, 1))

    assert budget.reservation.handed_over
    assert granted == drawn
    assert call.grant.charges.tokens <= budget.grant.charges.tokens
    assert call.grant.charges.cost_nano <= budget.grant.charges.cost_nano


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"messages": [{"role": "user", "content": "x" * 2_000}]}, id="more input"),
        pytest.param({"messages": MESSAGES, "n": 100}, id="many samplings"),
    ],
)
async def test_a_call_that_is_not_covered_is_admitted_by_itself(request_: dict[str, Any]) -> None:
    """The request's reservation stays where it is, for the edge to settle."""
    handler = Handler(min_tokens=50)
    budget = await handler.budget()
    async with budget.call(model="big", **request_) as call:
        call.record(Usage(1, 1))

    assert not budget.reservation.handed_over
    assert len(handler.store.plans) == 2
    assert handler.store.settled[0][0] != budget.grant.plan.id


async def test_input_alone_may_be_too_dear() -> None:
    """A free answer does not pay for its question."""
    prices = {"catalogue": False, "models": {"in": {"input": 100, "output": 0}}}
    config = configured({"tokens": "9000/day", "max_tokens": 9}, prices=prices)
    handler = Handler()
    handler.guard = AsyncGuard(
        engine_of(config), config, AsyncMemoryStore(handler.store), [handler.sink]
    )
    origin = Origin(ALICE, call_of("x" * 900, model="unpriced"), "/ask")
    held = handler.guard.hold(await handler.guard.decide(origin), origin)
    assert held is not None

    async with Budget(held, "openai_chat", handler.guard).call(
        model="in", messages=MESSAGES
    ) as call:
        call.cancel()

    assert call.grant.plan.id != held.grant.plan.id


async def test_after_its_own_report_a_handler_draws_on_nothing() -> None:
    """The request's reservation is already spoken for."""
    handler = Handler()
    budget = await handler.budget()
    budget.record(Usage(1, 1))
    async with budget.call(model="small", messages=MESSAGES) as call:
        call.record(Usage(9, 3))

    assert not budget.reservation.handed_over
    assert len(handler.store.plans) == 2


async def test_once_handed_over_usage_is_reported_to_the_call() -> None:
    """Nobody would settle it here: better an error than a call for nothing."""
    budget = await Handler().budget()
    async with budget.call(model="small", messages=MESSAGES) as call:
        with pytest.raises(RuntimeError, match="use its `record`"):
            budget.record(Usage(1, 1))
        call.record(Usage(9, 3))


async def test_a_refused_call_leaves_the_request_alone() -> None:
    """The handler may answer without it."""
    handler = Handler(requests="1/day")
    budget = await handler.budget()
    async with budget.call(model="small", messages=MESSAGES) as call:
        call.record(Usage(9, 3))

    with pytest.raises(BudgetExceeded):
        async with budget.call(model="small", messages=MESSAGES):
            pytest.fail("admitted")
    assert budget.calls == 2
    assert handler.store.charged().requests == 1


async def test_a_cancelled_call_gives_the_reservation_back() -> None:
    """An answer from a cache: neither the call nor the request is charged."""
    handler = Handler()
    async with (await handler.budget()).call(model="small", messages=MESSAGES) as call:
        call.cancel()

    assert call.settlement is not None
    assert call.settlement.grade is Grade.RELEASED
    assert handler.store.charged() == Charges(0, 0, 0)


async def test_a_call_pays_for_the_service_tier_it_asked_for() -> None:
    """Not for the request's, whose reservation it took."""
    handler = Handler()
    config = configured(TIER, prices={"catalogue": True})
    engine = engine_of(config)
    handler.guard = AsyncGuard(engine, config, AsyncMemoryStore(handler.store))
    origin = Origin(ALICE, call_of("x" * 984, model="gpt-4o"))
    held = handler.guard.hold(await handler.guard.decide(origin), origin)
    assert held is not None
    budget = Budget(held, "openai_chat", handler.guard)
    async with budget.call(model="gpt-4o", messages=MESSAGES, service_tier="priority") as call:
        call.record(Usage(9, 3))

    assert budget.reservation.handed_over
    expected = engine.prices.cost(Usage(9, 3, service_tier="priority"), "gpt-4o")
    assert handler.store.charged().cost_nano == expected


@pytest.mark.parametrize("waits", [True, False])
async def test_under_a_synchronous_server_calls_are_made_by_its_guard(*, waits: bool) -> None:
    """With `with`, or with `async with` in a coroutine such a server runs by itself."""
    handler = Handler()
    guard = Guard(handler.guard.engine, handler.guard.config, handler.store)
    origin = Origin(ALICE, call_of("x" * 984), "/ask", "chat")
    held = guard.hold(guard.decide(origin), origin)
    assert held is not None
    budget = Budget(held, "custom", guard)

    call = budget.call(model="small", messages=MESSAGES)
    if waits:
        async with call:
            call.record(Usage(9, 3))
    else:
        with call:
            call.record(Usage(9, 3))

    assert isinstance(call, Call)
    assert budget.reservation.handed_over
    assert handler.store.charged().tokens == 12


async def test_a_synchronous_endpoint_calls_from_its_thread() -> None:
    """The event loop of the request makes the call; on the loop itself that would stand still."""
    handler = Handler()
    held = await handler.hold(984)
    budget = Budget(held, "custom", handler.guard, asyncio.get_running_loop())

    def endpoint() -> None:
        with budget.call(model="small", messages=MESSAGES) as call:
            call.record(Usage(9, 3))

    await asyncio.to_thread(endpoint)

    assert handler.store.charged().tokens == 12
    with pytest.raises(RuntimeError, match="enter it with `async with`"):
        endpoint()


async def test_a_thread_without_the_loop_of_its_request_cannot_wait_for_it() -> None:
    """A call made through a guard has no loop to go to; the error says how to enter it."""
    handler = Handler()

    with pytest.raises(RuntimeError, match="enter it with `async with`"):
        await asyncio.to_thread(
            handler.guard.call(ALICE, model="small", messages=MESSAGES).__enter__
        )


async def test_a_call_after_the_end_of_its_request_pays_for_itself() -> None:
    """A task the handler left behind cannot draw on what is settled already."""
    handler = Handler()
    budget = await handler.budget()
    assert budget.reservation.retain()  # as the edge does when it settles

    async with budget.call(model="small", messages=MESSAGES) as call:
        call.record(Usage(9, 3))

    assert call.grant.plan.id != budget.grant.plan.id
    assert handler.store.charged().tokens == 12


async def test_a_call_is_a_scope_for_those_inside() -> None:
    """They draw on it once, are told apart from others by its id, and it ends with the block."""
    handler = Handler()
    async with handler.guard.call(ALICE, model="big", messages=MESSAGES) as outer:
        assert SCOPE.get() is outer
        for _ in range(2):
            inner = outer.make(call_of("hi"), "openai_chat")
            async with inner:
                inner.record(Usage(9, 3))
        outer.record(Usage(9, 3))

    assert SCOPE.get() is None
    assert outer.settlement is None
    assert handler.store.charged() == Charges(2, 24, 2 * (9 * 2500 + 3 * 10_000))
    settled = handler.sink.named("budget.settled")
    assert [event["request"] for event in settled] == [outer.grant.plan.id] * 2


@pytest.mark.parametrize("waits", [True, False])
async def test_a_block_charges_whom_it_names(*, waits: bool) -> None:
    """Workers have no request; whoever runs a job says who pays."""
    handler = Handler()
    guard = Guard(handler.guard.engine, handler.guard.config, handler.store, [handler.sink])
    with charge(handler.guard if waits else guard, ALICE, feature="nightly"):
        scope = SCOPE.get()
        assert scope is not None
        call = scope.make(call_of("hi"), "openai_chat")
        async with call:
            call.record(Usage(9, 3))

    assert SCOPE.get() is None
    (event,) = handler.sink.named("budget.settled")
    assert (event["feature"], event["total_tokens"]) == ("nightly", 12)
