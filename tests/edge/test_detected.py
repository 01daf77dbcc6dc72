"""Requests below a prefix without a dialect, from end to end."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.edge.driver import ANSWER, DONE, QUESTION, USAGE_EVENT, Bench

IMAGES = "/v1/images/generations"
CHARGED = 12 * 2_500 + 30 * 10_000


def bench(answer: dict[str, Any] | list[bytes], *, squeezed: bool = False, **options: Any) -> Bench:
    """Guard all below `/v1/`, whatever it is; the application answers all of it alike."""

    async def endpoint(request: Request) -> Response:
        if isinstance(answer, list):
            # Starlette leaves streams of events alone; a handler that passes on may not.
            headers = {"content-encoding": "gzip"} if squeezed else {}
            return StreamingResponse(iter(answer), 200, headers, "text/event-stream")
        return JSONResponse(answer)

    squeezing = [Middleware(GZipMiddleware, minimum_size=1)] if squeezed else []
    routes = [Route("/{path:path}", endpoint, methods=["GET", "POST"])]
    own = {"path": "/v1/*", "feature": "all", **options}
    return Bench(Starlette(routes=routes, middleware=squeezing), routes=[own])


async def test_a_path_that_tells_its_dialect_is_read_and_charged() -> None:
    """As if it had a route of its own."""
    guarded = bench(ANSWER)

    exchange = await guarded.post(path="/v1/chat/completions")

    assert exchange.status == 200
    assert (guarded.settled["grade"], guarded.settled["cost_nano"]) == ("exact", CHARGED)


async def test_an_unknown_path_is_refused_once_it_is_known_who_asks() -> None:
    """Nothing is reserved and nothing reaches the application; the SDK can read why."""
    guarded = bench(ANSWER)

    nobody = await guarded.post(path=IMAGES, token=None)
    exchange = await guarded.post(path=IMAGES)

    assert (nobody.status, exchange.status) == (401, 404)
    assert json.loads(exchange.body)["error"]["code"] == "unknown_route"
    assert guarded.store.plans == []
    assert [event["status"] for event in guarded.sink.named("budget.denied")] == [401, 404]


async def test_an_unknown_path_may_be_reserved_as_custom() -> None:
    """And costs what was reserved, as nobody reports."""
    guarded = bench({}, unknown_route="custom", model="big", input_tokens=100, max_tokens=50)

    exchange = await guarded.post(path=IMAGES)

    assert exchange.status == 200
    cost = 116 * 2_500 + 50 * 10_000
    assert (guarded.settled["grade"], guarded.settled["cost_nano"]) == ("estimated", cost)


async def test_an_unknown_path_may_pass() -> None:
    """Without a budget, and without a credential."""
    guarded = bench({"data": []}, unknown_route="pass")

    exchange = await guarded.post(path=IMAGES, token=None)

    assert (exchange.status, exchange.body) == (200, b'{"data":[]}')
    assert guarded.store.plans == []
    assert (await guarded.post(path="/v1/chat/completions", token=None)).status == 401


async def test_what_is_read_costs_nothing() -> None:
    """A list of models, by a method that is not guarded."""
    assert (await bench(ANSWER).post(path="/v1/models", method="GET", token=None)).status == 200


# --- compressed by the application


ZIPPED = (("accept-encoding", "gzip"),)


async def test_a_compressed_answer_is_charged_exactly() -> None:
    """What the client gets is what the application made of it."""
    guarded = bench(ANSWER, squeezed=True)

    exchange = await guarded.post(path="/v1/chat/completions", headers=ZIPPED)

    assert json.loads(gzip.decompress(exchange.body)) == ANSWER
    assert (guarded.settled["grade"], guarded.settled["cost_nano"]) == ("exact", CHARGED)


@pytest.mark.parametrize("asks", [True, False])
async def test_a_compressed_stream_is_charged_exactly(asks: bool) -> None:
    """Nothing is taken out of it, as it cannot be changed in passing."""
    stream = gzip.compress(USAGE_EVENT + DONE)
    guarded = bench([stream[:9], stream[9:]], squeezed=True)
    body = {**QUESTION, "stream": True, "stream_options": {"include_usage": asks}}

    exchange = await guarded.post(body, path="/v1/chat/completions")

    assert exchange.body == stream
    assert (guarded.settled["grade"], guarded.settled["cost_nano"]) == ("exact", CHARGED)
