"""LLM budgets in Django: a middleware, marks for views, checks, and a command.

    INSTALLED_APPS = [..., "llm_budget_mw_django"]
    MIDDLEWARE = [..., "llm_budget_mw_django.BudgetMiddleware"]
    LLM_BUDGET = {"CONFIG": "llm_budget.toml"}

    @guard(feature="search", model="gpt-4o", max_tokens=300)
    def search(request):
        request.llm_budget.remaining

The middleware admits the routes of the configuration and the views marked with `guard`, in an
asynchronous chain as in a synchronous one.
"""

from __future__ import annotations

from llm_budget_mw.errors import MissingDependencyError

try:
    from llm_budget_mw_django.marks import exempt, guard
    from llm_budget_mw_django.middleware import BudgetMiddleware
    from llm_budget_mw_django.settings import SettingError, get_async_guard, get_guard
except ModuleNotFoundError as error:
    if error.name != "django":
        raise
    raise MissingDependencyError(
        "llm_budget_mw_django needs Django: install llm-budget-mw[django]"
    ) from error

__all__ = [
    "BudgetMiddleware",
    "SettingError",
    "exempt",
    "get_async_guard",
    "get_guard",
    "guard",
]
