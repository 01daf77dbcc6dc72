"""OpenAI's and Anthropic's own clients against a guarded provider on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from tests.asgi.driver import Site, UvicornServer, until
from tests.asgi.provider import CLAUDE_LENGTH, Counting, Providers
from tests.edge.driver import ISSUER, LIMITS

ASK: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi there"}]}
TELL: dict[str, Any] = {**ASK, "model": "claude-x", "max_tokens": 50}
ONE_CALL = {"big": "$0.0005/month", "claude-x": "$0.0009/month"}
"""Enough for one call with 30 tokens of output, and not for two."""
SHORT = {"requests": {"limit": "1/second", "window": "fixed"}}
CLOSED = dict.fromkeys(("requests", "tokens", "budget", "concurrency"), "closed")


def spent(model: str) -> dict[str, Any]:
    """Return limits that one call of a model uses up."""
    return {"budget": ONE_CALL[model], "min_tokens": 30, "max_tokens": 30}


class Live(NamedTuple):
    """A guarded provider on a socket."""

    site: Site
    providers: Providers
    front: Counting
    url: str
    clients: ExitStack

    def openai(self, **options: Any) -> openai.OpenAI:
        """Return OpenAI's client."""
        options = {"api_key": ISSUER.token("alice"), **options}
        client = openai.OpenAI(base_url=f"{self.url}/v1", **options)
        return self.clients.enter_context(client)

    def claude(self, **options: Any) -> anthropic.Anthropic:
        """Return Anthropic's client."""
        options = {"auth_token": ISSUER.token("alice"), "api_key": None, **options}
        return self.clients.enter_context(anthropic.Anthropic(base_url=self.url, **options))


@contextmanager
def live(tier: dict[str, Any], **store: Any) -> Iterator[Live]:
    """Serve the providers under these limits."""
    providers = Providers()
    site = Site(providers, tier, **store)
    front = Counting(site.app)
    with UvicornServer(front) as running, ExitStack() as clients:
        yield Live(site, providers, front, running.url, clients)


@pytest.fixture(scope="module")
def roomy() -> Iterator[Live]:
    with live(LIMITS) as served:
        yield served


def books_are_right(served: Live) -> bool:
    """Return whether every call was charged what it was billed, once all are settled."""
    settled = served.site.settled(served.providers.calls)
    charged: int = sum(event["cost_nano"] for event in settled)
    return charged == served.providers.cost_nano


def test_openai_plain(roomy: Live) -> None:
    """The answer is the provider's own."""
    answer = roomy.openai().chat.completions.create(**ASK)

    assert answer.usage
    assert answer.usage.completion_tokens == 30
    assert answer.choices[0].finish_reason == "stop"
    assert books_are_right(roomy)


@pytest.mark.parametrize("asked", [True, False])
def test_openai_stream(roomy: Live, asked: bool) -> None:
    """Whole, and with usage exactly if it was asked for."""
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(roomy.openai().chat.completions.create(**{**ASK, **options}, stream=True))

    usage = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert usage == ([30] if asked else [])
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) == 30
    assert books_are_right(roomy)


async def test_openai_asynchronous(roomy: Live) -> None:
    """Plain and streamed side by side over one client."""
    token = ISSUER.token("alice")
    async with openai.AsyncOpenAI(base_url=f"{roomy.url}/v1", api_key=token) as sdk:

        async def streamed() -> int:
            stream = await sdk.chat.completions.create(**ASK, stream=True)
            return len([chunk async for chunk in stream if chunk.choices[0].delta.content])

        answer, length = await asyncio.gather(sdk.chat.completions.create(**ASK), streamed())

    assert answer.usage
    assert answer.usage.completion_tokens == length == 30
    assert books_are_right(roomy)


def test_openai_several_choices(roomy: Live) -> None:
    """Two choices are charged as two."""
    answer = roomy.openai().chat.completions.create(**ASK, n=2)

    assert answer.usage
    assert answer.usage.completion_tokens == 60
    assert books_are_right(roomy)


def test_anthropic_plain(roomy: Live) -> None:
    """The answer is the provider's own."""
    answer = roomy.claude().messages.create(**TELL)

    assert answer.usage.output_tokens == CLAUDE_LENGTH
    assert answer.stop_reason == "end_turn"
    assert books_are_right(roomy)


def test_anthropic_stream(roomy: Live) -> None:
    """The SDK puts the same message together as without the middleware."""
    with roomy.claude().messages.stream(**TELL) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == "word " * CLAUDE_LENGTH
    assert message.usage.output_tokens == CLAUDE_LENGTH
    assert books_are_right(roomy)


async def test_anthropic_asynchronous(roomy: Live) -> None:
    """The same with the client for event loops."""
    async with anthropic.AsyncAnthropic(
        base_url=roomy.url, auth_token=ISSUER.token("alice"), api_key=None
    ) as sdk:
        answer = await sdk.messages.create(**TELL)
        async with sdk.messages.stream(**TELL) as stream:
            message = await stream.get_final_message()

    assert answer.usage.output_tokens == message.usage.output_tokens == CLAUDE_LENGTH
    assert books_are_right(roomy)


def test_the_grant_is_what_the_provider_is_asked(roomy: Live) -> None:
    """A caller who asks for more than the tier allows is cut to it, in both formats."""
    roomy.openai().chat.completions.create(**ASK, max_completion_tokens=50_000)
    roomy.claude().messages.create(**{**TELL, "max_tokens": 4000})

    assert roomy.providers.openai.calls[-1].max_tokens == 1024
    assert roomy.providers.claude_calls[-1]["max_tokens"] == 1024


@pytest.mark.parametrize("stream", [True, False])
def test_openai_gives_up_on_a_spent_budget(stream: bool) -> None:
    """One request, one exception, with the code and what to do about it."""
    with live(spent("big")) as served:
        sdk = served.openai()
        sdk.chat.completions.create(**ASK)
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(**ASK, stream=stream)
        assert served.front.requests == 2

    assert caught.value.code == "budget_exceeded"
    assert "budget-per-month" in str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
def test_anthropic_gives_up_on_a_spent_budget(stream: bool) -> None:
    """At once: it would sleep through any wait it is told."""
    with live(spent("claude-x")) as served:
        sdk = served.claude()
        sdk.messages.create(**TELL)
        with pytest.raises(anthropic.RateLimitError) as caught:
            sdk.messages.create(**TELL, stream=stream)
        assert served.front.requests == 2

    assert caught.value.type == "rate_limit_error"
    assert "budget_exceeded" in str(caught.value.body)


def test_openai_comes_back_after_a_short_wait() -> None:
    """A rate with room again within the second is retried and then admitted."""
    with live(SHORT) as served:
        sdk = served.openai()
        for _ in range(2):
            sdk.chat.completions.create(**ASK)
        # Unless the second had just turned, one was refused in between.
        assert served.front.requests in (2, 3)
        assert served.providers.calls == 2


def test_anthropic_comes_back_after_a_short_wait() -> None:
    """The same with the other SDK."""
    with live(SHORT) as served:
        sdk = served.claude()
        for _ in range(2):
            sdk.messages.create(**TELL)
        assert served.front.requests in (2, 3)
        assert served.providers.calls == 2


def test_a_request_larger_than_the_budget_is_not_tried_again() -> None:
    """Both SDKs raise at once: waiting cannot help."""
    with live({"tokens": "40/minute", "min_tokens": 40}) as served:
        with pytest.raises(openai.APIStatusError) as first:
            served.openai().chat.completions.create(**ASK)
        with pytest.raises(anthropic.APIStatusError) as second:
            served.claude().messages.create(**TELL)
        assert served.front.requests == 2

    assert first.value.status_code == second.value.status_code == 413
    assert first.value.code == "request_exceeds_budget"


def test_who_is_nobody_gets_the_exception_for_that() -> None:
    """An expired credential is an authentication error to both, and is not tried again."""
    stale = ISSUER.token("alice", expires_in=-500)
    with live(LIMITS) as served:
        with pytest.raises(openai.AuthenticationError):
            served.openai(api_key=stale).chat.completions.create(**ASK)
        with pytest.raises(anthropic.AuthenticationError):
            served.claude(auth_token=stale).messages.create(**TELL)
        assert served.front.requests == 2


def test_a_wrong_request_gets_the_exception_for_that(roomy: Live) -> None:
    """A bad value is a bad request to both."""
    with pytest.raises(openai.BadRequestError):
        roomy.openai().chat.completions.create(**{**ASK, "model": "nobody-knows"})
    with pytest.raises(anthropic.BadRequestError):
        roomy.claude().messages.create(**{**TELL, "max_tokens": -1})


def test_an_error_of_the_provider_reaches_the_sdk_and_costs_nothing() -> None:
    """It is retried as without the middleware, and each try is given back."""
    with live(LIMITS) as served:
        for _ in range(2):
            served.providers.openai.fail_next(500)
        with pytest.raises(openai.InternalServerError):
            served.openai(max_retries=1).chat.completions.create(**ASK)
        settled = served.site.settled(2)
        assert served.front.requests == 2

    assert [event["grade"] for event in settled] == ["released", "released"]


def test_sdks_keep_their_connection(roomy: Live) -> None:
    """A refused request leaves the connection fit for the next one."""
    sdk = roomy.openai()

    for _ in range(3):
        with pytest.raises(openai.BadRequestError):
            sdk.chat.completions.create(**{**ASK, "model": "nobody-knows"})

    assert sdk.chat.completions.create(**ASK).usage


def test_a_closed_limit_without_a_store_is_a_503_that_is_tried_again() -> None:
    """The SDK gives the store the time of its retries."""
    down = {"url": "redis://127.0.0.1:1/0", "deadline_ms": 200}
    with live({**LIMITS, "on_outage": CLOSED}, **down) as served:
        with pytest.raises(openai.InternalServerError) as caught:
            served.openai(max_retries=1).chat.completions.create(**ASK)
        until(lambda: served.front.requests == 2, "a retry")
        assert served.providers.calls == 0

    assert caught.value.status_code == 503
    assert caught.value.code == "budget_unavailable"
