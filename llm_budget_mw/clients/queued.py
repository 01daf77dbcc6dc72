"""Transports that let each call of a model wait for its turn under the provider's limits.

They belong inside the guarded transport: a call that is refused its budget takes no turn, and
what waits in the line is the granted model with its clamped output, so its true weight.
Retrying belongs outside both: every attempt is admitted at its price and waits for a turn of
its own.

    Retrying(GuardedTransport(Queued(HTTPTransport())))

A request without an `Errand` calls no model and passes.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from llm_budget_mw.clients.errand import Errand, errand_of
from llm_budget_mw.clients.headroom import Key, key_of
from llm_budget_mw.clients.library import Library, joined
from llm_budget_mw.clients.pace import AsyncPace, Pace
from llm_budget_mw.clients.wrapping import AsyncWrapping, Wrapping

_ERROR = 400


class Queued(Wrapping):
    """A transport of a synchronous client."""

    def __init__(self, inner: Any, pace: Pace, library: Library) -> None:
        super().__init__(inner)
        self._pace = pace
        self._library = library

    def handle_request(self, request: Any) -> Any:
        """Send a request in its turn; raises `PaceExceeded` where that does not come."""
        errand = errand_of(request.extensions)
        if errand is None:
            return self._inner.handle_request(request)
        key = _key(request, errand)
        place = self._pace.enter(errand, _brake(self._pace, key, errand))
        settle = functools.partial(self._pace.settle, place)
        try:
            response = self._inner.handle_request(request)
        except BaseException as error:
            place.in_vain = isinstance(error, self._library.unsent)
            settle()
            raise
        self._pace.headroom.note(key, response.status_code, response.headers)
        place.in_vain = response.status_code >= _ERROR
        response.stream = joined(_Settling, self._library.stream)(response.stream, settle)
        return response


class AsyncQueued(AsyncWrapping):
    """A transport of an asynchronous client."""

    def __init__(self, inner: Any, pace: AsyncPace, library: Library) -> None:
        super().__init__(inner)
        self._pace = pace
        self._library = library

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request in its turn; raises `PaceExceeded` where that does not come."""
        errand = errand_of(request.extensions)
        if errand is None:
            return await self._inner.handle_async_request(request)
        key = _key(request, errand)
        place = await self._pace.enter(errand, _brake(self._pace, key, errand))
        settle = functools.partial(self._pace.settle, place)
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException as error:
            place.in_vain = isinstance(error, self._library.unsent)
            settle()
            raise
        self._pace.headroom.note(key, response.status_code, response.headers)
        place.in_vain = response.status_code >= _ERROR
        kind = joined(_AsyncSettling, self._library.async_stream)
        response.stream = kind(response.stream, settle)
        return response


class _Settling:
    """A body that settles its place when it is closed."""

    def __init__(self, inner: Any, settle: Callable[[], None]) -> None:
        self._inner = inner
        self._settle = settle

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._settle()


class _AsyncSettling:
    """The same, in a coroutine."""

    def __init__(self, inner: Any, settle: Callable[[], None]) -> None:
        self._inner = inner
        self._settle = settle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._settle()


def _key(request: Any, errand: Errand) -> Key:
    return key_of(request.url.host, request.headers, errand.model)


def _brake(pace: Pace | AsyncPace, key: Key, errand: Errand) -> Callable[[], float]:
    return functools.partial(pace.headroom.wait_s, key, errand.tokens)
