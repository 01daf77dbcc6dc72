"""Whatever goes wrong, a call is settled once, and never for less than was asked of a provider."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from starlette.responses import PlainTextResponse

from llm_budget_mw import BudgetExceeded, ConfigurationError, RequestError
from llm_budget_mw.clients import AsyncPace, Retries, UpstreamLimit, guarded
from llm_budget_mw.current import charge
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.types import Admission, Charges, Grant, Plan
from tests.clients.provider import INPUT, LENGTH, failing, redirecting
from tests.clients.sdks import (
    HI,
    async_claude,
    async_openai,
    claude_client,
    gemini_client,
    openai_client,
)
from tests.clients.world import World, until
from tests.deployment import ALICE
from tests.servers import free_port

ASK: dict[str, Any] = {"model": "big", "messages": HI}
NOTHING = Charges(0, 0, 0)


def settled(world: World) -> tuple[str, str]:
    """Return how the one call of a test was settled: ending and grade."""
    assert world.open_reservations == 0
    [event] = world.sink.settled
    return event["ending"], event["grade"]


# --- a provider that fails


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
def test_a_call_the_provider_refuses_is_given_back(world: World, status: int) -> None:
    """The SDK raises its own exception."""
    world.stage.faults.append(failing(status))
    with charge(world.guard, ALICE), pytest.raises(openai.APIStatusError) as caught:
        openai_client(world).chat.completions.create(**ASK)

    assert caught.value.status_code == status
    assert (settled(world), world.store.charged()) == (("refused_upstream", "released"), NOTHING)


@pytest.mark.parametrize("status", [408, 504])
def test_a_call_a_gateway_gave_up_on_is_kept(world: World, status: int) -> None:
    """The model behind it may have worked on."""
    world.stage.faults.append(failing(status))
    with charge(world.guard, ALICE), pytest.raises(openai.APIStatusError):
        openai_client(world).chat.completions.create(**ASK)

    assert settled(world) == ("cut", "estimated")


def test_a_call_nobody_listened_to_is_given_back(world: World) -> None:
    """Nothing was sent."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    client = openai_client(world).with_options(base_url=nowhere)
    with charge(world.guard, ALICE), pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**ASK)

    assert (settled(world), world.store.charged()) == (("not_called", "released"), NOTHING)


def test_a_provider_that_hangs_may_have_billed(world: World) -> None:
    """A time-out keeps the reservation, of each of the SDK's attempts."""
    world.stage.faults += ["hang", "hang"]
    client = openai_client(world, timeout=0.05, max_retries=1)
    with charge(world.guard, ALICE), pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**ASK)

    assert world.open_reservations == 0
    assert [event["grade"] for event in world.sink.settled] == ["estimated", "estimated"]
    assert world.store.charged().requests == 2


@pytest.mark.parametrize("on_loop", [False, True])
async def test_an_error_that_hangs_may_have_billed(world: World, on_loop: bool) -> None:
    """Its status came, its body never does: who gave up is not known."""
    world.stage.faults.append("stall")
    client = world.guarded(httpx2.AsyncClient if on_loop else httpx2.Client, timeout=0.05)

    async def ask() -> None:
        answer = client.post(f"{world.url}/v1/chat/completions", json=ASK)
        if on_loop:
            await answer

    with charge(world.guard, ALICE), pytest.raises(httpx2.ReadTimeout):
        await ask()

    assert settled(world) == ("cut", "estimated")


def test_an_answer_that_is_cut_may_have_been_billed_whole(world: World) -> None:
    """Half of a JSON document says nothing about usage."""
    world.stage.faults.append("cut")
    with charge(world.guard, ALICE), pytest.raises(openai.APIConnectionError):
        openai_client(world).chat.completions.create(**ASK)

    assert settled(world) == ("cut", "estimated")


async def test_a_stream_the_provider_breaks_off_is_counted(world: World) -> None:
    """What came is charged, and the SDK sees the connection break."""
    world.stage.providers.openai.break_next(after=5)
    with charge(world.waiting, ALICE):
        stream: Any = await async_openai(world).chat.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIConnectionError):
            async for _ in stream:
                pass

    assert settled(world) == ("cut", "counted")
    assert world.store.charged().requests == 1
    assert world.store.charged().tokens >= 5


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/html"])
def test_garbage_keeps_the_reservation(world: World, kind: str) -> None:
    """It may have been billed, and says nothing of usage."""
    world.stage.faults.append(PlainTextResponse(b"\xff{{{\n\n" * 50, media_type=kind))
    with charge(world.guard, ALICE), contextlib.suppress(ValueError, openai.OpenAIError):
        openai_client(world).chat.completions.create(**ASK)

    assert settled(world)[1] != "released"
    assert world.store.charged().requests == 1


def test_a_redirect_is_no_call_but_what_it_leads_to_is(world: World) -> None:
    """The first answer is given back, the second is admitted anew."""
    world.stage.faults.append(redirecting(f"{world.url}/v1/chat/completions"))
    with charge(world.guard, ALICE):
        openai_client(world).chat.completions.create(**ASK)

    assert [event["grade"] for event in world.sink.settled] == ["released", "exact"]
    assert world.store.charged().tokens == INPUT["big"] + LENGTH


# --- an application that does not read


def test_a_stream_that_is_closed_early_is_counted(world: World) -> None:
    """What was generated so far, and the input."""
    with charge(world.guard, ALICE):
        stream = openai_client(world).chat.completions.create(**ASK, stream=True)
        next(stream)
        stream.close()

    assert settled(world) == ("cut", "counted")
    assert 0 < world.store.charged().tokens < 50


async def test_a_stream_left_on_a_loop_is_counted(world: World) -> None:
    """Anthropic's context manager closes it."""
    client = async_claude(world)
    with charge(world.waiting, ALICE):
        asked = client.messages.stream(model="claude-x", messages=HI, max_tokens=40)
        async with asked as stream:
            async for _ in stream:
                break

    assert settled(world)[0] == "cut"
    assert world.store.charged().requests == 1


def test_a_stream_nobody_holds_any_more_is_settled(world: World) -> None:
    """When it is collected: neither read, nor closed."""
    client = openai_client(world)
    with charge(world.guard, ALICE):
        answer: Any = client.chat.completions.create(**ASK, stream=True)
    answer.response.stream = None
    del answer
    gc.collect()
    until(lambda: world.open_reservations == 0)
    until(lambda: len(world.sink.settled) == 1)

    assert settled(world) == ("cut", "counted")


async def test_a_stream_nobody_holds_on_a_loop_is_settled(world: World) -> None:
    """By a task of its guard's loop."""
    client = world.guarded(httpx2.AsyncClient)
    body = {**ASK, "stream": True}
    with charge(world.waiting, ALICE):
        request = client.build_request("POST", f"{world.url}/v1/chat/completions", json=body)
        answer: Any = await client.send(request, stream=True)
    network = answer.stream._stream._inner
    del answer
    gc.collect()
    await asyncio.to_thread(until, lambda: bool(world.sink.settled))
    await network.aclose()

    assert settled(world) == ("cut", "counted")


# --- cancellation


class _Steps(AsyncMemoryStore):
    """A store whose every step yields to the loop before and after, as a real one does."""

    async def admit(self, plan: Plan) -> Admission:
        await asyncio.sleep(0)
        admission = await super().admit(plan)
        await asyncio.sleep(0)
        return admission

    async def settle(self, grant: Grant, charges: Charges) -> str:
        await asyncio.sleep(0)
        outcome = await super().settle(grant, charges)
        await asyncio.sleep(0)
        return outcome


def provider_in_steps() -> httpx2.AsyncBaseTransport:
    """Return a transport that yields at everything it does."""

    class Body(httpx2.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for word in ("a", "b"):
                await asyncio.sleep(0)
                yield f'data: {{"choices": [{{"delta": {{"content": "{word}"}}}}]}}\n\n'.encode()
            yield b"data: [DONE]\n\n"

        async def aclose(self) -> None:
            await asyncio.sleep(0)

    class Provider(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(0)
            headers = {"content-type": "text/event-stream"}
            return httpx2.Response(200, headers=headers, stream=Body())

    return Provider()


@pytest.mark.parametrize("layered", [False, True], ids=["alone", "with retries and pace"])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancellation_at_every_await_leaves_nothing_behind(
    world: World, stream: bool, layered: bool
) -> None:
    """Wherever it strikes: what was admitted is settled, once, and no turn stays taken."""
    world.waiting.store = _Steps(world.store)
    pace = AsyncPace(UpstreamLimit("big", requests=1000), store=_Steps(MemoryStore()))
    layers: dict[str, Any] = {"retries": Retries(), "pace": pace} if layered else {}
    client: Any = async_openai(
        world, lambda kind: world.guarded(kind, transport=provider_in_steps(), **layers)
    )

    async def ask() -> None:
        if stream:
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
        else:
            await client.chat.completions.with_raw_response.create(**ASK)

    with charge(world.waiting, ALICE):
        await ask()  # what the SDK does once, such as looking at the platform, does not count
    finished, steps = False, 0
    while not finished:
        steps += 1
        with charge(world.waiting, ALICE):
            asking = asyncio.create_task(ask())
        for _ in range(steps):
            await asyncio.sleep(0)
        finished = asking.done()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        while world.waiting._running:
            await asyncio.gather(*world.waiting._running)
        assert (world.open_reservations, pace.waiting) == (0, 0), steps
    await pace.close()

    assert steps > 8
    ids = [plan_id for plan_id, _, outcome in world.store.settled if outcome == "1"]
    assert len(ids) == len(set(ids)) == len(world.store.admitted)


# --- a store that is away


async def test_a_closed_limit_refuses_while_the_store_is_away(world: World) -> None:
    """In the middle of a loop; nothing is sent."""
    world = world.limited(budget={"limit": "$10/day", "on_outage": "closed"})
    client = async_openai(world)
    with charge(world.waiting, ALICE):
        await client.chat.completions.create(**ASK)
        world.store.down = True
        with pytest.raises(BudgetExceeded) as caught:
            await client.chat.completions.create(**ASK)

    assert caught.value.refusal.reason == "store_down"
    assert len(world.stage.seen) == 1


def test_the_store_may_be_away_when_a_call_ends(world: World) -> None:
    """Its settlement waits, and is delivered once."""
    client = openai_client(world)
    with charge(world.guard, ALICE):
        stream = client.chat.completions.create(**ASK, stream=True)
        world.store.down = True
        for _ in stream:
            pass
        assert world.store.settled == []
        world.store.down = False
        world.guard.outage.breaker.succeeded()
        client.chat.completions.create(**ASK)

    assert world.store.charged().requests == 2
    assert world.store.charged().tokens == 2 * (INPUT["big"] + LENGTH)


# --- what is no call of a model, or cannot be one


def test_what_only_reads_passes(world: World) -> None:
    """A list of models needs no budget, and no scope."""
    assert list(openai_client(world).models.list()) == []
    assert [seen.method for seen in world.stage.seen] == ["GET"]


def test_what_costs_nothing_passes(world: World) -> None:
    """It needs no budget and no scope, whatever dialect the calls of a model have."""
    world.stage.faults.extend([PlainTextResponse("{}", media_type="application/json")] * 8)
    client = openai_client(world, lambda kind: world.guarded(kind, dialect="openai_chat"))
    client.moderations.create(input="hi")
    client.files.create(file=b"{}", purpose="batch")
    client.files.delete("f")
    client.responses.input_tokens.count(model="big", input="hi")
    client.batches.cancel("b")
    claude_client(world).messages.count_tokens(model="claude-x", messages=HI)
    gemini_client(world).models.count_tokens(model="gemini-x", contents="hi")

    assert [seen.method for seen in world.stage.seen].count("DELETE") == 1
    assert len(world.stage.seen) == 7
    assert world.store.plans == []


def test_a_batch_is_refused(world: World) -> None:
    """Its calls have to be reserved first."""
    with charge(world.guard, ALICE), pytest.raises(RequestError, match="batches is no call"):
        openai_client(world).batches.create(
            input_file_id="f", endpoint="/v1/chat/completions", completion_window="24h"
        )


def test_what_no_dialect_knows_is_refused(world: World) -> None:
    """It might cost anything."""
    with charge(world.guard, ALICE), pytest.raises(RequestError) as caught:
        openai_client(world, max_retries=2).images.generate(prompt="a cat")

    assert caught.value.code == "unknown_route"
    assert 'unknown="pass"' in caught.value.message
    assert world.stage.seen == []


def test_what_no_dialect_knows_passes_where_that_is_wanted(world: World) -> None:
    """Unguarded, and unchanged."""
    world.stage.faults.append(PlainTextResponse('{"created": 1}', media_type="application/json"))
    client = openai_client(world, lambda kind: world.guarded(kind, unknown="pass"))
    client.images.generate(prompt="a cat")

    assert world.stage.seen[0].fields == {"prompt": "a cat"}
    assert world.store.plans == []


def test_what_passes_is_not_held_up(world: World) -> None:
    """A large upload goes out as it is read, signed or not."""
    pieces = iter([b"a", b"b"])

    class Inner(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            assert next(pieces) == b"a"
            return httpx2.Response(200)

    client = world.guarded(httpx2.Client, transport=Inner(), unknown="pass")
    client.post("http://files.example/", content=pieces, headers={"authorization": "AWS4-x"})

    assert next(pieces) == b"b"


def test_a_request_that_cannot_be_bounded_is_refused(world: World) -> None:
    """By the rules of its format."""
    with charge(world.guard, ALICE), pytest.raises(RequestError, match="messages"):
        openai_client(world).chat.completions.create(model="big", messages=7)  # type: ignore[call-overload]

    assert world.stage.seen == []


def test_a_signed_request_is_refused(world: World) -> None:
    """The grant would break its signature."""
    client = world.guarded(httpx2.Client)
    signed = {"authorization": "AWS4-HMAC-SHA256 Credential=x"}
    with charge(world.guard, ALICE), pytest.raises(RequestError, match="bearer token"):
        client.post(f"{world.url}/model/big/converse", headers=signed, json={})


def test_another_server_obeys_another_bound(world: World) -> None:
    """A dialect may be named where the path does not tell all."""
    client = openai_client(world, lambda kind: world.guarded(kind, dialect="openai_compatible"))
    with charge(world.guard, ALICE):
        client.chat.completions.create(**ASK, max_completion_tokens=9)

    assert world.stage.seen[0].fields["max_tokens"] == 9


def test_a_model_in_an_encoded_path_is_read(world: World) -> None:
    """An ARN has slashes; where the model stays, so does every byte of the path."""
    client = world.guarded(httpx2.Client)
    arn = "arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ainference-profile%2Fbig"
    message = {"role": "user", "content": [{"text": "hi"}]}
    world = world.limited(budget=None)
    with charge(world.guard, ALICE):
        client.post(f"{world.url}/model/{arn}/converse?a=%2F", json={"messages": [message]})

    assert [seen.path for seen in world.stage.seen] == [f"/model/{arn}/converse?a=%2F"]


# --- making a client


class _Session:
    """A client of some other library."""


@pytest.mark.parametrize("kind", [_Session, dict, httpx.HTTPTransport, object])
def test_another_class_cannot_be_guarded(kind: type) -> None:
    """The error names it, and what can be."""
    with pytest.raises(ConfigurationError, match=f"{kind.__name__}.*openai.DefaultHttpxClient"):
        guarded(kind)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"outside": "alice"}, "outside: .*'alice'"),
        ({"outside": (ALICE, ALICE)}, "outside: "),
        ({"dialect": "morse"}, "dialect: .*'morse'"),
        ({"dialect": "custom"}, "dialect: 'custom'"),
        ({"unknown": "maybe"}, "unknown: .*'maybe'"),
    ],
)
def test_an_option_that_is_wrong_is_named(option: dict[str, Any], named: str) -> None:
    """With its value."""
    with pytest.raises(ConfigurationError, match=named):
        guarded(httpx2.Client, **option)


def test_a_client_for_threads_cannot_wait_for_an_unknown_loop(world: World) -> None:
    """Its guard would need one."""
    with pytest.raises(ConfigurationError, match="outside: a synchronous client needs a Guard"):
        guarded(httpx2.Client, outside=(world.waiting, ALICE))


def test_a_client_without_its_transports_cannot_be_guarded() -> None:
    """A version that keeps them elsewhere would not be guarded at all."""

    class Strange(httpx2.Client):
        def __init__(self) -> None:
            """Prepare nothing."""

    with pytest.raises(ConfigurationError, match="another version"):
        guarded(Strange)


def test_proxies_are_guarded_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the environment, and those that are given."""
    monkeypatch.setenv("HTTP_PROXY", world.url)
    monkeypatch.setenv("NO_PROXY", "")
    world = world.limited(requests="0/day")
    for proxy in (None, world.url):
        client = world.guarded(httpx2.Client, **({"proxy": proxy} if proxy else {}))
        with charge(world.guard, ALICE), pytest.raises(BudgetExceeded):
            client.post("http://model.example/v1/chat/completions", json=ASK)

    assert world.stage.seen == []


def test_the_defaults_of_an_sdk_stay(world: World) -> None:
    """Its time-outs, its limits, its socket options."""
    client = world.guarded(anthropic.DefaultHttpxClient, timeout=3.0)
    bare = world.plain(anthropic.DefaultHttpxClient)

    assert (client.timeout.read, client.follow_redirects) == (3.0, True)
    pool, its = client._transport._inner._pool, bare._transport._pool
    assert pool._max_connections == its._max_connections
    assert pool._socket_options == its._socket_options


def test_a_client_closes_what_it_is_built_on() -> None:
    """As a context manager, too."""
    closed = []

    class Inner(httpx2.MockTransport):
        def close(self) -> None:
            closed.append(True)

    with guarded(httpx2.Client, transport=Inner(lambda _: httpx2.Response(200))) as client:
        assert client.get("http://model.example/").status_code == 200

    assert closed == [True]


def test_an_answer_that_is_there_already_is_charged(world: World) -> None:
    """A transport may return the body with the response."""
    answer = {"usage": {"prompt_tokens": 9, "completion_tokens": 3}}
    inner = httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer))
    client = world.guarded(httpx2.Client, transport=inner)
    with charge(world.guard, ALICE):
        got = client.post("http://model.example/v1/chat/completions", json=ASK)

    assert got.json() == answer
    assert world.store.charged() == Charges(1, 12, 9 * 2_500 + 3 * 10_000)
