"""Three providers in one application, which can be told to misbehave."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.asgi.provider import CLAUDE_INPUT, Providers

GEMINI_INPUT = 12
LENGTH = 30
"""Tokens of an answer that no bound cuts short, of every one of them."""
NANO = {"big": (2_500, 10_000), "claude-x": (3_000, 15_000), "gemini-x": (1_000, 4_000)}
"""Nano-dollars for a token of input and of output."""
OPENAI_INPUT = 8
"""Tokens of input of the one message `hi`."""
INPUT = {"big": OPENAI_INPUT, "claude-x": CLAUDE_INPUT, "gemini-x": GEMINI_INPUT}


class Seen(NamedTuple):
    """A request as it reached a provider."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The body as JSON."""
        fields: dict[str, Any] = json.loads(self.body)
        return fields


class Stage:
    """The providers as one test uses them: what they were asked, and how they are to fail."""

    def __init__(self) -> None:
        self.providers = Providers()
        self.seen: list[Seen] = []
        self.faults: deque[Response | str] = deque()
        """Answers to the calls to come: a response, `hang`, `stall`, `cut`, or `good`."""
        self.holding = asyncio.Event()
        """Never set: what hangs waits for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        body = await request.body()
        self.seen.append(Seen(request.method, _target(scope), dict(request.headers), body))
        fault = self.faults.popleft() if self.faults else "good"
        if isinstance(fault, Response):
            await fault(scope, receive, send)
        elif fault == "hang":
            await receive()  # until the client leaves
        elif fault == "stall":
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await receive()
        elif fault == "cut":
            await _cut(send)
        elif ":" in scope["path"]:
            await self._gemini(request, body)(scope, _again(body, receive), send)
        elif request.method == "GET":
            await JSONResponse({"object": "list", "data": []})(scope, receive, send)
        else:
            await self.providers(scope, _again(body, receive), send)

    def _gemini(self, request: Request, body: bytes) -> Response:
        config = json.loads(body).get("generationConfig", {})
        length = min(LENGTH, config.get("maxOutputTokens", LENGTH))
        if "streamGenerateContent" in request.url.path:
            return StreamingResponse(_gemini_events(length), media_type="text/event-stream")
        return JSONResponse(_gemini_answer("word " * length, length, "STOP"))


def _gemini_answer(text: str, length: int, reason: str | None) -> dict[str, Any]:
    usage = {
        "promptTokenCount": GEMINI_INPUT,
        "candidatesTokenCount": length,
        "totalTokenCount": GEMINI_INPUT + length,
    }
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}}
    if reason:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x"}


async def _gemini_events(length: int) -> AsyncIterator[bytes]:
    for position in range(1, length + 1):
        answer = _gemini_answer("word ", position, "STOP" if position == length else None)
        yield f"data: {json.dumps(answer)}\r\n\r\n".encode()


async def _cut(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"id": "c"', "more_body": True})
    raise ConnectionAbortedError("cut, as a test asked for")


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def failing(status: int, **headers: str) -> Response:
    """Return an error of a provider."""
    return JSONResponse({"error": {"message": "no"}}, status, headers)


def redirecting(url: str) -> Response:
    """Return a redirect that keeps method and body."""
    return RedirectResponse(url, 307)


def _target(scope: Scope) -> str:
    query = scope["query_string"].decode()
    path: str = scope["raw_path"].decode()
    return path + (f"?{query}" if query else "")
