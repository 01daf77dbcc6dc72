"""Tests of `llm_budget_mw._money`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw._money import cost_nano, format_usd, parse_usd, per_token_nano, usd_to_nano
from llm_budget_mw.types import MAX_AMOUNT

NANO_AMOUNTS = st.integers(min_value=0, max_value=MAX_AMOUNT)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("$2.50", 2_500_000_000),
        ("2.5", 2_500_000_000),
        ("0", 0),
        ("$0.000000001", 1),
        (3, 3_000_000_000),
        (Decimal("0.10"), 100_000_000),
        (Decimal("1E+2"), 100_000_000_000),
        (Decimal(0), 0),
        ("$9007199.254740992", MAX_AMOUNT),
    ],
)
def test_exact_amounts_are_read_as_nano_dollars(text: str | int | Decimal, nano: int) -> None:
    """An exact dollar amount is read without rounding."""
    assert parse_usd(text) == nano


@pytest.mark.parametrize(
    "amount",
    [
        2.5,
        float("nan"),
        True,
        None,
        "",
        "$",
        "-1",
        pytest.param(-1, id="minus-one"),
        "1e3",
        "NaN",
        "inf",
        "1_000",
        "1,000",
        " 1",
        "1\n",
        "٣",
        ".5",
        "1.",
        "1.0000000001",
        Decimal("NaN"),
        Decimal("-1"),
        Decimal("1E+999999"),
        Decimal("1E-999999"),
        "9" * 5000,
        pytest.param(10**5000, id="huge"),
        pytest.param(-(10**5000), id="minus-huge"),
    ],
)
def test_inexact_or_strange_amounts_are_refused_with_the_remedy(amount: Any) -> None:
    """Whatever is not a plain exact amount is refused, and the message says what to write."""
    with pytest.raises(ValueError, match=r'such as "\$2\.50"') as caught:
        parse_usd(amount)

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("amount", ["9007199.254740993", 9_999_999])
def test_amounts_above_the_largest_name_the_largest(amount: str | int) -> None:
    """An amount the store cannot compute with is refused, naming the largest one."""
    with pytest.raises(ValueError, match=r"at most \$9007199\.254740992"):
        parse_usd(amount)


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (2_500_000_000, "$2.50"),
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_230_000_000, "$1.23"),
        (-1_000, "-$0.000001"),
    ],
)
def test_amounts_are_shown_exactly_with_two_decimals_or_more(nano: int, text: str) -> None:
    """No digit is lost and cents are always shown."""
    assert format_usd(nano) == text


@given(NANO_AMOUNTS)
def test_shown_amounts_are_read_back_unchanged(nano: int) -> None:
    """Formatting and parsing are inverse."""
    assert parse_usd(format_usd(nano)) == nano


@given(NANO_AMOUNTS, NANO_AMOUNTS)
def test_cost_is_the_smallest_integer_not_below_the_exact_product(tokens: int, price: int) -> None:
    """Costs are rounded up by less than one nano-dollar."""
    exact = tokens * price

    cost = cost_nano(tokens, price)

    assert exact <= cost * 1_000_000 < exact + 1_000_000


def test_one_token_of_a_cheap_model_costs_at_least_a_nano_dollar() -> None:
    """A price below one nano-dollar a token does not become free."""
    assert per_token_nano(1) == 1
    assert per_token_nano(0) == 0


def test_prices_with_many_decimals_are_rounded_up() -> None:
    """A price finer than a nano-dollar is rounded up."""
    assert usd_to_nano(Decimal("0.0000000011")) == 2
    assert usd_to_nano(Decimal("2.5")) == 2_500_000_000


@pytest.mark.parametrize("price", ["-0.01", "NaN", "Infinity", "1E+30"])
def test_prices_that_are_no_price_are_refused(price: str) -> None:
    """A negative, endless or unreal price is refused."""
    with pytest.raises(ValueError, match="is not allowed: use dollars from 0 to"):
        usd_to_nano(Decimal(price))
