"""A stream whose hold grows, in Django's words: whole events, as far as they are held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from llm_budget_mw.current import handling
from llm_budget_mw.elastic import Elastic
from llm_budget_mw.exchange import AsyncExchange, Exchange

Advance = Callable[[], bytes]
"""Returns what may be passed on, from any thread; waits where more has to be held."""
AsyncAdvance = Callable[[], Awaitable[bytes]]
"""The same from a coroutine, without stalling its loop."""
_Exchange = Exchange | AsyncExchange


def advances_of(exchange: _Exchange) -> tuple[Advance, AsyncAdvance]:
    """Return how an exchange goes on, whatever chain it belongs to and whatever streams."""
    if isinstance(exchange, AsyncExchange):
        return _from_threads(exchange), exchange.advance
    return exchange.advance, lambda: asyncio.to_thread(exchange.advance)


def covered(
    pieces: Iterator[bytes],
    exchange: _Exchange,
    elastic: Elastic,
    advance: Advance,
    end: Callable[[BaseException | None], object],
) -> Iterator[bytes]:
    """Yield what may be passed on; where no more may, that is the end of both. Then settle."""
    more = True
    try:
        while more and not elastic.stopped:
            with handling(exchange.budget):
                piece = next(pieces, None)
            more = piece is not None
            elastic.take(piece or b"", more=more)
            while passed := advance():
                yield passed
        # At once: who generates it goes on until it is closed.
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    except BaseException as error:
        end(error)
        raise
    end(None)


async def covered_async(
    pieces: AsyncIterator[bytes],
    exchange: _Exchange,
    elastic: Elastic,
    advance: AsyncAdvance,
    end: Callable[[BaseException | None], Awaitable[object]],
) -> AsyncIterator[bytes]:
    """Like `covered`."""
    more = True
    try:
        while more and not elastic.stopped:
            with handling(exchange.budget):
                piece = await anext(pieces, None)
            more = piece is not None
            elastic.take(piece or b"", more=more)
            while passed := await advance():
                yield passed
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
    except BaseException as error:
        await end(error)
        raise
    await end(None)


def _from_threads(exchange: AsyncExchange) -> Advance:
    loop = asyncio.get_running_loop()
    return lambda: asyncio.run_coroutine_threadsafe(exchange.advance(), loop).result()
