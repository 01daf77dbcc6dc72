"""What views raise: noted for the budget of their request, and answered where it is a refusal."""

from __future__ import annotations

from typing import Any

from flask import Flask, request

from llm_budget_mw.config import Config
from llm_budget_mw.current import Budget
from llm_budget_mw.errors import BudgetError
from llm_budget_mw.gate import REFUSED
from llm_budget_mw.wsgi import ENVIRON_KEY
from llm_budget_mw_flask.refusal import ROUTE_KEY, refusal_of


def watch(app: Flask, config: Config) -> None:
    """See every exception of an application before its handlers do.

    The signal `got_request_exception` would miss those that a handler answers: after a
    time-out the hold has to stay whatever the answer is.
    """
    handle: Any = app.handle_user_exception

    # Flask 3.2 puts its context before the exception.
    def handle_watched(*arguments: Any) -> Any:
        *context, error = arguments
        _note(error)
        if isinstance(error, REFUSED) and not _is_handled(app, error):
            error = refusal_of(error, request.environ.get(ROUTE_KEY), config)
        return handle(*context, error)

    app.handle_user_exception = handle_watched  # type: ignore[method-assign,assignment]


def _note(error: Exception) -> None:
    budget: Budget | None = request.environ.get(ENVIRON_KEY)
    if budget is not None:
        budget.error = budget.error or error


def _is_handled(app: Flask, error: BudgetError) -> bool:
    """Return whether the application has a handler for an error of this package."""
    return any(
        issubclass(kind, BudgetError) and isinstance(error, kind)
        for name in (*request.blueprints, None)
        for kind in app.error_handler_spec[name][None]
    )
