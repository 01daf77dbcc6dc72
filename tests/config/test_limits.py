"""A tier's notations become the limits the store counts."""

from __future__ import annotations

from typing import Any

import pytest

from llm_budget_mw.config import limits_of, load
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.types import MAX_AMOUNT, Limit, Window

DAY_MS = 86_400_000


def written(nano_per_base_token: int = 3, /, **options: Any) -> tuple[Limit, ...]:
    """Return the limits of a tier with these options."""
    config = load(
        tiers={"default": options},
        prices={"reference_model": "gpt-4o"},
        time_zone="Asia/Tokyo",
    )
    return limits_of(config.tiers["default"], config, lambda tokens: tokens * nano_per_base_token)


def window_of(limit: Any) -> Window:
    [made] = written(tokens=limit)
    return made.window


def test_an_empty_tier_limits_nothing() -> None:
    """Nothing written, nothing counted."""
    assert written() == ()


def test_names_resources_and_amounts() -> None:
    """Limits are named after option and period, and keep the order of the options."""
    made = written(
        concurrency=4,
        budget="$20.50/month;10 base_tokens/day",
        tokens="0/day",
        requests=["20/minute", "5 per 2 hours", {"limit": "1/week", "name": "one-a-week"}],
    )

    assert [(limit.name, limit.resource, limit.amount) for limit in made] == [
        ("requests-per-minute", "requests", 20),
        ("requests-per-2-hours", "requests", 5),
        ("one-a-week", "requests", 1),
        ("tokens-per-day", "tokens", 0),
        ("budget-per-month", "cost", 20_500_000_000),
        ("budget-per-day", "cost", 30),
        ("concurrency", "concurrency", 4),
    ]


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("1/second", Window("sliding", 1_000)),
        ("1/minute", Window("sliding", 60_000)),
        ("1/2 hours", Window("sliding", 7_200_000)),
        ("1/day", Window("calendar", unit="day", zone="Asia/Tokyo")),
        ("1/week", Window("calendar", unit="week", zone="Asia/Tokyo")),
        ("1/month", Window("calendar", unit="month", zone="Asia/Tokyo")),
        ("1/year", Window("calendar", unit="year", zone="Asia/Tokyo")),
        ("1/7 days", Window("fixed", 7 * DAY_MS)),
        ("1/2 weeks", Window("fixed", 14 * DAY_MS)),
        ("1/3 months", Window("fixed", 90 * DAY_MS)),
    ],
)
def test_windows_by_default(text: str, window: Window) -> None:
    """Short windows slide, whole calendar units follow the calendar, the rest is fixed."""
    assert window_of(text) == window


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"limit": "1/day", "window": "sliding"}, Window("sliding", DAY_MS)),
        ({"limit": "1/year", "window": "fixed"}, Window("fixed", 365 * DAY_MS)),
        (
            {"limit": "1/hour", "window": "calendar", "zone": "UTC"},
            Window("calendar", unit="hour", zone="UTC"),
        ),
        (
            {"limit": "1/month", "anchor_day": 15, "anchor_hour": 6},
            Window("calendar", unit="month", zone="Asia/Tokyo", anchor_day=15, anchor_hour=6),
        ),
    ],
)
def test_windows_as_chosen(options: dict[str, Any], window: Window) -> None:
    """A table says which window, where in the world, and when it begins."""
    assert window_of(options) == window


def test_outages_by_default() -> None:
    """Without the store, money is spent from a small share, and nothing else is refused."""
    made = written(requests="1/day", tokens="1/day", budget="$1/day", concurrency=1)

    assert [(limit.on_outage, limit.local_share) for limit in made] == [
        ("open", 0.0), ("open", 0.0), ("local", 0.05), ("open", 0.0),
    ]  # fmt: skip


def test_outages_as_chosen() -> None:
    """A limit's own rule and share are stronger than its tier's."""
    made = written(
        requests=["1/minute", {"limit": "1/day", "on_outage": "closed", "local_share": 0.5}],
        budget={"limit": "$1/day", "local_share": 0.01},
        concurrency=1,
        local_share=0.2,
        on_outage={"requests": "local", "concurrency": "local"},
    )

    assert [(limit.on_outage, limit.local_share) for limit in made] == [
        ("local", 0.2), ("closed", 0.0), ("local", 0.01), ("local", 0.2),
    ]  # fmt: skip


def test_base_tokens_that_cost_too_much() -> None:
    """A budget in base tokens is checked when their price is known."""
    assert written(MAX_AMOUNT, budget="1 base_tokens/day")[0].amount == MAX_AMOUNT
    with pytest.raises(ConfigurationError, match=r"'2 base_tokens/day' costs .* at most 900719925"):
        written(MAX_AMOUNT, budget="2 base_tokens/day")
