"""Tests of what users get for their own tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from llm_budget_mw import AsyncGuard, AuthenticationError, BudgetMiddleware, testing
from llm_budget_mw.config import load
from llm_budget_mw.identity.authenticators import JWTAuthenticator
from llm_budget_mw.testing import (
    AsyncMemoryStore,
    Bill,
    FakeProvider,
    Issuer,
    ManualClock,
    MemoryStore,
    RecordingSink,
)
from llm_budget_mw.types import Principal

HELLO: list[Any] = [{"role": "user", "content": "say hello to me"}]
INPUT = 3 + 4 + 4
"""Tokens of `HELLO`, as the fake provider counts."""


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider(output_tokens=12, prices={"gpt-4o": ("2.50", "10")})


@pytest.fixture
async def client(provider: FakeProvider) -> AsyncIterator[AsyncOpenAI]:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(provider))
    async with AsyncOpenAI(
        base_url="http://provider/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
        yield client


async def post(provider: FakeProvider, **body: Any) -> httpx2.Response:
    """Send a request as it is, which the SDK would not."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(provider)) as http:
        return await http.post("http://provider/v1/chat/completions", json=body)


def test_a_clock_moves_when_told_to() -> None:
    """And by nothing else."""
    clock = ManualClock(5_000)

    clock.advance(250)

    assert clock() == clock.now_ms == 5_250


def test_a_clock_does_not_go_back() -> None:
    """No store expects it to."""
    with pytest.raises(ValueError, match="-1 ms is backwards"):
        ManualClock().advance(-1)


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
def test_an_issuer_s_credentials_are_accepted(
    algorithm: Literal["HS256", "RS256", "ES256"],
) -> None:
    """By an application configured with `config`, as the principal they were made for."""
    issuer = Issuer(algorithm)
    token = issuer.token("alice", scope="llm mail", tier="pro", tenant="acme")

    principal = authenticated(issuer, token, scope="llm")

    assert principal.id == "alice"
    assert (principal.tier, principal.tenant) == ("pro", "acme")
    assert principal.scopes == {"llm", "mail"}


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda issuer: issuer.token("alice", expires_in=-60), id="expired"),
        pytest.param(lambda issuer: issuer.token("alice", exp=None), id="without end"),
        pytest.param(lambda issuer: issuer.token("alice", aud="others"), id="for others"),
        pytest.param(lambda issuer: Issuer().token("alice"), id="signed by another"),
    ],
)
def test_an_issuer_makes_bad_credentials_too(token: Any) -> None:
    """Each of them is refused."""
    issuer = Issuer()

    with pytest.raises(AuthenticationError):
        authenticated(issuer, token(issuer))


def test_an_issuer_says_which_algorithms_it_has() -> None:
    """Instead of signing with something else."""
    with pytest.raises(ValueError, match="'none' is not made here: HS256, RS256 or ES256"):
        Issuer("none")  # type: ignore[arg-type]


def authenticated(issuer: Issuer, token: str, **options: Any) -> Principal:
    config = load(tiers={"default": {}}, jwt=issuer.config(**options))
    return JWTAuthenticator(config.jwt).authenticate([("authorization", f"Bearer {token}")])


async def test_the_provider_answers_an_sdk(client: AsyncOpenAI, provider: FakeProvider) -> None:
    """And reports as usage what it bills."""
    answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO)

    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (INPUT, 12)
    assert answer.choices[0].finish_reason == "stop"
    assert len((answer.choices[0].message.content or "").split()) == 12
    assert provider.cost_nano == INPUT * 2_500 + 12 * 10_000


async def test_the_provider_streams_to_an_sdk(client: AsyncOpenAI) -> None:
    """A chunk for each token, then the usage where it was asked for."""
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )

    chunks = [chunk async for chunk in stream]

    words = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(words) == 12
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


async def test_a_stream_says_nothing_of_usage_unasked(provider: FakeProvider) -> None:
    """As with OpenAI."""
    answer = await post(provider, model="gpt-4o", messages=HELLO, stream=True)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "usage" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_bound_cuts_the_answer_short(name: str, provider: FakeProvider) -> None:
    """Under either of its names, and the answer says so."""
    answer = await post(provider, model="gpt-4o", messages=HELLO, **{name: 5})

    assert answer.json()["usage"]["completion_tokens"] == 5
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert provider.calls[0].max_tokens == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_every_choice_is_billed(stream: bool, provider: FakeProvider) -> None:
    """`n` of them cost `n` times the output, and once the input."""
    await post(provider, model="gpt-4o", messages=HELLO, n=3, stream=stream)

    assert provider.calls[0].output_tokens == 3 * 12
    assert provider.calls[0].input_tokens == INPUT


async def test_parts_of_a_message_are_input(provider: FakeProvider) -> None:
    """Their text is; what is not text costs nothing here."""
    parts = [{"type": "text", "text": "two words"}, {"type": "image_url", "image_url": {}}]

    await post(provider, model="gpt-4o", messages=[{"role": "user", "content": parts}, {}])

    assert provider.calls[0].input_tokens == 3 + 4 + 2 + 4


async def test_calls_are_billed_by_model(provider: FakeProvider) -> None:
    """A model without a price is counted and costs nothing."""
    for model in ("gpt-4o", "other", "gpt-4o"):
        await post(provider, model=model, messages=HELLO)

    assert provider.bills == {
        "gpt-4o": Bill(2, 2 * INPUT, 24, 2 * (INPUT * 2_500 + 120_000)),
        "other": Bill(1, INPUT, 12, 0),
    }


async def test_the_provider_fails_when_told_to(client: AsyncOpenAI, provider: FakeProvider) -> None:
    """The SDK raises its own error, nothing is billed, and the call after that is answered."""
    provider.fail_next(503)

    with pytest.raises(openai.InternalServerError, match="Answered with 503"):
        await client.chat.completions.create(model="gpt-4o", messages=HELLO)
    await client.chat.completions.create(model="gpt-4o", messages=HELLO)

    assert [call.status for call in provider.calls] == [503, 200]
    assert provider.calls[0].cost_nano == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_provider_breaks_off_when_told_to(stream: bool, provider: FakeProvider) -> None:
    """What it had generated by then is billed."""
    provider.break_next(after=4)

    with pytest.raises(ConnectionAbortedError, match="after 4 tokens"):
        await post(provider, model="gpt-4o", messages=HELLO, stream=stream)

    assert provider.calls[0].output_tokens == 4
    assert not provider.calls[0].finished


async def test_all_of_it_together_tests_an_application(
    client: AsyncOpenAI, provider: FakeProvider
) -> None:
    """The books of the middleware agree with the provider's, until the clock says otherwise."""
    issuer, sink, clock = Issuer(), RecordingSink(), ManualClock()
    guard = guarded(issuer, sink, clock)
    app = BudgetMiddleware(passing_on(client), guard=guard)
    token = issuer.token("alice", scope="llm")

    statuses = [await ask(app, token), await ask(app, token)]
    clock.advance(2 * 60_000)
    statuses.append(await ask(app, token))

    assert statuses == [200, 429, 200]
    assert len(provider.calls) == 2
    assert sum(settled["cost_nano"] for settled in sink.settled) == provider.cost_nano
    assert [refused["limit"] for refused in sink.refused] == ["requests-per-minute"]
    assert [event.name for event in sink.events].count("budget.settled") == 2


def guarded(issuer: Issuer, sink: RecordingSink, clock: ManualClock) -> AsyncGuard:
    """Return the guard of one request a minute and a budget."""
    return AsyncGuard.open(
        {
            "jwt": issuer.config(scope="llm"),
            "routes": [{"path": "/chat", "dialect": "openai_chat"}],
            "tiers": {"default": {"requests": "1/minute", "budget": "$1/day"}},
            "prices": {"catalogue": False, "models": {"gpt-4o": {"input": "2.5", "output": "10"}}},
            "tokens": {"exact": False},
        },
        store=AsyncMemoryStore(MemoryStore(clock)),
        sinks=[sink],
    )


def passing_on(client: AsyncOpenAI) -> Starlette:
    """Return an application that passes a chat on to the provider."""

    async def chat(request: Request) -> JSONResponse:
        answer = await client.chat.completions.create(**await request.json())
        return JSONResponse(answer.model_dump())

    return Starlette(routes=[Route("/chat", chat, methods=["POST"])])


async def ask(app: BudgetMiddleware, token: str) -> int:
    """Ask the application and return the status of its answer."""
    body = {"model": "gpt-4o", "messages": HELLO}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        answer = await http.post(
            "http://app/chat", json=body, headers={"authorization": f"Bearer {token}"}
        )
    return answer.status_code


def test_importing_it_needs_the_core_s_dependencies_only() -> None:
    """Whoever tests need not install what only the demo and our own tests use."""
    absent = ["fastapi", "flask", "httpx", "httpx2", "openai", "pytest", "rich", "uvicorn"]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent}))\nimport {testing.__name__}"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
