"""LLM budgets in FastAPI: the budget of a request as a dependency, its refusals in the schema.

    from llm_budget_mw_fastapi import CurrentBudget, budget_responses

    @app.post("/summaries", responses=budget_responses())
    async def summarise(text: Text, budget: CurrentBudget) -> Summary: ...

The guard itself is `llm_budget_mw.BudgetMiddleware`, added like any other middleware.
"""

from __future__ import annotations

from llm_budget_mw.errors import MissingDependencyError

try:
    from llm_budget_mw_fastapi.dependency import CurrentBudget, get_budget
    from llm_budget_mw_fastapi.responses import BudgetErrorAnswer, BudgetProblem, budget_responses
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise MissingDependencyError(
        "llm_budget_mw_fastapi needs FastAPI: install llm-budget-mw[fastapi]"
    ) from error

__all__ = [
    "BudgetErrorAnswer",
    "BudgetProblem",
    "CurrentBudget",
    "budget_responses",
    "get_budget",
]
