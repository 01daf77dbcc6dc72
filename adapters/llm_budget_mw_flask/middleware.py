"""The WSGI middleware of one Flask application, which lets Flask answer what is refused."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flask import Flask

from llm_budget_mw.gate import Refused
from llm_budget_mw.identity import Authenticator
from llm_budget_mw.routes import Route
from llm_budget_mw.types import Principal
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from llm_budget_mw_flask.login import NO_BODY, Login, LoginFailedError, Who, ask
from llm_budget_mw_flask.marks import Marks
from llm_budget_mw_flask.refusal import REFUSAL_KEY, ROUTE_KEY, refusal_of
from llm_budget_mw_flask.settings import config_in, guard_in

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class FlaskBudgetMiddleware(WSGIBudgetMiddleware):
    """Guards an application by its settings and by the marks on its views.

    It is what `app.extensions["llm_budget"]` holds; `guard` is its `Guard`.
    """

    def __init__(self, app: Flask, authenticator: Authenticator | Who | None) -> None:
        guard = guard_in(app)
        if callable(authenticator):
            authenticator = Login(app, authenticator)
        super().__init__(
            app.wsgi_app,
            config=None if guard else config_in(app),
            guard=guard,
            authenticator=authenticator,
        )
        self._flask = app
        self._marks = Marks(app)
        self._asked = authenticator

    def find_route(self, environ: WSGIEnvironment) -> Route | None:
        """Return the route of a request: that of its view's mark, else that of its path."""
        mark = self._marks.find(environ)
        if mark == "exempt":
            return None
        route = mark or self._find_configured(environ)
        environ[ROUTE_KEY] = route
        return route

    def _find_configured(self, environ: WSGIEnvironment) -> Route | None:
        for path in self._readings(environ.get("PATH_INFO", "")):
            route = super().find_route({**environ, "PATH_INFO": path})
            if route is not None:
                return route
        return None

    def _readings(self, path: str) -> list[str]:
        """Return the paths for which Flask may take a path: none may lead past the guard."""
        plain = "/" + path.lstrip("/")
        readings = [plain] if path == plain else [path, plain]
        if self._lenient:
            readings.append(plain[:-1] if plain.endswith("/") else f"{plain}/")
        return readings

    @functools.cached_property
    def _lenient(self) -> bool:
        return not all(rule.strict_slashes for rule in self._flask.url_map.iter_rules())

    def authenticate(
        self, environ: WSGIEnvironment, headers: Sequence[tuple[str, str]]
    ) -> Principal:
        """Return who sent a request; an authenticator of the application may use `request`."""
        if self._asked is None:
            return super().authenticate(environ, headers)
        return ask(self._flask, self._asked, environ, headers)

    def refused(
        self, error: Refused, route: Route, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Run Flask for the answer, so that its handlers and hooks see the refusal."""
        if isinstance(error, LoginFailedError):
            environ[REFUSAL_KEY] = error.error
        else:
            environ[REFUSAL_KEY] = refusal_of(error, route, self.guard.config)
        environ.update(NO_BODY)
        environ["wsgi.input"] = io.BytesIO()
        return self.app(environ, start_response)
