"""Elastic streams on real servers: what SDKs see of their end, and many at once on one Valkey."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

import anthropic
import openai
import redis

from llm_budget_mw.outputs import bucket_of, name_of
from tests.asgi.driver import Site, UvicornServer, until
from tests.asgi.provider import Providers
from tests.edge.driver import CHAT, ISSUER, MESSAGES
from tests.servers import ValkeyServer

ASK: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi there"}]}
TELL: dict[str, Any] = {**ASK, "model": "claude-x", "max_tokens": 2000}
ROUTES = [
    {"path": CHAT, "dialect": "openai_chat", "hold": "elastic"},
    {"path": MESSAGES, "dialect": "anthropic_messages", "hold": "elastic"},
]
LONG = 400
"""Tokens of an answer, each some five bytes long."""
MANY = 64


@contextlib.contextmanager
def served(tier: dict[str, Any], **store: Any) -> Generator[tuple[Site, str]]:
    """Serve the providers on elastic routes that have learned how long answers are."""
    providers = Providers()
    providers.openai.output_tokens = LONG
    site = Site(providers, {"max_tokens": 2000, **tier}, sections={"routes": ROUTES}, **store)
    short = {bucket_of(40): 20}
    site.guard.outputs.learn({name_of(CHAT, "big"): short, name_of(MESSAGES, "claude-x"): short})
    with UvicornServer(site.app) as server:
        yield site, server.url


def test_openai_sdk_sees_an_answer_cut_short() -> None:
    """What was passed on, and the reason: its length."""
    token = ISSUER.token("alice")
    with (
        served({"tokens": "600/day"}) as (site, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key=token) as sdk,
    ):
        chunks = list(sdk.chat.completions.create(**ASK, stream=True))
        [event] = site.settled()

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].id == chunks[0].id
    assert (event["ending"], event["overrun"]) == ("stopped", False)
    assert len(text) == event["output_tokens"] <= event["held_tokens"] <= 600


def test_anthropic_sdk_sees_a_message_cut_short() -> None:
    """What was passed on, and the reason: its bound."""
    token = ISSUER.token("alice")
    with (
        served({"tokens": "120/day"}) as (site, url),
        anthropic.Anthropic(base_url=url, auth_token=token, api_key=None) as sdk,
    ):
        with sdk.messages.stream(**TELL) as stream:
            message = stream.get_final_message()
        [event] = site.settled()

    [block] = message.content
    assert message.stop_reason == "max_tokens"
    assert block.type == "text"
    assert len(block.text) == event["output_tokens"] == message.usage.output_tokens
    assert (event["ending"], event["overrun"]) == ("stopped", False)
    assert event["total_tokens"] <= event["held_tokens"] <= 120


async def test_many_at_once_on_one_server(valkey: ValkeyServer) -> None:
    """64 streams on one limit: no more is passed on or committed than there is; none stays held."""
    amount = 30_000
    token = ISSUER.token("alice")
    with served({"tokens": f"{amount}/day"}, url=valkey.url) as (site, url):
        prefix = site.guard.config.store.prefix

        async def ask(sdk: openai.AsyncOpenAI) -> int:
            try:
                stream = await sdk.chat.completions.create(**ASK, stream=True)
            except openai.RateLimitError:
                return 0
            return sum([len(chunk.choices[0].delta.content or "") async for chunk in stream])

        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as sdk:
            passed = await asyncio.gather(*(ask(sdk) for _ in range(MANY)))
        served_calls = sum(map(bool, passed))
        events = site.settled(served_calls)
        until(lambda: len(site.sink.named("budget.settled")) == served_calls, "all are settled")

    committed = sum(event["total_tokens"] for event in events)
    assert sum(passed) == sum(event["output_tokens"] for event in events)
    assert committed <= amount
    assert committed >= 0.9 * amount
    assert {event["ending"] for event in events} <= {"stopped", "complete"}
    with redis.Redis(port=valkey.port) as client:
        bare: Any = client
        [account] = [key for key in bare.keys(f"{prefix}:*") if b"alice" in key]
        assert not [field for field in bare.hkeys(account) if field.startswith(b"#")]
