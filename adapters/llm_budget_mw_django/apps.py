"""The application to install: it brings the system checks and the command."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from llm_budget_mw_django.checks import check_middleware, check_setting


class LLMBudgetConfig(AppConfig):
    """Budgets for calls to language models."""

    name = "llm_budget_mw_django"
    label = "llm_budget"
    verbose_name = "LLM budgets"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_setting)
        checks.register(check_middleware)
