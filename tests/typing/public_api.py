"""What users' code may rely on, checked by mypy and never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from llm_budget_mw import (
    AsyncCall,
    AsyncGuard,
    Authenticator,
    Budget,
    BudgetExceeded,
    BudgetMiddleware,
    Call,
    Config,
    Event,
    Guard,
    Principal,
    Sink,
    current_budget,
    load,
)
from llm_budget_mw.types import Grant, LimitStatus, Refusal, Settlement, Usage


class Login:
    """An authenticator of the application's own."""

    def authenticate(self, headers: Any) -> Principal:
        return Principal("alice")


class Prints:
    """A sink of the application's own."""

    def emit(self, event: Event) -> None:
        assert_type(event.attributes, dict[str, Any])


def configurations() -> None:
    assert_type(load("llm_budget.toml"), Config)
    assert_type(Guard.open(), Guard)
    assert_type(Guard.open({"tiers": {"default": {}}}), Guard)
    assert_type(AsyncGuard.open(Path("llm_budget.toml"), sinks=[Prints()]), AsyncGuard)


def protocols() -> tuple[Authenticator, Sink]:
    return Login(), Prints()


def calls(guard: Guard) -> None:
    with guard.call(Principal("alice"), model="gpt-4o", messages=[]) as call:
        assert_type(call, Call)
        assert_type(call.request, dict[str, Any])
        assert_type(call.model, str)
        assert_type(call.max_tokens, int)
        assert_type(call.grant, Grant)
        call.record({"usage": {}})
    assert_type(call.settlement, Settlement | None)


async def async_calls(guard: AsyncGuard) -> None:
    async with guard.call(Principal("alice"), model="gpt-4o", messages=[]) as call:
        assert_type(call, AsyncCall)
        call.record(Usage(1, 2))


async def handlers() -> None:
    budget = current_budget()
    assert_type(budget, Budget)
    assert_type(budget.limits, tuple[LimitStatus, ...])
    assert_type(budget.remaining, dict[str, int])
    assert_type(budget.usage, Usage | None)
    async with budget.call(model="gpt-4o", messages=[]) as call:
        assert_type(call, Call | AsyncCall)


def refusals(error: BudgetExceeded) -> None:
    assert_type(error.refusal, Refusal)


def middlewares(app: Any) -> None:
    BudgetMiddleware(app, config="llm_budget.toml", authenticator=Login())
