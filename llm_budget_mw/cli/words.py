"""Limits in plain words."""

from __future__ import annotations

from datetime import timedelta

from llm_budget_mw._money import format_usd
from llm_budget_mw.allowance import share
from llm_budget_mw.types import Limit, Resource, Window

_ONE = {
    timedelta(seconds=1): "second",
    timedelta(minutes=1): "minute",
    timedelta(hours=1): "hour",
    timedelta(days=1): "day",
    timedelta(weeks=1): "week",
}
_COUNTED: dict[Resource, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "concurrency": "calls",
}


def amount(limit: Limit, number: int) -> str:
    """Return an amount of what a limit counts, such as `20 requests` or `$0.50`."""
    if limit.resource == "cost":
        return format_usd(number)
    return f"{number} {_COUNTED[limit.resource]}"


def window(each: Window) -> str:
    """Return a window: `any minute`, `2 hours`, `calendar month (Europe/Berlin)`."""
    if each.kind == "none":
        return "at the same time"
    if each.unit is not None:
        return f"calendar {each.unit} ({each.zone})"
    length = timedelta(milliseconds=each.length_ms)
    name = _ONE.get(length) or _several(length)
    return f"any {name}" if each.kind == "sliding" else name


def _several(length: timedelta) -> str:
    for one, name in reversed(_ONE.items()):
        if not length % one:
            return f"{length // one} {name}s"
    return str(length)


def outage(limit: Limit) -> str:
    """Return what becomes of calls while the store is away, as far as this limit decides."""
    if limit.on_outage == "local":
        return f"all processes admit {amount(limit, share(limit))}"
    return "refuses" if limit.on_outage == "closed" else "admits"
