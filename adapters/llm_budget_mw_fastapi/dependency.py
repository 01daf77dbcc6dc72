"""The budget of the request at hand, as a dependency."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from llm_budget_mw.current import Budget, current_budget


# A coroutine, because FastAPI would run a function in a thread.
async def get_budget(connection: HTTPConnection) -> Budget:
    """Return the budget of the request; raises `LookupError` where none is guarded.

    Tests of a handler may replace it in `app.dependency_overrides`.
    """
    try:
        return current_budget()
    except LookupError:
        what = f"{connection.scope.get('method', 'websocket')} {connection.scope['path']}"
        raise LookupError(
            f"{what} has no budget: add its path to `routes` in the configuration, "
            "and BudgetMiddleware to the application"
        ) from None


CurrentBudget = Annotated[Budget, Depends(get_budget)]
"""Annotates a parameter that is to be the request's `Budget`."""
