"""Who is charged: the credential of a request, the user logged in, or what a function says."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.utils.module_loading import import_string

from llm_budget_mw import assembly
from llm_budget_mw.config import Config
from llm_budget_mw.errors import AuthenticationError, ConfigurationError
from llm_budget_mw.types import Principal
from llm_budget_mw.wsgi import headers_of

JWT = "jwt"
USER = "user"
Login = Callable[[HttpRequest], Principal]
"""Returns who is charged for a request; raises `AuthenticationError`."""
AsyncLogin = Callable[[HttpRequest], Awaitable[Principal]]
Who = Callable[[HttpRequest], Any]
"""A function of the application; it returns a `Principal`, None, or an awaitable of either."""


def login_of(setting: object, config: Config) -> Login:
    """Return how a synchronous chain logs in; raises `ConfigurationError`."""
    if setting == JWT:
        jwt = assembly.build_authenticator(config)
        return lambda request: jwt.authenticate(headers_of(request.META))
    if setting == USER:
        return lambda request: _known(_of_user(_user(request)))
    who = _function(setting)
    if _is_async(who):
        who = async_to_sync(who)
    return lambda request: _known(who(request))


def login_on_a_loop(setting: object, config: Config) -> AsyncLogin:
    """Return how an asynchronous chain logs in; raises `ConfigurationError`."""
    if setting == JWT:
        jwt = assembly.build_async_authenticator(config)
        return lambda request: jwt.authenticate(headers_of(request.META))
    if setting == USER:
        return _log_in_user
    who = _function(setting)
    if not _is_async(who):
        # It may ask the database, which Django allows in a thread only.
        who = sync_to_async(who)

    async def log_in(request: HttpRequest) -> Principal:
        found = await who(request)
        return _known(await found if inspect.isawaitable(found) else found)

    return log_in


def _is_async(who: Who) -> bool:
    # That of `inspect` does not see Django's mark before Python 3.12.
    return iscoroutinefunction(who)  # pyright: ignore[reportDeprecated]


def _function(setting: object) -> Who:
    if isinstance(setting, str):
        try:
            setting = import_string(setting)
        except ImportError as error:
            raise ConfigurationError(f"PRINCIPAL: found {setting!r}; {error}") from error
    if not callable(setting):
        raise ConfigurationError(
            f"PRINCIPAL: found {repr(setting)[:80]}; should be {JWT!r}, {USER!r}, or the path of "
            "a function that takes a request and returns a Principal, or None"
        )
    return cast("Who", setting)


async def _log_in_user(request: HttpRequest) -> Principal:
    _user(request)
    return _known(_of_user(await request.auser()))


def _user(request: HttpRequest) -> Any:
    try:
        return request.user
    except AttributeError as error:
        raise ConfigurationError(
            "LLM_BUDGET: PRINCIPAL is 'user', but this request has none; put Django's "
            "AuthenticationMiddleware above BudgetMiddleware in MIDDLEWARE"
        ) from error


def _of_user(user: Any) -> Principal | None:
    return Principal(str(user.pk)) if user.is_authenticated else None


def _known(principal: object) -> Principal:
    if principal is None:
        raise AuthenticationError("This request needs a login.", code=None)
    if not isinstance(principal, Principal):
        raise TypeError(
            f"PRINCIPAL returned {type(principal).__name__}: let it return an "
            "llm_budget_mw.Principal, or None"
        )
    return principal
