"""From the limits a table writes to those the store counts."""

from __future__ import annotations

from collections.abc import Callable

from llm_budget_mw.config.model import Config
from llm_budget_mw.config.notation import Unit
from llm_budget_mw.config.tiers import LimitConfig, LimitedConfig, RatedOption, limit_name
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.types import MAX_AMOUNT, CalendarUnit, Limit, OnOutage, Resource, Window

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
_UNIT_MS: dict[Unit, int] = {
    "second": 1_000,
    "minute": _MINUTE_MS,
    "hour": 60 * _MINUTE_MS,
    "day": _DAY_MS,
    "week": 7 * _DAY_MS,
    "month": 30 * _DAY_MS,
    "year": 365 * _DAY_MS,
}
_CALENDAR: dict[Unit, CalendarUnit] = {
    "hour": "hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year",
}
_RESOURCES: dict[RatedOption, Resource] = {
    "requests": "requests",
    "tokens": "tokens",
    "budget": "cost",
}


def limits_of(
    table: LimitedConfig,
    config: Config,
    base_tokens_nano: Callable[[int], int],
    prefix: str = "",
) -> tuple[Limit, ...]:
    """Return the limits of a table, in the order requests, tokens, budget, concurrency.

    `prefix` stands before the names that nobody chose.

    `base_tokens_nano` gives the cost of that many base tokens in nano-dollars. Raises
    `ConfigurationError` if a budget in base tokens comes to more than `MAX_AMOUNT`.
    """
    watching = config.mode == "shadow"
    limits = [
        Limit(
            written.name or prefix + limit_name(option, written),
            _RESOURCES[option],
            amount := _amount(written, base_tokens_nano),
            _window(written, config.time_zone),
            outage := _outage(
                written.on_outage or getattr(table.on_outage, option),
                shadow := watching or written.shadow,
            ),
            _local_share(outage, written.local_share or table.local_share),
            int(amount * (written.carry_over or 0)),
            shadow,
        )
        for option, written in table.rated_limits
    ]
    if table.concurrency is not None:
        outage = _outage(table.on_outage.concurrency, watching)
        limits.append(
            Limit(
                f"{prefix}concurrency",
                "concurrency",
                table.concurrency,
                Window("none"),
                outage,
                _local_share(outage, table.local_share),
                shadow=watching,
            )
        )
    return tuple(limits)


def _outage(chosen: OnOutage, shadow: bool) -> OnOutage:
    return "open" if shadow else chosen  # what refuses nothing refuses nothing then, either


def _local_share(outage: OnOutage, share: float) -> float:
    return share if outage == "local" else 0.0


def _amount(written: LimitConfig, base_tokens_nano: Callable[[int], int]) -> int:
    rate = written.rate
    if rate.measure != "base_tokens":
        return rate.amount
    nano = base_tokens_nano(rate.amount)
    if nano > MAX_AMOUNT:
        raise ConfigurationError(
            f"budget {written.limit!r} costs {nano} nano-dollars at the price of "
            f"`prices.reference_model`; at most {MAX_AMOUNT} (2**53) can be counted"
        )
    return nano


def _window(written: LimitConfig, zone: str) -> Window:
    rate, kind = written.rate, written.window_kind
    if kind != "calendar":
        return Window(kind, length_ms=rate.multiples * _UNIT_MS[rate.unit])
    return Window(
        kind,
        unit=_CALENDAR[rate.unit],
        zone=written.zone or zone,
        anchor_day=written.anchor_day,
        anchor_hour=written.anchor_hour,
    )
