"""Every way a guarded request can end, and that each is settled once and rightly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.current import current_budget
from llm_budget_mw.engine import Engine
from llm_budget_mw.errors import BudgetExceeded
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.types import Charges, Grant, Refusal, Usage
from tests.deployment import ALICE, SwitchStore, async_store
from tests.edge.driver import (
    ANSWER,
    CHAT,
    DONE,
    OWN,
    QUESTION,
    USAGE_EVENT,
    Bench,
    Exchange,
    answering,
    delta,
    failing,
    streaming,
)

EXACT = Charges(1, 42, 12 * 2500 + 30 * 10_000)
STREAMED = {**QUESTION, "stream": True}


def grade(bench: Bench) -> tuple[str, str]:
    """Return how the one settlement was graded, and how the call ended."""
    assert len(bench.store.settled) == 1
    return bench.settled["grade"], bench.settled["ending"]


async def test_a_complete_answer_is_charged_what_its_usage_says() -> None:
    """The provider's own numbers replace the reservation."""
    bench = Bench(answering(json.dumps(ANSWER).encode()))

    await bench.post()

    assert grade(bench) == ("exact", "complete")
    assert bench.store.charged() == EXACT


async def test_a_complete_stream_is_charged_what_its_usage_says() -> None:
    """The last usage of a stream that ended properly is exact."""
    bench = Bench(streaming(delta("hel"), delta("lo"), USAGE_EVENT, DONE))

    await bench.post(STREAMED)

    assert grade(bench) == ("exact", "complete")
    assert bench.store.charged() == EXACT


async def test_a_complete_stream_without_usage_is_counted() -> None:
    """What was streamed is counted, and the input keeps its bound."""
    bench = Bench(streaming(delta("hel"), delta("lo"), DONE))

    await bench.post(STREAMED)

    assert grade(bench) == ("counted", "complete")
    assert bench.settled["output_tokens"] == len("hello")
    assert bench.settled["input_tokens"] == bench.settled["held_tokens"] - 40


async def test_an_answer_without_usage_keeps_the_reservation() -> None:
    """Absent usage is unknown, never zero."""
    bench = Bench(answering(b'{"choices": []}'))

    await bench.post()

    assert grade(bench) == ("estimated", "complete")
    assert bench.store.charged().tokens == bench.settled["held_tokens"]


async def test_a_stream_that_stops_without_its_terminator_is_cut() -> None:
    """A neat end of the body does not make a stream complete."""
    bench = Bench(streaming(delta("hello")))

    await bench.post(STREAMED)

    assert grade(bench) == ("counted", "cut")


async def test_a_stream_that_breaks_is_charged_what_was_seen() -> None:
    """An exception in the middle reaches the server, and the call is settled all the same."""
    bench = Bench(streaming(delta("hello"), fails=RuntimeError("upstream is gone")))

    with pytest.raises(RuntimeError, match="upstream is gone"):
        await bench.post(STREAMED)

    assert grade(bench) == ("counted", "cut")
    assert bench.settled["output_tokens"] == len("hello")


async def test_a_provider_that_refuses_costs_nothing() -> None:
    """An error without usage gives the reservation back whole."""
    bench = Bench(answering(b'{"error": {}}', status=429))

    await bench.post()

    assert grade(bench) == ("released", "refused_upstream")
    assert bench.store.charged() == Charges(0, 0, 0)


async def test_a_handler_that_fails_before_its_call_costs_nothing() -> None:
    """Nobody was asked, so nothing was used."""
    bench = Bench(failing(ValueError("a bug")))

    with pytest.raises(ValueError, match="a bug"):
        await bench.post()

    assert grade(bench) == ("released", "not_called")


async def test_a_provider_that_never_answers_may_have_billed() -> None:
    """After a time-out the reservation stays charged: the provider may have worked on."""
    bench = Bench(failing(TimeoutError("no answer")))

    with pytest.raises(TimeoutError):
        await bench.post()

    assert grade(bench) == ("estimated", "cut")


async def test_a_framework_that_makes_an_answer_of_a_time_out_changes_nothing() -> None:
    """Starlette answers 500 before it raises again: the call is judged by what was raised."""

    async def handler(request: Request) -> Response:
        raise TimeoutError("no answer")

    bench = Bench(Starlette(routes=[Route(CHAT, handler, methods=["POST"])]))

    with pytest.raises(TimeoutError):
        await bench.post()

    assert grade(bench) == ("estimated", "cut")


class ReadError(Exception):
    """What httpx raises when a connection breaks that it reads from."""


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_provider_that_breaks_off_before_its_answer_may_have_billed(wrapped: bool) -> None:
    """The request had left; an SDK may wrap what its transport raised."""
    error: Exception = ReadError("connection reset")
    if wrapped:
        outer = RuntimeError("of an SDK")
        outer.__cause__, error = error, outer
    bench = Bench(failing(error))

    with pytest.raises(type(error)):
        await bench.post()

    assert grade(bench) == ("estimated", "cut")


@pytest.mark.parametrize("left_after", [1, 2, 3])
async def test_a_client_that_leaves_in_mid_stream_is_charged_what_was_made(left_after: int) -> None:
    """The application is cancelled when the client goes; what it had sent is counted."""
    gone = asyncio.Event()

    async def generate() -> Any:
        for _ in range(3):
            yield delta("abcd")
        gone.set()
        await asyncio.Event().wait()

    async def chat(request: Request) -> Response:
        await request.json()
        return StreamingResponse(generate(), media_type="text/event-stream")

    bench = Bench(Starlette(routes=[Route(CHAT, chat, methods=["POST"])]))

    await bench.post(STREAMED, leave_after=left_after)

    assert grade(bench) == ("counted", "cut")
    assert bench.settled["output_tokens"] % 4 == 0
    assert 0 < bench.settled["output_tokens"] <= 12


async def test_a_request_the_server_cancels_is_settled_before_it_is_gone() -> None:
    """Cancelled before any output: a plain call keeps its hold, for nobody saw what it made."""
    waiting = asyncio.Event()

    async def never(scope: Scope, receive: Receive) -> None:
        waiting.set()
        await asyncio.Event().wait()

    bench = Bench(answering(before=never))
    request = asyncio.create_task(bench.post())
    await waiting.wait()

    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    await bench.guard.close()
    assert grade(bench) == ("estimated", "cut")


@pytest.mark.parametrize("inside", [True, False])
async def test_a_disconnect_under_a_base_http_middleware_is_not_lost(inside: bool) -> None:
    """Such a middleware swallows disconnects and cancels clean-up; the settlement survives."""

    async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    async def generate() -> Any:
        yield delta("abcd")
        await asyncio.Event().wait()

    async def chat(request: Request) -> Response:
        return StreamingResponse(generate(), media_type="text/event-stream")

    layers = [Middleware(BaseHTTPMiddleware, dispatch=passing)]
    inner = Starlette(routes=[Route(CHAT, chat, methods=["POST"])], middleware=layers * inside)
    bench = Bench(inner)
    outer = bench.middleware if inside else BaseHTTPMiddleware(bench.middleware, passing)

    await Exchange(STREAMED, leave_after=1).run(outer)

    await bench.guard.close()
    assert grade(bench) == ("counted", "cut")


async def test_a_handler_that_reports_its_usage_is_charged_that() -> None:
    """On a route with a body of its own, the handler knows what was used."""

    async def report(scope: Scope, receive: Receive) -> None:
        current_budget().record(Usage(7, 5))
        scope["state"]["llm_budget"].record({"prompt_tokens": 1, "completion_tokens": 2})

    bench = Bench(answering(b"fine", before=report))

    await bench.post({"question": "?"}, OWN)

    assert grade(bench) == ("exact", "complete")
    assert bench.store.charged().tokens == 15


async def test_a_handler_that_reports_nothing_is_flagged() -> None:
    """Its reservation is kept, and the event says that nobody reported."""
    bench = Bench(answering(b"fine"))

    await bench.post({"question": "?"}, OWN)

    assert grade(bench) == ("estimated", "unreported")
    assert bench.store.charged().tokens == bench.settled["held_tokens"]


async def test_a_handler_that_answers_an_error_without_a_call_costs_nothing() -> None:
    """A 422 of the application's own validation is no call."""
    bench = Bench(answering(b"wrong", status=422))

    await bench.post({"question": "?"}, OWN)

    assert grade(bench) == ("released", "not_called")


async def test_calls_inside_a_request_are_each_charged_once() -> None:
    """The first draws on the request's reservation, the second is admitted by itself."""

    async def two_calls(scope: Scope, receive: Receive) -> None:
        for _ in range(2):
            async with current_budget().call(**{**QUESTION, "max_tokens": 10}) as call:
                call.record(ANSWER)

    bench = Bench(answering(b"fine", before=two_calls))

    await bench.post({"question": "?"}, OWN)

    assert [charges for _, charges, _ in bench.store.settled] == [EXACT, EXACT]
    assert len({plan_id for plan_id, _, _ in bench.store.settled}) == 2


async def test_calls_on_a_passing_route_are_not_charged_again_from_the_answer() -> None:
    """A handler that calls by itself and passes the answer on has settled each call."""

    async def call_first(scope: Scope, receive: Receive) -> None:
        async with current_budget().call(**QUESTION) as call:
            call.record(ANSWER)

    bench = Bench(answering(json.dumps(ANSWER).encode(), before=call_first))

    await bench.post()

    assert bench.store.charged() == EXACT


async def test_a_long_call_keeps_its_lease() -> None:
    """Half a lease in, the reservation is renewed, for as long as the call runs."""
    renewed = asyncio.Event()

    class Noticing(SwitchStore):
        def renew(self, grant: Grant) -> bool:
            renewed.set()
            return super().renew(grant)

    bench = Bench(answering(json.dumps(ANSWER).encode(), before=lambda *_: renewed.wait()))
    engine = bench.guard.engine
    quick = Engine(engine.policy, engine.prices, engine.estimator, lease_ms=20)
    guard = AsyncGuard(quick, bench.config, async_store(Noticing()), [bench.sink])

    await asyncio.wait_for(Exchange().run(BudgetMiddleware(bench.app, guard=guard)), 10)

    assert bench.settled["grade"] == "exact"


async def test_the_answer_is_out_before_it_is_settled() -> None:
    """Settlement begins after the last byte and never delays it."""
    bench = Bench(answering(json.dumps(ANSWER).encode()))
    exchange = Exchange()
    sent_by_then: list[int] = []
    bench.sink.emit = lambda event: sent_by_then.append(len(exchange.sent))  # type: ignore[method-assign]

    await exchange.run(bench.middleware)

    assert sent_by_then == [3]


async def test_a_call_in_code_keeps_its_lease() -> None:
    """A long call made by a handler or a worker is renewed like a request."""
    renewed = asyncio.Event()

    class Noticing(SwitchStore):
        def renew(self, grant: Grant) -> bool:
            renewed.set()
            return super().renew(grant)

    bench = Bench(answering(b""))
    engine = bench.guard.engine
    quick = Engine(engine.policy, engine.prices, engine.estimator, lease_ms=20)
    guard = AsyncGuard(quick, bench.config, async_store(Noticing()), [bench.sink])

    async with guard.call(ALICE, **QUESTION) as call:
        await asyncio.wait_for(renewed.wait(), 10)
        call.record(ANSWER)

    assert bench.settled["grade"] == "exact"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [({"max_tokens": 1000}, 413, "request_exceeds_budget"), ({"model": "?"}, 400, "unknown_price")],
)
async def test_a_call_refused_inside_a_handler_is_answered_as_such(
    asked: dict[str, Any], status: int, code: str
) -> None:
    """A handler need not catch it: the client gets the refusal, in the words of the route."""

    async def call_more(scope: Scope, receive: Receive) -> None:
        async with current_budget().call(**{**QUESTION, "n": 100, **asked}):
            pass

    bench = Bench(answering(b"", before=call_more), {"tokens": "2000/minute", "min_tokens": 40})

    exchange = await bench.post()

    assert exchange.status == status
    assert exchange.error["code"] == code
    assert bench.store.charged() == Charges(0, 0, 0)


async def test_a_call_refused_after_the_answer_began_is_the_handlers_own() -> None:
    """Half an answer cannot become a refusal."""
    late = BudgetExceeded(Refusal._make([None, None, None, (), None, None, "too late"]))
    bench = Bench(streaming(delta("hello"), fails=late))

    with pytest.raises(BudgetExceeded, match="too late"):
        await bench.post(STREAMED)
