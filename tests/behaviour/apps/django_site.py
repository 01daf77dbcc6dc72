"""The application of `model.py` in Django: the settings, and what its servers are given."""

from __future__ import annotations

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

from tests.behaviour import model


def configured(views: str) -> None:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["llm_budget_mw_django"],
        LLM_BUDGET={"CONFIG": model.configuration()},
        LOGGING_CONFIG=None,
        MIDDLEWARE=["llm_budget_mw_django.BudgetMiddleware"],
        ROOT_URLCONF=views,
        SECRET_KEY="k" * 50,
    )
    django.setup()


__all__ = ["configured", "get_asgi_application", "get_wsgi_application"]
