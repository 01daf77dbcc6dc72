"""How a guarded request ended, from what its edge saw: the same rules for ASGI and WSGI."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable

from llm_budget_mw.current import Budget
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.tap import FIRST_ERROR, Tap

_TIMEOUTS = (408, 504)
"""Statuses with which a handler says that it waited for a provider in vain."""
_LOST = frozenset(
    {
        "ReadError", "RemoteProtocolError",  # httpx
        "ServerDisconnectedError", "ClientPayloadError",  # aiohttp
        "ChunkedEncodingError", "ProtocolError",  # requests, urllib3
        "RemoteDisconnected", "IncompleteRead",  # http.client
    }
)  # fmt: skip
"""Errors of client libraries whose connection broke after the request had left."""


def outcome_of(
    budget: Budget,
    tap: Tap,
    error: BaseException | None,
    count: Callable[[str], int],
    *,
    custom: bool,
) -> Outcome:
    """Say how a request ended.

    `error` is what the application raised, `count` counts the tokens of generated text,
    `custom` says that the handler was to report usage by itself.
    """
    error = error or budget.error
    if budget.usage is not None:
        return Outcome(Ending.COMPLETE if tap.ended else Ending.CUT, budget.usage)
    # A framework makes an error page of what the handler raised: that is no provider's answer.
    if not tap.started or (error is not None and tap.status >= FIRST_ERROR):
        # A provider that was waited for may bill what nobody received; any other failure came
        # before it was asked.
        if budget.calls or (error is not None and not _waited(error)):
            return Outcome(Ending.NOT_CALLED)
        return unanswered(streams=budget.streams)
    if budget.calls:
        return Outcome(Ending.NOT_CALLED)  # each call has settled itself
    if custom:
        failed = tap.status >= FIRST_ERROR and not _timed_out(tap, error)
        return Outcome(Ending.NOT_CALLED if failed else Ending.UNREPORTED)
    return answered(tap, error, count, streams=budget.streams)


def answered(
    tap: Tap, error: BaseException | None, count: Callable[[str], int], *, streams: bool
) -> Outcome:
    """Say how a call ended whose answer began; `streams` is what was asked for."""
    outcome = tap.outcome(count)
    if outcome.usage is None and _timed_out(tap, error):
        return unanswered(streams=streams)
    return outcome


def unanswered(*, streams: bool) -> Outcome:
    """Say how a call ended whose answer was waited for in vain."""
    return Outcome(Ending.CUT, counted_output=0 if streams else None)


def _timed_out(tap: Tap, error: BaseException | None) -> bool:
    return tap.status in _TIMEOUTS or (tap.status >= FIRST_ERROR and _waited(error))


def _waited(error: BaseException | None) -> bool:
    """Return whether a provider was waited for in vain, going by what the application raised."""
    while error is not None:
        name = type(error).__name__
        if isinstance(error, CancelledError) or "Timeout" in name or name in _LOST:
            return True
        error = error.__cause__  # an SDK wraps what its transport raised
    return False
