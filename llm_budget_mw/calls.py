"""One guarded call of a model, from code: admitted on entering, settled on leaving.

async with guard.call(principal, model="gpt-4o", messages=messages) as call:
    answer = await client.chat.completions.create(**call.request)
    call.record(answer)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from pydantic_core import from_json, to_json

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.dialects.reports import read_answer
from llm_budget_mw.engine import Ending, Engine, Outcome
from llm_budget_mw.errors import BudgetExceeded, RequestError
from llm_budget_mw.events import Origin
from llm_budget_mw.reservation import Reservation
from llm_budget_mw.types import (
    Decision,
    Grant,
    ModelCall,
    Principal,
    Refusal,
    Settlement,
    Usage,
)

if TYPE_CHECKING:
    from llm_budget_mw.guard import AsyncGuard, Guard, Renewal
    from llm_budget_mw.shell import Held

_HEAD = RequestHead("POST", "")
_REFUSED = 400
_LOOK_S = 0.5
"""How often a thread that waits for an event loop sees whether it runs."""
_STOPPED = (
    "the event loop that makes this call does not run any more: call while it does, or use a "
    "Guard, which needs none"
)
_log = logging.getLogger(__name__)


class Scope(Protocol):
    """Who is charged for the calls that guarded clients make."""

    def make(self, call: ModelCall, dialect: str) -> Call | AsyncCall:
        """Return a guarded call, to be entered."""
        ...


SCOPE: ContextVar[Scope | None] = ContextVar("llm_budget_scope", default=None)
"""The innermost call or `charge` block; the request's budget is the scope around them."""

ATTEMPT: ContextVar[str | None] = ContextVar("llm_budget_attempt", default=None)
"""Which attempt of a fallback is being made, and what became of the one before: `2/failed`."""


class _Call:
    """What the sync and the async call do alike; nothing here waits."""

    def __init__(
        self, origin: Origin, dialect: str, reservation: Reservation | None, engine: Engine
    ) -> None:
        self.settlement: Settlement | None = None
        """What the call was charged; None until it is left."""
        self._origin = origin._replace(attempt=ATTEMPT.get())
        self._dialect = dialect_for(dialect)
        self._held: Held | None = None
        self._own: Reservation | None = None
        self._usage: Usage | None = None
        self._observed: Outcome | None = None
        self._outer: Scope | None = None
        self._reservation = reservation
        self._engine = engine
        self._is_scope = True

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
        """Report what was used: a `Usage`, an SDK's answer, or its JSON as a mapping.

        A guarded client has read it already; where one made this call, that counts.
        """
        self._usage = read_report(report, self._dialect.name)

    def cancel(self) -> None:
        """Say that no provider was asked: the reservation is given back."""
        self._observed = Outcome(Ending.NOT_CALLED)

    def observe(self, outcome: Outcome) -> None:
        """Say how the call ended, for whoever watched its answer."""
        self._observed = outcome

    def count(self, text: str) -> int:
        """Return the tokens of text that the granted model generated."""
        return self._engine.count(text, self.grant)

    def without_scope(self) -> Self:
        """Let nothing draw on this call: whoever entered it is its provider's client.

        Its answer may be read in another context, with other calls in between.
        """
        self._is_scope = False
        return self

    def _inside(self, call: ModelCall) -> Origin:
        return self._origin._replace(call=call, request=self._origin.request or self.grant.plan.id)

    def _begin(self) -> None:
        # Left twice, it would be settled twice, the second time by the first usage.
        if self._held is not None:
            raise RuntimeError("a call is entered once: make another one")

    def _took_over(self, guard: Guard | AsyncGuard) -> bool:
        """Draw on the request's own reservation, if that is there and covers the call."""
        if self._reservation is not None:
            reserved = self._reservation.take_over(guard.plan(self._origin))
            if reserved is not None:
                self._held = reserved._replace(origin=self._origin)
        return self._held is not None

    def _admitted(self, held: Held | None, decided: Decision) -> None:
        if held is None:
            raise BudgetExceeded(cast("Refusal", decided))
        self._held = held

    def _open_scope(self, scope: Scope) -> None:
        """Let guarded clients inside the block draw on this call."""
        self._own = Reservation(cast("Held", self._held))
        if self._is_scope:
            self._outer = SCOPE.get()
            SCOPE.set(scope)

    def _to_settle(self) -> Held | None:
        """Close the scope; return what is still this call's to settle."""
        # Not reset by a token: a block may be left in another context than it was entered in.
        if self._is_scope:
            SCOPE.set(self._outer)
        own = cast("Reservation", self._own)
        return own.held if own.retain() else None

    def _outcome(self, error: BaseException | None) -> Outcome:
        if self._usage is not None:
            return Outcome(Ending.COMPLETE if error is None else Ending.CUT, self._usage)
        if self._observed is not None:
            return self._observed
        # Whatever no provider refused may have been billed.
        refused = _status(error) >= _REFUSED
        return Outcome(Ending.REFUSED_UPSTREAM if refused else Ending.UNREPORTED)


class Call(_Call):
    """A guarded call for threads; see `Guard.call`.

    In a coroutine it is entered with `async with` and holds up its event loop for the moment
    of each round trip.
    """

    def __init__(
        self,
        guard: Guard,
        origin: Origin,
        dialect: str,
        reservation: Reservation | None = None,
    ) -> None:
        super().__init__(origin, dialect, reservation, guard.engine)
        self._guard = guard

    def __enter__(self) -> Self:
        """Admit the call; raises `BudgetExceeded` if it is refused."""
        self._begin()
        if not self._took_over(self._guard):
            decided = self._guard.decide(self._origin)
            self._admitted(self._guard.hold(decided, self._origin), decided)
        self._guard.leases.keep(self.grant)
        self._open_scope(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle the call."""
        self._guard.leases.drop(self.grant)
        held = self._to_settle()
        if held is not None:
            self.settlement = self._guard.settle(held, self._outcome(error))

    def make(self, call: ModelCall, dialect: str) -> Call:
        """Return a call that draws on this one; see `Scope`."""
        return Call(self._guard, self._inside(call), dialect, self._own)

    async def __aenter__(self) -> Self:
        """Admit the call, in a coroutine."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle the call, in a coroutine."""
        self.__exit__(kind, error, trace)

    def abandon(self) -> None:
        """Settle a call that nobody is going to leave."""
        self.__exit__(None, None, None)


class AsyncCall(_Call):
    """A guarded call for an event loop; see `AsyncGuard.call`.

    With `loop` a thread of that loop's program, such as a synchronous endpoint, enters it
    with `with`.
    """

    def __init__(
        self,
        guard: AsyncGuard,
        origin: Origin,
        dialect: str,
        reservation: Reservation | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(origin, dialect, reservation, guard.engine)
        self._guard = guard
        self._renewal: Renewal | None = None
        self._loop = loop

    async def __aenter__(self) -> Self:
        """Admit the call; raises `BudgetExceeded` if it is refused.

        Raises `RuntimeError` on another event loop than that of its guard.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError("the guard of this call is on another event loop: call it there")
        self._loop = loop
        await self._enter()
        self._open_scope(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle the call, also if its task is being cancelled."""
        await self._leave(self._to_settle(), error)

    def __enter__(self) -> Self:
        """Admit the call from a thread.

        Raises `RuntimeError` on the event loop itself, and where that does not run any more.
        """
        loop = self._loop
        if loop is None or running_loop() is not None:
            raise RuntimeError("an event loop makes this call: enter it with `async with`")
        _from_thread(self._enter(), loop)
        self._open_scope(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle the call from a thread; where its event loop has stopped its lease ends it."""
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        try:
            _from_thread(self._leave(self._to_settle(), error), loop)
        except _LoopStoppedError:
            _log.exception("a call could not be settled; its lease will end it")

    def abandon(self) -> None:
        """Settle a call that nobody is going to leave; from any thread, and without waiting."""
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        if not loop.is_closed():  # else its lease ends it
            asyncio.run_coroutine_threadsafe(self._leave(self._to_settle(), None), loop)

    def make(self, call: ModelCall, dialect: str) -> AsyncCall:
        """Return a call that draws on this one; see `Scope`."""
        return AsyncCall(self._guard, self._inside(call), dialect, self._own, self._loop)

    async def _enter(self) -> None:
        self._begin()
        if not self._took_over(self._guard):
            decided = await self._guard.decide(self._origin)
            self._admitted(self._guard.hold(decided, self._origin), decided)
        self._renewal = self._guard.keep(self.grant)

    async def _leave(self, held: Held | None, error: BaseException | None) -> None:
        cast("Renewal", self._renewal).cancel()
        if held is not None:
            settling = self._guard.settle(held, self._outcome(error))
            self.settlement = await asyncio.shield(self._guard.start(settling))


class _LoopStoppedError(RuntimeError):
    """The event loop of a call's guard does not run any more."""


def _from_thread(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    """Wait for work on an event loop; raises `_LoopStoppedError` where that would be for ever."""
    if not loop.is_running():
        work.close()
        raise _LoopStoppedError(_STOPPED)
    running = asyncio.run_coroutine_threadsafe(work, loop)
    while True:
        try:
            return running.result(_LOOK_S)
        except TimeoutError as error:
            if running.done():
                raise  # its own
            if not loop.is_running():
                with contextlib.suppress(RuntimeError):  # closed: nothing will ever run there
                    loop.call_soon_threadsafe(running.cancel)
                raise _LoopStoppedError(_STOPPED) from error
        except concurrent.futures.CancelledError as error:  # as a loop ends, it cancels what runs
            raise _LoopStoppedError(_STOPPED) from error


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop this is called on; None in a plain thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def read_request(dialect: str, request: Mapping[str, Any]) -> ModelCall:
    """Read a call given in code; `request` is what its provider's SDK would be given.

    Raises `RequestError` where the dialect cannot read it.
    """
    try:
        body = to_json(dict(request))
    except ValueError as error:
        raise RequestError(f"The request cannot be written as JSON: {error}.") from error
    return dialect_for(dialect).read_request(_HEAD, body)


def read_report(report: object, dialect: str) -> Usage:
    """Read a report of usage: a `Usage`, an SDK's answer or its usage, or either as a mapping.

    Raises `TypeError` for anything else, and `ValueError` if no usage is in it or one below
    zero: unknown must not be taken for nothing, nor a mistake for more budget.
    """
    if isinstance(report, Usage):
        return _checked(report)
    usage = read_answer(_as_json(report), dialect)
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
    if isinstance(report, Mapping):
        # Bedrock's answers hold a body that can be read once, by the handler.
        fields = cast("Mapping[str, object]", report).items()
        report = {name: value for name, value in fields if not hasattr(value, "read")}
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
