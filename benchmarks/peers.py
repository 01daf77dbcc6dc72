"""What the middleware is compared with: nothing, the least it could do, and other packages."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks import _server
from benchmarks._deployment import ANSWER, PATH

_PLENTY = 10_000_000
"""Requests a minute: nobody is refused here."""


async def _chat(request: Request) -> JSONResponse:
    return JSONResponse(ANSWER)


def starlette_app() -> ASGIApp:
    """Return an application with one route that answers at once."""
    return Starlette(routes=[Route(PATH, _chat, methods=["POST"])])


def fastapi_app() -> ASGIApp:
    """Return the same with FastAPI."""
    app = FastAPI()
    app.post(PATH)(_chat)
    return app


class TwoCommands:
    """A middleware that makes two round trips and decides nothing."""

    def __init__(self, app: ASGIApp, client: redis.asyncio.Redis, sha: str) -> None:
        self._app = app
        self._client = client
        self._sha = sha

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the server before the application runs, and again after it."""
        key = f"{_server.PREFIX}:bare"
        await self._client.evalsha(self._sha, 1, key)
        await self._app(scope, receive, send)
        await self._client.evalsha(self._sha, 1, key)


def slowapi_app() -> ASGIApp:
    """Return the FastAPI application with slowapi's decorator, its fastest form."""
    from slowapi import Limiter

    limiter = Limiter(
        key_func=_one_user,
        storage_uri=_server.url(),
        storage_options={"key_prefix": f"{_server.PREFIX}:slowapi"},
    )
    app = FastAPI()
    app.state.limiter = limiter
    app.post(PATH)(limiter.limit(f"{_PLENTY}/minute")(_chat))
    return app


async def fastapi_limiter_app(client: redis.asyncio.Redis) -> ASGIApp:
    """Return the FastAPI application with fastapi-limiter's dependency."""
    from fastapi_limiter.depends import RateLimiter
    from pyrate_limiter import Duration, Limiter, Rate, RedisBucket

    rates = [Rate(_PLENTY, Duration.MINUTE)]
    bucket: Any = await RedisBucket.init(rates, client, f"{_server.PREFIX}:fastapi-limiter")
    limit = RateLimiter(limiter=Limiter(bucket), identifier=_one_user_async)
    app = FastAPI()
    app.post(PATH, dependencies=[Depends(limit)])(_chat)
    return app


def _one_user(request: Request) -> str:
    return "user"


async def _one_user_async(request: Request) -> str:
    return "user"
