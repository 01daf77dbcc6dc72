"""The body of an answer on its way to an SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from llm_budget_mw.clients import abandoned
from llm_budget_mw.clients.watched import Watched


class _Stream:
    """What the two do alike."""

    def __init__(self, inner: Any, watched: Watched) -> None:
        self._inner = inner
        self._watched = watched
        self._forgotten = abandoned.watch(self, watched)


class GuardedStream(_Stream):
    """A body read in a thread."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it comes; settle at its end, whatever that is."""
        tap = self._watched.tap
        try:
            for chunk in self._inner:
                if passed := tap.feed(chunk):
                    yield passed
            if rest := tap.end():
                yield rest
        except BaseException as error:
            self._settle(error)
            raise
        self._settle()

    def close(self) -> None:
        """Let go of the connection, and settle."""
        self._watched.end()
        try:
            self._inner.close()
        finally:
            self._settle()

    def _settle(self, error: BaseException | None = None) -> None:
        self._forgotten.detach()
        self._watched.settle(error)


class AsyncGuardedStream(_Stream):
    """A body read in a coroutine."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; settle at its end, whatever that is."""
        tap = self._watched.tap
        try:
            async for chunk in self._inner:
                if passed := tap.feed(chunk):
                    yield passed
            if rest := tap.end():
                yield rest
        except BaseException as error:
            await self._settle(error)
            raise
        await self._settle()

    async def aclose(self) -> None:
        """Let go of the connection, and settle."""
        self._watched.end()
        try:
            await self._inner.aclose()
        finally:
            await self._settle()

    async def _settle(self, error: BaseException | None = None) -> None:
        self._forgotten.detach()
        await self._watched.settle_async(error)
