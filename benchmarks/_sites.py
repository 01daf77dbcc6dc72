"""What gunicorn serves here: one application in each framework, bare, guarded, or counted by others.

Each function returns a WSGI application; gunicorn calls it in a process that has no other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jwt
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.urls import path as url_path
from flask import Flask, g, request
from pydantic_core import from_json, to_json

from benchmarks import _server
from benchmarks._deployment import ANSWER, PATH, configuration, log_to_nowhere
from llm_budget_mw.guard import Guard
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from llm_budget_mw_flask import LLMBudget

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

View = Callable[[HttpRequest], HttpResponseBase]
_PERIODS = ("minute", "hour", "day", "second")
"""What the others count requests in."""
USER_HEADER = "x-user"
"""Names the user where nobody verifies a token."""
_USER = "bench.user"
"""Name of the user of a verified token, in the environ."""
_PLENTY = 90_000_000
"""Requests: nobody is refused here."""


def wsgi(*, guarded: bool = False) -> WSGIApplication:
    """Return an application without a framework."""
    log_to_nowhere()
    return WSGIBudgetMiddleware(_plain, guard=_guard()) if guarded else _plain


def flask(*, guarded: bool = False, verified: bool = False, limits: int = 0) -> Flask:
    """Return an application of Flask, with so many limits of Flask-Limiter."""
    log_to_nowhere()
    app = Flask("site")
    if verified:
        user_in = _verifier()

        @app.before_request
        def verify() -> None:
            g.user = user_in(request.headers["Authorization"])

    if limits:
        _limit_flask(app, limits)
    app.post(PATH)(_flask_chat)
    if guarded:
        app.config["LLM_BUDGET_GUARD"] = _guard()
        LLMBudget(app)
    return app


def django(*, guarded: bool = False, verified: bool = False, limits: int = 0) -> WSGIHandler:
    """Return an application of Django, with so many limits of django-ratelimit."""
    log_to_nowhere()
    middleware = ["django.middleware.common.CommonMiddleware"]  # for a content-length
    if verified:
        middleware.append(f"{__name__}.TokenMiddleware")
    if guarded:
        middleware.append("llm_budget_mw_django.BudgetMiddleware")
    settings.configure(
        ALLOWED_HOSTS=["*"],
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": _server.url(),
                "KEY_PREFIX": _server.PREFIX,
            }
        },
        LLM_BUDGET={"GUARD": _guard()} if guarded else {},
        MIDDLEWARE=middleware,
        ROOT_URLCONF=(url_path(PATH.removeprefix("/"), _limit_django(_django_chat, limits)),),
        SECRET_KEY="a secret of the benchmarks",
    )
    importlib.import_module("django").setup()
    return WSGIHandler()


class TokenMiddleware:
    """Verifies the token of every request, as applications of Django do by themselves."""

    def __init__(self, get_response: View) -> None:
        self._get_response = get_response
        self._user_in = _verifier()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Note the user in the request."""
        request.META[_USER] = self._user_in(request.headers["Authorization"])
        return self._get_response(request)


def _guard() -> Guard:
    return Guard.open(configuration())


def _verifier() -> Callable[[str], str]:
    """Return what finds the user in a header `Authorization`, through PyJWT."""
    (issuer,) = configuration().jwt
    key = issuer.key.get_secret_value() if issuer.key else ""

    def user_in(header: str) -> str:
        claims = jwt.decode(
            header.removeprefix("Bearer "), key, ["HS256"], issuer=issuer.issuer, audience="llm"
        )
        return str(claims["sub"])

    return user_in


def _plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    from_json(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    body = to_json(ANSWER)
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


def _flask_chat() -> Any:
    request.get_json()
    return ANSWER


def _django_chat(request: HttpRequest) -> HttpResponseBase:
    from_json(request.body)
    return JsonResponse(dict(ANSWER))


def _flask_user() -> str:
    return str(g.user) if "user" in g else request.headers[USER_HEADER]


def _django_user(group: str, request: HttpRequest) -> str:
    return request.META.get(_USER) or request.headers[USER_HEADER]


def _limit_flask(app: Flask, limits: int) -> None:
    from flask_limiter import Limiter

    Limiter(
        _flask_user,
        app=app,
        default_limits=[f"{_PLENTY}/{period}" for period in _PERIODS[:limits]],
        storage_uri=_server.url(),
        key_prefix=_server.PREFIX,
    )


def _limit_django(view: View, limits: int) -> View:
    # It has no types.
    decorators = importlib.import_module("django_ratelimit.decorators")
    for period in _PERIODS[:limits]:
        view = decorators.ratelimit(key=_django_user, rate=f"{_PLENTY}/{period[0]}")(view)
    return view
