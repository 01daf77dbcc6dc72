"""The short forms are read as people mean them, or refused with the right form."""

from __future__ import annotations

import string
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_budget_mw.config import TierConfig, load
from llm_budget_mw.config.notation import (
    Rate,
    Unit,
    parse_budget,
    parse_rate,
    parse_share,
    split_budgets,
    split_rates,
)
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.types import MAX_AMOUNT

UNITS = get_args(Unit)
almost = st.text(
    string.digits + " $./%;-|" + "perdaysmonthuwkbaseto_" + "\u0663\u017f\u212a\u2003", max_size=40
)


@given(
    st.integers(0, MAX_AMOUNT), st.integers(1, 1000), st.sampled_from(UNITS),
    st.sampled_from(["{}/{}{}", "{} per {} {}s", " {} / {} {}S ", "{}PER{}{}"]),
)  # fmt: skip
def test_rates_are_read_as_written(amount: int, multiples: int, unit: Unit, form: str) -> None:
    """Amount, number and unit of time survive every way of writing them."""
    assert parse_rate(form.format(amount, multiples, unit)) == Rate(
        amount, "count", multiples, unit
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20/minute", Rate(20, "count", 1, "minute")),
        ("5 per 2 hours", Rate(5, "count", 2, "hour")),
        ("0/day", Rate(0, "count", 1, "day")),
        ("7/Week", Rate(7, "count", 1, "week")),
    ],
)
def test_rates(text: str, rate: Rate) -> None:
    """The forms of the documentation work."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("$2/day", Rate(2 * 10**9, "nano", 1, "day")),
        ("$20.50/month", Rate(20_500_000_000, "nano", 1, "month")),
        ("$0.000000001 per 3 weeks", Rate(1, "nano", 3, "week")),
        ("$0/year", Rate(0, "nano", 1, "year")),
        ("500000 base_tokens/day", Rate(500_000, "base_tokens", 1, "day")),
        ("1base_tokens per 2 hours", Rate(1, "base_tokens", 2, "hour")),
    ],
)
def test_budgets(text: str, rate: Rate) -> None:
    """Dollars become nano-dollars exactly, base tokens stay what they are."""
    assert parse_budget(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "20", "20/", "/day", "20/fortnight", "1.5/day", "-1/day", "$1/day", "1/day 2/day",
     "1/0 days", "1 per 00 days", "1//day", "1e3/day", "1/day\n2", "1 / " + " " * 99 + "day",
     "\u0663/day", "1/dayweek"],
)  # fmt: skip
def test_what_is_no_rate(text: str) -> None:
    """Anything else is answered with the right form."""
    with pytest.raises(ValueError, match='write "20/minute"'):
        parse_rate(text)


@pytest.mark.parametrize(
    "text",
    ["", "2/day", "$2", "$/day", "$2/", "$2/decade", "$2/0 days", "2 USD/day", "tokens/day",
     "500 tokens/day", "1.5 base_tokens/day", "-5 base_tokens/day", "$2/day; $3/day"],
)  # fmt: skip
def test_what_is_no_budget(text: str) -> None:
    """Anything else is answered with the right form."""
    with pytest.raises(ValueError, match=r'write "\$20\.50/month"'):
        parse_budget(text)


@pytest.mark.parametrize("text", [f"{MAX_AMOUNT + 1}/day", "9" * 50 + "/day"])
def test_an_amount_that_cannot_be_counted(text: str) -> None:
    """More than 2**53 would not be exact in the store."""
    with pytest.raises(ValueError, match="at most 9007199254740992"):
        parse_rate(text)


def test_a_window_of_centuries() -> None:
    """A number of units above a thousand is a slip of the finger."""
    assert parse_rate("1/1000 years").multiples == 1000
    with pytest.raises(ValueError, match="at most 1000 units"):
        parse_rate("1/1001 years")


@pytest.mark.parametrize(
    ("value", "share"), [("80%", 0.8), (" 12.5 % ", 0.125), ("100%", 1.0), (1, 1.0), (0.3, 0.3)]
)
def test_shares(value: object, share: float) -> None:
    """A share is a number or a percentage."""
    assert parse_share(value) == share


@pytest.mark.parametrize(
    "value", ["0%", "101%", "80", "-5%", "1e2%", 0, 1.01, -1, True, None, float("nan"), [0.5]]
)
def test_what_is_no_share(value: object) -> None:
    """Nothing, more than all, and what is no number are refused."""
    with pytest.raises(ValueError, match=r'write "80%" or 0\.8'):
        parse_share(value)


def test_several_in_one_string() -> None:
    """Rates are split at the separators of `limits`; budgets only at the semicolon."""
    assert split_rates("20/minute; 1000/day,5/hour|1/second") == [
        "20/minute", "1000/day", "5/hour", "1/second",
    ]  # fmt: skip
    assert split_budgets("$2/day; $1,000/month") == ["$2/day", "$1,000/month"]


def load_or_complain(tier: dict[str, Any]) -> TierConfig | str:
    """Return the tier as read, or the text of the `ConfigurationError`."""
    try:
        config = load(tiers={"default": tier}, prices={"reference_model": "gpt-4o"})
    except ConfigurationError as error:
        return str(error)
    return config.tiers["default"]


@given(st.sampled_from(["requests", "tokens", "budget"]), almost | st.text())
@example("budget", "$1/" + "9" * 39)
@example("requests", "1/\u017fecond")
@example("requests", "1/wee\u212a")
def test_no_notation_breaks_the_loader(option: str, text: str) -> None:
    """Whatever is written for a limit, it is read or refused with `ConfigurationError`."""
    tier = load_or_complain({option: text})

    if isinstance(tier, str):
        assert f"tiers.default.{option}: " in tier or "two limits are named" in tier
    else:
        assert all(0 <= limit.rate.amount <= MAX_AMOUNT for _, limit in tier.rated_limits)


@given(st.text(max_size=60) | st.floats() | st.none() | st.integers())
def test_no_share_breaks_the_loader(value: object) -> None:
    """Whatever is written for a ceiling, it is read or refused with `ConfigurationError`."""
    tier = load_or_complain({"offers": [{"model": "gpt-4o", "ceiling": value}]})

    if isinstance(tier, str):
        assert "tiers.default.offers[0].ceiling: " in tier
    else:
        assert 0 < tier.offers[0].ceiling <= 1
