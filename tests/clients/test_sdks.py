"""The SDKs as they are used: exact charges, unchanged answers, refusals they do not hide."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from google import genai
from starlette.responses import JSONResponse, PlainTextResponse

from llm_budget_mw import BudgetExceeded
from llm_budget_mw.clients.errand import errand_of
from llm_budget_mw.current import charge
from llm_budget_mw.types import Charges
from tests.clients.provider import INPUT, LENGTH, NANO, failing
from tests.clients.sdks import (
    HI,
    LEGACY,
    SDKS,
    Sdk,
    async_claude,
    async_openai,
    claude_client,
    gemini_client,
    openai_client,
)
from tests.clients.world import World
from tests.deployment import ALICE

each_sdk = pytest.mark.parametrize("sdk", SDKS, ids=str)


def one_call(model: str) -> Charges:
    """Return what one question costs."""
    sent, made = NANO[model]
    return Charges(1, INPUT[model] + LENGTH, INPUT[model] * sent + LENGTH * made)


@each_sdk
def test_a_call_in_a_thread_is_charged_exactly(world: World, sdk: Sdk) -> None:
    """Its answer is the one that an unguarded client gets."""
    ask = sdk.asker(world)
    with charge(world.guard, ALICE):
        text = ask()

    assert text == sdk.asker(world, world.plain)()
    assert world.store.charged() == one_call(sdk.model)
    assert [event["grade"] for event in world.sink.settled] == ["exact"]
    assert world.open_reservations == 0


@each_sdk
async def test_a_call_on_a_loop_is_charged_exactly(world: World, sdk: Sdk) -> None:
    """The same numbers and the same text."""
    ask = sdk.async_asker(world)
    with charge(world.waiting, ALICE):
        text = await ask()

    assert text == await sdk.async_asker(world, world.plain)()
    assert world.store.charged() == one_call(sdk.model)
    assert world.open_reservations == 0


@each_sdk
def test_a_refusal_reaches_the_application_as_it_is(world: World, sdk: Sdk) -> None:
    """Not wrapped, not retried, and nothing is sent."""
    world = world.limited(requests="0/day")
    ask = sdk.asker(world)
    with charge(world.guard, ALICE), pytest.raises(BudgetExceeded) as caught:
        ask()

    assert caught.value.refusal.binding is not None
    assert caught.value.refusal.binding.limit.name == "requests-per-day"
    assert (world.stage.seen, len(world.sink.refused)) == ([], 1)


@each_sdk
async def test_a_refusal_on_a_loop_reaches_the_application_as_it_is(world: World, sdk: Sdk) -> None:
    """Not wrapped, not retried, and nothing is sent."""
    world = world.limited(requests="0/day")
    ask = sdk.async_asker(world)
    with charge(world.waiting, ALICE), pytest.raises(BudgetExceeded):
        await ask()

    assert (world.stage.seen, len(world.sink.refused)) == ([], 1)


async def test_retries_do_not_hide_a_refusal(world: World) -> None:
    """SDKs that retry lost connections do not take a refusal for one."""
    world = world.limited(requests="0/day")
    with charge(world.guard, ALICE):
        for client in (
            openai_client(world, max_retries=5),
            openai_client(world, http=LEGACY.Client, max_retries=5),
        ):
            with pytest.raises(BudgetExceeded):
                client.chat.completions.create(model="big", messages=HI)
        with pytest.raises(BudgetExceeded):
            claude_client(world, max_retries=5).messages.create(
                model="claude-x", messages=HI, max_tokens=9
            )
    with charge(world.waiting, ALICE), pytest.raises(BudgetExceeded):
        await async_claude(world, max_retries=5).messages.create(
            model="claude-x", messages=HI, max_tokens=9
        )

    assert len(world.sink.refused) == 4


def test_the_bound_is_written_into_the_request(world: World) -> None:
    """Model and output as granted; what the SDK sends is otherwise its own."""
    world = world.limited(max_tokens=7)
    client = openai_client(world)
    with charge(world.guard, ALICE):
        answer = client.chat.completions.create(model="big", messages=HI, temperature=0.5)

    [seen] = world.stage.seen
    assert seen.fields["max_completion_tokens"] == 7
    assert seen.fields["temperature"] == 0.5
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["authorization"] == "Bearer k"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


def test_a_cheaper_model_may_answer(world: World) -> None:
    """The tier's ladder holds for clients, too, and the cheaper price is charged."""
    world = world.limited(
        budget="$0.0005/day",
        offers=[{"model": "big"}, {"model": "small"}],
        max_tokens=100,
        min_tokens=100,
    )
    client = openai_client(world)
    with charge(world.guard, ALICE):
        answer = client.chat.completions.create(model="big", messages=HI)

    assert (answer.model, world.stage.seen[0].fields["model"]) == ("small", "small")
    assert world.store.charged().cost_nano == INPUT["big"] * 150 + LENGTH * 600


def test_a_model_in_the_path_is_replaced_there(world: World) -> None:
    """Google's format has it there; the query stays."""
    ladder = [{"model": "big"}, {"model": "gemini-x"}]
    world = world.limited(budget="$0.0005/day", offers=ladder, max_tokens=100, min_tokens=100)
    client = gemini_client(world)
    with charge(world.guard, ALICE):
        list(client.models.generate_content_stream(model="big", contents="hi"))

    assert world.stage.seen[0].path == "/v1/models/gemini-x:streamGenerateContent?alt=sse"


def test_an_azure_deployment_follows_the_granted_model(world: World) -> None:
    """Azure goes by the path, whatever the body says."""
    world = world.limited(
        budget="$0.0005/day",
        offers=[{"model": "big"}, {"model": "small"}],
        max_tokens=100,
        min_tokens=100,
    )
    client = openai.AzureOpenAI(
        api_key="k",
        api_version="2024-10-21",
        azure_endpoint=world.url,
        max_retries=0,
        http_client=world.guarded(openai.DefaultHttpxClient),
    )
    with charge(world.guard, ALICE), pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="big", messages=HI)

    assert (
        world.stage.seen[0].path
        == "/openai/deployments/small/chat/completions?api-version=2024-10-21"
    )


@pytest.mark.parametrize("status", [500, 429])
async def test_retries_are_each_admitted_and_settled(world: World, status: int) -> None:
    """The failed ones are given back, the last one is charged."""
    soon = {"retry-after-ms": "1"}
    world.stage.faults += [failing(status, **soon), failing(status, **soon)]
    client = async_openai(world, max_retries=2)
    with charge(world.waiting, ALICE):
        await client.chat.completions.create(model="big", messages=HI)

    assert len(world.stage.seen) == len(world.store.settled) == 3
    assert world.store.charged() == one_call("big")
    assert [event["grade"] for event in world.sink.settled] == [
        "released",
        "released",
        "exact",
    ]


def test_a_retry_beyond_the_limit_is_refused(world: World) -> None:
    """The provider fails while others use the budget up; a failed call took none of it."""
    world = world.limited(concurrency=1)
    client = openai_client(world, max_retries=0)
    with charge(world.guard, ALICE):
        stream = client.chat.completions.create(model="big", messages=HI, stream=True)
        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(model="big", messages=HI)
        stream.close()
        client.chat.completions.create(model="big", messages=HI)

    assert world.open_reservations == 0


@pytest.mark.parametrize("module", ["httpx", "httpx2"])
def test_either_library_serves(world: World, module: str) -> None:
    """OpenAI's and Google's SDKs take clients of both."""
    library: Any = pytest.importorskip(module)
    with charge(world.guard, ALICE):
        openai_client(world, http=library.Client).chat.completions.create(model="big", messages=HI)
        gemini_client(world, module=library).models.generate_content(
            model="gemini-x", contents="hi"
        )

    assert world.store.charged().requests == 2


def test_a_plain_client_raises_what_it_is_refused_with(world: World) -> None:
    """No SDK is needed."""
    world = world.limited(requests="0/day")
    client = world.guarded(httpx.Client)
    with charge(world.guard, ALICE), pytest.raises(BudgetExceeded):
        client.post(f"{world.url}/v1/chat/completions", json={"model": "big", "messages": HI})


def test_usage_only_we_asked_for_is_taken_out_of_a_stream(world: World) -> None:
    """And is there where the application asked for it."""
    client = openai_client(world)
    with charge(world.guard, ALICE):
        unasked = list(client.chat.completions.create(model="big", messages=HI, stream=True))
        asked = list(
            client.chat.completions.create(
                model="big", messages=HI, stream=True, stream_options={"include_usage": True}
            )
        )

    assert [chunk.usage for chunk in unasked if chunk.usage] == []
    assert [chunk.usage.completion_tokens for chunk in asked if chunk.usage] == [LENGTH]
    assert world.store.charged().requests == 2


def test_a_stream_we_shorten_does_not_keep_its_length(world: World) -> None:
    """A server that announces one would have its client wait for the rest."""
    usage = '{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}'
    body = f"data: {usage}\n\ndata: [DONE]\n\n"
    world.stage.faults.append(PlainTextResponse(body, media_type="text/event-stream"))
    client = world.guarded(httpx.Client)
    asked = {"model": "big", "messages": HI, "stream": True}
    with charge(world.guard, ALICE):
        answer = client.post(f"{world.url}/v1/chat/completions", json=asked)

    assert (answer.text, answer.headers.get("content-length")) == ("data: [DONE]\n\n", None)
    assert world.store.charged().tokens == 12


def test_every_call_of_a_model_is_known(world: World) -> None:
    """Responses, embeddings and completions are found by their paths."""
    client = openai_client(world)
    used = {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}
    made: dict[str, Any] = {"object": "list", "model": "big", "data": [], "usage": used}
    answered = {"id": "r", "object": "response", "model": "big", "output": []}
    world.stage.faults += [
        JSONResponse({**answered, "usage": {"input_tokens": 4, "output_tokens": 3}}),
        JSONResponse(made),
        JSONResponse({**made, "object": "text_completion", "choices": []}),
    ]
    with charge(world.guard, ALICE):
        client.responses.create(model="big", input="hi", max_output_tokens=20)
        client.embeddings.create(model="big", input="hi", encoding_format="float")
        client.completions.create(model="big", prompt="hi")

    assert [charges.tokens for _, charges, _ in world.store.settled] == [7, 5, 5]
    assert [event["grade"] for event in world.sink.settled] == ["exact"] * 3


def test_a_transport_inside_learns_whose_call_it_is_and_what_it_used(world: World) -> None:
    """A queue of the upstream's own limits goes by that."""
    errands: list[Any] = []

    class Inner(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            errands.append(errand_of(request.extensions))
            return httpx.Response(200, json={"usage": used})

    used = {"prompt_tokens": 9, "completion_tokens": 3}
    client = world.guarded(httpx.Client, transport=Inner())
    with charge(world.guard, ALICE):
        client.post(
            "http://model.example/v1/chat/completions", json={"model": "big", "messages": HI}
        )

    assert [(errand.principal, errand.model) for errand in errands] == [("alice", "big")]
    assert errands[0].tokens == world.sink.settled[0]["held_tokens"]
    assert errands[0].used_tokens == 12


def test_a_call_that_never_left_its_queue_is_given_back(world: World) -> None:
    """Whatever the error: nothing was sent."""

    class Inner(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            errand = errand_of(request.extensions)
            assert errand is not None
            errand.queued = True
            raise TimeoutError("the queue is long")

    client = world.guarded(httpx.Client, transport=Inner())
    with charge(world.guard, ALICE), pytest.raises(TimeoutError):
        client.post(
            "http://model.example/v1/chat/completions", json={"model": "big", "messages": HI}
        )

    assert world.sink.settled[0]["grade"] == "released"


def test_raw_and_streaming_responses_are_charged(world: World) -> None:
    """However the SDK hands the answer out."""
    client = openai_client(world)
    with charge(world.guard, ALICE):
        raw = client.chat.completions.with_raw_response.create(model="big", messages=HI)
        assert raw.parse().usage is not None
        with client.chat.completions.with_streaming_response.create(
            model="big", messages=HI
        ) as answer:
            answer.read()

    assert world.store.charged().requests == 2
    assert world.open_reservations == 0


def test_google_hides_nothing(world: World) -> None:
    """Its own retries treat a refusal as final."""
    world = world.limited(requests="0/day")
    retrying = genai.types.HttpRetryOptions(attempts=3, initial_delay=0.0, jitter=0.0)
    client = genai.Client(
        api_key="k",
        http_options=genai.types.HttpOptions(
            base_url=world.url, httpx_client=world.guarded(httpx.Client), retry_options=retrying
        ),
    )
    with charge(world.guard, ALICE), pytest.raises(BudgetExceeded):
        client.models.generate_content(model="gemini-x", contents="hi")

    assert len(world.sink.refused) == 1
