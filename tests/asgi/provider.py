"""Two providers in one application: OpenAI's chat format, and Anthropic's messages beside it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_budget_mw.testing import FakeProvider
from tests.edge.driver import MESSAGES

CLAUDE_INPUT = 11
CLAUDE_LENGTH = 30
"""Tokens of an answer that no bound cuts short."""
INPUT_NANO, OUTPUT_NANO = 3000, 15_000


class Providers:
    """Answers both paths, and keeps what each was asked and what it bills."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.openai = FakeProvider(
            output_tokens=30,
            delay_s=delay_s,
            prices={"big": ("2.50", "10"), "small": ("0.15", "0.60")},
        )
        self.claude_calls: list[dict[str, Any]] = []
        self.claude_nano = 0

    @property
    def calls(self) -> int:
        """Calls that reached either."""
        return len(self.openai.calls) + len(self.claude_calls)

    @property
    def cost_nano(self) -> int:
        """What both bill."""
        return self.openai.cost_nano + self.claude_nano

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app: ASGIApp = self.openai
        if scope["type"] == "http" and scope["path"] == MESSAGES:
            app = await self._claude(Request(scope, receive))
        await app(scope, receive, send)

    async def _claude(self, request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        self.claude_calls.append(body)
        length = min(CLAUDE_LENGTH, body["max_tokens"])
        self.claude_nano += CLAUDE_INPUT * INPUT_NANO + length * OUTPUT_NANO
        if body.get("stream"):
            return StreamingResponse(_events(body, length), media_type="text/event-stream")
        message = _message(body, [{"type": "text", "text": "word " * length}])
        usage = {"input_tokens": CLAUDE_INPUT, "output_tokens": length}
        return JSONResponse({**message, "stop_reason": _reason(length), "usage": usage})


class Counting:
    """Counts the requests that arrive before anything has looked at them."""

    def __init__(self, app: ASGIApp) -> None:
        self.requests = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count, and pass on."""
        self.requests += scope["type"] == "http"
        await self._app(scope, receive, send)


def _message(body: dict[str, Any], content: list[dict[str, str]]) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"]}
    return {**head, "content": content, "stop_reason": None, "stop_sequence": None}


def _reason(length: int) -> str:
    return "end_turn" if length == CLAUDE_LENGTH else "max_tokens"


async def _events(body: dict[str, Any], length: int) -> AsyncIterator[bytes]:
    usage = {"input_tokens": CLAUDE_INPUT, "output_tokens": 1}
    yield _event("message_start", message={**_message(body, []), "usage": usage})
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield b'event: ping\ndata: {"type": "ping"}\n\n'
    for _ in range(length):
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "word "})
    yield _event("content_block_stop", index=0)
    stop = {"stop_reason": _reason(length), "stop_sequence": None}
    yield _event("message_delta", delta=stop, usage={"output_tokens": length})
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
