"""What passes through the middleware, and that nothing else of it changes."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

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
    streaming,
)

STREAMED = {**QUESTION, "stream": True}


async def received(body: Any, **options: Any) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    """Return the body and the headers that the application is given."""
    seen: list[tuple[bytes, dict[bytes, bytes]]] = []

    async def look(scope: Scope, receive: Receive) -> None:
        message = await receive()
        assert not message["more_body"]
        seen.append((message["body"], dict(scope["headers"])))

    await Bench(answering(b"{}", before=look)).post(body, **options)
    return json.loads(seen[0][0]), seen[0][1]


async def test_the_grant_is_written_into_the_request() -> None:
    """The application is given the bound that was reserved, and a length that fits."""
    body, headers = await received({**QUESTION, "max_tokens": 100_000})

    assert body["max_tokens"] == 1024
    assert headers[b"content-length"] == str(len(json.dumps(body, separators=(",", ":")))).encode()


async def test_what_is_priced_is_what_the_provider_gets() -> None:
    """Of two keys of one name, the one that was read is the only one that goes on."""
    raw = b'{"max_tokens":9,"model":"small","messages":[{"role":"user","content":"x"}],"max_tokens":5}'

    body, _ = await received(raw)

    assert body["max_tokens"] == 5


async def test_a_compressed_request_is_passed_on_plain() -> None:
    """What was decoded to be read is not compressed again."""
    packed = gzip.compress(json.dumps(QUESTION).encode())

    body, headers = await received(packed, headers=(("content-encoding", "gzip"),))

    assert body["messages"] == QUESTION["messages"]
    assert b"content-encoding" not in headers


async def test_a_body_in_pieces_is_given_in_one() -> None:
    """A request that arrives in pieces is read whole before it is admitted."""
    body, _ = await received(QUESTION, parts=7)

    assert body["messages"] == QUESTION["messages"]


async def test_the_application_sees_the_client_leave() -> None:
    """After the body, what the server has to say is passed on."""
    messages: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        messages.extend([(await receive())["type"], (await receive())["type"]])

    await Bench(app).post(leave_after=0)

    assert messages == ["http.request", "http.disconnect"]


async def test_chunks_leave_before_the_next_one_is_made() -> None:
    """A stream is never gathered."""
    order: list[str] = []
    exchange = Exchange(STREAMED)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for number in range(3):
            order.append(f"made {number}, sent {len(exchange.sent)}")
            await send({"type": "http.response.body", "body": delta("x"), "more_body": True})

    await exchange.run(Bench(app).middleware)

    assert order == ["made 0, sent 1", "made 1, sent 2", "made 2, sent 3"]


@pytest.mark.parametrize("asked", [True, False])
async def test_the_usage_chunk_reaches_whoever_asked_for_it(asked: bool) -> None:
    """The chunk the middleware asked for is taken out again, and nothing else."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    whole = delta("a") + delta("b") + USAGE_EVENT + DONE
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]

    exchange = await Bench(streaming(*pieces)).post({**STREAMED, **options})

    assert exchange.body == (whole if asked else whole.replace(USAGE_EVENT, b""))


async def test_a_whole_answer_is_not_touched() -> None:
    """Its bytes are the application's, and it starts once."""
    raw = json.dumps(ANSWER, indent=2).encode()

    exchange = await Bench(answering(raw[:9], raw[9:])).post()

    assert exchange.body == raw
    assert [m["type"] for m in exchange.sent].count("http.response.start") == 1


async def test_the_limits_are_in_the_headers() -> None:
    """A client learns what it has left, beside the application's own headers."""
    exchange = await Bench(answering(b"{}")).post()

    assert exchange.headers["content-type"] == "application/json"
    assert '"tokens-per-minute";r=' in exchange.headers["ratelimit"]
    assert exchange.headers["x-ratelimit-limit-tokens"] == "1000000"


async def test_the_providers_limits_do_not_pass_for_ours() -> None:
    """A handler that passes on all headers would show the limits of its own key."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"X-RateLimit-Limit-Tokens", b"30000000"), (b"x-request-id", b"req_1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    exchange = await Bench(app).post()

    assert exchange.headers["x-ratelimit-limit-tokens"] == "1000000"
    assert exchange.headers["x-request-id"] == "req_1"
    assert "X-RateLimit-Limit-Tokens" not in exchange.headers


async def test_messages_of_extensions_are_forwarded() -> None:
    """A message nobody here knows is the server's business."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.debug", "info": {}})
        await answering(b"{}")(scope, receive, send)

    exchange = await Bench(app).post()

    assert exchange.sent[0] == {"type": "http.response.debug", "info": {}}


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "websocket", "path": CHAT},
        {"type": "http", "method": "GET", "path": CHAT, "headers": []},
        {"type": "http", "method": "OPTIONS", "path": CHAT, "headers": []},
        {"type": "http", "method": "HEAD", "path": CHAT, "headers": []},
        {"type": "http", "method": "POST", "path": "/other", "headers": []},
    ],
    ids=["websocket", "GET", "OPTIONS", "HEAD", "unguarded"],
)
async def test_everything_else_passes_through_untouched(scope: dict[str, Any]) -> None:
    """The application gets the very objects the server made, and no credential is asked for."""
    calls: list[tuple[Any, ...]] = []

    async def app(*given: Any) -> None:
        calls.append(given)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    await Bench(app).middleware(scope, receive, send)

    assert all(a is b for a, b in zip(calls[0], (scope, receive, send), strict=True))


async def test_a_shutdown_waits_for_what_is_being_settled() -> None:
    """The end of the lifespan closes the store, after the application has ended."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    bench = Bench(app)
    said: list[tuple[str, bool]] = []

    async def send(message: Message) -> None:
        said.append((message["type"], bench.store.closed))

    await bench.middleware({"type": "lifespan"}, asyncio.Event().wait, send)  # type: ignore[arg-type]

    assert said == [("lifespan.startup.complete", False), ("lifespan.shutdown.complete", True)]


async def test_the_state_is_the_requests_own() -> None:
    """What the handler leaves in the state is there for whoever stands outside."""

    async def leave(scope: Scope, receive: Receive) -> None:
        scope["state"]["mine"] = scope["state"]["llm_budget"].model

    bench, exchange = Bench(answering(b"{}", before=leave)), Exchange({}, OWN)
    exchange.scope["state"] = {"theirs": 1}

    await exchange.run(bench.middleware)

    assert exchange.scope["state"]["mine"] == "big"
    assert exchange.scope["state"]["theirs"] == 1
