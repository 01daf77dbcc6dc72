"""The short forms people write for limits and shares.

    20/minute           20 per 2 hours        1000/day;20/minute       requests, tokens
    $20.50/month        $5/7 days             500000 base_tokens/day   budgets
    40% of $5000/month                                                 a part of one of these
    80%                 0.8                                            shares

The grammar of rates is that of the `limits` package, with weeks. Every function raises
`ValueError` saying how to write it right, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast

from llm_budget_mw._money import parse_usd
from llm_budget_mw.types import MAX_AMOUNT

Unit = Literal["second", "minute", "hour", "day", "week", "month", "year"]
Measure = Literal["count", "nano", "base_tokens"]

MAX_MULTIPLES = 1000
_MAX_LENGTH = 64

_RATE_FORM = 'write "20/minute", "1000/day" or "5 per 2 hours"'
_BUDGET_FORM = 'write "$20.50/month" or "500000 base_tokens/day"'
_SHARE_FORM = 'write "80%" or 0.8; it must be above 0 and at most 1'
_THRESHOLD_FORM = 'write "80%" or 0.8; it must be above 0 and at most 10'

_SEPARATORS = re.compile("[,;|]")
_BUDGET = re.compile(r"\s*(\$[^/;]{1,40}?|[0-9]{1,16}\s*base_tokens)\s*(/.{1,40}|per\b.{1,40})")
_PART = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%\s*of\b(.*)", re.DOTALL)
_PERCENT = re.compile(r"\s*([0-9]{1,4}(?:\.[0-9]{1,6})?)\s*%\s*")


class Rate(NamedTuple):
    """An amount in `multiples` of a unit of time, as written."""

    amount: int
    measure: Measure
    """What `amount` counts: requests or tokens, nano-dollars, or base tokens."""
    multiples: int
    unit: Unit

    @property
    def period(self) -> str:
        """The time in words for a limit's name: `minute`, `2-hours`."""
        return self.unit if self.multiples == 1 else f"{self.multiples}-{self.unit}s"


def split_rates(text: str) -> list[str]:
    """Split `20/minute;1000/day` at `;`, `,` or `|`."""
    return [part.strip() for part in _SEPARATORS.split(text)]


def split_budgets(text: str) -> list[str]:
    """Split `$2/day;$20/month` at `;`."""
    return [part.strip() for part in text.split(";")]


def parse_rate(text: str) -> Rate:
    """Read one rate of requests or tokens."""
    return _part_of(text, _whole_rate)


def parse_budget(text: str) -> Rate:
    """Read one budget, in dollars or base tokens."""
    return _part_of(text, _whole_budget)


def _part_of(text: str, read: Callable[[str], Rate]) -> Rate:
    match = _PART.fullmatch(text[: 2 * _MAX_LENGTH])
    if match is None:
        return read(text)
    rate, part = read(match[2].strip()), Fraction(match[1]) / 100
    if not 0 < part <= 1:
        raise ValueError(_SHARE_FORM)
    return rate._replace(amount=int(rate.amount * part))


def _whole_rate(text: str) -> Rate:
    # Here and not above: it takes 0.1 s to import, and a program without a configuration
    # never needs it.
    from limits import parse_many

    # It would read "0 days" as one day, and spend quadratic time on long runs of blanks.
    if len(text) > _MAX_LENGTH or re.search(r"(/|per)\s*0", text, re.IGNORECASE):
        raise ValueError(_RATE_FORM)
    try:
        [item] = parse_many(re.sub("week", "day", text, flags=re.IGNORECASE))
    except ValueError:
        raise ValueError(_RATE_FORM) from None
    if item.multiples > MAX_MULTIPLES:
        raise ValueError(f"the window is too long: at most {MAX_MULTIPLES} units of time")
    unit = "week" if "week" in text.lower() else item.GRANULARITY.name
    return Rate(_bounded(item.amount), "count", item.multiples, cast("Unit", unit))


def _whole_budget(text: str) -> Rate:
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise ValueError(_BUDGET_FORM)
    amount, period = match.groups()
    try:
        rate = _whole_rate(f"1 {period}")
    except ValueError:
        raise ValueError(_BUDGET_FORM) from None
    if amount.startswith("$"):
        return rate._replace(amount=_bounded(parse_usd(amount)), measure="nano")
    tokens = int(amount.removesuffix("base_tokens"))
    return rate._replace(amount=_bounded(tokens), measure="base_tokens")


def parse_share(value: Any) -> float:
    """Read a part of a whole: a number or a percentage."""
    return _part(value, 1, _SHARE_FORM)


def parse_threshold(value: Any) -> float:
    """Read how much of a limit is worth telling: a share, which may be above the whole."""
    return _part(value, 10, _THRESHOLD_FORM)


def _part(value: Any, most: int, form: str) -> float:
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        value = float(match[1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ValueError(form)
    return float(value)


def _bounded(amount: int) -> int:
    if amount > MAX_AMOUNT:
        raise ValueError(f"the amount is too large: at most {MAX_AMOUNT} (2**53) can be counted")
    return amount
