"""The extension: one object for any number of applications, of which it keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask

from llm_budget_mw.identity import Authenticator
from llm_budget_mw.routes import route_of
from llm_budget_mw_flask.cli import commands
from llm_budget_mw_flask.failures import watch
from llm_budget_mw_flask.login import Who
from llm_budget_mw_flask.marks import mark
from llm_budget_mw_flask.middleware import FlaskBudgetMiddleware
from llm_budget_mw_flask.refusal import raise_refusal

View = TypeVar("View", bound=Callable[..., Any])
_NAME = "llm_budget"


class LLMBudget:
    """Budgets for the calls of a Flask application.

        budget = LLMBudget(app)            # or budget.init_app(app) in a factory

    Settings: `LLM_BUDGET_CONFIG`, a TOML file or a mapping; `LLM_BUDGET_STORE_URL`,
    `LLM_BUDGET_JWT_KEY` and `LLM_BUDGET_ID_SECRET`, stronger than the variables of these names;
    or `LLM_BUDGET_GUARD`, a `Guard` that tests have opened.

    `authenticator` replaces the verification of JWTs: a function that returns the `Principal`
    logged in, or None, and may use `request` and `session` but no body; or an `Authenticator`.
    """

    def __init__(
        self, app: Flask | None = None, *, authenticator: Authenticator | Who | None = None
    ) -> None:
        self._authenticator = authenticator
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Guard an application; raises `ConfigurationError` naming every wrong setting."""
        if _NAME in app.extensions:
            raise RuntimeError(f"the application {app.name!r} is guarded already: do it once")
        middleware = FlaskBudgetMiddleware(app, self._authenticator)
        app.wsgi_app = middleware  # type: ignore[method-assign]
        app.extensions[_NAME] = middleware
        app.before_request_funcs.setdefault(None, []).insert(0, raise_refusal)
        watch(app, middleware.guard.config)
        app.cli.add_command(commands)

    def guard(
        self,
        *,
        dialect: str = "custom",
        feature: str | None = None,
        model: str | None = None,
        input_tokens: int = 0,
        max_tokens: int | None = None,
    ) -> Callable[[View], View]:
        """Mark a view as guarded, whatever `routes` in the configuration says of its path.

            @app.post("/search")
            @budget.guard(feature="search", model="gpt-4o", max_tokens=300)
            def search(): ...

        The options are those of a route in the configuration. Every method is guarded except
        OPTIONS. Raises `ConfigurationError` naming every wrong option.
        """
        route = route_of(
            "/*",
            dialect=dialect,
            feature=feature,
            model=model,
            input_tokens=input_tokens,
            max_tokens=max_tokens,
        )
        return lambda view: mark(view, route)

    def exempt(self, view: View) -> View:
        """Mark a view as not guarded, whatever `routes` in the configuration says of its path."""
        return mark(view, "exempt")
