"""What operators add to the limits of one subject: lines of text in its account.

    raise tokens-per-day 50000 1798761600000 a1b2     50,000 more in every window until then
    credit budget-per-month 20000000000 0 order-17    $20 more, once: windows that end use it up
    set requests-per-minute 100 0 c3d4                100 in place of the configured amount

A time of 0 never ends. The scripts read the same lines, see `lua/ledger.lua`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

from llm_budget_mw.types import Limit

AdditionKind = Literal["raise", "credit", "set"]
MOST = 64
"""Additions of one account: a bound on the time of an admission."""


class Addition(NamedTuple):
    """What an operator added to one limit."""

    kind: AdditionKind
    limit: str
    """Name of the limit."""
    amount: int
    until_ms: int
    """By the store's clock; 0 never ends."""
    id: str
    """Of the operator's choice, without blanks; a known one changes nothing."""

    @property
    def line(self) -> str:
        """The addition as the scripts read it."""
        return " ".join(map(str, self))


def read_addition(line: str) -> Addition:
    """Read the line of an addition."""
    kind, limit, amount, until_ms, name = line.split(" ")
    return Addition(cast("AdditionKind", kind), limit, int(amount), int(until_ms), name)


def in_force(until_ms: int, now_ms: int) -> bool:
    """Return whether something that ends at a time still holds; 0 never ends."""
    return until_ms == 0 or now_ms < until_ms


def add_up(
    additions: Sequence[Addition], limits: Sequence[Limit], ended: Sequence[int], now_ms: int
) -> tuple[list[int], list[Addition]]:
    """Return what each limit has beside its amount, and the additions that remain.

    What a window that ended used beyond its amount, credits have paid: `ended` has its sum,
    or 0 for a limit whose window goes on.
    """
    number = {limit.name: n for n, limit in enumerate(limits)}
    added = [0] * len(limits)
    for each in additions:
        n = number.get(each.limit)
        if n is None or each.kind == "credit" or not in_force(each.until_ms, now_ms):
            continue
        added[n] = each.amount - limits[n].amount if each.kind == "set" else added[n] + each.amount
    over = [
        max(0, used - limit.amount - more)
        for used, limit, more in zip(ended, limits, added, strict=True)
    ]
    return added, [_paid(each, number, over, added, now_ms) for each in additions]


def _paid(
    each: Addition, number: dict[str, int], over: list[int], added: list[int], now_ms: int
) -> Addition:
    n = number.get(each.limit)
    if n is None or each.kind != "credit" or not in_force(each.until_ms, now_ms):
        return each
    paid = min(each.amount, over[n])
    over[n] -= paid
    added[n] += each.amount - paid
    return each._replace(amount=each.amount - paid)
