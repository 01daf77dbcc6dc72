"""Single messages between server, middleware and application, and what becomes of the books."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.types import Charges
from tests.asgi.driver import STREAMED
from tests.edge.driver import (
    ANSWER,
    CHAT,
    DONE,
    MESSAGES,
    OWN,
    QUESTION,
    USAGE_EVENT,
    Bench,
    Exchange,
    answering,
    delta,
    streaming,
)

EXACT = Charges(1, 42, 12 * 2500 + 30 * 10_000)
WHOLE_STREAM = delta("hel") + b": a comment\n\n" + delta("lo") + USAGE_EVENT + DONE
ASKING = {**STREAMED, "stream_options": {"include_usage": True}}
CLAUDE = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def cut(whole: bytes, places: set[int]) -> list[bytes]:
    """Return bytes cut at these places, empty pieces included."""
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(edges)]


class StrictExchange(Exchange):
    """A server of ASGI 2.4: to send after the client has left raises."""

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            raise OSError("the client has left")
        await super()._send(message)


async def bare(exchange: Exchange, *pieces: bytes) -> list[Message]:
    """Return what an application sends that nobody guards."""
    await exchange.run(streaming(*pieces))
    return exchange.sent


@given(places=st.sets(st.integers(0, 1000), max_size=30), asking=st.booleans())
async def test_a_stream_is_the_same_with_and_without_the_middleware(
    places: set[int], asking: bool
) -> None:
    """Cut at any places: the bytes are equal, but for usage nobody asked for."""
    pieces = cut(WHOLE_STREAM, places)
    bench, guarded = Bench(streaming(*pieces)), Exchange(ASKING if asking else STREAMED)

    await guarded.run(bench.middleware)

    plain = b"".join(m.get("body", b"") for m in await bare(Exchange(), *pieces))
    assert guarded.body == (plain if asking else plain.replace(USAGE_EVENT, b""))
    assert bench.store.charged() == EXACT


async def test_messages_that_change_nothing_are_passed_on_as_they_are() -> None:
    """Where the caller asked for usage, every body message is the very object that was sent."""
    made: list[Message] = [
        {"type": "http.response.body", "body": piece, "more_body": piece != DONE}
        for piece in (delta("a"), b"", USAGE_EVENT, DONE)
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for message in made:
            await send(message)

    exchange = Exchange(ASKING)
    await exchange.run(Bench(app).middleware)

    assert all(a is b for a, b in zip(exchange.sent[1:], made, strict=True))


async def test_a_length_that_will_not_be_true_is_taken_out() -> None:
    """An application that announces the length of a stream would lie once usage is taken out."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        length = str(len(WHOLE_STREAM)).encode()
        headers = [(b"Content-Length", length), (b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": WHOLE_STREAM})

    silent, asking = Exchange(STREAMED), Exchange(ASKING)
    await silent.run(Bench(app).middleware)
    await asking.run(Bench(app).middleware)

    assert "Content-Length" not in silent.headers
    assert asking.headers["Content-Length"] == str(len(asking.body))


async def test_limits_of_the_provider_give_way_to_the_callers_own() -> None:
    """A handler that passes on the provider's headers does not make any of them appear twice."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed = [(b"X-RateLimit-Remaining-Tokens", b"9"), (b"x-request-id", b"req_1")]
        await send({"type": "http.response.start", "status": 200, "headers": passed})
        await send({"type": "http.response.body", "body": json.dumps(ANSWER).encode()})

    exchange = await Bench(app).post()

    names = [name.lower() for name, _ in exchange.sent[0]["headers"]]
    assert names.count(b"x-ratelimit-remaining-tokens") == 1
    assert int(exchange.headers["x-ratelimit-remaining-tokens"]) > 9
    assert exchange.headers["x-request-id"] == "req_1"


async def test_usage_in_a_chunk_that_could_not_be_sent_counts() -> None:
    """The server refuses the last byte to a client that has left; the provider bills it."""
    bench = Bench(JSONResponse(ANSWER))

    with pytest.raises(OSError, match="has left"):
        await StrictExchange(leave_after=0).run(bench.middleware)

    assert bench.settled["grade"] == "exact"
    assert bench.store.charged() == EXACT


@pytest.mark.parametrize("body", [STREAMED, ASKING], ids=["rewritten", "as it is"])
async def test_text_in_a_chunk_that_could_not_be_sent_counts(body: Any) -> None:
    """It was generated, whether or not the caller got it."""
    bench = Bench(streaming(delta("hello"), delta("world")))

    with pytest.raises(OSError, match="has left"):
        await StrictExchange(body, leave_after=1).run(bench.middleware)

    assert bench.settled["ending"] == "cut"
    assert bench.settled["output_tokens"] == len("helloworld")


async def test_a_grant_that_cannot_be_written_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mistake in a dialect is an error for the server, and no budget is lost to it."""

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(OpenAIChat, "write_grant", broken)
    bench = Bench(answering(b"{}"))

    with pytest.raises(KeyError):
        await bench.post()

    assert bench.settled["grade"] == "released"


@pytest.mark.parametrize("end", ["complete", "failed"])
async def test_the_store_is_closed_however_the_lifespan_ends(end: str) -> None:
    """Also if the application's own shutdown failed."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": f"lifespan.shutdown.{end}"})

    bench = Bench(app)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await bench.middleware({"type": "lifespan"}, asyncio.Event().wait, send)  # type: ignore[arg-type]

    assert bench.store.closed
    assert [message["type"] for message in sent] == [f"lifespan.shutdown.{end}"]


async def test_the_lifespan_is_the_applications_own() -> None:
    """It gets the scope and the messages of the server, and its state is kept."""
    given: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.extend([scope, receive])
        await send({"type": "lifespan.startup.failed", "message": "no"})

    scope: Scope = {"type": "lifespan", "state": {}}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    bench = Bench(app)
    await bench.middleware(scope, receive, send)

    assert given[0] is scope
    assert given[1] is receive
    assert sent == [{"type": "lifespan.startup.failed", "message": "no"}]
    assert not bench.store.closed


async def test_a_shutdown_waits_for_requests_that_are_open() -> None:
    """What a request was charged is in the books before the store is closed."""
    begun, shutting = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await begun.wait()
            shutting.set()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            begun.set()
            await shutting.wait()
            await answering(json.dumps(ANSWER).encode())(scope, receive, send)

    async def said(message: Message) -> None:
        order.append(message["type"])

    bench = Bench(app)
    bench.sink.emit = lambda event: order.append(event.name)  # type: ignore[method-assign]
    request = asyncio.create_task(bench.post())
    await bench.middleware({"type": "lifespan"}, asyncio.Event().wait, said)  # type: ignore[arg-type]
    await request

    assert order == ["budget.settled", "lifespan.shutdown.complete"]


async def test_an_answer_without_a_body_is_complete() -> None:
    """A single empty message ends it; nothing more is sent."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    bench = Bench(app)
    exchange = await bench.post()

    assert [message["type"] for message in exchange.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert bench.settled["grade"] == "estimated"


async def test_trailers_and_hints_pass_through() -> None:
    """Before the start and after the end, in their order."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</x>"]})
        start = {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
        await send(start)
        await send({"type": "http.response.body", "body": b"{}"})
        await send({"type": "http.response.trailers", "headers": [(b"x-end", b"1")]})

    exchange = await Bench(app).post()

    assert [message["type"].rpartition(".")[2] for message in exchange.sent] == [
        "early_hint",
        "start",
        "body",
        "trailers",
    ]
    assert exchange.sent[1]["trailers"] is True


async def test_the_scope_of_the_server_is_not_changed() -> None:
    """The application gets a copy with other headers; only the state is shared."""
    bench, exchange = Bench(answering(b"{}")), Exchange()
    before = dict(exchange.scope)

    await exchange.run(bench.middleware)

    state = exchange.scope.pop("state")
    assert exchange.scope == before
    assert set(state) == {"llm_budget"}


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, QUESTION), (MESSAGES, CLAUDE), (OWN, {"anything": [1]})]
)
async def test_the_length_of_the_request_is_true(path: str, body: Any) -> None:
    """One content-length, that of the body the application is given."""
    seen: list[tuple[list[bytes], int]] = []

    async def look(scope: Scope, receive: Receive) -> None:
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        seen.append((lengths, len((await receive())["body"])))

    raw = json.dumps(body).encode()
    headers = (("content-length", str(len(raw))), ("transfer-encoding", "chunked"))

    await Bench(answering(b"{}", before=look)).post(raw, path, headers=headers)

    ((lengths, size),) = seen
    assert lengths == [str(size).encode()]


async def test_the_body_of_a_custom_route_is_not_touched() -> None:
    """Whatever it is, the application gets the bytes that came."""
    seen: list[bytes] = []

    async def look(scope: Scope, receive: Receive) -> None:
        seen.append((await receive())["body"])

    raw = b'{"b": 1,  "a":\xff\x00 not even json'

    exchange = await Bench(answering(b"fine", before=look)).post(raw, OWN, parts=5)

    assert exchange.status == 200
    assert seen == [raw]


@pytest.mark.parametrize("takes", [0, 1])
@pytest.mark.parametrize("raises", [True, False])
async def test_without_a_lifespan_of_its_own_an_application_has_that_of_the_store(
    takes: int, raises: bool
) -> None:
    """Whether it raises or returns, with or without having looked: the store is closed."""
    arriving = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[tuple[str, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(takes):
            await receive()
        if raises:
            raise ValueError("not a lifespan, please")

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None:
        sent.append((message["type"], bench.store.closed))

    bench = Bench(app)
    await bench.middleware({"type": "lifespan"}, receive, send)

    assert sent == [("lifespan.startup.complete", False), ("lifespan.shutdown.complete", True)]
    assert not arriving


async def test_a_lifespan_that_breaks_after_its_start_is_the_servers_to_know() -> None:
    """What the application raises then is passed on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        raise ValueError("broken")

    async def send(message: Message) -> None:
        pass

    with pytest.raises(ValueError, match="broken"):
        await Bench(app).middleware({"type": "lifespan"}, asyncio.Event().wait, send)  # type: ignore[arg-type]
