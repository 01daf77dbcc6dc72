"""The answer of an admitted request in Django's words: watched as it passes, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from llm_budget_mw import _http
from llm_budget_mw.config import Config
from llm_budget_mw.current import handling
from llm_budget_mw.exchange import AsyncExchange, Exchange
from llm_budget_mw.gate import Refused, answer_to
from llm_budget_mw.routes import Route
from llm_budget_mw_django.elastic import advances_of, covered, covered_async

End = Callable[[BaseException | None], object]
"""Settles, once, from any thread; takes what the application raised."""
AsyncEnd = Callable[[BaseException | None], Awaitable[object]]
"""The same from a coroutine, without stalling its loop."""


def refusal(error: Refused, route: Route, config: Config, request: HttpRequest) -> HttpResponse:
    """Return what a client is told, in the dialect of its route."""
    answer = answer_to(error, route, config)
    return sent(answer._replace(body=b"") if request.method == "HEAD" else answer)


def sent(answer: _http.Answer) -> HttpResponse:
    """Return a whole answer in Django's words."""
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


def watch(
    response: HttpResponseBase, exchange: Exchange | AsyncExchange, end: End, async_end: AsyncEnd
) -> None:
    """Watch an answer, and add the headers of the limits to it."""
    _set_headers(response, exchange.start(response.status_code, list(response.headers.items())))
    if isinstance(response, StreamingHttpResponse):
        pieces: Any = response.streaming_content
        if exchange.elastic is not None:
            advance, async_advance = advances_of(exchange)
            response.streaming_content = (
                covered_async(pieces, exchange, exchange.elastic, async_advance, async_end)
                if response.is_async
                else covered(pieces, exchange, exchange.elastic, advance, end)
            )
        elif response.is_async:
            response.streaming_content = _async_pieces(pieces, exchange, async_end)
        else:
            response.streaming_content = _pieces(pieces, exchange, end)
    elif isinstance(response, HttpResponse):
        tap, elastic = exchange.tap, exchange.elastic
        if elastic is not None:
            # It is whole already: nothing is left to be ended.
            elastic.waive()
            elastic.take(response.content, more=False)
            response.content = elastic.ready()
            return
        passed = tap.feed(response.content) + tap.end()
        if tap.rewrites:
            response.content = passed


def ends_of(exchange: Exchange | AsyncExchange) -> tuple[End, AsyncEnd]:
    """Return how to settle an exchange, whatever chain it belongs to and whatever streams."""
    if isinstance(exchange, AsyncExchange):
        return _from_threads(exchange), _at_once(exchange)
    return exchange.settle, _in_a_thread(exchange)


def at_close(request: HttpRequest, end: End) -> None:
    """Settle when Django closes a request: after its answer, whichever that was in the end."""
    # Where a middleware above is cancelled, nobody closes anything.
    finalizer = weakref.finalize(request, end, None)
    finalizer.atexit = False

    def close() -> None:
        del request.close  # the method of the class again
        try:
            request.close()
        finally:
            finalizer()

    request.close = close  # type: ignore[method-assign]


def _from_threads(exchange: AsyncExchange) -> End:
    loop = asyncio.get_running_loop()

    def end(error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(exchange.settle, error)

    return end


def _at_once(exchange: AsyncExchange) -> AsyncEnd:
    async def end(error: BaseException | None) -> None:
        exchange.settle(error)  # a task of its own, which nobody has to wait for

    return end


def _in_a_thread(exchange: Exchange) -> AsyncEnd:
    async def end(error: BaseException | None) -> None:
        await asyncio.to_thread(exchange.settle, error)

    return end


def _set_headers(response: HttpResponseBase, kept: Sequence[_http.Header]) -> None:
    for name in list(response.headers):
        del response.headers[name]
    for name, value in kept:
        response.headers[name] = value


def _pieces(
    pieces: Iterator[bytes], exchange: Exchange | AsyncExchange, end: End
) -> Iterator[bytes]:
    tap = exchange.tap
    try:
        while True:
            with handling(exchange.budget):
                piece = next(pieces, None)
            if piece is None:
                break
            if tap.rewrites:
                yield tap.feed(piece)
                continue
            try:
                yield piece
            finally:
                tap.feed(piece)  # once it has left, and where the client has gone
        yield tap.end()
    except BaseException as error:
        end(error)
        raise
    end(None)


async def _async_pieces(
    pieces: AsyncIterator[bytes], exchange: Exchange | AsyncExchange, end: AsyncEnd
) -> AsyncIterator[bytes]:
    tap = exchange.tap
    try:
        while True:
            with handling(exchange.budget):
                piece = await anext(pieces, None)
            if piece is None:
                break
            if tap.rewrites:
                yield tap.feed(piece)
                continue
            try:
                yield piece
            finally:
                tap.feed(piece)
        yield tap.end()
    except BaseException as error:
        await end(error)
        raise
    await end(None)
