"""A store's answer as a decision: the grant, or the refusal with its reasons and its end."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from llm_budget_mw import _limits, _windows
from llm_budget_mw.types import (
    STOPPED,
    Admission,
    Counter,
    Decision,
    Grant,
    Limit,
    LimitStatus,
    Offer,
    Plan,
    Refusal,
    RefusalReason,
    SubjectLimits,
)

BUSY_MS = 1000
"""When to come back if only calls in flight stand in the way: any of them may end now."""


def decide(plan: Plan, admission: Admission) -> Decision:
    """Turn the store's answer into a grant, or into a refusal with its reasons."""
    if admission.offer > 0:
        return Grant(plan, plan.offers[admission.offer - 1], admission.output, admission)
    return _stopped(plan, admission) or _refuse(plan, admission)


def would_refuse(grant: Grant) -> tuple[str, ...]:
    """Return the names of limits that only count, and would have refused this call."""
    if grant.admission is None or not any(entry.limits.shadowed for entry in grant.plan.subjects):
        return ()
    return tuple(
        status.limit.name
        for status in standing(grant.plan, grant.admission)
        if status.limit.shadow and status.used > status.limit.amount
    )


def is_spent(plan: Plan, admission: Admission) -> bool:
    """Return whether what is settled alone refuses every offer, whatever is given back.

    False for a plan nobody could be granted: it only asks how things stand.
    """
    lines = _counters(plan, admission)
    if any(_is_over(line, admission.now_ms) for line in lines):
        return False
    return all(
        offer.max_output >= offer.min_output and any(_leaves_no_room(line, offer) for line in lines)
        for offer in plan.offers
    )


def _is_over(line: _Line, now_ms: int) -> bool:
    window = line.limit.window
    return window.kind != "none" and _windows.span(window, now_ms)[0] != line.counter.start_ms


def _leaves_no_room(line: _Line, offer: Offer) -> bool:
    fixed, each = _limits.charge(line.limit, offer)
    need = fixed + each * offer.min_output
    if not need or _limits.spared(offer, line.place):
        return False
    return line.counter.committed + need > _limits.usable(line.limit, offer)


def statuses(decision: Decision) -> tuple[LimitStatus, ...]:
    """Return every limit as the client may see it; empty if the store was not asked."""
    admission = decision.admission
    return () if admission is None else standing(decision.plan, admission)


def standing(plan: Plan, admission: Admission) -> tuple[LimitStatus, ...]:
    """Return every limit of a plan as the store's answer has it."""
    return tuple(
        _status(entry, limit, counter, admission.now_ms)
        for _, entry, limit, counter in _counters(plan, admission)
    )


def store_down(plan: Plan, limit: Limit) -> Refusal:
    """Refuse because the store did not answer and `limit` is closed then."""
    message = f"The limit {limit.name} cannot be checked at the moment."
    return Refusal(plan, RefusalReason.STORE_DOWN, None, (), BUSY_MS, None, message)


def input_room(decided: Decision) -> int | None:
    """Return how many input tokens would be admitted, at the cheapest offer's least output.

    None where fewer of them would not help: an admission, or a refusal for another reason.
    """
    if isinstance(decided, Grant) or decided.admission is None or decided.binding is None:
        return None
    offer, room = decided.plan.offers[-1], decided.plan.offers[-1].fixed_tokens
    for place, entry, limit, counter in _counters(decided.plan, decided.admission):
        if _limits.spared(offer, place):
            continue
        fixed, each = _limits.charge(limit, offer)
        status = _status(entry, limit, counter, decided.admission.now_ms)
        left = _limits.usable(limit, offer) - status.used - each * offer.min_output
        if fixed <= left or (not fixed and not each):
            continue
        if limit.resource not in ("tokens", "cost") or left <= 0 or not fixed:
            return None
        # A price for each token never rises with fewer of them.
        room = min(room, offer.fixed_tokens * left // fixed)
    return room


class _Hurdle(NamedTuple):
    """One limit that stands in the way of an offer."""

    status: LimitStatus
    reason: RefusalReason
    fits_ms: int | None
    """Milliseconds until it does no longer; None if never."""


class _Line(NamedTuple):
    """One limit of a plan as the store's answer has it."""

    place: int
    """Number of its subject in the plan."""
    entry: SubjectLimits
    limit: Limit
    """With what it has beside its amount."""
    counter: Counter


def _counters(plan: Plan, admission: Admission) -> list[_Line]:
    numbers = iter(list(map(int, admission.counters)))
    counters = map(Counter._make, zip(*[numbers] * 5, strict=True))
    extra = map(int, admission.extra or itertools.repeat(0))
    return [
        _Line(place, entry, _limits.raised(limit, next(extra)), next(counters))
        for place, entry in enumerate(plan.subjects)
        for limit in entry.limits.limits
    ]


def _status(entry: SubjectLimits, limit: Limit, counter: Counter, now_ms: int) -> LimitStatus:
    used = _windows.used(counter, limit.window, now_ms)
    end = _windows.span(limit.window, now_ms)[1]
    reset = end - now_ms if end else None
    return LimitStatus(entry.subject, limit, max(0, limit.amount - used), used, reset)


def _refuse(plan: Plan, admission: Admission) -> Refusal:
    lines = _counters(plan, admission)
    offers = [
        offer for number, offer in enumerate(plan.offers) if not admission.stopped >> number & 1
    ]
    best = min((_hurdles(offer, lines, admission.now_ms) for offer in offers), key=_worst)
    if not best:
        message = "The reservation ended before the answer to it arrived; try again."
        return Refusal(plan, RefusalReason.STORE_DOWN, None, (), BUSY_MS, None, message)
    binding = max(best, key=_height)
    return Refusal(
        plan,
        binding.reason,
        binding.status,
        tuple(hurdle.status for hurdle in best),
        binding.fits_ms,
        admission,
        _message(binding),
    )


def _stopped(plan: Plan, admission: Admission) -> Refusal | None:
    """Refuse because an operator stopped the call, or every model it could be made to."""
    if admission.offer == STOPPED:
        what = plan.switches[admission.output - 1]
    elif admission.stopped == 2 ** len(plan.offers) - 1:
        what = plan.switches[0]
    else:
        return None
    # A principal's own name says nothing to it, and is nobody else's business.
    kind = "everything" if what == "*" else what.rpartition(":")[2].partition("/")[0]
    message = f"Such calls are stopped by the operator ({kind})."
    return Refusal(plan, RefusalReason.STOPPED, None, (), None, admission, message)


def _hurdles(offer: Offer, lines: list[_Line], now_ms: int) -> list[_Hurdle]:
    """Return the limits that refuse the least this offer would take."""
    found: list[_Hurdle] = []
    for place, entry, limit, counter in lines:
        if _limits.spared(offer, place):
            continue
        fixed, each = _limits.charge(limit, offer)
        need = fixed + each * offer.min_output
        usable = _limits.usable(limit, offer)
        status = _status(entry, limit, counter, now_ms)
        if (not fixed and not each) or status.used + need <= usable:
            continue
        found.append(_Hurdle(status, *_obstacle(limit, counter, usable, need, now_ms)))
    return found


def _obstacle(
    limit: Limit, counter: Counter, usable: int, need: int, now_ms: int
) -> tuple[RefusalReason, int | None]:
    if need > usable:
        return RefusalReason.NEVER, None
    fits_at = _windows.fits_at(counter, limit.window, usable, need, now_ms)
    wait_ms = None if fits_at is None else max(fits_at - now_ms, 1)
    settled = counter._replace(held=0)
    if _windows.used(settled, limit.window, now_ms) + need <= usable:
        return RefusalReason.BUSY, min(wait_ms or BUSY_MS, BUSY_MS)
    return RefusalReason.EXHAUSTED, wait_ms


def _height(hurdle: _Hurdle) -> float:
    return float("inf") if hurdle.fits_ms is None else hurdle.fits_ms


def _worst(hurdles: list[_Hurdle]) -> float:
    return max(map(_height, hurdles), default=0.0)


def _message(hurdle: _Hurdle) -> str:
    name = hurdle.status.limit.name
    if hurdle.reason is RefusalReason.NEVER:
        return f"The request is larger than the whole limit {name}; ask for less."
    if hurdle.reason is RefusalReason.BUSY:
        return f"The limit {name} is held by calls in flight; try again in a moment."
    seconds = -(-(hurdle.fits_ms or 0) // 1000)
    return f"The limit {name} is used up; there is room again in {seconds} s."
