"""Streams that hold what is expected of them: how many more fit, and what is passed on of them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks import _server
from benchmarks._deployment import (
    FOUR_LIMITS,
    MODEL,
    PATH,
    Request,
    configuration,
    log_to_nowhere,
    requests,
)
from benchmarks.measure import Result, alternate, at_least, at_most
from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.outputs import bucket_of, name_of

_BOUND = 4000
_LENGTH = 200
_LONG_ONES = 10
"""In the mixed load, one in so many answers is as long as its bound."""
_CALLS = 100
"""As many as the limit has room for if each holds its bound."""
_ASKED = 2500
_INPUT = 100
"""Tokens of the limit that each of them may have for its input."""
_LIMIT = _CALLS * (_BOUND + _INPUT)
_EACH = 4
"""Tokens of one chunk."""
_ROUNDS = 20


def run() -> Iterable[Result]:
    """Measure calls that stream at the same time, held in full and elastic."""
    log_to_nowhere()
    yield from asyncio.run(_run())
    _server.clean()


async def _run() -> list[Result]:
    def short(_: int) -> int:
        return _LENGTH

    def mixed(number: int) -> int:
        return _BOUND if number % _LONG_ONES == 0 else _LENGTH

    full = await _load("full", short)
    fit = await _load("elastic", short)
    long = await _load("elastic", mixed)
    load = f"answers of {_LENGTH} tokens, bound {_BOUND}, a limit for {_CALLS} bounds"
    some = f"one answer in {_LONG_ONES} as long as its bound"
    return [
        Result(f"{load}: streams at once, held in full", full.served, ""),
        Result(f"{load}: streams at once, elastic", fit.served, ""),
        Result(f"{load}: elastic / full", fit.served / full.served, "x", at_least(8)),
        Result(f"{load}: ended early", fit.stopped, ""),
        Result(f"{load}: growths for a stream", fit.grown / fit.served, ""),
        Result(f"{load}: passed on beyond the limit", fit.overshoot, "tokens", at_most(0)),
        Result(f"{some}: streams at once, elastic", long.served, ""),
        Result(f"{some}: ended early", long.stopped, ""),
        Result(f"{some}: growths for a stream", long.grown / long.served, ""),
        Result(f"{some}: passed on beyond the limit", long.overshoot, "tokens", at_most(0)),
        Result(f"{some}: generated and not passed on", long.ahead, "tokens"),
        *await _chunks(),
    ]


class _Load(NamedTuple):
    """What became of many calls at once."""

    served: int
    stopped: int
    grown: int
    overshoot: int
    """Tokens passed on, with the input of their calls, beyond the limit; below 0 if none."""
    ahead: int
    """Output the provider had sent when its stream was ended, and the client did not get."""


class _Provider:
    """Begins every answer when all calls have been decided, and keeps to their bounds."""

    def __init__(self, length: Callable[[int], int]) -> None:
        self.begun = 0
        self.decided = asyncio.Event()
        self.sent = 0
        """Tokens of all answers."""
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream an answer."""
        number, self.begun = self.begun, self.begun + 1
        asked = json.loads((await receive())["body"])
        await self.decided.wait()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        left = min(self._length(number), asked["max_tokens"])
        while left > 0:
            await asyncio.sleep(0)  # as a provider's socket would: others have their turn
            size = min(_EACH, left)
            left -= size
            self.sent += size
            chunk = {"choices": [{"index": 0, "delta": {"content": " word" * size}}]}
            await send(_body(b"data: " + to_json({**chunk, "usage": None}) + b"\n\n"))
        await send({**_body(b"data: [DONE]\n\n"), "more_body": False})


class _Recorder:
    """Keeps the events of settlements."""

    def __init__(self) -> None:
        self.settled: list[dict[str, Any]] = []

    def emit(self, event: Any) -> None:
        """Take one event."""
        if event.name == "budget.settled":
            self.settled.append(event.attributes)


async def _load(hold: str, length: Callable[[int], int]) -> _Load:
    _server.clean()
    provider, sink = _Provider(length), _Recorder()
    tier = {"tokens": f"{_LIMIT}/day", "max_tokens": _BOUND}
    app = BudgetMiddleware(provider, config=configuration(tier, hold=hold), sinks=[sink])
    await _learn(app)
    clients = [_Client() for _ in range(_ASKED)]
    tasks = [
        asyncio.create_task(client.ask(app, request))
        for client, request in zip(clients, _same_user(), strict=False)
    ]
    pending = set(tasks)
    while len(pending) > provider.begun:
        _, pending = await asyncio.wait(pending, timeout=0.01)
    provider.decided.set()
    await asyncio.gather(*tasks)
    await app.guard.close()
    passed = sum(client.tokens for client in clients)
    inputs = sum(event["input_tokens"] for event in sink.settled)
    return _Load(
        provider.begun,
        sum(event["ending"] == "stopped" for event in sink.settled),
        sum(event["grown"] for event in sink.settled),
        passed + inputs - _LIMIT,
        provider.sent - passed,
    )


class _Client:
    """Counts the tokens of its answer."""

    def __init__(self) -> None:
        self.tokens = 0

    async def ask(self, app: ASGIApp, request: Request) -> None:
        """Send one request; a refusal is an answer, too."""

        async def receive() -> Message:
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Message) -> None:
            self.tokens += message.get("body", b"").count(b" word")

        await app(dict(request.scope), receive, send)


async def _learn(app: BudgetMiddleware) -> None:
    """Let it know how long answers are, as after some calls."""
    known = await app.guard.store.learn({name_of(PATH, MODEL): {bucket_of(_LENGTH): 100}})
    app.guard.outputs.learn(known)


def _same_user(**fields: Any) -> Iterator[Request]:
    return itertools.repeat(next(requests(stream=True, max_tokens=_BOUND, **fields)))


async def _chunks() -> list[Result]:
    """Measure the work for a chunk, on a stream that is not elastic and on one that is."""
    provider = _Provider(lambda _: _BOUND)
    provider.decided.set()
    tier = {**FOUR_LIMITS, "max_tokens": _BOUND}
    full = BudgetMiddleware(provider, config=configuration(tier))
    elastic = BudgetMiddleware(provider, config=configuration(tier, hold="elastic"))
    await _learn(elastic)
    request = next(_same_user())
    times = await alternate(
        _ROUNDS,
        {
            "bare": lambda: _timed(provider, request),
            "full": lambda: _timed(full, request),
            "elastic": lambda: _timed(elastic, request),
        },
    )
    await full.guard.close()
    await elastic.guard.close()
    return [
        Result(f"work for a chunk, {hold}", times.difference_us(hold, "bare"), "us")
        for hold in ("full", "elastic")
    ]


async def _timed(app: ASGIApp, request: Request) -> float:
    begin = perf_counter()
    await _Client().ask(app, request)
    return (perf_counter() - begin) / (_BOUND / _EACH)


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}
