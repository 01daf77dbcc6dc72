"""The ASGI middleware: one request as a straight line, every ending settled once.

Pure ASGI, because anything that reassembles requests and responses buffers streams and loses
what is awaited after a disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_budget_mw import assembly
from llm_budget_mw.current import apart
from llm_budget_mw.events import Sink
from llm_budget_mw.gate import REFUSED
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.identity import AsyncAuthenticator, Authenticator
from llm_budget_mw.passage import SCOPE_KEY, Passage
from llm_budget_mw.routes import Route, Routes
from llm_budget_mw.self_service import AsyncDesk
from llm_budget_mw.stores.base import AsyncStore

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
        self._authenticator = authenticator or assembly.build_async_authenticator(self.guard.config)
        self._routes = Routes(self.guard.config.routes)
        self._desk = AsyncDesk(self.guard)
        self._open = 0
        self._idle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything through that is no guarded HTTP request."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == self._desk.path:
            await Passage(self.guard, self._authenticator, scope, receive, send).tell(self._desk)
            return
        route = None
        if scope["type"] == "http":
            route = self._routes.find(scope["method"], scope["path"])
        with apart():
            if route is None:
                await self.unguarded(scope, receive, send)
            else:
                await self.watched(route, scope, receive, send)

    async def unguarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request that no configured route guards; an adapter may know better."""
        await self.app(scope, receive, send)

    async def watched(
        self, route: Route | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run a request that is admitted here, or, without a route, by the handler's adapter."""
        passage = Passage(self.guard, self._authenticator, scope, receive, send)
        self._open += 1
        try:
            if route is None:
                scope[SCOPE_KEY] = passage
                await passage.run(self.app)
                return
            written = await passage.admit(route)
            if written is not None:
                await passage.run(self.app, written)
        except REFUSED as error:
            # Of the gate, or of a call the handler made.
            await passage.refuse(error)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

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
