"""A streamed answer: what every chunk costs, and whether the first one waits for others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks._deployment import MODEL, Request, ask, configuration, log_to_nowhere, requests
from benchmarks.measure import Result, alternate, at_most
from llm_budget_mw.asgi import BudgetMiddleware

_ROUNDS = 40
_CHUNKS = 2000
_REQUESTS: dict[str, dict[str, Any]] = {
    "usage asked for": {"stream": True, "stream_options": {"include_usage": True}},
    "usage taken out": {"stream": True},
}


def run() -> Iterable[Result]:
    """Measure a stream whose client asked for usage, and one whose client did not."""
    log_to_nowhere()
    yield from asyncio.run(_run())


async def _run() -> list[Result]:
    provider = _Provider()
    ours = BudgetMiddleware(provider, config=configuration())
    results: list[Result] = []
    for name, fields in _REQUESTS.items():
        results += await _measure(f"stream of {_CHUNKS} chunks, {name}", provider, ours, fields)
    await ours.guard.close()
    return results


async def _measure(
    title: str, provider: _Provider, ours: ASGIApp, fields: dict[str, Any]
) -> list[Result]:
    source = requests(**fields)

    async def first(app: ASGIApp) -> float:
        return (await _stream(app, provider, next(source))).first_s

    async def each(app: ASGIApp) -> float:
        return (await _stream(app, provider, next(source))).body_s / _CHUNKS

    times = await alternate(
        _ROUNDS,
        {
            "first bare": lambda: first(provider),
            "first": lambda: first(ours),
            "bare": lambda: each(provider),
            "ours": lambda: each(ours),
        },
    )
    held_back = (await _stream(ours, provider, next(source))).held_back
    work = times.difference_us("ours", "bare")
    return [
        Result(f"{title}: work for a chunk", work, "us", at_most(2)),
        Result(f"{title}: first chunk, no middleware", times.us("first bare"), "us"),
        Result(f"{title}: first chunk, with admission", times.us("first"), "us"),
        Result(f"{title}: chunks held back before the first", held_back, "", at_most(0)),
    ]


class _Provider:
    """An application that streams an answer as fast as it can be sent."""

    def __init__(self) -> None:
        self.sent = 0
        """Chunks of the present answer."""
        self._chunks = list(_chunks())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the answer."""
        self.sent = 0
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in self._chunks:
            self.sent += 1
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Client:
    """What a client notes of one answer."""

    def __init__(self, provider: _Provider) -> None:
        self.first_s = 0.0
        """From the request to the first chunk."""
        self.body_s = 0.0
        """From the head of the answer to the end of its body."""
        self.held_back = 0
        """Chunks sent before the first one arrived, without that one."""
        self._provider = provider
        self._asked = self._answered = perf_counter()

    async def send(self, message: Message) -> None:
        """Take one piece of the answer."""
        if message["type"] == "http.response.start":
            self._answered = perf_counter()
        elif not self.first_s:
            self.first_s = perf_counter() - self._asked
            self.held_back = self._provider.sent - 1
        elif not message["more_body"]:
            self.body_s = perf_counter() - self._answered


async def _stream(app: ASGIApp, provider: _Provider, request: Request) -> _Client:
    client = _Client(provider)
    await ask(app, request, client.send)
    return client


def _chunks() -> Iterator[bytes]:
    """Yield the events as OpenAI's API writes them, with the usage last."""
    frame = {
        "id": "chatcmpl-B0123456789abcdefghijklmnopqr",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
        "model": MODEL,
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
    }
    for number in range(_CHUNKS - 2):
        delta = {"index": 0, "delta": {"content": f" word{number}"}, "finish_reason": None}
        yield _event(to_json({**frame, "choices": [delta], "usage": None}))
    usage = {"prompt_tokens": 15, "completion_tokens": _CHUNKS, "total_tokens": 15 + _CHUNKS}
    yield _event(to_json({**frame, "choices": [], "usage": usage}))
    yield _event(b"[DONE]")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
