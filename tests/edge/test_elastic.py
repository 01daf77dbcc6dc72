"""Streams that hold what is expected of them, grow, and end where no more can be held."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from itertools import count
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_budget_mw.current import current_budget
from llm_budget_mw.elastic import StoppedError
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.outputs import Outputs, bucket_of, name_of
from llm_budget_mw.stores.memory import AsyncMemoryStore
from llm_budget_mw.types import Grant
from tests.deployment import ALICE, SwitchStore, configured
from tests.edge.driver import (
    CHAT,
    DONE,
    QUESTION,
    USAGE,
    USAGE_EVENT,
    Bench,
    Exchange,
    answering,
    delta,
    streaming,
)

ASKED = {**QUESTION, "stream": True, "max_tokens": 4000}
WITH_USAGE = {**ASKED, "stream_options": {"include_usage": True}}
INPUT = 35
"""Tokens that are held for the question."""
EXPECTED = 45
"""What is held for an answer, of which nine in ten were 40 tokens long or shorter."""
WORD = "word "
LAST = b'"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'


def elastic(app: ASGIApp, tokens: int = 100_000, **sections: Any) -> Bench:
    """Return an application on an elastic route that has learned how long answers are."""
    route = {"path": CHAT, "dialect": "openai_chat", "hold": "elastic"}
    tier: dict[str, Any] = {"tokens": f"{tokens}/day", "max_tokens": 4000, "concurrency": 100}
    bench = Bench(app, {**tier, **sections.pop("tier", {})}, routes=[route], **sections)
    learn(bench)
    return bench


def learn(bench: Bench, tokens: int = 40) -> None:
    bench.guard.outputs.learn({name_of(CHAT, "big"): {bucket_of(tokens): 20}})


def words(number: int) -> list[bytes]:
    return [delta(WORD)] * number


def said(body: bytes) -> str:
    """Return the text of a stream."""
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    choices = [json.loads(event)["choices"] for event in events]
    return "".join(each[0]["delta"].get("content", "") for each in choices if each)


async def turns(number: int) -> None:
    """Let everything that can go on do so."""
    for _ in range(number):
        await asyncio.sleep(0)


def held_now(bench: Bench) -> int:
    """Return the tokens the store still holds for anybody."""
    admission = bench.store.admit(bench.guard.engine.glance(ALICE))
    return int(sum(admission.counters[2::5]))


async def test_holds_what_is_expected() -> None:
    """Of a bound of 4000 tokens 45 are held, and the bound is what the provider is told."""
    told: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(json.loads((await receive())["body"])["max_completion_tokens"])
        await streaming(*words(3), USAGE_EVENT, DONE, before=nothing)(scope, receive, send)

    bench = elastic(app)
    answer = await bench.post({**ASKED, "max_tokens": None})

    assert told == [4000]
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 100_000 - INPUT - EXPECTED
    assert (bench.settled["held_tokens"], bench.settled["max_tokens"]) == (INPUT + EXPECTED, 4000)
    assert (bench.settled["grown"], bench.settled["ending"]) == (0, "complete")
    assert bench.settled["grade"] == "exact"


async def nothing(scope: Scope, receive: Receive) -> None:
    """Take no request: it was taken already."""


async def test_a_long_answer_grows_and_passes_unchanged() -> None:
    """Ten times what was expected: every byte is there, and the reservation covered it."""
    stream = [*words(90), USAGE_EVENT, DONE]
    bench = elastic(streaming(*stream))
    answer = await bench.post(WITH_USAGE)

    assert answer.body == b"".join(stream)
    assert bench.settled["grown"] >= 2
    assert bench.settled["held_tokens"] >= INPUT + 90 * len(WORD)
    assert (bench.settled["ending"], bench.settled["overrun"]) == ("complete", False)
    assert held_now(bench) == 0


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
@pytest.mark.parametrize("room", [EXPECTED, 46, 60, 100, 399])
async def test_ends_at_an_event_where_no_more_is_held(room: int, size: int) -> None:
    """Cut anyhow on the way, it ends between two events, with all that is held passed on."""
    stream = b"".join([*words(100), USAGE_EVENT, DONE])
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    bench = elastic(streaming(*pieces), INPUT + room)
    answer = await bench.post(WITH_USAGE)

    passed = room // len(WORD)
    assert answer.body.startswith(b"".join(words(passed)))
    assert answer.body.endswith(LAST)
    assert said(answer.body) == WORD * passed
    assert answer.body.count(b"data: ") == passed + 2
    assert answer.sent[-1]["more_body"] is False
    assert bench.settled["ending"] == "stopped"
    assert bench.settled["total_tokens"] == INPUT + passed * len(WORD)
    assert bench.settled["held_tokens"] <= INPUT + room
    assert held_now(bench) == 0


async def test_a_hold_that_is_short_from_the_beginning_is_the_bound() -> None:
    """Where not even what is expected is left, the provider is told to stop in time."""
    told: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(json.loads((await receive())["body"])["max_tokens"])
        await streaming(*words(6), before=nothing)(scope, receive, send)

    bench = elastic(app, INPUT + 30)
    await bench.post(ASKED)

    assert told == [30]
    assert bench.settled["max_tokens"] == 30


async def test_unknown_answers_are_held_in_full() -> None:
    """Until twenty are known, a call holds its bound; what it learns is learned in passing."""
    bench = elastic(streaming(*words(3), USAGE_EVENT, DONE))
    bench.guard.outputs = Outputs(count(0, 10).__next__)
    held: list[int] = []
    for _ in range(22):
        bench.sink.events.clear()
        await bench.post(ASKED)
        await turns(10)
        held.append(bench.settled["held_tokens"])

    assert held == [INPUT + 4000] * 20 + [INPUT + 32] * 2


async def test_a_new_process_learns_what_others_know() -> None:
    """The first call of a process asks for it, in the background."""
    bench = elastic(streaming(*words(3), USAGE_EVENT, DONE))
    bench.store.learn({name_of(CHAT, "big"): {bucket_of(40): 20}})
    bench.guard.outputs = Outputs()
    await bench.post(ASKED)
    await turns(10)
    bench.sink.events.clear()
    await bench.post(ASKED)

    assert bench.settled["held_tokens"] == INPUT + EXPECTED


async def test_a_call_that_is_not_streamed_holds_all() -> None:
    """There is nothing to grow with."""
    bench = elastic(streaming())
    await bench.post({**ASKED, "stream": False})

    assert bench.settled["held_tokens"] == INPUT + 4000


async def test_the_last_words_cost_nothing() -> None:
    """The chunk that reports more usage than is held passes: nothing is generated with it."""
    usage = {**USAGE, "completion_tokens": 900, "total_tokens": 912}
    report = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    stream = [*words(3), report, DONE]
    bench = elastic(streaming(*stream), INPUT + 50)
    answer = await bench.post(WITH_USAGE)

    assert answer.body == b"".join(stream)
    assert (bench.settled["ending"], bench.settled["output_tokens"]) == ("complete", 900)


async def test_what_the_provider_counts_is_held() -> None:
    """Reasoning nobody sees counts as soon as it is reported."""
    usage = {**USAGE, "completion_tokens": 300, "total_tokens": 312}
    chunk = {"choices": [{"index": 0, "delta": {"content": WORD}}], "usage": usage}
    report = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    stream = [*words(1), report, *words(1), USAGE_EVENT, DONE]
    bench = elastic(streaming(*stream))
    await bench.post(WITH_USAGE)
    assert bench.settled["held_tokens"] >= INPUT + 300

    short = elastic(streaming(*stream), INPUT + 299)
    answer = await short.post(WITH_USAGE)
    assert said(answer.body) == WORD


async def test_an_error_is_passed_on() -> None:
    """The provider's refusal is no stream, and nothing is held for it."""
    bench = elastic(streaming(b'{"error":{}}', status=429), INPUT + EXPECTED)
    answer = await bench.post(ASKED)

    assert answer.body == b'{"error":{}}'
    assert bench.settled["grade"] == "released"


async def test_a_compressed_stream_is_unfolded() -> None:
    """It could not be ended otherwise; the client is told that it is not compressed."""
    stream = b"".join([*words(100), DONE])
    inner = streaming(gzip.compress(stream))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def coded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-encoding", b"gzip"))
            await send(message)

        await inner(scope, receive, coded)

    answer = await elastic(app, INPUT + 50).post(ASKED)

    assert "content-encoding" not in answer.headers
    assert said(answer.body) == WORD * 10
    assert answer.body.endswith(LAST)


@pytest.mark.parametrize(
    ("kind", "room", "passed"),
    [
        ("application/json", 4000, b"opaque"),
        ("application/json", 3999, b""),
        ("text/plain", 60, b"opaque"),
    ],
)
async def test_what_cannot_be_read_needs_all_of_its_bound(
    kind: str, room: int, passed: bytes
) -> None:
    """Of an answer in one piece nothing is passed on, if not all of it can be held."""
    bench = elastic(answering(b"opaque", kind=kind), INPUT + room)
    answer = await bench.post(ASKED)

    assert answer.body == passed


@pytest.mark.parametrize(
    ("rule", "share", "ending", "heard"),
    [
        ("open", 0.05, "complete", 100),
        ("closed", 0.05, "stopped", 9),
        ("local", 0.01, "complete", 100),
        ("local", 0.001, "stopped", 13),
    ],
)
async def test_the_store_goes_away_in_the_middle(
    rule: str, share: float, ending: str, heard: int
) -> None:
    """Where the store does not answer, the outage rule of the limits decides."""

    async def away(scope: Scope, receive: Receive) -> None:
        bench.store.down = True

    on_outage = {"requests": "open", "tokens": rule, "budget": "open", "concurrency": "open"}
    app = streaming(*words(100), DONE, before=away)
    bench = elastic(app, tier={"on_outage": on_outage, "local_share": share})
    answer = await bench.post(ASKED)

    assert said(answer.body) == WORD * heard
    assert bench.settled["ending"] == ending


class Generator:
    """An answer that notes how much of it was taken, and when it is closed."""

    def __init__(self) -> None:
        self.given = 0
        self.closed = False

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            for word in words(1000):
                self.given += 1
                if self.given == 9:
                    gc.collect()  # all there is by now is old
                yield word
        finally:
            self.closed = True


class Between(BaseHTTPMiddleware):
    """One of the middlewares that take an answer apart and put it together again."""

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        return await call_next(request)


def starlette(generator: Generator) -> ASGIApp:
    async def answer(request: Request) -> Response:
        return StreamingResponse(generator.stream(), media_type="text/event-stream")

    return Starlette(routes=[Route(CHAT, answer, methods=["POST"])])


def fastapi(generator: Generator) -> ASGIApp:
    app = FastAPI()

    @app.post(CHAT)
    async def answer(request: Request) -> StreamingResponse:
        return StreamingResponse(generator.stream(), media_type="text/event-stream")

    app.add_middleware(Between)
    return app


def by_hand(generator: Generator) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in generator.stream():
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    return app


@pytest.mark.parametrize("version", ["2.3", "2.4"])
@pytest.mark.parametrize("framework", [starlette, fastapi, by_hand])
async def test_the_handler_is_ended_too(
    framework: Callable[[Generator], ASGIApp], version: str
) -> None:
    """Whoever generates the stream is closed at once, and nothing is raised to the server."""
    generator = Generator()
    bench = elastic(framework(generator), INPUT + 50)
    exchange = Exchange(ASKED)
    exchange.scope["asgi"] = {"version": "3.0", "spec_version": version}
    await exchange.run(bench.middleware)
    await turns(10)

    assert said(exchange.body) == WORD * 10
    assert exchange.body.endswith(LAST)
    assert generator.closed
    assert generator.given <= 14
    assert bench.settled["ending"] == "stopped"


async def test_a_handler_that_goes_on_is_told_again() -> None:
    """Nothing it sends after the end leaves, and its own errors are its own."""
    refused: list[type[BaseException]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for word in words(20):
            try:
                await send({"type": "http.response.body", "body": word, "more_body": True})
            except OSError as error:
                refused.append(type(error))
        raise LookupError("a bug")

    bench = elastic(app, INPUT + 50)
    exchange = Exchange(ASKED)
    with pytest.raises(LookupError):
        await exchange.run(bench.middleware)

    assert refused == [StoppedError] * 10
    assert said(exchange.body) == WORD * 10


class SlowStore(AsyncMemoryStore):
    """A store whose growth waits until it is let go."""

    def __init__(self, store: SwitchStore) -> None:
        super().__init__(store)
        self.asked = 0
        self.go = asyncio.Event()

    async def grow(self, grant: Grant, output: int) -> int:
        self.asked += 1
        await self.go.wait()
        return await super().grow(grant, output)


def slow(bench: Bench) -> SlowStore:
    store = SlowStore(bench.store)
    bench.guard.store = store
    return store


async def test_it_grows_ahead_of_need() -> None:
    """More is asked for while there is still something to pass on, and nothing waits for it."""
    sent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Any) -> None:
            await send(message)
            await asyncio.sleep(0)
            sent.append(store.asked)

        await streaming(*words(8))(scope, receive, noting)

    bench = elastic(app)
    store = slow(bench)
    asking = asyncio.create_task(bench.post(ASKED))
    await turns(200)
    assert len(sent) > 8
    store.go.set()
    answer = await asking

    # The head, and six words: the seventh is beyond three quarters of 45.
    assert sent[:9] == [0] * 7 + [1, 1]
    assert said(answer.body) == WORD * 8


async def test_what_is_not_covered_is_held_back() -> None:
    """Not a byte more than is held leaves while the store thinks about it."""
    bench = elastic(streaming(*words(100), DONE))
    store = slow(bench)
    exchange = Exchange(ASKED)
    asking = asyncio.create_task(exchange.run(bench.middleware))
    await turns(200)

    assert said(exchange.body) == WORD * (EXPECTED // len(WORD))
    store.go.set()
    await asking
    assert said(exchange.body) == WORD * 100


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_client_that_leaves_while_it_grows_leaks_nothing(cancelled: bool) -> None:
    """Cancelled or not, before or after the store has answered: nothing stays held."""
    bench = elastic(streaming(*words(100), DONE))
    store = slow(bench)
    exchange = Exchange(ASKED)
    asking = asyncio.create_task(exchange.run(bench.middleware))
    await turns(200)
    assert store.asked == 1
    if cancelled:
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert bench.settled["ending"] == "cut"
    store.go.set()
    await asyncio.gather(asking, return_exceptions=True)
    await bench.guard.close()

    assert held_now(bench) == 0
    assert len(bench.store.settled) == 1


async def test_calls_inside_pay_for_themselves() -> None:
    """A handler that streams what its own guarded call gets is not counted twice."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with current_budget().call(messages=[{"role": "user", "content": "hi"}]) as call:
            assert call.max_tokens == 4000
            call.record({"usage": USAGE})
        await streaming(*words(100), DONE, before=nothing)(scope, receive, send)

    bench = elastic(app, 9000)
    answer = await bench.post(ASKED)

    assert said(answer.body) == WORD * 100
    assert bench.store.charged().tokens == USAGE["total_tokens"]
    assert held_now(bench) == 0


async def test_two_choices_share_what_is_held() -> None:
    """With n = 2 twice as much is held, and passed on in whatever shares."""
    bench = elastic(streaming(*words(100), DONE), INPUT + 100)
    answer = await bench.post({**ASKED, "n": 2})

    assert said(answer.body) == WORD * 20
    assert bench.settled["total_tokens"] == INPUT + 100


@pytest.mark.parametrize("tokens", [64 * (INPUT + EXPECTED), 40 * (INPUT + 100), 9000])
async def test_many_at_once_never_pass_on_more_than_is_held(tokens: int) -> None:
    """64 streams on one limit: together they pass on what it has, and commit no more."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def taking_turns(message: Any) -> None:
            await asyncio.sleep(0)
            await send(message)

        bound = json.loads((await receive())["body"])["max_tokens"]
        stream = [*words(min(60, bound // len(WORD))), DONE]
        await streaming(*stream, before=nothing)(scope, receive, taking_turns)

    bench = elastic(app, tokens)
    answers = await asyncio.gather(*(bench.post(ASKED) for _ in range(64)))

    served = [each for each in answers if each.status == 200]
    passed = sum(len(said(each.body)) for each in served)
    committed = sum(event["total_tokens"] for event in bench.sink.named("budget.settled"))
    assert committed == len(served) * INPUT + passed <= tokens
    assert all(each.body.endswith((LAST, DONE)) for each in served)
    assert held_now(bench) == 0
    assert len(served) >= min(64, tokens // (INPUT + EXPECTED)) // 2


@pytest.mark.parametrize("dialect", ["custom", "openai_embeddings"])
def test_a_route_without_streams_cannot_be_elastic(dialect: str) -> None:
    """The configuration says so."""
    route: Mapping[str, Any] = {"path": "/x", "dialect": dialect, "hold": "elastic"}
    with pytest.raises(ConfigurationError, match="hold"):
        configured(routes=[route])
