"""The middleware: one class for both worlds of Django, and no thread between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from llm_budget_mw.current import Budget, apart, handling
from llm_budget_mw.exchange import AsyncExchange, Exchange
from llm_budget_mw.gate import REFUSED
from llm_budget_mw.routes import Route, Routes, route_of
from llm_budget_mw.shell import Held
from llm_budget_mw_django import settings
from llm_budget_mw_django.answer import at_close, ends_of, refusal, sent, watch
from llm_budget_mw_django.body import head_of, put_back, read_body
from llm_budget_mw_django.marks import mark_of

BUDGET = "llm_budget"
"""Attribute of a request: its `Budget`, or None."""
_ROUTE = "_llm_budget_route"
"""Attribute of a request: the route that guards it."""
_ELSEWHERE = route_of("/*")
"""Stands for the route of a request that is not guarded: its refusals are problem details."""


class BudgetMiddleware:
    """Admits the guarded requests of an application, and settles them.

    It stands below what logs users in or compresses answers, and above what reads bodies.
    `request.llm_budget` is the `Budget` of a guarded request, and None in any other.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        # That of `inspect` does not see Django's mark before Python 3.12.
        self._is_async = iscoroutinefunction(get_response)  # pyright: ignore[reportDeprecated]
        if self._is_async:
            markcoroutinefunction(self)
        self._edge()  # a wrong setting stops the start

    def __call__(self, request: HttpRequest) -> Any:
        """Pass everything through that is no guarded request."""
        if self._is_async:
            return self.__acall__(request)
        edge = settings.edge()
        if request.path == edge.desk.path:
            return _tell(request, edge)
        route = _find_route(request, edge.routes)
        if route is None:
            with apart():
                return self.get_response(request)
        head = head_of(request)
        try:
            held = edge.gate.admit(
                route, head, lambda: edge.login(request), lambda limit: read_body(request, limit)
            )
        except REFUSED as error:
            return refusal(error, route, edge.guard.config, request)
        exchange = Exchange(edge.guard, route, held)
        try:
            put_back(request, exchange.written(head))
            with handling(exchange.budget):
                setattr(request, BUDGET, exchange.budget)
                response = self.get_response(request)
            return _watched(request, response, exchange)
        except BaseException as error:
            exchange.settle(error)
            raise

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Like `__call__`, on an event loop."""
        edge = settings.async_edge()
        if request.path == edge.desk.path:
            return await _tell_async(request, edge)
        route = _find_route(request, edge.routes)
        if route is None:
            with apart():
                return cast("HttpResponseBase", await self.get_response(request))
        _refuse_wsgi(request)

        async def read(limit: int) -> bytes:
            return read_body(request, limit)  # Django has received it

        head = head_of(request)
        try:
            found = await edge.gate.admit(route, head, lambda: edge.login(request), read)
        except REFUSED as error:
            return refusal(error, route, edge.guard.config, request)
        exchange = AsyncExchange(edge.guard, route, cast("Held", found))
        try:
            put_back(request, exchange.written(head))
            with handling(exchange.budget):
                setattr(request, BUDGET, exchange.budget)
                response = await self.get_response(request)
            return _watched(request, response, exchange)
        except BaseException as error:
            await asyncio.shield(exchange.settle(error))
            raise

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Note what a view raised, before Django makes an answer of it; answer a refusal."""
        budget: Budget | None = getattr(request, BUDGET, None)
        if budget is not None:
            budget.error = exception
        if isinstance(exception, REFUSED):
            route: Route | None = getattr(request, _ROUTE, None)
            config = self._edge().guard.config
            return refusal(exception, route or _ELSEWHERE, config, request)
        return None

    def _edge(self) -> settings.Edge | settings.AsyncEdge:
        return settings.async_edge() if self._is_async else settings.edge()


def _tell(request: HttpRequest, edge: settings.Edge) -> HttpResponse:
    """Answer a caller who asks for its own limits."""
    desk = edge.desk
    try:
        return sent(desk.answer(request.method or "", lambda: edge.login(request)))
    except REFUSED as error:
        return refusal(error, desk.route, edge.guard.config, request)


async def _tell_async(request: HttpRequest, edge: settings.AsyncEdge) -> HttpResponse:
    """Like `_tell`, on an event loop."""
    _refuse_wsgi(request)
    desk = edge.desk
    try:
        return sent(await desk.answer(request.method or "", lambda: edge.login(request)))
    except REFUSED as error:
        return refusal(error, desk.route, edge.guard.config, request)


def _find_route(request: HttpRequest, routes: Routes) -> Route | None:
    """Return the route of a request: that of its view's mark, else that of its path."""
    setattr(request, BUDGET, None)
    mark = mark_of(request)
    if mark == "exempt":
        return None
    route = mark or routes.find(request.method or "", request.path)
    setattr(request, _ROUTE, route)
    return route


def _watched(
    request: HttpRequest, response: HttpResponseBase, exchange: Exchange | AsyncExchange
) -> HttpResponseBase:
    """Watch an answer on its way, and settle at its end."""
    error = exchange.budget.error
    if isinstance(error, REFUSED):
        exchange.settle(error)  # `process_exception` has answered
        return response
    end, async_end = ends_of(exchange)
    watch(response, exchange, end, async_end)
    if isinstance(exchange, AsyncExchange) and exchange.tap.ended:
        exchange.settle()  # while it is sent
    else:
        at_close(request, end)
    return response


def _refuse_wsgi(request: HttpRequest) -> None:
    """Raise where every request has an event loop of its own, which ends before its answer."""
    if isinstance(request, WSGIRequest):
        raise settings.SettingError(
            "MIDDLEWARE: something below BudgetMiddleware is asynchronous only, on a WSGI server; "
            "make it synchronous too, put it above BudgetMiddleware, or use an ASGI server"
        )
