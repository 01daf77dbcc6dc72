"""What the handler of a guarded request sees of its budget."""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from llm_budget_mw import decision
from llm_budget_mw.calls import AsyncCall, origin_of, read_report
from llm_budget_mw.types import Grant, LimitStatus, Plan, Principal, Usage

if TYPE_CHECKING:
    from llm_budget_mw.guard import AsyncGuard, Held

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

    def __init__(self, held: Held, dialect: str, guard: AsyncGuard | None = None) -> None:
        self.usage: Usage | None = None
        """What the handler reported so far."""
        self.calls = 0
        """Calls made through `call`, refused ones included."""
        self.handed_over = False
        """True once a call has taken the request's own reservation, and settles it."""
        self._held = held
        self._dialect = dialect
        self._guard = guard

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
        return self._held.grant.output

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

        Reports add up, one for each call the handler made by itself. Raises `RuntimeError`
        once the reservation is that of a call made through `call`: report to that one.
        """
        if self.handed_over:
            raise RuntimeError("a call made with `call` settles this request: use its `record`")
        usage = read_report(report, self._dialect)
        if self.usage is not None:
            usage = dataclasses.replace(self.usage, extra=(*self.usage.extra, usage))
        self.usage = usage

    def call(self, *, dialect: str = "openai_chat", **request: Any) -> AsyncCall:
        """Return a guarded call of a model; see `AsyncGuard.call`.

        Raises `RuntimeError` under a synchronous server: use `Guard.call` there.
        """
        if self._guard is None:
            raise RuntimeError("no event loop handles this request: use Guard.call")
        origin = origin_of(self.principal, dialect, self._held.origin.feature, request)
        return AsyncCall(self._guard, origin._replace(route=self._held.origin.route), dialect, self)

    def take_over(self, plan: Plan) -> Held | None:
        """Give the request's reservation to a call, once, if it covers what that would hold."""
        self.calls += 1
        if self.handed_over or self.usage is not None:
            return None
        held = self._held.grant.charges
        for offer in plan.offers:
            tokens, nano = held.tokens - offer.fixed_tokens, held.cost_nano - offer.fixed_nano
            output = min(offer.max_output, tokens // offer.per_output_tokens)
            if offer.per_output_nano:
                output = min(output, nano // offer.per_output_nano)
            if nano >= 0 and output >= offer.min_output:
                self.handed_over = True
                grant = self._held.grant._replace(offer=offer, output=output)
                return self._held._replace(grant=grant)
        return None
