"""The arithmetic of limits: what a plan charges, what a limit has left; pure integers.

`stores/lua/admit.lua` computes the same; both use IEEE doubles where a fraction appears,
so that they agree to the last unit.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from llm_budget_mw import _windows
from llm_budget_mw.types import MAX_AMOUNT, Charges, Counter, Limit, LimitSet, Offer


def charge(limit: Limit, offer: Offer) -> tuple[int, int]:
    """Return the fixed charge and the charge per output token of an offer against a limit."""
    if limit.resource == "tokens":
        return offer.fixed_tokens, offer.per_output_tokens
    if limit.resource == "cost":
        return offer.fixed_nano, offer.per_output_nano
    return 1, 0


def usable(limit: Limit, offer: Offer) -> int:
    """Return the part of a limit an offer may use.

    A ceiling speaks of what is spent, tokens and money; of requests and slots, which every
    model takes alike, an offer may use all.
    """
    if limit.shadow:
        return MAX_AMOUNT
    if limit.resource in ("tokens", "cost"):
        return math.floor(limit.amount * offer.ceiling)
    return limit.amount


def raised(limit: Limit, extra: int) -> Limit:
    """Return a limit with what it has beside its amount."""
    return dataclasses.replace(limit, amount=limit.amount + extra) if extra else limit


def spared(offer: Offer, number: int) -> bool:
    """Return whether an offer is not charged to the subject of this number, from 0."""
    return bool(offer.spares >> number & 1)


def carried_over(limit: Limit, counter: Counter, now_ms: int) -> int:
    """Return what a limit has from the window before, of which `counter` has the use.

    A window before that was not used at all; units of a calendar vary by less than half.
    """
    if not limit.carry or not counter.previous_start_ms:
        return 0
    begin, end = _windows.span(limit.window, max(now_ms, counter.start_ms))
    adjacent = counter.previous_start_ms >= begin - 1.5 * (end - begin)
    return max(0, min(limit.carry, limit.amount - (counter.previous if adjacent else 0)))


def posted(limit: Limit, charges: Charges) -> int:
    """Return what a settlement commits to one limit; a slot is only ever held."""
    if limit.resource == "requests":
        return charges.requests
    if limit.resource == "tokens":
        return charges.tokens
    return charges.cost_nano if limit.resource == "cost" else 0


def window_start(limit: Limit, now_ms: int) -> int:
    """Return the start of the limit's window at `now_ms`; 0 for concurrency."""
    if limit.window.length_ms:
        return now_ms - now_ms % limit.window.length_ms
    return _windows.span(limit.window, now_ms)[0]


@functools.lru_cache(maxsize=4096)
def lifetime_ms(limits: LimitSet) -> int:
    """Return how long the counters of a set must be kept after their last use."""
    # What is carried over is known only as long as the window before is.
    return max(
        (_windows.ttl_ms(limit.window) * (2 if limit.carry else 1) for limit in limits.limits),
        default=0,
    )
