"""The middleware of applications that guard endpoints as well as paths."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from llm_budget_mw import asgi


class BudgetMiddleware(asgi.BudgetMiddleware):
    """`llm_budget_mw.BudgetMiddleware`, which `guard` can have a request admitted by.

    app.add_middleware(BudgetMiddleware, config="llm_budget.toml")
    """

    async def unguarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request that no configured route guards; `guard` may admit it further in."""
        if scope["type"] == "http":
            await self.watched(None, scope, receive, send)
        else:
            await super().unguarded(scope, receive, send)
