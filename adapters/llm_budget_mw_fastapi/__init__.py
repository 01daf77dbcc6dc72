"""LLM budgets in FastAPI: guards and budgets as dependencies, refusals in the schema.

    from llm_budget_mw_fastapi import BudgetMiddleware, CurrentBudget, budget_responses, guard

    app.add_middleware(BudgetMiddleware, config="llm_budget.toml")
    summaries = guard(feature="summaries", model="gpt-4o-mini", principal=get_current_principal)

    @app.post("/summaries", dependencies=[Depends(summaries)], responses=budget_responses())
    async def summarise(text: Text, budget: CurrentBudget) -> Summary: ...

The middleware admits the routes of the configuration and watches every answer; a guard has
the requests of one endpoint, router or application admitted, with options of its own.
"""

from __future__ import annotations

from llm_budget_mw.errors import MissingDependencyError

try:
    from llm_budget_mw_fastapi.dependency import CurrentBudget, get_budget
    from llm_budget_mw_fastapi.guards import guard
    from llm_budget_mw_fastapi.middleware import BudgetMiddleware
    from llm_budget_mw_fastapi.responses import BudgetErrorAnswer, BudgetProblem, budget_responses
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise MissingDependencyError(
        "llm_budget_mw_fastapi needs FastAPI: install llm-budget-mw[fastapi]"
    ) from error

__all__ = [
    "BudgetErrorAnswer",
    "BudgetMiddleware",
    "BudgetProblem",
    "CurrentBudget",
    "budget_responses",
    "get_budget",
    "guard",
]
