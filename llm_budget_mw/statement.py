"""The limits of a principal for people and programs to read; commands print it."""

from __future__ import annotations

import json
from datetime import timedelta

from llm_budget_mw._money import format_usd
from llm_budget_mw.types import Limit, LimitStatus

_HEAD = ("limit", "amount", "used", "remaining", "resets in")


def as_json(statuses: tuple[LimitStatus, ...]) -> str:
    """Return a JSON array with an object for each limit; money in dollars, as text."""
    return json.dumps([_fields(status) for status in statuses], indent=2)


def as_table(statuses: tuple[LimitStatus, ...]) -> str:
    """Return a line for each limit, below one with the names of the columns."""
    if not statuses:
        return "No limits."
    rows = [_HEAD, *map(_row, statuses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _fields(status: LimitStatus) -> dict[str, str | int | None]:
    limit = status.limit
    return {
        "limit": limit.name,
        "amount": _number(limit, limit.amount),
        "used": _number(limit, status.used),
        "remaining": _number(limit, status.remaining),
        "reset_ms": status.reset_ms,
    }


def _number(limit: Limit, amount: int) -> str | int:
    return format_usd(amount).replace("$", "") if limit.resource == "cost" else amount


def _row(status: LimitStatus) -> tuple[str, ...]:
    limit = status.limit
    amounts = (limit.amount, status.used, status.remaining)
    shown = [format_usd(n) if limit.resource == "cost" else str(n) for n in amounts]
    return (limit.name, *shown, _duration(status.reset_ms))


def _duration(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else str(timedelta(seconds=-(-milliseconds // 1000)))
