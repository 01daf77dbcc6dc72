"""An application behind the middleware, served by uvicorn: passes calls on to the provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_budget_mw import assembly
from llm_budget_mw.asgi import BudgetMiddleware
from tests.chaos.asking import TIMEOUT_S
from tests.chaos.journal import Journal
from tests.chaos.noted import note_end, open_async_guard
from tests.chaos.provider import CALL_HEADER, SCRIPT_HEADER
from tests.chaos.settings import ROUTE, Settings

_GRACE_S = 2
"""How long a server that is told to stop lets streams go on: less than the slow ones need."""


def serve(settings: Settings, journal: Journal, port: int) -> None:
    """Serve until SIGTERM."""
    guard = open_async_guard(settings, journal)
    authenticator = assembly.build_async_authenticator(guard.config)
    relay = Relay(settings.provider)
    app = Starlette(routes=[Route(ROUTE, relay.pass_on, methods=["POST"])])
    guarded = BudgetMiddleware(app, guard=guard, authenticator=authenticator)
    uvicorn.run(
        _LastWords(guarded, lambda: note_end(journal, guard)),
        port=port,
        lifespan="on",
        log_level="critical",
        timeout_graceful_shutdown=_GRACE_S,
    )


class Relay:
    """The handler of all requests."""

    def __init__(self, provider: str) -> None:
        self._url = provider + ROUTE
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S)

    async def pass_on(self, request: Request) -> StreamingResponse:
        """Ask the provider, and answer as it answers."""
        call = request.state.llm_budget.grant.plan.id
        headers = {CALL_HEADER: call, SCRIPT_HEADER: request.headers[SCRIPT_HEADER]}
        sent = self._client.build_request(
            "POST", self._url, content=await request.body(), headers=headers
        )
        answer = await self._client.send(sent, stream=True)
        passed = {CALL_HEADER: call, "content-type": answer.headers["content-type"]}
        return StreamingResponse(_pieces(answer), answer.status_code, passed)


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


class _LastWords:
    """Notes how the guard of the middleware ended, when it has."""

    def __init__(self, app: ASGIApp, note: Callable[[], None]) -> None:
        self._app = app
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting_send(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                self._note()
            await send(message)

        await self._app(scope, receive, noting_send)
