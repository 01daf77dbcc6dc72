"""One guarded call of a model, from code: admitted on entering, settled on leaving.

async with guard.call(principal, model="gpt-4o", messages=messages) as call:
    answer = await client.chat.completions.create(**call.request)
    call.record(answer)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from pydantic_core import from_json, to_json

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.errors import BudgetExceeded, RequestError
from llm_budget_mw.events import Origin
from llm_budget_mw.types import Decision, Grant, Plan, Principal, Refusal, Settlement, Usage

if TYPE_CHECKING:
    from llm_budget_mw.guard import AsyncGuard, Guard, Held, Renewal

_HEAD = RequestHead("POST", "")
_REFUSED = 400


class Reservation(Protocol):
    """A reservation that a call may draw upon before it asks for one of its own."""

    def take_over(self, plan: Plan) -> Held | None:
        """Hand the reservation over, if it covers what the plan would hold."""
        ...


class _Call:
    """What the sync and the async call do alike; nothing here waits."""

    def __init__(self, origin: Origin, dialect: str) -> None:
        self.settlement: Settlement | None = None
        """What the call was charged; None until it is left."""
        self._origin = origin
        self._dialect = dialect_for(dialect)
        self._held: Held | None = None
        self._usage: Usage | None = None
        self._cancelled = False

    @property
    def principal(self) -> Principal:
        """Who is charged."""
        return self._origin.principal

    @property
    def grant(self) -> Grant:
        """The admission; raises `RuntimeError` before the call is entered."""
        if self._held is None:
            raise RuntimeError("the call is not admitted yet: enter it with `with`")
        return self._held.grant

    @property
    def model(self) -> str:
        """The model to call, which may be a cheaper one than was asked for."""
        return self.grant.offer.model

    @property
    def max_tokens(self) -> int:
        """Output tokens to allow it."""
        return self.grant.output

    @property
    def request(self) -> dict[str, Any]:
        """The request with model and bound as granted, to pass to the provider's SDK."""
        grant = self.grant
        written = self._dialect.write_grant(
            _HEAD, self._origin.call, grant.offer.model, grant.output
        )
        return cast("dict[str, Any]", from_json(written.body))

    def record(self, report: object) -> None:
        """Report what was used: a `Usage`, an SDK's answer, or its JSON as a mapping."""
        self._usage = read_report(report, self._dialect.name)

    def cancel(self) -> None:
        """Say that no provider was asked: the reservation is given back."""
        self._cancelled = True

    def _begin(self) -> None:
        # Left twice, it would be settled twice, the second time by the first usage.
        if self._held is not None:
            raise RuntimeError("a call is entered once: make another one")

    def _admitted(self, held: Held | None, decided: Decision) -> None:
        if held is None:
            raise BudgetExceeded(cast("Refusal", decided))
        self._held = held

    def _outcome(self, error: BaseException | None) -> Outcome:
        if self._usage is not None:
            return Outcome(Ending.COMPLETE if error is None else Ending.CUT, self._usage)
        if self._cancelled:
            return Outcome(Ending.NOT_CALLED)
        # Whatever no provider refused may have been billed.
        refused = _status(error) >= _REFUSED
        return Outcome(Ending.REFUSED_UPSTREAM if refused else Ending.UNREPORTED)


class Call(_Call):
    """A guarded call for threads; see `Guard.call`."""

    def __init__(self, guard: Guard, origin: Origin, dialect: str) -> None:
        super().__init__(origin, dialect)
        self._guard = guard

    def __enter__(self) -> Self:
        """Admit the call; raises `BudgetExceeded` if it is refused."""
        self._begin()
        decided = self._guard.decide(self._origin)
        self._admitted(self._guard.hold(decided, self._origin), decided)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle the call."""
        self.settlement = self._guard.settle(cast("Held", self._held), self._outcome(error))


class AsyncCall(_Call):
    """A guarded call for an event loop; see `AsyncGuard.call`."""

    def __init__(
        self,
        guard: AsyncGuard,
        origin: Origin,
        dialect: str,
        reservation: Reservation | None = None,
    ) -> None:
        super().__init__(origin, dialect)
        self._guard = guard
        self._renewal: Renewal | None = None
        self._reservation = reservation

    async def __aenter__(self) -> Self:
        """Admit the call; raises `BudgetExceeded` if it is refused."""
        self._begin()
        reserved = None
        if self._reservation is not None:
            reserved = self._reservation.take_over(self._guard.plan(self._origin))
        if reserved is not None:
            self._held = reserved._replace(origin=self._origin)
        else:
            decided = await self._guard.decide(self._origin)
            self._admitted(self._guard.hold(decided, self._origin), decided)
        self._renewal = self._guard.keep(self.grant)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle the call, also if its task is being cancelled."""
        cast("Renewal", self._renewal).cancel()
        settling = self._guard.settle(cast("Held", self._held), self._outcome(error))
        self.settlement = await asyncio.shield(self._guard.start(settling))


def origin_of(
    principal: Principal, dialect: str, feature: str | None, request: Mapping[str, Any]
) -> Origin:
    """Describe a call given in code; `request` is what its provider's SDK would be given.

    Raises `RequestError` where the dialect cannot read it.
    """
    try:
        body = to_json(dict(request))
    except ValueError as error:
        raise RequestError(f"The request cannot be written as JSON: {error}.") from error
    return Origin(principal, dialect_for(dialect).read_request(_HEAD, body), feature=feature)


def read_report(report: object, dialect: str) -> Usage:
    """Read a report of usage: a `Usage`, an SDK's answer or its usage, or either as a mapping.

    Raises `TypeError` for anything else, and `ValueError` if no usage is in it or one below
    zero: unknown must not be taken for nothing, nor a mistake for more budget.
    """
    if isinstance(report, Usage):
        return _checked(report)
    answer = _as_json(report)
    if "usage" not in answer:
        answer = {"usage": answer}
    usage = dialect_for(_spoken(answer, dialect)).read_usage(to_json(answer), {})
    if usage is None:
        raise ValueError("the report holds no usage: pass the answer, or its `usage`")
    return usage


def _checked(usage: Usage) -> Usage:
    if (usage.input_tokens or 0) < 0 or (usage.output_tokens or 0) < 0:
        raise ValueError(f"the report has tokens below zero: {usage}")
    for extra in usage.extra:
        _checked(extra)
    return usage


def _as_json(report: object) -> dict[str, Any]:
    try:
        answer = from_json(to_json(report))
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise TypeError(
            f"usage is reported as Usage, an SDK's answer or a mapping, not {type(report)}"
        )
    return cast("dict[str, Any]", answer)


def _status(error: BaseException | None) -> int:
    """Return the HTTP status a client library's error stands for; 0 if for none."""
    for source in (error, getattr(error, "response", None)):
        status = getattr(source, "status_code", None)
        if isinstance(status, int):
            return status
    return 0


def _spoken(answer: dict[str, Any], dialect: str) -> str:
    """Return the dialect of an answer on a route whose own format is not a provider's."""
    if dialect != "custom":
        return dialect
    usage = answer["usage"]
    openai = isinstance(usage, Mapping) and "prompt_tokens" in usage
    return "openai_chat" if openai else "anthropic_messages"
