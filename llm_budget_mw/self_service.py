"""What callers are told of their own limits, at one path, in every framework.

Of limits they share with others (of a tenant, a model, everybody) callers learn no more than
a refusal would tell them: the name, the end of the window, and how full it is, in percent.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from llm_budget_mw import _http, _windows, decision, events, statement
from llm_budget_mw.errors import AuthenticationError, BudgetExceeded, RequestError, StoreError
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.routes import Route, route_of
from llm_budget_mw.types import LimitStatus, Principal

_METHODS = ("GET", "HEAD")


class _Desk:
    """What the sync and the async desk do alike; nothing here waits."""

    def __init__(self, guard: Guard | AsyncGuard) -> None:
        path = guard.config.limits_path
        self.path = path
        """Where it is; None: nowhere."""
        self.route: Route = route_of(path or "/", methods=_METHODS)
        """In whose format it refuses."""
        self._shell = guard

    def _wrong_method(self, method: str) -> _http.Answer | None:
        if method in _METHODS:
            return None
        error = RequestError(
            f"The method {method[:20]} is not allowed here; use GET.",
            status=405,
            code="method_not_allowed",
        )
        answer = _http.request_error_answer(error, self.route.dialect)
        return answer._replace(headers=(*answer.headers, ("allow", ", ".join(_METHODS))))

    def _denied(self, error: AuthenticationError) -> None:
        self._shell.emit(events.denied(error.status, error.code, self.route.config.path))

    def _away(self, principal: Principal) -> BudgetExceeded:
        """Return what a call would be refused with while the store does not answer."""
        plan = self._shell.engine.glance(principal)
        return BudgetExceeded(decision.store_down(plan, plan.subjects[0].limits.limits[0]))

    def _told(
        self, method: str, principal: Principal, statuses: tuple[LimitStatus, ...], now_ms: int
    ) -> _http.Answer:
        content: dict[str, Any] = {
            "tier": self._shell.engine.policy.tier(principal).name,
            "limits": [_shown(each, now_ms) for each in statuses if not each.limit.shadow],
        }
        hint = self._shell.config.refusals.upgrade_hint
        if hint is not None:
            content["upgrade_hint"] = hint
        body = json.dumps(content).encode()
        headers = (
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
        )
        return _http.Answer(200, headers, b"" if method == "HEAD" else body)


class Desk(_Desk):
    """The desk of a synchronous edge."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard)
        self._guard = guard

    def answer(self, method: str, authenticate: Callable[[], Principal]) -> _http.Answer:
        """Answer a request for `path`.

        Raises what is to be answered instead, as at a guarded route: `AuthenticationError`,
        or `BudgetExceeded` while the store does not answer.
        """
        wrong = self._wrong_method(method)
        if wrong is not None:
            return wrong
        try:
            principal = authenticate()
        except AuthenticationError as error:
            self._denied(error)
            raise
        try:
            statuses = self._guard.limits(principal)
        except StoreError as error:
            raise self._away(principal) from error
        return self._told(method, principal, statuses, self._guard.store.now_ms())


class AsyncDesk(_Desk):
    """The desk of an edge on an event loop."""

    def __init__(self, guard: AsyncGuard) -> None:
        super().__init__(guard)
        self._guard = guard

    async def answer(
        self, method: str, authenticate: Callable[[], Awaitable[Principal]]
    ) -> _http.Answer:
        """Like `Desk.answer`."""
        wrong = self._wrong_method(method)
        if wrong is not None:
            return wrong
        try:
            principal = await authenticate()
        except AuthenticationError as error:
            self._denied(error)
            raise
        try:
            statuses = await self._guard.limits(principal)
        except StoreError as error:
            raise self._away(principal) from error
        return self._told(method, principal, statuses, self._guard.store.now_ms())


def _shown(status: LimitStatus, now_ms: int) -> dict[str, Any]:
    limit, reset_ms = status.limit, status.reset_ms
    own = _http.is_own(status.subject)
    shown: dict[str, Any] = {
        "limit": limit.name,
        "resource": limit.resource,
        "shared_by": None if own else status.subject.name.partition("/")[0],
        "used_percent": min(100, status.used * 100 // max(limit.amount, 1)),
        "resets_in_s": None if reset_ms is None else -(-reset_ms // 1000),
        "resets_at": None if reset_ms is None else _windows.in_utc(now_ms + reset_ms),
    }
    return shown | _own(status, now_ms) if own else shown


def _own(status: LimitStatus, now_ms: int) -> dict[str, Any]:
    fields = statement.fields(status, now_ms)
    return {name: fields[name] for name in ("amount", "used", "remaining", "exhausted_at")}
