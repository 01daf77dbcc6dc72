"""LLM budgets in Flask: an extension, marks for views, and the budget of the request.

    from llm_budget_mw_flask import LLMBudget, current_budget

    budget = LLMBudget(app)

    @app.post("/search")
    @budget.guard(feature="search", model="gpt-4o", max_tokens=300)
    def search(): ...

What is refused is an exception of HTTP, `BudgetRefused`, which the application may answer.
"""

from __future__ import annotations

from llm_budget_mw.errors import MissingDependencyError

try:
    from llm_budget_mw_flask.current import current_budget
    from llm_budget_mw_flask.extension import LLMBudget
    from llm_budget_mw_flask.refusal import BudgetRefused
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise MissingDependencyError(
        "llm_budget_mw_flask needs Flask: install llm-budget-mw[flask]"
    ) from error

__all__ = ["BudgetRefused", "LLMBudget", "current_budget"]
