"""The real SDKs as one: the same question to each, whole or streamed, in threads or on a loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import openai
from google import genai
from google.genai.types import GenerateContentConfig, HttpOptions

from tests.clients.world import World

MODEL = {"openai": "big", "anthropic": "claude-x", "gemini": "gemini-x"}
HI: Any = [{"role": "user", "content": "hi"}]


def openai_client(world: World, make: Any = None, **options: Any) -> openai.OpenAI:
    """Return OpenAI's client."""
    options = {"max_retries": 0, **options}
    http = (make or world.guarded)(options.pop("http", openai.DefaultHttpxClient))
    return openai.OpenAI(api_key="k", base_url=f"{world.url}/v1", http_client=http, **options)


def async_openai(world: World, make: Any = None, **options: Any) -> openai.AsyncOpenAI:
    """Return OpenAI's client for an event loop."""
    options = {"max_retries": 0, **options}
    http = (make or world.guarded)(options.pop("http", openai.DefaultAsyncHttpxClient))
    return openai.AsyncOpenAI(api_key="k", base_url=f"{world.url}/v1", http_client=http, **options)


def claude_client(world: World, make: Any = None, **options: Any) -> anthropic.Anthropic:
    """Return Anthropic's client."""
    options = {"max_retries": 0, **options}
    http = (make or world.guarded)(anthropic.DefaultHttpxClient)
    return anthropic.Anthropic(api_key="k", base_url=world.url, http_client=http, **options)


def async_claude(world: World, make: Any = None, **options: Any) -> anthropic.AsyncAnthropic:
    """Return Anthropic's client for an event loop."""
    options = {"max_retries": 0, **options}
    http = (make or world.guarded)(anthropic.DefaultAsyncHttpxClient)
    return anthropic.AsyncAnthropic(api_key="k", base_url=world.url, http_client=http, **options)


def gemini_client(world: World, make: Any = None, module: Any = httpx2) -> genai.Client:
    """Return Google's client, both sides of it."""
    options = HttpOptions(
        base_url=world.url,
        httpx_client=(make or world.guarded)(module.Client),
        httpx_async_client=(make or world.guarded)(module.AsyncClient),
    )
    return genai.Client(api_key="k", http_options=options)


@dataclasses.dataclass(frozen=True)
class Sdk:
    """One SDK, asked in one way; `name` is also that of its model's row in `MODEL`."""

    name: str
    stream: bool

    @property
    def model(self) -> str:
        """The model that is asked."""
        return MODEL[self.name]

    def __str__(self) -> str:
        """Name it in the id of a test."""
        return f"{self.name}-{'stream' if self.stream else 'whole'}"

    def asker(self, world: World, make: Any = None) -> Callable[[], str]:
        """Return a function that asks in a thread, and returns the whole text."""
        return functools.partial(getattr(self, f"_{self.name}"), _CLIENTS[self.name](world, make))

    def async_asker(self, world: World, make: Any = None) -> Callable[[], Any]:
        """Return a coroutine function that does."""
        client = _ASYNC_CLIENTS[self.name](world, make)
        return functools.partial(getattr(self, f"_async_{self.name}"), client)

    def _openai(self, client: openai.OpenAI) -> str:
        answer: Any = client.chat.completions.create(
            model="big", messages=HI, max_completion_tokens=50, stream=self.stream
        )
        if not self.stream:
            return str(answer.choices[0].message.content)
        return "".join([chunk.choices[0].delta.content or "" for chunk in answer])

    async def _async_openai(self, client: openai.AsyncOpenAI) -> str:
        answer: Any = await client.chat.completions.create(
            model="big", messages=HI, max_completion_tokens=50, stream=self.stream
        )
        if not self.stream:
            return str(answer.choices[0].message.content)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    def _anthropic(self, client: anthropic.Anthropic) -> str:
        if self.stream:
            with client.messages.stream(model="claude-x", messages=HI, max_tokens=50) as stream:
                return "".join(stream.text_stream)
        answer: Any = client.messages.create(model="claude-x", messages=HI, max_tokens=50)
        return str(answer.content[0].text)

    async def _async_anthropic(self, client: anthropic.AsyncAnthropic) -> str:
        if self.stream:
            asked = client.messages.stream(model="claude-x", messages=HI, max_tokens=50)
            async with asked as stream:
                return "".join([text async for text in stream.text_stream])
        answer: Any = await client.messages.create(model="claude-x", messages=HI, max_tokens=50)
        return str(answer.content[0].text)

    def _gemini(self, client: genai.Client) -> str:
        asked: dict[str, Any] = {"model": "gemini-x", "contents": "hi", "config": _BOUND}
        if self.stream:
            answers = client.models.generate_content_stream(**asked)
            return "".join([answer.text or "" for answer in answers])
        return client.models.generate_content(**asked).text or ""

    async def _async_gemini(self, client: genai.Client) -> str:
        asked: dict[str, Any] = {"model": "gemini-x", "contents": "hi", "config": _BOUND}
        if self.stream:
            answers = await client.aio.models.generate_content_stream(**asked)
            return "".join([answer.text or "" async for answer in answers])
        return (await client.aio.models.generate_content(**asked)).text or ""


_BOUND = GenerateContentConfig(max_output_tokens=50)
_CLIENTS: dict[str, Any] = {
    "openai": openai_client,
    "anthropic": claude_client,
    "gemini": gemini_client,
}
_ASYNC_CLIENTS: dict[str, Any] = {
    "openai": async_openai,
    "anthropic": async_claude,
    "gemini": gemini_client,
}
SDKS = [Sdk(name, stream) for name in MODEL for stream in (False, True)]
LEGACY: Any = httpx
"""The library that httpx2 was forked from; the SDKs of OpenAI and Google still take it."""
