"""Budgets for calls to language models: ASGI and WSGI middleware that enforces them.

Everything a user needs is here; what is not listed in `__all__` may change.
"""

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.batches import (
    Batch,
    reserve_batch,
    reserve_batch_async,
    settle_batch,
    settle_batch_async,
)
from llm_budget_mw.calls import AsyncCall, Call
from llm_budget_mw.config import Config, json_schema, load
from llm_budget_mw.current import Budget, charge, current_budget
from llm_budget_mw.errors import (
    AuthenticationError,
    BudgetError,
    BudgetExceeded,
    ConfigurationError,
    RequestError,
    ScopeError,
    StoreError,
)
from llm_budget_mw.events import Event, Sink
from llm_budget_mw.fitting import fit_messages
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.identity import AsyncAuthenticator, Authenticator, hand_over, take_over
from llm_budget_mw.types import Principal, Usage
from llm_budget_mw.wsgi import WSGIBudgetMiddleware

__all__ = [
    "AsyncAuthenticator",
    "AsyncCall",
    "AsyncGuard",
    "AuthenticationError",
    "Authenticator",
    "Batch",
    "Budget",
    "BudgetError",
    "BudgetExceeded",
    "BudgetMiddleware",
    "Call",
    "Config",
    "ConfigurationError",
    "Event",
    "Guard",
    "Principal",
    "RequestError",
    "ScopeError",
    "Sink",
    "StoreError",
    "Usage",
    "WSGIBudgetMiddleware",
    "charge",
    "current_budget",
    "fit_messages",
    "hand_over",
    "json_schema",
    "load",
    "reserve_batch",
    "reserve_batch_async",
    "settle_batch",
    "settle_batch_async",
    "take_over",
]
