"""Drives an ASGI application by hand: every message recorded, a client that leaves on cue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.config import Config
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.testing import Issuer
from tests.deployment import Recorder, SwitchStore, async_store, configured, engine_of

ISSUER = Issuer()
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
OWN = "/ask"
ROUTES = [
    {"path": CHAT, "dialect": "openai_chat"},
    {"path": MESSAGES, "dialect": "anthropic_messages"},
    {"path": OWN, "dialect": "custom", "model": "big", "input_tokens": 100, "max_tokens": 50},
]
LIMITS: dict[str, Any] = {"tokens": "1000000/minute", "budget": "$20/month", "concurrency": 8}
QUESTION: dict[str, Any] = {
    "model": "big",
    "messages": [{"role": "user", "content": "how are you?"}],
    "max_tokens": 40,
}
USAGE = {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}
ANSWER = {"model": "big", "choices": [], "usage": USAGE}


def delta(text: str) -> bytes:
    """Return one event of an OpenAI stream."""
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}], "usage": None}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


USAGE_EVENT = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"


class Bench:
    """A guarded application with all that can be looked at."""

    def __init__(
        self,
        app: ASGIApp,
        tier: Mapping[str, Any] | None = None,
        *,
        authenticator: Any = None,
        **sections: Any,
    ) -> None:
        self.app = app
        self.store = SwitchStore()
        self.sink = Recorder()
        self.config: Config = configured(
            {**LIMITS, **(tier or {})}, **{"routes": ROUTES, "jwt": ISSUER.config(), **sections}
        )
        self.guard = AsyncGuard(
            engine_of(self.config), self.config, async_store(self.store), [self.sink]
        )
        self.middleware = BudgetMiddleware(app, guard=self.guard, authenticator=authenticator)

    @property
    def settled(self) -> dict[str, Any]:
        """Return the one settlement there was."""
        (only,) = self.sink.named("budget.settled")
        return only

    async def post(self, body: Any = QUESTION, path: str = CHAT, **options: Any) -> Exchange:
        """Send one request to the end and return what was said."""
        exchange = Exchange(body, path, **options)
        await exchange.run(self.middleware)
        return exchange


class Exchange:
    """One request: what the client sends, what the server says, and when the client leaves."""

    def __init__(
        self,
        body: Any = QUESTION,
        path: str = CHAT,
        *,
        token: str | None = "",
        headers: tuple[tuple[str, str], ...] = (),
        parts: int = 1,
        leave_after: int | None = None,
        gone: bool = False,
        method: str = "POST",
    ) -> None:
        self.sent: list[Message] = []
        self.order: list[str] = []
        self.received = 0
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = -(-len(raw) // parts) or 1
        self._parts = [raw[at : at + size] for at in range(0, len(raw), size)] or [b""]
        self._gone = asyncio.Event()
        if gone:
            self._parts = []
            self._gone.set()
        self._leave_after = leave_after
        credential = ISSUER.token("alice") if token == "" else token
        authorization = [("authorization", f"Bearer {credential}")] if credential else []
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (*authorization, *headers)],
        }

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer."""
        await app(self.scope, self._receive, self._send)

    @property
    def status(self) -> int:
        """Status of the answer."""
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        """All of its body."""
        return b"".join(m.get("body", b"") for m in self.sent if m["type"].endswith("body"))

    @property
    def headers(self) -> dict[str, str]:
        """Its headers; a name sent twice would be lost, so there must be none."""
        pairs = [(k.decode(), v.decode()) for k, v in self.sent[0]["headers"]]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    @property
    def error(self) -> dict[str, Any]:
        """The error in its envelope."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error

    async def _receive(self) -> Message:
        self.received += 1
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.order.append(f"out {len(self.sent)}")
        if self._gone.is_set():
            return  # uvicorn drops what nobody receives
        self.sent.append(message)
        if self._leave_after is not None and len(self.sent) > self._leave_after:
            self._gone.set()


def answering(
    *parts: bytes,
    status: int = 200,
    kind: str = "application/json",
    before: Callable[[Scope, Receive], Awaitable[object]] | None = None,
    fails: BaseException | None = None,
    ends: bool = True,
) -> ASGIApp:
    """Return an application that answers with these pieces of a body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if before is not None:
            await before(scope, receive)
        else:
            await receive()
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if fails is not None:
            raise fails
        if ends:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def streaming(*parts: bytes, **options: Any) -> ASGIApp:
    """Return an application that answers with a stream of events."""
    return answering(*parts, kind="text/event-stream; charset=utf-8", **options)


def failing(error: BaseException) -> ASGIApp:
    """Return an application that fails before it answers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise error

    return app
