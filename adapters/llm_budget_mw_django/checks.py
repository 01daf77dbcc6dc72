"""System checks: what is wrong with the settings, said before a request finds out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string

from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw_django import settings
from llm_budget_mw_django.login import USER
from llm_budget_mw_django.middleware import BudgetMiddleware

_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_GZIP = "django.middleware.gzip.GZipMiddleware"
_PATH = "llm_budget_mw_django.BudgetMiddleware"


def check_setting(**_: object) -> list[CheckMessage]:
    """Check that a guard can be made of `LLM_BUDGET`."""
    try:
        settings.check()
    except ConfigurationError as error:
        hint = "Every option is explained in docs/configuration.md of llm-budget-mw."
        return [Error(str(error), hint=hint, id="llm_budget.E001")]
    return []


def check_middleware(**_: object) -> list[CheckMessage]:
    """Check that BudgetMiddleware is there once, and in the right place."""
    classes = [_imported(path) for path in django_settings.MIDDLEWARE]
    places = [place for place, found in enumerate(classes) if _is_a(found, BudgetMiddleware)]
    if len(places) != 1:
        return [_missing() if not places else _repeated()]
    above, below = classes[: places[0]], classes[places[0] + 1 :]
    return [*_order(above, below), *_modes([*above, *below])]


def _missing() -> CheckMessage:
    return Error(
        "BudgetMiddleware is not in MIDDLEWARE: no request is guarded.",
        hint=f'Add "{_PATH}" to MIDDLEWARE, below what logs users in.',
        id="llm_budget.E002",
    )


def _repeated() -> CheckMessage:
    return Error(
        "BudgetMiddleware is in MIDDLEWARE more than once: every request would be charged twice.",
        hint="Leave one of them.",
        id="llm_budget.E003",
    )


def _order(above: Sequence[object], below: Sequence[object]) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if _charges_users() and not any(_is_a(each, _imported(_AUTHENTICATION)) for each in above):
        found.append(
            Error(
                'PRINCIPAL is "user", but no AuthenticationMiddleware stands above '
                "BudgetMiddleware: requests have no user yet.",
                hint=f'Put "{_AUTHENTICATION}" above "{_PATH}" in MIDDLEWARE.',
                id="llm_budget.E004",
            )
        )
    if any(_is_a(each, _imported(_GZIP)) for each in below):
        found.append(
            checks.Warning(
                "GZipMiddleware stands below BudgetMiddleware: answers are compressed before "
                "their usage is read, and settled by what was reserved.",
                hint=f'Put "{_GZIP}" above "{_PATH}" in MIDDLEWARE.',
                id="llm_budget.W001",
            )
        )
    return found


def _modes(others: Sequence[object]) -> list[CheckMessage]:
    """Warn of threads in an asynchronous chain, where the settings tell that there is one."""
    if not getattr(django_settings, "ASGI_APPLICATION", None):
        return []
    blocking = [each for each in others if not getattr(each, "async_capable", False)]
    return [
        checks.Warning(
            f"{_name(each)} is synchronous only: under ASGI every request changes to a thread "
            "for it and back.",
            hint="Make it asynchronous too, or move it out of MIDDLEWARE.",
            id="llm_budget.W002",
        )
        for each in blocking
        if each is not None
    ]


def _charges_users() -> bool:
    try:
        return settings.principal_setting() == USER
    except ConfigurationError:
        return False  # E001 says why


def _imported(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError:
        return None  # Django says so when it loads the middleware


def _is_a(found: object, kind: object) -> bool:
    return isinstance(found, type) and isinstance(kind, type) and issubclass(found, kind)


def _name(found: object) -> str:
    return f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', found)}"
