"""Money as integers: nano-dollars, and nano-dollars per million tokens.

Integer arithmetic only, because a sum of many tiny float prices drifts, and every division
rounds up, because an estimate must never be below what the provider will charge.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from llm_budget_mw.types import MAX_AMOUNT

NANO = 1_000_000_000
"""Nano-dollars in one dollar."""

_PER_MILLION = 1_000_000
_MAX_DIGITS = 10
_MAX_SHOWN = 40
_AMOUNT = re.compile(r"\$?([0-9]{1,7})(?:\.([0-9]{1,9}))?")
_ALLOWED = 'write dollars as text with at most 9 decimals and no exponent, such as "$2.50"'


def parse_usd(amount: str | int | Decimal) -> int:
    """Return `amount` dollars in nano-dollars.

    Raises `ValueError` for anything that is not an exact, non-negative amount of at most
    `MAX_AMOUNT` nano-dollars; a float is refused because 2.675 is already another number.
    """
    match = _AMOUNT.fullmatch(_plain(amount))
    if match is None:
        raise ValueError(f"{_shown(amount)} is not an amount of money: {_ALLOWED}")
    whole, decimals = match.groups(default="")
    nano = int(whole) * NANO + int(decimals.ljust(9, "0"))
    if nano > MAX_AMOUNT:
        raise ValueError(
            f"{_shown(amount)} is too much money: at most {format_usd(MAX_AMOUNT)} is allowed"
        )
    return nano


def format_usd(nano: int) -> str:
    """Return nano-dollars as exact dollars with at least two decimals: `$2.50`, `-$0.000001`."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole}.{decimals}"


def usd_to_nano(amount: Decimal) -> int:
    """Return `amount` dollars in nano-dollars, rounded up.

    Meant for prices, which may have more than 9 decimals. Raises `ValueError` if it is
    negative, not a number, or more than `MAX_AMOUNT` nano-dollars.
    """
    if not amount.is_finite() or amount < 0 or amount > Decimal(MAX_AMOUNT) / NANO:
        raise ValueError(
            f"price {_shown(amount)} is not allowed: use dollars from 0 to {format_usd(MAX_AMOUNT)}"
        )
    return int((amount * NANO).to_integral_value(ROUND_CEILING))


def cost_nano(tokens: int, nano_per_million: int) -> int:
    """Return the cost of `tokens` in nano-dollars, rounded up."""
    return -(-tokens * nano_per_million // _PER_MILLION)


def per_token_nano(nano_per_million: int) -> int:
    """Return the cost of one token in nano-dollars, rounded up."""
    return cost_nano(1, nano_per_million)


def _plain(amount: object) -> str:
    # A Decimal with a huge exponent would be written out as millions of digits.
    if isinstance(amount, Decimal) and amount.is_finite() and abs(amount.adjusted()) < _MAX_DIGITS:
        return format(amount, "f")
    if isinstance(amount, int) and not isinstance(amount, bool) and abs(amount) <= MAX_AMOUNT:
        return str(amount)
    return amount if isinstance(amount, str) else ""


def _shown(amount: object) -> str:
    if isinstance(amount, int):
        return (
            f"an integer of {amount.bit_length()} bits" if abs(amount) > MAX_AMOUNT else str(amount)
        )
    text = str(amount) if isinstance(amount, Decimal) else repr(amount)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
