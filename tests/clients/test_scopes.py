"""Who is charged: loops, parallel calls, threads, and calls made when nobody expects them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx2
import openai
import pytest
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from llm_budget_mw import (
    AsyncGuard,
    BudgetExceeded,
    BudgetMiddleware,
    ConfigurationError,
    Guard,
    Principal,
)
from llm_budget_mw.calls import SCOPE
from llm_budget_mw.current import CURRENT, charge
from llm_budget_mw.testing import Issuer, RecordingSink
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from tests.clients.provider import INPUT, LENGTH
from tests.clients.sdks import HI, async_claude, async_openai, claude_client, openai_client
from tests.clients.world import World, until
from tests.deployment import ALICE, SwitchStore, async_store, configured

BOB = Principal("bob")
ISSUER = Issuer()
CREDENTIAL = {"authorization": f"Bearer {ISSUER.token('alice')}"}
ASK: dict[str, Any] = {"model": "big", "messages": HI}
ROUTE = {"path": "/ask", "dialect": "custom", "model": "big", "input_tokens": 40, "max_tokens": 50}
TOKENS = INPUT["big"] + LENGTH


def who(world: World) -> set[str]:
    """Return whose counters any plan was about."""
    return {entry.subject.name for plan in world.store.plans for entry in plan.subjects}


def create(client: openai.OpenAI) -> Callable[..., Any]:
    """Return what asks, without its overloads."""
    return client.chat.completions.create


# --- loops and parallel calls


def test_a_tool_loop_stops_at_its_limit(world: World) -> None:
    """Thirty rounds are asked for, seven requests are allowed, seven reach the provider."""
    world = world.limited(requests="7/day")
    client = openai_client(world)

    def loop() -> None:
        for _ in range(30):
            client.chat.completions.create(**ASK)

    with charge(world.guard, ALICE), pytest.raises(BudgetExceeded):
        loop()

    assert (len(world.stage.seen), world.store.charged().requests) == (7, 7)


async def test_a_tool_loop_inside_a_call_draws_on_it_first(world: World) -> None:
    """The outer call is the first of the seven; all carry its id."""
    world = world.limited(requests="7/day")
    client = async_openai(world)

    async def loop() -> None:
        async with world.waiting.call(ALICE, **ASK):
            for _ in range(30):
                await client.chat.completions.create(**ASK)

    with pytest.raises(BudgetExceeded):
        await loop()

    assert (len(world.stage.seen), world.store.charged().requests) == (7, 7)
    assert {event["request"] for event in world.sink.settled} == {world.store.plans[0].id}


async def test_parallel_calls_stop_at_the_limit(world: World) -> None:
    """In one gather: as many as fit, and not one more."""
    world = world.limited(requests="7/day")
    client = async_openai(world)
    with charge(world.waiting, ALICE):
        asked = [client.chat.completions.create(**ASK) for _ in range(15)]
        answers = await asyncio.gather(*asked, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
    assert (len(refused), len(world.stage.seen), world.store.charged().requests) == (8, 7, 7)
    assert world.open_reservations == 0


async def test_a_task_group_is_charged_and_stopped(world: World) -> None:
    """The first refusal cancels the others; what was sent is settled."""
    world = world.limited(requests="3/day")
    client = async_openai(world)

    async def crowd() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(client.chat.completions.create(**ASK))

    with charge(world.waiting, ALICE), pytest.raises(ExceptionGroup) as caught:
        await crowd()
    await world.waiting.close()

    assert caught.group_contains(BudgetExceeded)
    assert world.store.charged().requests <= 3
    assert world.open_reservations == 0


def test_threads_with_the_context_are_charged(world: World) -> None:
    """Seven of fifteen in a pool."""
    world = world.limited(requests="7/day")
    client = openai_client(world)

    def ask() -> bool:
        with contextlib.suppress(BudgetExceeded):
            client.chat.completions.create(**ASK)
            return True
        return False

    with charge(world.guard, ALICE), ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(copy_context().run, ask) for _ in range(15)]

    assert sum(each.result() for each in asked) == 7
    assert (len(world.stage.seen), world.open_reservations) == (7, 0)


def test_a_thread_without_the_context_is_refused(world: World) -> None:
    """Its call would be nobody's."""
    client = openai_client(world)
    with charge(world.guard, ALICE), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(create(client), **ASK)

    with pytest.raises(ConfigurationError, match="inside `with charge"):
        asked.result()
    assert world.stage.seen == []


def test_streams_that_run_side_by_side_are_each_covered(world: World) -> None:
    """An open stream is no scope: what is called meanwhile does not draw on it."""
    client = openai_client(world)
    with world.guard.call(ALICE, **ASK):
        streams = [client.chat.completions.create(**ASK, stream=True) for _ in range(3)]
        inside = SCOPE.get()
        for chunks in zip(*streams, strict=True):
            assert len(chunks) == 3
        assert SCOPE.get() is inside

    assert world.store.charged().requests == 3
    assert world.store.charged().tokens == 3 * TOKENS
    assert world.open_reservations == 0


# --- what is reported, too


def test_what_the_client_charged_is_not_charged_again(world: World) -> None:
    """An application may still record the answer, as without a guarded client."""
    client = openai_client(world)
    with world.guard.call(ALICE, **ASK) as call:
        answer = client.chat.completions.create(**call.request)
        call.record(answer)

    assert world.store.charged().requests == 1
    assert world.store.charged().tokens == TOKENS
    assert len(world.sink.settled) == 1


async def test_what_the_client_charged_on_a_loop_is_not_charged_again(world: World) -> None:
    """The same with an event loop."""
    client = async_claude(world)
    asked: dict[str, Any] = {"model": "claude-x", "messages": HI, "max_tokens": 40}
    async with world.waiting.call(ALICE, dialect="anthropic_messages", **asked) as call:
        call.record(await client.messages.create(**call.request))

    assert world.store.charged().requests == 1
    assert world.store.charged().tokens == INPUT["claude-x"] + LENGTH


# --- outside of any scope


async def test_a_call_outside_of_everything_is_refused(world: World) -> None:
    """Never silently free; every SDK shows the error as it is."""
    clients = openai_client(world, max_retries=2), claude_client(world, max_retries=2)
    with pytest.raises(ConfigurationError, match="outside="):
        clients[0].chat.completions.create(**ASK)
    with pytest.raises(ConfigurationError, match="outside="):
        clients[1].messages.create(model="claude-x", messages=HI, max_tokens=9)
    with pytest.raises(ConfigurationError, match="outside="):
        await async_openai(world).chat.completions.create(**ASK)

    assert world.stage.seen == []


def test_a_principal_may_pay_for_what_nobody_else_does(world: World) -> None:
    """But only for that."""
    client = openai_client(world, lambda kind: world.guarded(kind, outside=(world.guard, BOB)))
    client.chat.completions.create(**ASK)
    assert who(world) == {"user/bob"}

    with charge(world.guard, ALICE):
        client.chat.completions.create(**ASK)
    assert who(world) == {"user/bob", "user/alice"}


async def test_a_principal_may_pay_on_a_loop(world: World) -> None:
    """The loop is that of the first call, not that of the import."""
    client = async_openai(world, lambda kind: world.guarded(kind, outside=(world.waiting, BOB)))
    await client.chat.completions.create(**ASK)

    assert who(world) == {"user/bob"}


def test_an_answer_read_elsewhere_is_charged_to_who_asked(world: World) -> None:
    """And charges nobody else for what comes after."""
    client = openai_client(world)
    with charge(world.guard, ALICE):
        stream = client.chat.completions.create(**ASK, stream=True)
    with charge(world.guard, BOB):
        for _ in stream:
            pass
        client.chat.completions.create(**ASK)
    with pytest.raises(ConfigurationError):
        client.chat.completions.create(**ASK)

    charged = {plan.id: plan.subjects[0].subject.name for plan in world.store.plans}
    settled = [charged[plan_id] for plan_id, _, _ in world.store.settled]
    assert settled == ["user/alice", "user/bob"]


# --- event loops


async def test_a_synchronous_client_on_the_loop_of_its_guard_is_refused(world: World) -> None:
    """It would wait for the loop it holds up."""
    openai, claude = openai_client(world, max_retries=2), claude_client(world, max_retries=2)
    with charge(world.waiting, ALICE):
        with pytest.raises(RuntimeError, match="use the asynchronous one"):
            openai.chat.completions.create(**ASK)
        with pytest.raises(RuntimeError, match="use the asynchronous one"):
            claude.messages.create(model="claude-x", messages=HI, max_tokens=9)

    assert (world.stage.seen, world.open_reservations) == ([], 0)


async def test_a_synchronous_client_in_a_thread_of_the_loop_is_charged(world: World) -> None:
    """Inside a `charge` block, and inside a call."""
    client = openai_client(world)
    with charge(world.waiting, ALICE):
        await asyncio.to_thread(create(client), **ASK)
    async with world.waiting.call(ALICE, **ASK):
        await asyncio.to_thread(create(client), **ASK)

    assert world.store.charged().requests == 2
    assert world.open_reservations == 0


async def test_a_stream_of_a_thread_may_be_closed_on_the_loop(world: World) -> None:
    """As a server does with the generator of a client that has left; the loop goes on."""
    client = openai_client(world)
    with charge(world.waiting, ALICE):
        stream: Any = await asyncio.to_thread(create(client), **ASK, stream=True)
    await asyncio.to_thread(next, stream)
    stream.close()
    await asyncio.to_thread(until, lambda: bool(world.sink.settled))

    assert world.sink.settled[0]["ending"] == "cut"


async def test_an_asynchronous_client_takes_a_guard_for_threads(world: World) -> None:
    """It holds its loop up for the moment of each round trip."""
    with charge(world.guard, ALICE):
        await async_openai(world).chat.completions.create(**ASK)

    assert world.store.charged().tokens == TOKENS


async def test_another_loop_than_that_of_the_guard_is_refused(world: World) -> None:
    """The connections of its store belong to that one."""

    async def ask() -> None:
        client = openai.AsyncOpenAI(
            api_key="k",
            base_url=world.url,
            http_client=world.guarded(openai.DefaultAsyncHttpxClient),
        )
        await client.chat.completions.create(**ASK)

    with charge(world.waiting, ALICE), pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, ask())

    assert (world.stage.seen, world.open_reservations) == ([], 0)


# --- a server that was started inside a block


async def _asgi(service: Service, ask: Callable[[], Any], path: str) -> None:
    @service.app.post("/ask")
    @service.app.post("/free")
    async def endpoint() -> None:
        await asyncio.to_thread(ask)

    transport = httpx2.ASGITransport(service.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://site") as client:
        await client.post(path, headers=CREDENTIAL, json={})


async def _wsgi(service: Service, ask: Callable[[], Any], path: str) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        if path == "/free":
            ask()
            return []
        return pieces()

    def pieces() -> Iterator[bytes]:
        for _ in range(2):
            yield b"."
            ask()

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "HTTP_AUTHORIZATION": CREDENTIAL["authorization"],
    }
    body: Any = WSGIBudgetMiddleware(app, guard=service.guard)(environ, lambda *_: lambda _: None)
    with contextlib.closing(body) if path == "/ask" else contextlib.nullcontext():
        for _ in body:
            pass


edges = pytest.mark.parametrize("serve", [_asgi, _wsgi])


@edges
async def test_a_server_inside_a_block_charges_who_sends_the_request(
    world: World, serve: Any
) -> None:
    """Not the principal of the block, which is that of whoever started the server."""
    service, client = Service(), openai_client(world)
    with charge(world.guard, BOB):
        await serve(service, lambda: create(client)(**ASK), "/ask")
        create(client)(**ASK)  # the block goes on

    subjects = {entry.subject.name for plan in service.store.plans for entry in plan.subjects}
    assert (subjects, len(world.stage.seen)) == ({"user/alice"}, 3 if serve is _wsgi else 2)
    assert len(world.store.plans) == 1


@edges
async def test_an_unguarded_request_inside_a_block_is_nobodys(world: World, serve: Any) -> None:
    """A call it makes is refused like any other without a scope."""
    service, client = Service(), openai_client(world)
    with charge(world.guard, BOB), pytest.raises(ConfigurationError, match="nobody is charged"):
        await serve(service, lambda: create(client)(**ASK), "/free")

    assert world.stage.seen == []


def test_a_block_of_a_generator_lasts_as_long_as_it_does(world: World) -> None:
    """A WSGI server takes its pieces one by one, with other requests in between."""
    service, client = Service(), openai_client(world)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        with charge(world.guard, BOB):
            for _ in range(3):
                yield b"."
                create(client)(**ASK)
        create(client)(**ASK)

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/ask",
        "HTTP_AUTHORIZATION": CREDENTIAL["authorization"],
    }
    body: Any = WSGIBudgetMiddleware(app, guard=service.guard)(environ, lambda *_: lambda _: None)
    with contextlib.closing(body):
        for _ in body:
            assert (SCOPE.get(), CURRENT.get()) == (None, None)

    assert (who(world), len(world.store.plans)) == ({"user/bob"}, 3)
    assert service.store.charged().requests == 1


# --- applications


class Service:
    """An application whose endpoints ask a model by themselves."""

    def __init__(self, **tier: Any) -> None:
        self.store, self.sink = SwitchStore(), RecordingSink()
        config = configured(
            {"requests": "7/day", "max_tokens": 50, **tier}, jwt=ISSUER.config(), routes=[ROUTE]
        )
        store = async_store(self.store)
        self.waiting = AsyncGuard.open(config, store=store, sinks=[self.sink])
        self.guard = Guard.open(config, store=self.store, sinks=[self.sink])
        self.app = FastAPI()
        self.app.add_middleware(BudgetMiddleware, guard=self.waiting)

    def post(self) -> Any:
        """Send a request of alice."""
        with TestClient(self.app, raise_server_exceptions=False) as client:
            return client.post("/ask", headers=CREDENTIAL, json={})


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_synchronous_endpoint_draws_on_its_request(world: World, rounds: int) -> None:
    """In a thread of the pool; the reservation of the request covers the first call."""
    service, client = Service(), openai_client(world)

    @service.app.post("/ask")
    def endpoint() -> int:
        answers = [client.chat.completions.create(**ASK) for _ in range(rounds)]
        return len(answers)

    assert service.post().json() == rounds
    assert service.store.charged().requests == rounds
    assert service.store.charged().tokens == rounds * TOKENS
    assert len({event["request"] for event in service.sink.settled}) == 1


@pytest.mark.parametrize("rounds", [1, 3, 30])
def test_an_asynchronous_endpoint_draws_on_its_request(world: World, rounds: int) -> None:
    """A refusal in the middle is answered as the middleware answers its own."""
    service = Service()

    @service.app.post("/ask")
    async def endpoint() -> int:
        async with async_openai(world, openai_made(world)) as client:
            for _ in range(rounds):
                await client.chat.completions.create(**ASK)
        return rounds

    assert service.post().status_code == (200 if rounds < 7 else 429)
    assert service.store.charged().requests == min(rounds, 7)
    assert service.store.charged().tokens == min(rounds, 7) * TOKENS


def openai_made(world: World) -> Any:
    """Return a maker of clients that are closed where they are used, on the loop of a server."""

    def make(kind: Any) -> Any:
        client = world.guarded(kind)
        world.clients.remove(client)
        return client

    return make


def test_calls_after_the_answer_are_the_principals_own(world: World) -> None:
    """A background task is charged to who sent the request, by admissions of its own."""
    service, client = Service(), openai_client(world)

    @service.app.post("/ask")
    def endpoint(later: BackgroundTasks) -> str:
        later.add_task(create(client), **ASK)
        return "soon"

    assert service.post().json() == "soon"
    assert [event["principal"] for event in service.sink.settled].count(None) == 0
    assert service.store.charged().tokens >= TOKENS
    subjects = {entry.subject.name for plan in service.store.plans for entry in plan.subjects}
    assert subjects == {"user/alice"}


def test_a_generator_read_after_its_handler_is_charged_to_its_request(world: World) -> None:
    """It makes its call when the handler has long returned."""
    service = Service()

    @service.app.post("/ask")
    async def endpoint() -> StreamingResponse:
        async def words() -> AsyncIterator[str]:
            async with async_openai(world, openai_made(world)) as client:
                async for chunk in await client.chat.completions.create(**ASK, stream=True):
                    yield chunk.choices[0].delta.content or ""

        return StreamingResponse(words(), media_type="text/plain")

    assert service.post().text.startswith("the")
    assert service.store.charged().requests == 1
    assert service.store.charged().tokens == TOKENS


def test_a_wsgi_application_draws_on_its_request(world: World) -> None:
    """Also where its body is a generator the server reads later."""
    service, client = Service(), openai_client(world)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for chunk in client.chat.completions.create(**ASK, stream=True):
            yield (chunk.choices[0].delta.content or "").encode()
        client.chat.completions.create(**ASK)

    wrapped = WSGIBudgetMiddleware(app, guard=service.guard)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/ask",
        "HTTP_AUTHORIZATION": f"Bearer {ISSUER.token('alice')}",
    }
    body: Any = wrapped(environ, lambda *_: lambda _: None)
    try:
        text = b"".join(body)
    finally:
        body.close()

    assert text.startswith(b"the")
    assert service.store.charged().requests == 2
    assert service.store.charged().tokens == 2 * TOKENS
    assert CURRENT.get() is None
