"""Every ending of a guarded request on the sockets of real servers, each settled once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from llm_budget_mw.types import Charges
from tests.asgi.driver import (
    STREAMED,
    HypercornServer,
    RawClient,
    Site,
    UvicornServer,
    commands,
    until,
)
from tests.edge.driver import (
    ANSWER,
    CHAT,
    DONE,
    LIMITS,
    OWN,
    QUESTION,
    USAGE_EVENT,
    Bench,
    delta,
    failing,
)
from tests.servers import ValkeyServer

EXACT = Charges(1, 42, 12 * 2500 + 30 * 10_000)
SERVERS = [pytest.param(UvicornServer, id="uvicorn"), pytest.param(HypercornServer, id="hypercorn")]
real_servers = pytest.mark.parametrize("server", SERVERS)
Endpoint = Callable[[Request], Awaitable[Response]]


def app_of(endpoint: Endpoint) -> ASGIApp:
    """Return an application that answers the guarded paths like this."""
    return Starlette(routes=[Route(path, endpoint, methods=["POST"]) for path in (CHAT, OWN)])


def sse(events: AsyncIterator[bytes], **options: Any) -> StreamingResponse:
    """Return a stream of events as a response."""
    return StreamingResponse(events, media_type="text/event-stream", **options)


def streaming(*events: bytes, fails: Exception | None = None, endless: bool = False) -> Endpoint:
    """Return an endpoint that streams these events, and then ends, breaks or hangs."""

    async def generate() -> AsyncIterator[bytes]:
        for event in events:
            yield event
        if fails is not None:
            raise fails
        if endless:
            await asyncio.Event().wait()

    async def endpoint(request: Request) -> Response:
        await request.json()
        return sse(generate())

    return endpoint


def answering(content: Any, status: int = 200) -> Endpoint:
    """Return an endpoint with this JSON as its answer."""

    async def endpoint(request: Request) -> Response:
        await request.body()
        return JSONResponse(content, status)

    return endpoint


async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Do nothing, in the way of a `BaseHTTPMiddleware`."""
    return await call_next(request)


def ending(bench: Bench) -> tuple[str, str]:
    """Return how the one settlement was graded, and how the call ended, once it has."""
    until(lambda: bench.sink.named("budget.settled"), "a settlement")
    assert len(bench.store.settled) == 1
    return bench.settled["grade"], bench.settled["ending"]


WHOLE: list[Any] = [
    pytest.param(app_of(answering(ANSWER)), QUESTION, ("exact", "complete"), EXACT, id="json"),
    pytest.param(
        app_of(streaming(delta("hello"), USAGE_EVENT, DONE)),
        STREAMED,
        ("exact", "complete"),
        EXACT,
        id="stream",
    ),
    pytest.param(
        app_of(streaming(delta("hello"), DONE)),
        STREAMED,
        ("counted", "complete"),
        None,
        id="no usage",
    ),
    pytest.param(
        app_of(streaming(delta("hello"))), STREAMED, ("counted", "cut"), None, id="no terminator"
    ),
    pytest.param(
        app_of(streaming(delta("hello"), fails=RuntimeError("gone"))),
        STREAMED,
        ("counted", "cut"),
        None,
        id="breaks",
    ),
    pytest.param(
        failing(ValueError("a bug")),
        QUESTION,
        ("released", "not_called"),
        Charges(0, 0, 0),
        id="fails",
    ),
    pytest.param(failing(TimeoutError()), QUESTION, ("estimated", "cut"), None, id="time-out"),
    *[
        pytest.param(
            app_of(answering({"error": {}}, status)),
            QUESTION,
            ("released", "refused_upstream"),
            Charges(0, 0, 0),
            id=str(status),
        )
        for status in (400, 429, 500, 529)
    ],
]


@real_servers
@pytest.mark.parametrize(("app", "body", "expected", "charged"), WHOLE)
def test_an_ending_on_a_socket_is_settled_as_it_was(
    server: Any, app: ASGIApp, body: Any, expected: Any, charged: Charges | None
) -> None:
    """Once, with its grade, and to the nano-dollar where the provider said what it used."""
    bench = Bench(app)

    with server(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(body, CHAT, "connection: close")
        client.read_all()
        assert ending(bench) == expected

    assert charged is None or bench.store.charged() == charged


def test_a_broken_stream_looks_broken_to_the_client() -> None:
    """What was sent arrives, and the body has no end that would make it look whole."""
    bench = Bench(app_of(streaming(delta("hello"), fails=RuntimeError("gone"))))

    with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        seen = client.read_all()

    assert delta("hello") in seen
    assert not seen.endswith(b"0\r\n\r\n")


@real_servers
def test_who_leaves_before_the_first_byte_pays_for_the_input(server: Any) -> None:
    """Of a stream nobody saw a byte of, at least the input was used."""
    bench = Bench(app_of(streaming(endless=True)))

    with server(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        until(lambda: bench.store.plans, "an admission")
        client.leave()
        assert ending(bench) == ("counted", "cut")

    assert bench.settled["output_tokens"] == 0
    assert bench.settled["input_tokens"] > 0


@real_servers
@pytest.mark.parametrize("wrapped", ["bare", "inside", "outside"])
def test_who_leaves_in_mid_stream_pays_for_what_was_made(server: Any, wrapped: str) -> None:
    """Also where a `BaseHTTPMiddleware` stands inside or outside and swallows the leave."""
    app: ASGIApp = app_of(streaming(delta("hello"), endless=True))
    bench = Bench(BaseHTTPMiddleware(app, passing) if wrapped == "inside" else app)
    outer: ASGIApp = bench.middleware
    if wrapped == "outside":
        outer = BaseHTTPMiddleware(outer, passing)

    with server(outer) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        assert b"hello" in client.read_until(b"hello")
        client.leave()
        assert ending(bench) == ("counted", "cut")

    assert bench.settled["output_tokens"] == len("hello")


@real_servers
def test_who_leaves_after_the_last_byte_pays_what_was_used(server: Any) -> None:
    """A connection reset at the end of an answer changes nothing."""
    bench = Bench(app_of(streaming(delta("hello"), USAGE_EVENT, DONE)))

    with server(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        client.read_until(DONE)
        client.leave()
        assert ending(bench) == ("exact", "complete")

    assert bench.store.charged() == EXACT


@pytest.mark.parametrize("inside", [True, False])
def test_a_neat_end_made_up_by_a_middleware_does_not_make_a_stream_complete(inside: bool) -> None:
    """`BaseHTTPMiddleware` ends the body of a stream properly that was cut."""
    app: ASGIApp = app_of(streaming(delta("hello")))
    bench = Bench(BaseHTTPMiddleware(app, passing) if inside else app)
    outer = bench.middleware if inside else BaseHTTPMiddleware(bench.middleware, passing)

    with UvicornServer(outer) as running, RawClient(running.url) as client:
        client.ask(STREAMED, CHAT, "connection: close")
        assert client.read_all().endswith(b"0\r\n\r\n")

    assert ending(bench) == ("counted", "cut")


def test_a_server_that_stops_settles_what_it_cancels() -> None:
    """Requests cancelled at the shutdown are in the books before the lifespan ends."""
    bench = Bench(app_of(streaming(delta("hello"), endless=True)))

    with UvicornServer(bench.middleware, grace_s=0) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        client.read_until(b"hello")
        running.stop()

        assert ending(bench) == ("counted", "cut")
        assert bench.store.closed


def test_a_plain_answer_nobody_waits_for_is_still_charged_exactly() -> None:
    """The provider has answered and billed, whether or not the client is there to hear it."""
    gone = asyncio.Event()

    async def slow(request: Request) -> Response:
        await request.body()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return JSONResponse(ANSWER)

    bench = Bench(app_of(slow))

    with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(QUESTION)
        until(lambda: bench.store.plans, "an admission")
        client.leave()
        assert ending(bench) == ("exact", "complete")

    assert gone.is_set()
    assert bench.store.charged() == EXACT


def test_a_background_task_runs_and_delays_no_settlement() -> None:
    """The call is in the books while the background task still runs."""
    seen: list[str] = []

    def look(bench: Bench) -> None:  # in a thread
        until(lambda: bench.sink.named("budget.settled"), "a settlement")
        seen.append("settled")

    async def endpoint(request: Request) -> Response:
        return JSONResponse(ANSWER, background=BackgroundTask(look, bench))

    bench = Bench(app_of(endpoint))

    with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(QUESTION, CHAT, "connection: close")
        client.read_all()
        until(lambda: seen, "the end of the background task")

    assert ending(bench) == ("exact", "complete")


def test_a_handler_that_reports_nothing_is_flagged() -> None:
    """On a route with a body of its own the estimate stays charged, and the event says so."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("fine")

    bench = Bench(app_of(endpoint))

    with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
        client.ask({"question": "?"}, OWN, "connection: close")
        assert client.read_all().endswith(b"fine")

    assert ending(bench) == ("estimated", "unreported")
    assert bench.store.charged().tokens == bench.settled["held_tokens"]


@pytest.mark.parametrize("leaves", [True, False])
def test_one_request_is_two_scripts(leaves: bool, valkey: ValkeyServer) -> None:
    """One admission and one settlement, however it ends, and nothing is held afterwards."""
    no_slot = {**LIMITS, "on_outage": {"budget": "open"}}
    site = Site(app_of(streaming(delta("hello"), endless=leaves)), no_slot, url=valkey.url)

    with UvicornServer(site.app) as running:
        for count in (1, 2):
            before = commands(valkey, "eval", "evalsha")
            with RawClient(running.url) as client:
                client.ask(STREAMED, CHAT, "connection: close")
                client.read_until(b"hello")
                client.leave()
                site.settled(count)

    # The first round also had to load the scripts.
    assert commands(valkey, "eval", "evalsha") - before == 2


def test_a_call_longer_than_its_lease_keeps_its_slot(valkey: ValkeyServer) -> None:
    """The lease is renewed while the call runs, so nobody else gets its place."""
    app = app_of(streaming(delta("hello"), endless=True))
    site = Site(app, {"concurrency": 1}, url=valkey.url, lease_ms=600)

    with UvicornServer(site.app) as running, RawClient(running.url) as client:
        client.ask(STREAMED)
        client.read_until(b"hello")
        before = commands(valkey, "eval", "evalsha")
        until(lambda: commands(valkey, "eval", "evalsha") >= before + 5, "five renewals")
        with RawClient(running.url) as other:
            other.ask(STREAMED)
            assert other.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 429")


def test_json_in_pieces_over_a_socket_is_read_whole() -> None:
    """An answer that arrives in single bytes is charged like one in one piece."""
    raw = json.dumps(ANSWER).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(len(raw)):
            yield raw[at : at + 1]

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="application/json")

    bench = Bench(app_of(endpoint))

    with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
        client.ask(QUESTION, CHAT, "connection: close")
        client.read_all()

    assert ending(bench) == ("exact", "complete")
