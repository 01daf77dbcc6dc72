"""How a guarded request ended, from what its edge saw: the same rules for ASGI and WSGI."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable

from llm_budget_mw.current import Budget
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.tap import FIRST_ERROR, Tap


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
    if budget.usage is not None:
        return Outcome(Ending.COMPLETE if tap.ended else Ending.CUT, budget.usage)
    if not tap.started:
        return _unanswered(budget, error)
    if budget.calls:
        return Outcome(Ending.NOT_CALLED)  # each call has settled itself
    if custom:
        failed = tap.status >= FIRST_ERROR
        return Outcome(Ending.NOT_CALLED if failed else Ending.UNREPORTED)
    return tap.outcome(count)


def _unanswered(budget: Budget, error: BaseException | None) -> Outcome:
    """Say how a request ended that never got an answer."""
    # A provider that was waited for may bill what nobody received; any other failure came
    # before it was asked.
    waited = isinstance(error, CancelledError) or "Timeout" in type(error).__name__
    if budget.calls or (error is not None and not waited):
        return Outcome(Ending.NOT_CALLED)
    return Outcome(Ending.CUT, counted_output=0 if budget.streams else None)
