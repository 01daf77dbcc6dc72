"""The arithmetic of limits."""

from __future__ import annotations

import pytest

from llm_budget_mw import _limits
from llm_budget_mw.types import Charges, LimitSet, Offer, Resource
from tests.stores.kit import DAY, DAY_MS, MINUTE_MS, MONTH, SLOT, START_MS, limit, limits

OFFER = Offer("model", 100, 10, 0.5, 7, 2, 7000, 30)


@pytest.mark.parametrize(
    ("resource", "charge"),
    [("requests", (1, 0)), ("concurrency", (1, 0)), ("tokens", (7, 2)), ("cost", (7000, 30))],
)
def test_charge(resource: Resource, charge: tuple[int, int]) -> None:
    """Tokens and money have a fixed part and one for each token of output; calls cost one."""
    assert _limits.charge(limit(100, resource), OFFER) == charge


@pytest.mark.parametrize(
    ("resource", "usable"), [("requests", 101), ("concurrency", 101), ("tokens", 50), ("cost", 50)]
)
def test_usable(resource: Resource, usable: int) -> None:
    """A ceiling applies to what is spent, rounded down."""
    assert _limits.usable(limit(101, resource), OFFER) == usable


@pytest.mark.parametrize(
    ("resource", "posted"), [("requests", 3), ("concurrency", 0), ("tokens", 20), ("cost", 500)]
)
def test_posted(resource: Resource, posted: int) -> None:
    """A settlement commits what was used; a slot is only ever held."""
    assert _limits.posted(limit(100, resource), Charges(3, 20, 500)) == posted


def test_window_start() -> None:
    """A window begins at a multiple of its length, or where its calendar says; a slot has none."""
    now = START_MS + DAY_MS + 61_000
    starts = [_limits.window_start(limit(1, window=each), now) for each in (DAY, MONTH, SLOT)]

    assert starts == [START_MS + DAY_MS, START_MS, 0]


@pytest.mark.parametrize(
    ("each", "least_ms"),
    [
        (limits(limit(1, "requests"), limit(1, "cost", DAY)), 2 * DAY_MS),
        (limits(limit(1, "requests"), limit(1, "concurrency", SLOT)), 2 * MINUTE_MS),
        (limits(), 0),
    ],
)
def test_lifetime(each: LimitSet, least_ms: int) -> None:
    """A set lives as long as its longest window can be read."""
    assert _limits.lifetime_ms(each) == least_ms
