"""What is measured: one configuration with four limits and one with eight, and its callers."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jwt
import structlog
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Scope

from benchmarks import _server
from llm_budget_mw.config import Config, load
from llm_budget_mw.types import ModelCall, Principal, Prompt

PATH = "/v1/chat/completions"
MODEL = "gpt-4o"
USERS = 200
_KEY = "a secret of the benchmarks, 32 bytes or more"

FOUR_LIMITS: Mapping[str, Any] = {
    "requests": "5000000/minute",
    "tokens": "900000000/minute",
    "budget": "$100000/month",
    "concurrency": 10_000,
    "max_tokens": 800,
}
EIGHT_LIMITS: Mapping[str, Any] = {
    "requests": "100000/second;5000000/minute;90000000/day",
    "tokens": "900000000/minute;90000000000/day",
    "budget": ["$10000/day", "$100000/month"],
    "concurrency": 10_000,
    "max_tokens": 800,
    "offers": [
        {"model": "gpt-4o", "ceiling": "80%", "min_tokens": 200},
        {"model": "gpt-4.1-mini", "ceiling": "90%", "min_tokens": 200},
        {"model": "gpt-4o-mini", "min_tokens": 200},
    ],
}

REQUEST: Mapping[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "How many limits does a budget have?"}],
    "max_tokens": 100,
}
ANSWER: Mapping[str, Any] = {
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Four."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 15, "completion_tokens": 3, "total_tokens": 18},
}


def configuration(
    tier: Mapping[str, Any] = FOUR_LIMITS,
    shared: Sequence[Mapping[str, Any]] = (),
    **route: Any,
) -> Config:
    """Return the configuration of a deployment with this tier; all else is the default.

    `shared` are limits of what its callers share, `route` options of its one route.
    """
    return load(
        tiers={"default": dict(tier)},
        limits=list(shared),
        store=_server.store_options(),
        jwt={"algorithms": ["HS256"], "issuer": "bench", "audience": "llm", "key": _KEY},
        routes=[{"path": PATH, "dialect": "openai_chat", **route}],
    )


def log_to_nowhere() -> None:
    """Log as in production, JSON with level and time, to where the system throws it away."""
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open while the process is)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(nowhere),
        cache_logger_on_first_use=True,
    )


def principals() -> Iterator[Principal]:
    """Return callers in turn, without an end."""
    return itertools.cycle([Principal(f"user-{number}") for number in range(USERS)])


def model_call() -> ModelCall:
    """Return the request as its dialect would read it."""
    text = REQUEST["messages"][0]["content"]
    return ModelCall(model=MODEL, prompt=Prompt((text,), 7), max_output=100)


class Request(NamedTuple):
    """A request as a server would hand it to an application."""

    body: bytes
    scope: Scope


def requests(**fields: Any) -> Iterator[Request]:
    """Return requests of all callers in turn; `fields` go over those of `REQUEST`."""
    body = to_json({**REQUEST, **fields})
    return itertools.cycle([_request(body, f"user-{number}") for number in range(USERS)])


def _request(body: bytes, user: str) -> Request:
    claims = {"iss": "bench", "aud": "llm", "sub": user, "exp": time.time() + 3600}
    token = jwt.encode(claims, _KEY)
    headers = [
        (b"host", b"bench"),
        (b"authorization", f"Bearer {token}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }
    return Request(body, scope)


Send = Callable[[Message], Awaitable[None]]


async def ask(app: ASGIApp, request: Request, send: Send | None = None) -> None:
    """Send one request through an application; raises `RuntimeError` if it is refused."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        if send is not None:
            await send(message)

    await app(dict(request.scope), receive, note)
    if statuses != [200]:
        raise RuntimeError(f"the answer to a request was {statuses}, not [200]")
