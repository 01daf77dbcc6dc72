"""Starlette without FastAPI: the core's own middleware, wherever Starlette takes one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.testclient import TestClient

from llm_budget_mw import AsyncGuard, BudgetMiddleware, current_budget
from llm_budget_mw.testing import Issuer, RecordingSink
from tests.deployment import SwitchStore, async_store, configured

ISSUER = Issuer()
HEADERS = {"authorization": f"Bearer {ISSUER.token('alice')}"}


class Parts:
    """The middleware as Starlette is given it, and what its store and its sink have seen."""

    def __init__(self, **tier: Any) -> None:
        self.store, self.sink = SwitchStore(), RecordingSink()
        route = {"path": "/v1/*", "dialect": "custom", "model": "small", "input_tokens": 100}
        config = configured(
            {"requests": "9/day", "max_tokens": 50, **tier}, jwt=ISSUER.config(), routes=[route]
        )
        guard = AsyncGuard.open(config, store=async_store(self.store), sinks=[self.sink])
        self.middleware = Middleware(BudgetMiddleware, guard=guard)


async def ask(request: Request) -> Response:
    request.state.llm_budget.record({"prompt_tokens": 7, "completion_tokens": 5})
    return JSONResponse(current_budget().model)


async def ask_for_more(request: Request) -> Response:
    messages = [{"role": "user", "content": "x" * 9000}]
    async with current_budget().call(model="small", messages=messages):
        return PlainTextResponse("too much")


def around_the_application(parts: Parts, endpoint: Any) -> Starlette:
    routes = [Route("/v1/ask", endpoint, methods=["POST"])]
    return Starlette(routes=routes, middleware=[parts.middleware])


def around_a_route(parts: Parts, endpoint: Any) -> Starlette:
    route = Route("/v1/ask", endpoint, methods=["POST"], middleware=[parts.middleware])
    return Starlette(routes=[route])


def around_a_mount(parts: Parts, endpoint: Any) -> Starlette:
    routes = [Route("/ask", endpoint, methods=["POST"])]
    return Starlette(routes=[Mount("/v1", routes=routes, middleware=[parts.middleware])])


def around_a_router(parts: Parts, endpoint: Any) -> Starlette:
    router = Router([Route("/ask", endpoint, methods=["POST"])], middleware=[parts.middleware])
    return Starlette(routes=[Mount("/v1", router)])


def outside_a_mounted_application(parts: Parts, endpoint: Any) -> Starlette:
    mounted = Starlette(routes=[Route("/ask", endpoint, methods=["POST"])])
    return Starlette(routes=[Mount("/v1", mounted)], middleware=[parts.middleware])


def inside_a_mounted_application(parts: Parts, endpoint: Any) -> Starlette:
    routes = [Route("/ask", endpoint, methods=["POST"])]
    mounted = Starlette(routes=routes, middleware=[parts.middleware])
    return Starlette(routes=[Mount("/v1", mounted)])


PLACES = [
    around_the_application,
    around_a_route,
    around_a_mount,
    around_a_router,
    outside_a_mounted_application,
    inside_a_mounted_application,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_request_is_guarded_wherever_the_middleware_stands(place: Any) -> None:
    """Admitted and settled once; the second is refused with the headers of every refusal."""
    parts = Parts(requests="1/day")
    client = TestClient(place(parts, ask), headers=HEADERS)

    answers = [client.post("/v1/ask") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].json() == "small"
    assert {"ratelimit", "retry-after"} <= set(answers[1].headers)
    assert [settled["total_tokens"] for settled in parts.sink.settled] == [12]


@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_is_refused_inside_is_answered_as_a_refusal(place: Any) -> None:
    """Also from a mounted application, which answers 500 on its way to raise what it was."""
    parts = Parts(tokens="1000/day")

    answer = TestClient(place(parts, ask_for_more), headers=HEADERS).post("/v1/ask")

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert parts.store.charged().requests == 0


@pytest.mark.parametrize("place", [around_the_application, outside_a_mounted_application])
def test_a_bug_is_still_answered_as_one(place: Any) -> None:
    """By whatever application it happens in; the error reaches the server as ever."""

    async def broken(request: Request) -> Response:
        raise ValueError("a bug")

    parts = Parts()
    client = TestClient(place(parts, broken), headers=HEADERS, raise_server_exceptions=False)
    strict = TestClient(place(Parts(), broken), headers=HEADERS)

    assert client.post("/v1/ask").text == "Internal Server Error"
    assert parts.store.charged().requests == 0
    with pytest.raises(ValueError, match="a bug"):
        strict.post("/v1/ask")


def test_a_mounted_applications_page_for_bugs_is_kept() -> None:
    """With the limits, as it is the answer to an admitted request."""

    async def broken(request: Request) -> Response:
        raise ValueError("a bug")

    async def page(request: Request, error: Exception) -> Response:
        return PlainTextResponse("our own page", 500)

    parts = Parts()
    mounted = Starlette(
        routes=[Route("/ask", broken, methods=["POST"])], exception_handlers={Exception: page}
    )
    app = Starlette(routes=[Mount("/v1", mounted)], middleware=[parts.middleware])
    answer = TestClient(app, headers=HEADERS, raise_server_exceptions=False).post("/v1/ask")

    assert (answer.status_code, answer.text) == (500, "our own page")
    assert "ratelimit" in answer.headers


async def test_a_stream_of_status_500_is_not_held_back() -> None:
    """Only a whole answer can be a mounted application's on its way to raise."""
    parts, log = Parts(), list[str]()

    async def streamed(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in ("a", "b"):
                log.append(f"made {piece}")
                yield piece.encode()

        return StreamingResponse(pieces(), 500)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        if message.get("body"):
            log.append(f"sent {message['body'].decode()}")

    head = {"type": "http", "method": "POST", "path": "/v1/ask", "query_string": b""}
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    app = around_the_application(parts, streamed)
    await app({**head, "headers": headers, "asgi": {"spec_version": "2.4"}}, receive, send)

    assert log == ["made a", "sent a", "made b", "sent b"]


def test_an_answer_of_500_is_passed_on_as_any_other() -> None:
    """Whole or streamed, with the headers of the limits."""

    async def whole(request: Request) -> Response:
        return PlainTextResponse("broken", 500)

    async def streamed(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"bro"
            yield b"ken"

        return StreamingResponse(pieces(), 500)

    for endpoint in (whole, streamed):
        parts = Parts()
        client = TestClient(around_the_application(parts, endpoint), headers=HEADERS)
        answer = client.post("/v1/ask")
        assert (answer.status_code, answer.text) == (500, "broken")
        assert "ratelimit" in answer.headers
        assert len(parts.sink.settled) == 1


def test_the_lifespan_is_the_applications_and_the_store_is_closed() -> None:
    """Its state reaches the handler; the store outlives the requests and no longer."""
    parts = Parts()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, str], None]:
        yield {"name": "kept"}
        assert not parts.store.closed  # the last thing an application does may need it

    async def name(request: Request) -> Response:
        await ask(request)
        return PlainTextResponse(request.state.name)

    routes = [Route("/v1/ask", name, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[parts.middleware], lifespan=lifespan)
    with TestClient(app, headers=HEADERS) as client:
        assert client.post("/v1/ask").text == "kept"
        assert not parts.store.closed

    assert parts.store.closed
