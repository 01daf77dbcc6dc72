"""The budget of the request at hand, as a dependency."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Generator
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from llm_budget_mw.current import Budget, current_budget
from llm_budget_mw.passage import SCOPE_KEY, Passage


# Asynchronous, because FastAPI would run a function in a thread.
async def get_budget(connection: HTTPConnection) -> AsyncIterator[Budget | None]:
    """Give the budget of the request; raises `LookupError` where none is guarded.

    It is None where a guard stands but has not admitted: for OPTIONS, and for a request that
    its `principal` finds not valid, which FastAPI answers 422 without running the endpoint.
    Tests of a handler may replace it in `app.dependency_overrides`.
    """
    try:
        budget = current_budget()
    except LookupError:
        passage: Passage | None = connection.scope.get(SCOPE_KEY)
        if passage is not None and passage.route is not None:
            yield None
            return
        what = f"{connection.scope.get('method', 'websocket')} {connection.scope['path']}"
        raise LookupError(
            f"{what} has no budget: add its path to `routes` in the configuration, or "
            "`Depends(guard(...))` to its endpoint, and BudgetMiddleware to the application"
        ) from None
    with noting(budget):
        yield budget


CurrentBudget = Annotated[Budget, Depends(get_budget)]
"""Annotates a parameter that is to be the request's `Budget`."""


@contextlib.contextmanager
def noting(budget: Budget) -> Generator[None]:
    """Note in the budget what the endpoint raises.

    An exception handler may make an answer of it, which does not tell a time-out any more.
    """
    try:
        yield
    except BaseException as error:
        budget.error = error
        raise
