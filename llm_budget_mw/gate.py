"""The way into a guarded route: who asks, what for, and whether it is admitted.

Every edge passes here, whatever its framework; it brings two functions that fetch the
principal and the body, and gets an admission or the answer to send instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from llm_budget_mw import _body, _http, decision, events
from llm_budget_mw.config import Config
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import AuthenticationError, BudgetExceeded, RequestError
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.routes import Route
from llm_budget_mw.shell import Held
from llm_budget_mw.types import Principal, Refusal

Read = Callable[[int], bytes]
"""Reads a request's body, up to a little more than this many bytes."""
AsyncRead = Callable[[int], Awaitable[bytes | None]]
"""The same on an event loop; None if the client left."""
Refused = AuthenticationError | RequestError | BudgetExceeded
"""Why a request does not get through the gate."""
REFUSED = (AuthenticationError, RequestError, BudgetExceeded)


def answer_to(error: Refused, route: Route, config: Config) -> _http.Answer:
    """Return what a client is told, in the dialect of its route."""
    if isinstance(error, AuthenticationError):
        return _http.denial_answer(error, route.dialect)
    if isinstance(error, RequestError):
        return _http.request_error_answer(error, route.dialect)
    statuses = decision.statuses(error.refusal)
    return _http.refusal_answer(error.refusal, statuses, route.dialect, config.refusals)


class Gate:
    """The gate of a synchronous edge."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def admit(
        self, route: Route, head: RequestHead, authenticate: Callable[[], Principal], read: Read
    ) -> Held:
        """Admit a request: credential, body, plan, store, in this order.

        Raises what is to be answered instead, one of `REFUSED`; see `answer_to`.
        """
        try:
            principal = authenticate()
            raw = read(announced(head.headers, self._guard.config))
            origin = origin_of(principal, route, head, raw, self._guard)
            decided = self._guard.decide(origin)
            if route.config.fit_messages:
                origin, decided = self._guard.fit(origin, decided, route.dialect)
        except (AuthenticationError, RequestError) as error:
            self._guard.emit(events.denied(error.status, error.code, route.config.path))
            raise
        held = self._guard.hold(decided, origin)
        if held is None:
            raise BudgetExceeded(cast("Refusal", decided))
        return held


class AsyncGate:
    """The gate of an edge on an event loop; see `Gate`."""

    def __init__(self, guard: AsyncGuard) -> None:
        self._guard = guard

    async def admit(
        self,
        route: Route,
        head: RequestHead,
        authenticate: Callable[[], Awaitable[Principal]],
        read: AsyncRead,
    ) -> Held | None:
        """Like `Gate.admit`; None if the client left before it had said what it wants."""
        try:
            principal = await authenticate()
            raw = await read(announced(head.headers, self._guard.config))
            if raw is None:
                return None
            origin = origin_of(principal, route, head, raw, self._guard)
            decided = await self._guard.decide(origin)
            if route.config.fit_messages:
                origin, decided = await self._guard.fit(origin, decided, route.dialect)
        except (AuthenticationError, RequestError) as error:
            self._guard.emit(events.denied(error.status, error.code, route.config.path))
            raise
        held = self._guard.hold(decided, origin)
        if held is None:
            raise BudgetExceeded(cast("Refusal", decided))
        return held


def announced(headers: Mapping[str, str], config: Config) -> int:
    """Return how much of a body to read; raises `RequestError` if more of it is announced."""
    _body.announced(headers.get("content-length"), config.max_body_bytes)
    return config.max_body_bytes


def origin_of(
    principal: Principal, route: Route, head: RequestHead, raw: bytes, guard: Guard | AsyncGuard
) -> Origin:
    """Read what is asked for; raises `RequestError` where that cannot be read."""
    limit = guard.config.max_body_bytes
    if len(raw) > limit:
        raise _body.too_large(limit)
    body = _body.decoded(raw, head.headers.get("content-encoding", ""), limit)
    call = guard.classified(principal, route.read(head, body), head.headers)
    elastic = route.config.hold == "elastic" and call.stream
    return Origin(principal, call, route.config.path, route.config.feature, elastic=elastic)
