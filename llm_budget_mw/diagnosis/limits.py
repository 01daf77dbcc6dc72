"""Limits that refuse every call, never refuse one, or admit nothing while the store is away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations

from llm_budget_mw._money import cost_nano, format_usd
from llm_budget_mw.allowance import part
from llm_budget_mw.config import LimitedConfig, OfferConfig, TierConfig
from llm_budget_mw.diagnosis.finding import Finding, Severity
from llm_budget_mw.pricing import Prices
from llm_budget_mw.types import CalendarUnit, Limit, Window

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_CALENDAR_MS: dict[CalendarUnit, tuple[int, int]] = {
    "hour": (_HOUR_MS, _HOUR_MS),
    "day": (_DAY_MS - _HOUR_MS, _DAY_MS + _HOUR_MS),
    "week": (7 * _DAY_MS - _HOUR_MS, 7 * _DAY_MS + _HOUR_MS),
    "month": (28 * _DAY_MS - _HOUR_MS, 31 * _DAY_MS + _HOUR_MS),
    "year": (365 * _DAY_MS, 366 * _DAY_MS),
}
"""How short and how long a calendar window can be, with the clocks changed in it."""


def findings(
    place: str, table: LimitedConfig, limits: tuple[Limit, ...], prices: Prices, slots: int
) -> Iterator[Finding]:
    """Yield what is wrong with one table: its options, and its limits as the store counts them.

    `place` names the table, such as `tier 'default'`; `slots` is `outage.processes`.
    """
    enforced = [limit for limit in limits if not limit.shadow]
    least_tokens = 1
    if isinstance(table, TierConfig):
        yield from _unusable(place, table, enforced, prices)
        least_tokens = table.min_tokens
    yield from _empty(place, enforced)
    yield from _idle(place, enforced)
    yield from _locked(place, least_tokens, enforced, slots)


def least_charge(limit: Limit, output: int, model: str | None, prices: Prices) -> int:
    """Return the least a call of so many output tokens takes of a limit; input may be next to none."""
    if limit.resource == "tokens":
        return output
    if limit.resource != "cost":
        return 1
    price = prices.of(model) if model else None
    return cost_nano(output, price.rates.output) if price else 0


def _unusable(
    place: str, tier: TierConfig, limits: list[Limit], prices: Prices
) -> Iterator[Finding]:
    """Yield the offers whose least call does not fit a whole limit."""
    # Without offers, callers choose the model: nothing is known of its price.
    offers: tuple[OfferConfig | None, ...] = tier.offers or (None,)
    unfit = [_too_small(tier, offer, limits, prices) for offer in offers]
    for offer, found in zip(offers, unfit, strict=True):
        if found:
            what = f"the offer {offer.model!r}" if offer else "a call"
            limit, least = found
            yield Finding(
                "limits.too_small",
                Severity.DANGER if all(unfit) else Severity.WARNING,
                f"{place}: {what} takes at least {amount(limit, least)} of {limit.name}, "
                f"which has {amount(limit, limit.amount)}: "
                + ("every call is refused" if all(unfit) else "it is never chosen"),
                "a larger limit, or a smaller min_tokens",
            )


def _too_small(
    tier: TierConfig, offer: OfferConfig | None, limits: list[Limit], prices: Prices
) -> tuple[Limit, int] | None:
    output = (offer.min_tokens if offer else None) or tier.min_tokens
    for limit in limits:
        by_use = limit.resource in ("tokens", "cost")
        ceiling = offer.ceiling if offer and by_use else 1.0
        least = least_charge(limit, output, offer.model if offer else None, prices)
        if limit.amount and least > math.floor(limit.amount * ceiling):
            return limit, least
    return None


def _empty(place: str, limits: list[Limit]) -> Iterator[Finding]:
    """Yield the limits of nothing; they may be meant."""
    for limit in limits:
        if not limit.amount:
            seen = f"{place}: {limit.name} is 0: every call it counts is refused"
            yield Finding("limits.nothing", Severity.NOTE, seen)


def _idle(place: str, limits: list[Limit]) -> Iterator[Finding]:
    """Yield the limits that another one of the same resource always reaches first."""
    for limit, other in permutations(limits, 2):
        if limit.resource != other.resource or "none" in (limit.window.kind, other.window.kind):
            continue
        (_, longest), (shortest, _) = lengths_ms(limit.window), lengths_ms(other.window)
        # A window may begin and end in the middle of shorter ones.
        most = other.amount * (longest // shortest + 2)
        if longest > shortest and most <= limit.amount:
            yield Finding(
                "limits.never_reached",
                Severity.NOTE,
                f"{place}: {other.name} lets through at most {amount(limit, most)} in the "
                f"time of {limit.name}, which has {amount(limit, limit.amount)}: it never refuses",
                "a smaller amount, or leave it out",
            )


def _locked(place: str, least_tokens: int, limits: list[Limit], slots: int) -> Iterator[Finding]:
    """Yield the local shares too small for any call: those limits are as good as closed."""
    for limit in limits:
        share = part(limit, 1, slots).amount
        least = least_tokens if limit.resource == "tokens" else 1
        if limit.amount and limit.on_outage == "local" and share < least:
            yield Finding(
                "limits.share_too_small",
                Severity.NOTE,
                f"{place}: while the store is away, a process may admit "
                f"{amount(limit, share)} of {limit.name}, which is not enough for a call",
                "a larger local_share, fewer outage.processes, or on_outage = 'closed' to say "
                "the same",
            )


def lengths_ms(window: Window) -> tuple[int, int]:
    """Return how short and how long a window that ends can be."""
    return _CALENDAR_MS[window.unit] if window.unit else (window.length_ms, window.length_ms)


def amount(limit: Limit, number: int) -> str:
    """Return an amount of a limit's resource in words."""
    if limit.resource == "cost":
        return format_usd(number)
    unit = {"requests": "request", "tokens": "token", "concurrency": "call"}[limit.resource]
    return f"{number} {unit}" + "s" * (number != 1)
