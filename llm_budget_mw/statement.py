"""The limits of a principal for people and programs to read; commands print it."""

from __future__ import annotations

import json
from datetime import timedelta

from llm_budget_mw import _windows, forecast
from llm_budget_mw._money import format_usd
from llm_budget_mw.types import Limit, LimitStatus

_HEAD = ("limit", "amount", "used", "remaining", "resets in", "over on")


def as_json(statuses: tuple[LimitStatus, ...], now_ms: int) -> str:
    """Return a JSON array with an object for each limit; money in dollars, as text.

    `now_ms` is the store's clock at these statuses.
    """
    return json.dumps([fields(status, now_ms) for status in statuses], indent=2)


def as_table(statuses: tuple[LimitStatus, ...], now_ms: int) -> str:
    """Return a line for each limit, below one with the names of the columns.

    The last column, in UTC, is when a limit will be used up if its use goes on like this.
    """
    if not statuses:
        return "No limits."
    rows = [_HEAD, *[_row(status, now_ms) for status in statuses]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def fields(status: LimitStatus, now_ms: int) -> dict[str, str | int | None]:
    """Return a limit as a flat object; see `as_json`."""
    limit = status.limit
    return {
        "limit": limit.name,
        "amount": number(limit, limit.amount),
        "used": number(limit, status.used),
        "remaining": number(limit, status.remaining),
        "reset_ms": status.reset_ms,
        "exhausted_at": _exhausted(status, now_ms),
    }


def number(limit: Limit, amount: int) -> str | int:
    """Return an amount as a program reads it: dollars as text, anything else as a number."""
    return format_usd(amount).replace("$", "") if limit.resource == "cost" else amount


def _exhausted(status: LimitStatus, now_ms: int) -> str | None:
    at_ms = forecast.exhausted_at(status, now_ms)
    return None if at_ms is None else _windows.in_utc(at_ms)


def _row(status: LimitStatus, now_ms: int) -> tuple[str, ...]:
    limit = status.limit
    amounts = (limit.amount, status.used, status.remaining)
    shown = [format_usd(n) if limit.resource == "cost" else str(n) for n in amounts]
    return (limit.name, *shown, _duration(status.reset_ms), _exhausted(status, now_ms) or "-")


def _duration(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else str(timedelta(seconds=-(-milliseconds // 1000)))
