"""One admitted ASGI request: the application between its replayed body and its watched answer.

Whatever happens to the request (the client leaves, the server cancels, the application
fails) `run` settles it once, in a task that nothing of the request can cancel.
"""

from __future__ import annotations

import asyncio
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_budget_mw._http import Header
from llm_budget_mw.current import CURRENT, Budget
from llm_budget_mw.dialects.protocol import RequestHead, Rewritten
from llm_budget_mw.ending import outcome_of
from llm_budget_mw.engine import Outcome
from llm_budget_mw.guard import AsyncGuard, Held, Renewal
from llm_budget_mw.routes import Route
from llm_budget_mw.tap import Tap

STATE_KEY = "llm_budget"
"""Name of the request's `Budget` in `scope["state"]`, so `request.state.llm_budget`."""
_OF_THE_OLD_BODY = (b"content-length", b"content-encoding", b"transfer-encoding")
_OFFLOAD_BYTES = 64 * 1024
"""An answer larger than this is read for its usage in a thread."""


class Exchange:
    """One admitted request and its answer."""

    def __init__(
        self, guard: AsyncGuard, route: Route, held: Held, headers: tuple[Header, ...]
    ) -> None:
        self._guard = guard
        self._route = route
        self._held = held
        self._limit_headers = [(name.encode(), value.encode()) for name, value in headers]
        # A handler that passes on the provider's headers passes on the limits of its key.
        self._replaced = {name for name, _ in self._limit_headers}
        self._budget = Budget(held, route.config.dialect, guard)
        self._tap = Tap(route.dialect, held.origin.call)
        self._error: BaseException | None = None
        self._settling: asyncio.Task[None] | None = None
        self._renewal: Renewal | None = None

    @property
    def started(self) -> bool:
        """True once the application has begun to answer."""
        return self._tap.started

    async def run(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, head: RequestHead
    ) -> None:
        """Run the application and settle; raises what it raises."""
        grant, call = self._held.grant, self._held.origin.call
        token = CURRENT.set(self._budget)
        self._renewal = self._guard.keep(grant)
        try:
            written = self._route.dialect.write_grant(head, call, grant.offer.model, grant.output)
            await app(
                self._inner_scope(scope, written),
                _replay(written.body, receive),
                self._watch(send),
            )
        except BaseException as error:
            self._error = error
            raise
        finally:
            CURRENT.reset(token)
            self._start_settling()
            await asyncio.shield(cast("asyncio.Task[None]", self._settling))

    def _inner_scope(self, scope: Scope, written: Rewritten) -> Scope:
        # The state is shared on purpose: middlewares outside see what the handler left there.
        scope.setdefault("state", {})[STATE_KEY] = self._budget
        headers = [item for item in scope["headers"] if item[0] not in _OF_THE_OLD_BODY]
        headers.append((b"content-length", str(len(written.body)).encode()))
        inner = {**scope, "headers": headers}
        if written.path is not None:
            inner["path"] = written.path
            inner["raw_path"] = written.path.encode()
        return inner

    def _watch(self, send: Send) -> Send:
        tap = self._tap

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.body":
                body, more = message.get("body", b""), message.get("more_body", False)
                if tap.rewrites:
                    passed = tap.feed(body) if more else tap.feed(body) + tap.end()
                    if passed is not body:
                        message = {**message, "body": passed}
                    if passed or not more:
                        await send(message)
                else:
                    try:
                        await send(message)
                    finally:
                        # Billed all the same where the client has gone, which may raise.
                        tap.feed(body)
                        if not more:
                            tap.end()
                if not more:
                    self._start_settling()
                return
            if message["type"] == "http.response.start":
                message = self._start(message)
            await send(message)

        return watched_send

    def _start(self, message: Message) -> Message:
        raw = list(message.get("headers", ()))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
        self._tap.start(message["status"], headers)
        replaced = self._replaced
        if self._tap.rewrites:
            replaced = {*replaced, b"content-length"}
        kept = [item for item in raw if item[0].lower() not in replaced]
        return {**message, "headers": [*kept, *self._limit_headers]}

    def _start_settling(self) -> None:
        """Settle, once; right after the last byte where there is one."""
        if self._renewal is not None:
            self._renewal.cancel()
        if self._settling is None:
            self._settling = self._guard.start(self._settle())

    async def _settle(self) -> None:
        if self._budget.handed_over:
            return  # by the call that took the reservation
        if self._tap.size > _OFFLOAD_BYTES:
            outcome = await asyncio.to_thread(self._outcome)
        else:
            outcome = self._outcome()
        await self._guard.settle(self._held, outcome)

    def _outcome(self) -> Outcome:
        engine, model = self._guard.engine, self._held.grant.offer.model
        return outcome_of(
            self._budget,
            self._tap,
            self._error,
            lambda text: engine.count(text, model),
            custom=self._route.is_custom,
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body in one piece, then whatever the server has to say, such as a disconnect."""
    given = False

    async def replayed_receive() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed_receive
