"""What the handler of a guarded request sees of its budget."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

from llm_budget_mw import decision
from llm_budget_mw.calls import (
    SCOPE,
    AsyncCall,
    Call,
    Scope,
    read_report,
    read_request,
    running_loop,
)
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.reservation import Reservation
from llm_budget_mw.shell import Held
from llm_budget_mw.types import Grant, LimitStatus, ModelCall, Principal, Usage

CURRENT: ContextVar[Budget | None] = ContextVar("llm_budget", default=None)
"""The budget of the request at hand; the edges set it."""


def current_budget() -> Budget:
    """Return the budget of the request that is being handled.

    Raises `LookupError` where none is.
    """
    budget = CURRENT.get()
    if budget is None:
        raise LookupError("no guarded request is being handled: is its path among `routes`?")
    return budget


class Budget:
    """The budget of one admitted request.

    The first call made through `call` draws on what the request has reserved, if that covers
    it; every further one, a retry or a fallback, is admitted at its own model's price.
    """

    def __init__(
        self,
        held: Held,
        dialect: str,
        guard: Guard | AsyncGuard,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.usage: Usage | None = None
        """What the handler reported so far."""
        self.error: BaseException | None = None
        """What the handler raised, where a framework has made an answer of it."""
        self.calls = 0
        """Calls made in this request, refused ones included."""
        self.reservation = Reservation(held)
        """What the request holds, for the first call or for its own answer."""
        self.scope: Scope | None = None
        """The scope the handler has opened and not left yet."""
        self._held = held
        self._dialect = dialect
        self._guard = guard
        self._loop = loop

    @property
    def principal(self) -> Principal:
        """Who is charged."""
        return self._held.origin.principal

    @property
    def grant(self) -> Grant:
        """The admission of this request."""
        return self._held.grant

    @property
    def model(self) -> str:
        """The model to call."""
        return self._held.grant.offer.model

    @property
    def max_tokens(self) -> int:
        """Output tokens to allow it."""
        return self._held.grant.max_tokens

    @property
    def streams(self) -> bool:
        """True if the answer was asked for as a stream."""
        return self._held.origin.call.stream

    @property
    def limits(self) -> tuple[LimitStatus, ...]:
        """Every limit as it stood after the admission."""
        return decision.statuses(self._held.grant)

    @property
    def remaining(self) -> dict[str, int]:
        """What remained of each limit, by name; money in nano-dollars."""
        return {status.limit.name: status.remaining for status in self.limits}

    def record(self, report: object) -> None:
        """Report what a model used: a `Usage`, an SDK's answer, or its JSON as a mapping.

        Reports add up, one for each call the handler made by itself; those of `call` and of
        guarded clients are charged already and not to be reported here. Raises `RuntimeError`
        once the reservation is that of a call made through `call`: report to that one.
        """
        usage = read_report(report, self._dialect)
        if not self.reservation.retain():
            raise RuntimeError("a call made with `call` settles this request: use its `record`")
        if self.usage is not None:
            usage = dataclasses.replace(self.usage, extra=(*self.usage.extra, usage))
        self.usage = usage

    def call(
        self, *, dialect: str = "openai_chat", task: str | None = None, **request: Any
    ) -> Call | AsyncCall:
        """Return a guarded call of a model; see `AsyncGuard.call` and `Guard.call`.

        It is entered with `async with` in a coroutine and with `with` anywhere else. Without
        a model it is the granted one, without a bound that of the request or its route.
        """
        asked = read_request(dialect, {"model": self.model, **request})
        if asked.max_output is None:
            asked = dataclasses.replace(asked, max_output=self._held.origin.call.max_output)
        return self.make(self._guard.with_task(self.principal, asked, task), dialect)

    def make(self, call: ModelCall, dialect: str) -> Call | AsyncCall:
        """Return a guarded call; see `Scope`."""
        self.calls += 1
        request = self._held.grant.plan.id
        origin = self._held.origin._replace(call=call, request=request, elastic=False)
        if isinstance(self._guard, AsyncGuard):
            return AsyncCall(self._guard, origin, dialect, self.reservation, self._loop)
        return Call(self._guard, origin, dialect, self.reservation)


@contextlib.contextmanager
def apart() -> Generator[None]:
    """Let what is called in this block be charged to nobody outside it: a request begins.

    A server may have been started inside a `charge` block, by a test or a notebook.
    """
    outer = SCOPE.get()
    SCOPE.set(None)
    try:
        yield
    finally:
        SCOPE.set(outer)


@contextlib.contextmanager
def handling(budget: Budget) -> Generator[None]:
    """Let a piece of a handler find its budget, and the scopes it has opened itself.

    A synchronous server takes an answer in pieces, with whatever it likes in between.
    """
    token = CURRENT.set(budget)
    try:
        with apart():
            SCOPE.set(budget.scope)
            yield
            budget.scope = SCOPE.get()
    finally:
        CURRENT.reset(token)


class Charged:
    """A scope without a request."""

    def __init__(
        self,
        guard: Guard | AsyncGuard,
        principal: Principal,
        feature: str | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self._guard = guard
        self._principal = principal
        self._feature = feature
        self._loop = loop

    def make(self, call: ModelCall, dialect: str) -> Call | AsyncCall:
        """Return a guarded call; see `Scope`."""
        origin = Origin(self._principal, call, feature=self._feature)
        if isinstance(self._guard, AsyncGuard):
            return AsyncCall(self._guard, origin, dialect, None, self._loop)
        return Call(self._guard, origin, dialect)


@contextlib.contextmanager
def charge(
    guard: Guard | AsyncGuard, principal: Principal, *, feature: str | None = None
) -> Generator[None, None, None]:
    """Charge a principal for every call a guarded client makes in this block.

        with charge(guard, principal, feature="nightly"):
            client.chat.completions.create(...)

    An `AsyncGuard` makes calls from threads too, where the block is entered on its event loop.
    A generator that yields inside the block charges its consumer's calls as well: do not.
    """
    outer = SCOPE.get()
    SCOPE.set(Charged(guard, principal, feature, running_loop()))
    try:
        yield
    finally:
        SCOPE.set(outer)
