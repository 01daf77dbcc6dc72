"""Tests of `llm_budget_mw.statement`: limits as people and programs read them."""

from __future__ import annotations

import json

from llm_budget_mw import statement
from llm_budget_mw.guard import Guard
from tests.deployment import ALICE, SwitchStore, configured, engine_of

TIER = {"tokens": "1000/minute", "budget": "$20/day", "concurrency": 2, "max_tokens": 100}


def guard(**tier: object) -> Guard:
    config = configured(tier)
    return Guard(engine_of(config), config, SwitchStore())


def test_people_read_a_table() -> None:
    """Money in dollars, waits in hours, columns that line up; nothing to wait for is a dash."""
    world = guard(**TIER)
    with world.call(ALICE, model="big", messages=[{"role": "user", "content": "hi"}]):
        text = statement.as_table(world.limits(ALICE))

    assert text.splitlines() == [
        "limit              amount  used        remaining    resets in",
        "tokens-per-minute  1000    125         875          0:01:00",
        "budget-per-day     $20.00  $0.0010625  $19.9989375  12:00:00",
        "concurrency        2       1           1            -",
    ]


def test_programs_read_json() -> None:
    """Money is text, so that no reader rounds it."""
    found = json.loads(statement.as_json(guard(**TIER).limits(ALICE)))

    assert found[1] == {
        "limit": "budget-per-day",
        "amount": "20.00",
        "used": "0.00",
        "remaining": "20.00",
        "reset_ms": 43_200_000,
    }
    assert found[2]["reset_ms"] is None


def test_who_has_no_limits_is_told_so() -> None:
    """An empty table would look like a mistake."""
    assert statement.as_table(guard().limits(ALICE)) == "No limits."
