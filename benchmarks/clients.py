"""A call through the SDK of OpenAI, guarded and not, to a provider on this machine.

How often the store is asked, and when: before the request leaves, and after the last byte of
the answer, while the caller waits for the call to return.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from time import perf_counter
from typing import Any

import httpx2
import openai
import uvicorn
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from benchmarks._deployment import (
    ANSWER,
    REQUEST,
    configuration,
    log_to_nowhere,
    principals,
)
from benchmarks.measure import Result, Timings, alternate, at_most, one_by_one
from llm_budget_mw import AsyncGuard, Guard, charge
from llm_budget_mw.assembly import build_async_store, build_store
from llm_budget_mw.clients import guarded

_ROUNDS = 20
_COUNT = 50
_START_S = 20.0
_PIECES = 20
_CALLS = 2
"""Of which the last is counted: the first of a process may ask for more."""
_SENT, _LAST_BYTE = "sent", "last byte"
_LOCAL = ("now_ms",)
"""What a store answers by itself."""
Notes = list[str]
"""What happened in the last call: the requests to the store by their names, and these two."""


def run() -> Iterable[Result]:
    """Measure a call in a thread and one on an event loop; count for a whole answer and a stream."""
    log_to_nowhere()
    with _provider() as url:
        yield from _timed("SDK of OpenAI, sync", _in_a_thread(url))
        timings, counted = asyncio.run(_on_a_loop(url))
        yield from _timed("SDK of OpenAI, async", timings)
        for title, notes in [*_counted(url), *counted]:
            yield from _round_trips(title, notes)


def _timed(title: str, timings: Timings) -> Iterable[Result]:
    yield Result(f"{title}: unguarded", timings.us("bare"), "us")
    yield Result(f"{title}: guarded", timings.us("ours"), "us")
    yield Result(f"{title}: guarded / unguarded", timings.ratio("ours", "bare"), "x")


def _round_trips(title: str, notes: Notes) -> Iterable[Result]:
    sent, last = notes.index(_SENT), notes.index(_LAST_BYTE)
    yield Result(f"{title}: asked of the store before the call", sent, "", at_most(1))
    yield Result(f"{title}: meanwhile", last - sent - 1, "", at_most(0))
    yield Result(f"{title}: after the last byte, waited for", len(notes) - last - 1, "", at_most(0))


# --- a call in a thread, and on a loop


def _in_a_thread(url: str) -> Timings:
    who = principals()
    with contextlib.closing(Guard.open(configuration())) as guard:
        bare, ours = _sdk(url, openai.DefaultHttpxClient()), _sdk(url, guarded(httpx2.Client))

        async def unguarded() -> object:
            return bare.chat.completions.create(**REQUEST)

        async def ask() -> object:
            with charge(guard, next(who)):
                return ours.chat.completions.create(**REQUEST)

        with bare, ours:
            return asyncio.run(_alternate(unguarded, ask))


async def _on_a_loop(url: str) -> tuple[Timings, list[tuple[str, Notes]]]:
    guard, who = AsyncGuard.open(configuration()), principals()
    bare = _async_sdk(url, openai.DefaultAsyncHttpxClient())
    ours = _async_sdk(url, guarded(httpx2.AsyncClient))

    async def ask() -> object:
        with charge(guard, next(who)):
            return await ours.chat.completions.create(**REQUEST)

    async with bare, ours:
        timings = await _alternate(lambda: bare.chat.completions.create(**REQUEST), ask)
    await guard.close()
    return timings, await _async_counted(url)


async def _alternate(unguarded: Callable[[], Any], ask: Callable[[], Any]) -> Timings:
    variants = {"bare": unguarded, "ours": ask}
    return await alternate(
        _ROUNDS,
        {name: functools.partial(one_by_one, each, _COUNT) for name, each in variants.items()},
    )


def _sdk(url: str, client: Any) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url=url, http_client=client, max_retries=0)


def _async_sdk(url: str, client: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="k", base_url=url, http_client=client, max_retries=0)


# --- what is asked of the store, and when


class _Noted:
    """A store that notes what is asked of it."""

    def __init__(self, store: Any, notes: Notes) -> None:
        self._store = store
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in _LOCAL or not callable(method):
            return method

        def noted(*arguments: Any) -> Any:
            self._notes.append(name)
            return method(*arguments)

        return noted


class _Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, inner: Any, notes: Notes) -> None:
        self._inner = inner
        self._notes = notes

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self._arrived()
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            self._arrived()
            yield piece

    def _arrived(self) -> None:
        # Nobody knows which is the last one: an SDK stops to read when it has seen enough.
        if _LAST_BYTE in self._notes:
            self._notes.remove(_LAST_BYTE)
        self._notes.append(_LAST_BYTE)

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Wire(httpx2.HTTPTransport):
    """Notes when a request leaves, and when the last byte of its answer is there."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._notes.append(_SENT)
        response = super().handle_request(request)
        response.stream = _Body(response.stream, self._notes)
        return response


class _AsyncWire(httpx2.AsyncHTTPTransport):
    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._notes.append(_SENT)
        response = await super().handle_async_request(request)
        response.stream = _Body(response.stream, self._notes)
        return response


def _counted(url: str) -> Iterator[tuple[str, Notes]]:
    for stream in (False, True):
        notes: Notes = []
        store: Any = _Noted(build_store(configuration()), notes)
        guard = Guard.open(configuration(), store=store)
        client = _sdk(url, guarded(httpx2.Client, transport=_Wire(notes)))
        with client, charge(guard, next(principals())):
            for _ in range(_CALLS):
                notes.clear()
                answer: Any = client.chat.completions.create(**REQUEST, stream=stream)
                if stream:
                    list(answer)
        yield f"SDK of OpenAI, sync, {'stream' if stream else 'whole answer'}", list(notes)
        guard.close()


async def _async_counted(url: str) -> list[tuple[str, Notes]]:
    counted: list[tuple[str, Notes]] = []
    for stream in (False, True):
        notes: Notes = []
        store: Any = _Noted(build_async_store(configuration()), notes)
        guard = AsyncGuard.open(configuration(), store=store)
        client = _async_sdk(url, guarded(httpx2.AsyncClient, transport=_AsyncWire(notes)))
        with charge(guard, next(principals())):
            for _ in range(_CALLS):
                notes.clear()
                answer: Any = await client.chat.completions.create(**REQUEST, stream=stream)
                if stream:
                    _ = [piece async for piece in answer]
        title = f"SDK of OpenAI, async, {'stream' if stream else 'whole answer'}"
        counted.append((title, list(notes)))
        await client.close()
        await guard.close()
    return counted


# --- the provider, a process of its own


@contextlib.contextmanager
def _provider() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,), daemon=True)
    process.start()
    try:
        _wait(port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.join()


def _wait(port: int) -> None:
    deadline = perf_counter() + _START_S
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        if perf_counter() > deadline:
            raise RuntimeError("the provider did not start")
        time.sleep(0.01)  # the only way to learn that another process listens


def _serve(port: int) -> None:
    uvicorn.run(_answer, port=port, log_level="error", lifespan="off")


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a call; what is asked for as a stream, in pieces."""
    body = b""
    more = True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    streams = b'"stream":true' in body.replace(b" ", b"")
    kind = b"text/event-stream" if streams else b"application/json"
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
    await send(start)
    for piece in _EVENTS if streams else []:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if streams else to_json(ANSWER)})


_DELTA = {"model": ANSWER["model"], "choices": [{"index": 0, "delta": {"content": "word "}}]}
_EVENTS = [b"data: " + to_json(_DELTA) + b"\n\n"] * _PIECES + [
    b"data: " + to_json({**ANSWER, "choices": []}) + b"\n\n",
    b"data: [DONE]\n\n",
]
