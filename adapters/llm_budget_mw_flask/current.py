"""The budget of the request at hand, as Flask hands out what belongs to a request."""

from __future__ import annotations

from typing import cast

from flask import has_request_context, request
from werkzeug.local import LocalProxy

from llm_budget_mw.current import CURRENT, Budget


def _find() -> Budget:
    budget = CURRENT.get()
    if budget is not None:
        return budget
    if not has_request_context():
        raise RuntimeError("there is no budget outside of a request")
    raise RuntimeError(
        f"{request.method} {request.path} has no budget: mark its view with `guard`, or add its "
        "path to `routes` in the configuration"
    )


current_budget = cast("Budget", LocalProxy(_find))
"""The `Budget` of the guarded request that is being handled.

It is false, and any use of it raises `RuntimeError`, where there is none.
"""
