"""A provider that speaks OpenAI's chat format and bills to the nano-dollar.

A token is a word, so a test can say in advance what a call will cost: of input the words of
its messages, four for each message and three for the answer; of output `output_tokens`, or
the bound in the request where that is less.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llm_budget_mw._money import cost_nano, usd_to_nano

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")
_MESSAGE_TOKENS = 4
_PRIMING_TOKENS = 3
_FIRST_ERROR = 400


class Bill(NamedTuple):
    """What a number of calls come to."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost_nano: int


class _Price(NamedTuple):
    input: int = 0
    output: int = 0
    """Nano-dollars for a million tokens."""


class _Fault(NamedTuple):
    status: int = 200
    after: int | None = None


@dataclass(slots=True)
class ProviderCall:
    """One call that reached the provider."""

    request: dict[str, Any]
    """Its body."""
    status: int = 200
    """Of the answer; a call that was answered by an error is not billed."""
    input_tokens: int = 0
    output_tokens: int = 0
    """Of all `n` choices together; grows while they are generated."""
    finished: bool = False
    """True once the answer was generated to its end."""
    _price: _Price = field(default=_Price(), repr=False)

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.request.get("model"))

    @property
    def max_tokens(self) -> int | None:
        """The bound on its output, under either of its names; None if it has none."""
        bounds = (self.request.get(name) for name in ("max_completion_tokens", "max_tokens"))
        return min((bound for bound in bounds if isinstance(bound, int)), default=None)

    @property
    def cost_nano(self) -> int:
        """What the provider bills for it, in nano-dollars."""
        price = self._price
        return cost_nano(self.input_tokens, price.input) + cost_nano(
            self.output_tokens, price.output
        )


class FakeProvider:
    """An ASGI application that answers `POST /v1/chat/completions`.

    Serve it, or hand it to an SDK in this process with `httpx.ASGITransport(provider)`.
    `prices` is model to USD per million tokens of input and of output, as text or `Decimal`;
    another model costs nothing. What is public may be changed between calls.
    """

    def __init__(
        self,
        *,
        output_tokens: int = 20,
        delay_s: float = 0.0,
        prices: Mapping[str, tuple[str | Decimal, str | Decimal]] | None = None,
    ) -> None:
        self.output_tokens = output_tokens
        """How long an answer is that no bound cuts short."""
        self.delay_s = delay_s
        """Seconds that each token of an answer takes."""
        self.calls: list[ProviderCall] = []
        """Every call that came, refused ones included."""
        self._prices = {
            model: _Price(*(usd_to_nano(Decimal(usd)) for usd in pair))
            for model, pair in (prices or {}).items()
        }
        self._faults: deque[_Fault] = deque()
        route = Route("/v1/chat/completions", self._answer, methods=["POST"])
        self._app = Starlette(routes=[route])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def fail_next(self, status: int = 500) -> None:
        """Answer a call to come with this error; called twice, the two calls to come."""
        self._faults.append(_Fault(status))

    def break_next(self, *, after: int) -> None:
        """Break the connection of a call to come after this number of tokens, which are billed."""
        self._faults.append(_Fault(after=after))

    @property
    def bills(self) -> dict[str, Bill]:
        """What each model's calls come to."""
        return {
            model: _bill([call for call in self.calls if call.model == model])
            for model in dict.fromkeys(call.model for call in self.calls)
        }

    @property
    def cost_nano(self) -> int:
        """What all calls come to, in nano-dollars."""
        return _bill(self.calls).cost_nano

    async def _answer(self, request: Request) -> Response:
        body = cast("dict[str, Any]", await request.json())
        fault = self._faults.popleft() if self._faults else _Fault()
        price = self._prices.get(str(body.get("model")), _Price())
        call = ProviderCall(body, fault.status, _price=price)
        self.calls.append(call)
        if fault.status >= _FIRST_ERROR:
            return _error(fault.status)
        call.input_tokens = _input_tokens(body)
        length = min(self.output_tokens, call.max_tokens or self.output_tokens)
        answer = _Answer(call, length, cut=length < self.output_tokens, number=len(self.calls))
        if body.get("stream"):
            events = answer.stream(self.delay_s, fault.after)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await answer.whole(self.delay_s, fault.after))


class _Answer:
    """The answer to one call, whole or as a stream."""

    def __init__(self, call: ProviderCall, length: int, *, cut: bool, number: int) -> None:
        self._call = call
        self._length = length
        self._finish_reason = "length" if cut else "stop"
        self._number = number
        self._choices = range(call.request.get("n") or 1)

    async def whole(self, delay_s: float, breaks_after: int | None) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        words = _words(self._length)[:breaks_after]
        await asyncio.sleep(delay_s * len(words))
        self._call.output_tokens = len(words) * len(self._choices)
        self._finish(breaks_after)
        content = "".join(words)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": self._finish_reason,
            }
            for index in self._choices
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage}

    async def stream(self, delay_s: float, breaks_after: int | None) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a stream, one for each token."""
        yield self._delta({"role": "assistant", "content": ""})
        for word in _words(self._length)[:breaks_after]:
            await asyncio.sleep(delay_s)
            for index in self._choices:
                # Billed before it is sent: a provider bills what it generated.
                self._call.output_tokens += 1
                yield self._delta({"content": word}, index)
        self._finish(breaks_after)
        for index in self._choices:
            yield self._delta({}, index, self._finish_reason)
        if self._reports_usage:
            yield self._event([], self._usage)
        yield b"data: [DONE]\n\n"

    def _finish(self, breaks_after: int | None) -> None:
        if breaks_after is not None:
            raise ConnectionAbortedError(f"broken after {breaks_after} tokens, as a test asked for")
        self._call.finished = True

    @property
    def _reports_usage(self) -> bool:
        options: dict[str, Any] = self._call.request.get("stream_options") or {}
        return bool(options.get("include_usage"))

    @property
    def _usage(self) -> dict[str, int]:
        sent, made = self._call.input_tokens, self._call.output_tokens
        return {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}

    def _head(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        name = f"chatcmpl-{self._number}"
        return {"id": name, "object": kind, "created": created, "model": self._call.model}

    def _delta(
        self, delta: dict[str, str], index: int = 0, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event([choice], None)

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        chunk = {**self._head("chat.completion.chunk"), "choices": choices}
        if self._reports_usage:
            chunk["usage"] = usage
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _words(count: int) -> list[str]:
    words = itertools.islice(itertools.cycle(_WORDS), count)
    return [word if position == 0 else f" {word}" for position, word in enumerate(words)]


def _input_tokens(body: Mapping[str, Any]) -> int:
    messages: list[dict[str, Any]] = body.get("messages") or []
    return _PRIMING_TOKENS + sum(
        _MESSAGE_TOKENS + len(_text(message.get("content")).split()) for message in messages
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = content or []
    return " ".join(part.get("text", "") for part in parts)


def _error(status: int) -> Response:
    error = {"message": f"Answered with {status}, as a test asked for.", "type": "server_error"}
    return JSONResponse({"error": {**error, "param": None, "code": None}}, status)


def _bill(calls: list[ProviderCall]) -> Bill:
    return Bill(
        len(calls),
        sum(call.input_tokens for call in calls),
        sum(call.output_tokens for call in calls),
        sum(call.cost_nano for call in calls),
    )
