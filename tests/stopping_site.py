"""The application that tests start on servers and stop; its configuration comes as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.types import Receive, Scope, Send

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from tests.edge.driver import ANSWER, DONE, USAGE_EVENT, delta

VARIABLE = "STOPPING_SITE"
STATE = "/state"
_PIECES = 20
_PAUSE_S = 0.05


def _state(guard: Guard | AsyncGuard) -> bytes:
    """Return what a test wants to know of the process that answers."""
    outage = guard.outage
    state = {
        "pid": os.getpid(),
        "slot": outage.slot.number,
        "waiting": outage.waiting,
        "closed": outage.breaker.closed,
    }
    return json.dumps(state).encode()


def _answer(body: bytes) -> list[bytes]:
    if not json.loads(body).get("stream"):
        return [json.dumps(ANSWER).encode()]
    return [*[delta("abcd")] * _PIECES, USAGE_EVENT, DONE]


def _chat(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == STATE:
        start_response("200 OK", [("content-type", "application/json")])
        return [_state(_guarded.guard)]
    pieces = _answer(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    kind = "application/json" if len(pieces) == 1 else "text/event-stream"
    start_response("200 OK", [("content-type", kind)])
    return _slowly(pieces)


def _slowly(pieces: list[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        time.sleep(_PAUSE_S if len(pieces) > 1 else 0)


async def _chat_on_a_loop(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    if scope["path"] == STATE:
        pieces = [_state(_guarded_on_a_loop.guard)]
    else:
        pieces = _answer((await receive())["body"])
    kind = b"application/json" if len(pieces) == 1 else b"text/event-stream"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(_PAUSE_S if len(pieces) > 1 else 0)
    await send({"type": "http.response.body", "body": b""})


_guarded: WSGIBudgetMiddleware
_guarded_on_a_loop: BudgetMiddleware


def __getattr__(name: str) -> Any:
    """Make the application a server asks for."""
    global _guarded, _guarded_on_a_loop
    config = json.loads(os.environ.get(VARIABLE, "{}"))
    if name == "wsgi":
        _guarded = WSGIBudgetMiddleware(_chat, config=config)
        return _guarded
    if name == "asgi":
        _guarded_on_a_loop = BudgetMiddleware(_chat_on_a_loop, config=config)
        return _guarded_on_a_loop
    raise AttributeError(name)
