"""The ASGI middleware: one request as a straight line, every ending settled once.

Pure ASGI, because anything that reassembles requests and responses buffers streams and loses
what is awaited after a disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Sequence
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_budget_mw import _body, _http, assembly, decision, events
from llm_budget_mw._exchange import Exchange
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import AuthenticationError, BudgetExceeded, RequestError
from llm_budget_mw.events import Origin, Sink
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.identity import AsyncAuthenticator, Authenticator
from llm_budget_mw.routes import Route, Routes
from llm_budget_mw.stores.base import AsyncStore
from llm_budget_mw.types import Principal, Refusal

_LAST_REQUESTS_S = 5.0
"""How long a shutdown waits for requests that are still open."""


class BudgetMiddleware:
    """Admits the guarded requests of an application, and settles them.

        app.add_middleware(BudgetMiddleware, config="llm_budget.toml")

    `config` is a TOML file, a mapping or a `Config`. `authenticator` replaces the verification
    of JWTs, `store` and `sinks` what the configuration names, `guard` all of it, where an
    application shares one guard between the middleware and its workers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: assembly.Source = None,
        authenticator: Authenticator | AsyncAuthenticator | None = None,
        store: AsyncStore | None = None,
        sinks: Sequence[Sink] | None = None,
        guard: AsyncGuard | None = None,
    ) -> None:
        self.app = app
        self.guard = guard or AsyncGuard.open(config, store=store, sinks=sinks)
        self._config = self.guard.config
        self._authenticator = authenticator or assembly.build_async_authenticator(self._config)
        self._routes = Routes(self._config.routes)
        self._open = 0
        self._idle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything through that is no guarded HTTP request."""
        if scope["type"] == "http":
            route = self._routes.find(scope["method"], scope["path"])
            if route is not None:
                self._open += 1
                try:
                    await self._guarded(route, scope, receive, send)
                finally:
                    self._open -= 1
                    if not self._open:
                        self._idle.set()
                return
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _guarded(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        try:
            principal = await self._principal(headers)
            head = RequestHead(
                scope["method"],
                scope["path"],
                scope["query_string"].decode("latin-1"),
                dict(headers),
            )
            body = await self._read(head, receive)
            if body is None:
                return
            origin = Origin(
                principal, route.read(head, body), route.config.path, route.config.feature
            )
            decided = await self.guard.decide(origin)
        except AuthenticationError as error:
            self.guard.emit(events.denied(error.status, error.code, route.config.path))
            await _respond(send, _http.denial_answer(error, route.dialect))
            return
        except RequestError as error:
            self.guard.emit(events.denied(error.status, error.code, route.config.path))
            await _respond(send, _http.request_error_answer(error, route.dialect))
            return
        statuses = decision.statuses(decided)
        held = self.guard.hold(decided, origin)
        if held is None:
            refusal = cast("Refusal", decided)
            answer = _http.refusal_answer(refusal, statuses, route.dialect, self._config.refusals)
            await _respond(send, answer)
            return
        exchange = Exchange(self.guard, route, held, _http.limit_headers(statuses))
        try:
            await exchange.run(self.app, scope, receive, send, head)
        except (BudgetExceeded, RequestError) as error:
            # Of a call the handler made; once it has begun to answer, only it can say so.
            if exchange.started:
                raise
            await _respond(send, self._answer_to(error, route))

    def _answer_to(self, error: BudgetExceeded | RequestError, route: Route) -> _http.Answer:
        if isinstance(error, RequestError):
            return _http.request_error_answer(error, route.dialect)
        statuses = decision.statuses(error.refusal)
        return _http.refusal_answer(error.refusal, statuses, route.dialect, self._config.refusals)

    async def _principal(self, headers: list[tuple[str, str]]) -> Principal:
        known = self._authenticator.authenticate(headers)
        return await known if inspect.isawaitable(known) else known

    async def _read(self, head: RequestHead, receive: Receive) -> bytes | None:
        """Read the body within its bound; None if the client left."""
        limit = self._config.max_body_bytes
        _body.announced(head.headers.get("content-length"), limit)
        body = bytearray()  # not a list of parts, which could be a million tiny ones
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise _body.too_large(limit)
            if not message.get("more_body", False):
                break
        return _body.decoded(bytes(body), head.headers.get("content-encoding", ""), limit)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the lifespan through, and close the store before the application's own end."""
        spoken = False

        async def closing_send(message: Message) -> None:
            nonlocal spoken
            spoken = spoken or message["type"].startswith("lifespan.")
            if message["type"].startswith("lifespan.shutdown."):
                await self._close()
            await send(message)

        try:
            await self.app(scope, receive, closing_send)
        except Exception:
            if spoken:
                raise
        if not spoken:
            # To raise or to return at once is how an application says that it has no lifespan;
            # the store has one all the same.
            await self._own_lifespan(receive, closing_send)

    async def _own_lifespan(self, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        while (await receive())["type"] != "lifespan.shutdown":
            pass  # the application may or may not have taken the message that starts it
        await send({"type": "lifespan.shutdown.complete"})

    async def _close(self) -> None:
        # Requests a server cancels as it stops are still on their way to their settlement.
        if self._open:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _LAST_REQUESTS_S)
        await self.guard.close()


async def _respond(send: Send, answer: _http.Answer) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
