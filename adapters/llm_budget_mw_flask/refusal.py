"""A refusal as an exception of HTTP, so that Flask answers it and an application may."""

from __future__ import annotations

import functools
from typing import cast

from flask import Response, request
from werkzeug.exceptions import HTTPException, default_exceptions

from llm_budget_mw.config import Config
from llm_budget_mw.gate import Refused, answer_to
from llm_budget_mw.routes import Route, route_of

REFUSAL_KEY = "llm_budget_mw.refusal"
"""Name of what is to be raised instead of handling a request, in its environ."""
ROUTE_KEY = "llm_budget_mw.route"
"""Name of a request's `Route` in its environ."""
_ELSEWHERE = route_of("/*")
"""Stands for the route of a request that is not guarded: its refusals are problem details."""


class BudgetRefused(HTTPException):
    """A request that is refused, with the answer to send.

    It is also the class of werkzeug that belongs to its status, such as `TooManyRequests`: a
    handler for `BudgetRefused`, for that class or for the status may replace the answer.
    """

    def __init__(self, error: Refused, response: Response) -> None:
        super().__init__(str(error), response)
        self.error = error
        """`AuthenticationError`, `RequestError`, or `BudgetExceeded`, which has the refusal."""


def refusal_of(error: Refused, route: Route | None, config: Config) -> BudgetRefused:
    """Return an error as what Flask raises for it, answered in the dialect of the route."""
    answer = answer_to(error, route or _ELSEWHERE, config)
    response = Response(answer.body, answer.status, list(answer.headers))
    return _class_for(answer.status)(error, response)


def raise_refusal() -> None:
    """Refuse the request, if it is to be refused; the first function before every request."""
    refusal: Exception | None = request.environ.pop(REFUSAL_KEY, None)
    if refusal is not None:
        raise refusal


@functools.cache  # a handful of statuses
def _class_for(status: int) -> type[BudgetRefused]:
    # Flask looks handlers up by the class alone: by its `code`, and then by its bases.
    known = default_exceptions.get(status)
    bases = (BudgetRefused, known) if known else (BudgetRefused,)
    return cast("type[BudgetRefused]", type(BudgetRefused.__name__, bases, {"code": status}))
