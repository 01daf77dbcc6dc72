"""Tests of `llm_budget_mw.types`."""

from __future__ import annotations

import pytest

from llm_budget_mw.types import Charges, Grant, Limit, LimitSet, Offer, Plan, Window


def test_the_limits_of_a_subject_have_names_of_their_own() -> None:
    """They name counters: two with one name would count the same thing twice."""
    limit = Limit("per-minute", "requests", 20, Window("sliding", length_ms=60_000))

    assert LimitSet((limit,)).names == ("per-minute",)
    with pytest.raises(ValueError, match="two limits with one name: per-minute, per-minute"):
        LimitSet((limit, limit))


def test_a_grant_holds_its_fixed_part_and_every_output_token() -> None:
    """Charges are linear in the output, and one request whatever its size."""
    offer = Offer("big", 500, 1, 1.0, 100, 3, 250_000, 30_000)
    grant = Grant(Plan("0" * 24, (), (offer,), 1), offer, 10, None)

    assert grant.charges == Charges(1, 130, 550_000)
