"""What users' code may rely on, checked by mypy and never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import httpx2
import openai

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
    fit_messages,
    load,
)
from llm_budget_mw.clients import (
    AsyncPace,
    Chosen,
    Pace,
    Retries,
    Tried,
    UpstreamLimit,
    fallback,
    guarded,
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


def clients(guard: Guard, pace: Pace, async_pace: AsyncPace) -> None:
    assert_type(guarded(httpx2.Client, timeout=5.0), httpx2.Client)
    assert_type(guarded(openai.DefaultHttpxClient), openai.DefaultHttpxClient)
    asynchronous = guarded(
        httpx2.AsyncClient,
        outside=(guard, Principal("jobs")),
        dialect="openai_compatible",
        unknown="pass",
        retries=Retries(attempts=2),
        pace=async_pace,
    )
    assert_type(asynchronous, httpx2.AsyncClient)
    guarded(httpx2.Client, pace=Pace(UpstreamLimit("m", requests=500), store=guard.store))
    guarded(httpx2.Client, unknown="ignore")  # type: ignore[arg-type]
    guarded(httpx2.Client, retries=3)  # type: ignore[arg-type]
    guarded(httpx2.Client())  # type: ignore[arg-type]


def fallbacks() -> None:
    chosen = fallback([("a", lambda: 1), ("b", lambda: 2)], accept=lambda answer: answer > 1)
    assert_type(chosen, Chosen[int])
    assert_type(chosen.answer, int)
    assert_type(chosen.tried, tuple[Tried, ...])


def conversations(messages: list[dict[str, str]]) -> None:
    assert_type(fit_messages(messages, 1000, model="gpt-4o"), list[dict[str, str]])


def refusals(error: BudgetExceeded) -> None:
    assert_type(error.refusal, Refusal)


def middlewares(app: Any) -> None:
    BudgetMiddleware(app, config="llm_budget.toml", authenticator=Login())
