"""Views marked in code as guarded or exempt, and the mark of a request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from llm_budget_mw.routes import Route

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Mark = Route | Literal["exempt"]
View = TypeVar("View", bound=Callable[..., Any])
_NAME = "__llm_budget__"


def mark(view: View, how: Mark) -> View:
    """Mark a view, or a class of views; wrappers made by `functools.wraps` keep the mark."""
    setattr(view, _NAME, how)
    return view


class Marks:
    """The marks of one application."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def find(self, environ: WSGIEnvironment) -> Mark | None:
        """Return the mark of the view a request is for; None if that has none."""
        method = environ["REQUEST_METHOD"].upper()
        if method == "OPTIONS" or not self._exist:
            return None
        rule = self._matched(environ)
        view = None if rule is None else self._app.view_functions.get(rule.endpoint)
        found = None if view is None else _mark_of(view, method)
        if rule is None or found is None or found == "exempt":
            return found
        config = found.config.model_copy(update={"path": rule.rule})
        return found._replace(config=config)

    # Asked when the first request comes: from then on Flask takes no more views.
    @functools.cached_property
    def _exist(self) -> bool:
        return any(_is_marked(view) for view in self._app.view_functions.values())

    def _matched(self, environ: WSGIEnvironment) -> Rule | None:
        try:
            request = self._app.request_class(environ, populate_request=False)
            adapter = self._app.create_url_adapter(request)
            return adapter.match(return_rule=True)[0] if adapter else None
        except HTTPException:
            return None  # no view runs: Flask will say why


def _mark_of(view: Callable[..., Any], method: str) -> Mark | None:
    """Return how a function is marked, a method of a class of views, or that class."""
    owner: Any = getattr(view, "view_class", None)
    handler = getattr(owner, method.lower(), None)
    if handler is None and method == "HEAD":
        handler = getattr(owner, "get", None)
    for place in (view, handler, owner):
        found: Mark | None = getattr(place, _NAME, None)
        if found is not None:
            return found
    return None


def _is_marked(view: Callable[..., Any]) -> bool:
    methods: set[str] = getattr(getattr(view, "view_class", None), "methods", None) or {"GET"}
    return any(_mark_of(view, method) is not None for method in methods)
