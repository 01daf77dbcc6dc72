"""Tests of `llm_budget_mw.statement`: limits as people and programs read them."""

from __future__ import annotations

import json

from llm_budget_mw import statement
from llm_budget_mw.guard import Guard
from llm_budget_mw.types import Usage
from tests.deployment import ALICE, SwitchStore, configured, engine_of

TIER = {
    "tokens": "1000/minute",
    "budget": "$20/day",
    "concurrency": 2,
    "max_tokens": 100,
}
MESSAGES = [{"role": "user", "content": "hi"}]


def guard(**tier: object) -> Guard:
    config = configured(tier)
    return Guard(engine_of(config), config, SwitchStore())


def test_people_read_a_table() -> None:
    """Money in dollars, waits in hours, columns that line up; nothing to wait for is a dash."""
    world = guard(**TIER)
    with world.call(ALICE, model="big", messages=MESSAGES):
        text = statement.as_table(world.limits(ALICE), world.store.now_ms())

    assert text.splitlines() == [
        "limit              amount  used        remaining    resets in  over on",
        "tokens-per-minute  1000    125         875          0:01:00    -",
        "budget-per-day     $20.00  $0.0010625  $19.9989375  12:00:00   -",
        "concurrency        2       1           1            -          -",
    ]


def test_who_spends_too_fast_reads_when_it_is_over() -> None:
    """In half a day 2 of 3 calls were made: the third will be in a quarter of a day."""
    world = guard(requests="3/day")
    for _ in range(2):
        with world.call(ALICE, model="big", messages=MESSAGES) as call:
            call.record(Usage(1, 1))
    statuses, now_ms = world.limits(ALICE), world.store.now_ms()

    assert statement.as_table(statuses, now_ms).endswith("  12:00:00   2027-01-15T18:00:00Z")
    (found,) = json.loads(statement.as_json(statuses, now_ms))
    assert found["exhausted_at"] == "2027-01-15T18:00:00Z"


def test_programs_read_json() -> None:
    """Money is text, so that no reader rounds it."""
    world = guard(**TIER)
    found = json.loads(statement.as_json(world.limits(ALICE), world.store.now_ms()))

    assert found[1] == {
        "limit": "budget-per-day",
        "amount": "20.00",
        "used": "0.00",
        "remaining": "20.00",
        "reset_ms": 43_200_000,
        "exhausted_at": None,
    }
    assert found[2]["reset_ms"] is None


def test_who_has_no_limits_is_told_so() -> None:
    """An empty table would look like a mistake."""
    assert statement.as_table(guard().limits(ALICE), 0) == "No limits."
