"""Views marked in code as guarded or exempt, and the mark of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from django.http import HttpRequest
from django.urls import Resolver404, get_resolver

from llm_budget_mw.routes import Route, route_of

Mark = Route | Literal["exempt"]
View = TypeVar("View", bound=Callable[..., Any])
_NAME = "__llm_budget__"
_exist = False
"""True once any view is marked: until then no request needs to be resolved here."""


def guard(
    *,
    dialect: str = "custom",
    feature: str | None = None,
    model: str | None = None,
    input_tokens: int = 0,
    max_tokens: int | None = None,
) -> Callable[[View], View]:
    """Mark a view as guarded, whatever `routes` in the configuration says of its path.

        @guard(feature="search", model="gpt-4o", max_tokens=300)
        def search(request): ...

    A view is a function, a class of views, or a method of one, such as `post`. The options are
    those of a route in the configuration. Every method is guarded except OPTIONS. Raises
    `ConfigurationError` naming every wrong option.
    """
    route = route_of(
        "/*",
        dialect=dialect,
        feature=feature,
        model=model,
        input_tokens=input_tokens,
        max_tokens=max_tokens,
    )
    return lambda view: _mark(view, route)


def exempt(view: View) -> View:
    """Mark a view as not guarded, whatever `routes` in the configuration says of its path."""
    return _mark(view, "exempt")


def mark_of(request: HttpRequest) -> Mark | None:
    """Return the mark of the view a request is for; None if that has none."""
    method = request.method or ""
    resolver = get_resolver(getattr(request, "urlconf", None))
    if method == "OPTIONS" or not _marks_exist_in(resolver):
        return None
    try:
        match = resolver.resolve(request.path_info)
    except Resolver404:
        return None  # no view runs: Django will say why
    found = _of_view(match.func, method)
    if found is None or found == "exempt":
        return found
    config = found.config.model_copy(update={"path": f"/{match.route}"})
    return found._replace(config=config)


def _mark(view: View, how: Mark) -> View:
    """Mark a view; wrappers made by `functools.wraps` keep the mark."""
    global _exist
    _exist = True
    setattr(view, _NAME, how)
    return view


def _marks_exist_in(resolver: Any) -> bool:
    # Its patterns import the views, and with them the marks; Django remembers them.
    return bool(resolver.url_patterns) and _exist


def _of_view(view: Callable[..., Any], method: str) -> Mark | None:
    """Return how a function is marked, a method of a class of views, or that class."""
    # Django REST framework maps methods to names, for its sets of views.
    names: dict[str, str] = getattr(view, "actions", None) or {}
    owner: Any = getattr(view, "view_class", None) or getattr(view, "cls", None)
    handler = getattr(owner, names.get(method.lower(), method.lower()), None)
    if handler is None and method == "HEAD":
        handler = getattr(owner, names.get("get", "get"), None)
    for place in (view, handler, owner):
        found: Mark | None = getattr(place, _NAME, None)
        if found is not None:
            return found
    return None
