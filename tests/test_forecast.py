"""Tests of `llm_budget_mw.forecast`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw import _windows
from llm_budget_mw.forecast import exhausted_at
from llm_budget_mw.types import MAX_AMOUNT, CalendarUnit, Limit, LimitStatus, Subject, Window

MONTH = Window("calendar", unit="month")
DAY = Window("fixed", 86_400_000)
HOUR_MS = 3_600_000
UNITS: list[CalendarUnit] = ["hour", "day", "week", "month", "year"]
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]


def at(text: str) -> int:
    """Return a moment in milliseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def status_of(window: Window, now_ms: int, used: int, amount: int = 1000) -> LimitStatus:
    """Return what a store says of such a limit."""
    limit = Limit("a", "tokens", amount, window)
    end = _windows.span(window, now_ms)[1]
    reset = end - now_ms if end else None
    return LimitStatus(Subject("u", "user/u"), limit, max(0, amount - used), used, reset)


windows = st.one_of(
    st.builds(Window, st.just("fixed"), st.integers(1000, 40 * 86_400_000)),
    st.builds(
        Window,
        st.just("calendar"),
        unit=st.sampled_from(UNITS),
        zone=st.sampled_from(ZONES),
        anchor_day=st.integers(1, 31),
    ),
)
moments = st.integers(at("2020-01-01"), at("2040-01-01"))


@given(windows, moments, st.integers(0, MAX_AMOUNT), st.integers(0, 2 * MAX_AMOUNT))
def test_a_limit_is_over_neither_in_the_past_nor_after_its_reset(
    window: Window, now_ms: int, amount: int, used: int
) -> None:
    """Whatever the window, the amount and the use."""
    status = status_of(window, now_ms, used, amount)
    found = exhausted_at(status, now_ms)

    if found is not None:
        assert status.reset_ms is not None
        assert now_ms <= found < now_ms + status.reset_ms


@given(windows, moments, st.integers(1, MAX_AMOUNT), st.integers(1, MAX_AMOUNT), st.data())
def test_who_has_used_more_is_through_no_later(
    window: Window, now_ms: int, amount: int, used: int, data: st.DataObject
) -> None:
    """More use at the same moment never moves the end away."""
    more = used + data.draw(st.integers(0, MAX_AMOUNT))
    sooner = exhausted_at(status_of(window, now_ms, more, amount), now_ms)
    later = exhausted_at(status_of(window, now_ms, used, amount), now_ms)

    assert later is None or (sooner is not None and sooner <= later)


@given(windows, moments, st.integers(1, MAX_AMOUNT), st.data())
def test_at_the_moment_foretold_the_same_pace_has_used_all(
    window: Window, now_ms: int, amount: int, data: st.DataObject
) -> None:
    """To the millisecond: not one earlier."""
    used = data.draw(st.integers(1, amount))
    found = exhausted_at(status_of(window, now_ms, used, amount), now_ms)
    start = _windows.span(window, now_ms)[0]

    if found is not None and used < amount:
        assert used * (found - start) >= amount * (now_ms - start)
        assert used * (found - start - 1) < amount * (now_ms - start)


def test_a_monthly_limit_half_used_on_the_tenth_is_over_on_the_nineteenth() -> None:
    """Nine days took half of it, so nine more take the rest."""
    now_ms = at("2027-01-10T00:00:00")

    assert exhausted_at(status_of(MONTH, now_ms, 500), now_ms) == at("2027-01-19T00:00:00")


def test_a_slow_pace_lasts() -> None:
    """Up to the last moment of the window counts as lasting."""
    now_ms = at("2027-01-16T12:00:00")

    assert exhausted_at(status_of(MONTH, now_ms, 500), now_ms) is None
    assert exhausted_at(status_of(MONTH, now_ms, 501), now_ms) is not None


def test_the_first_twentieth_of_a_window_tells_nothing() -> None:
    """A day is judged from 01:12 on; but what is used up is, at any time."""
    early, late = at("2027-01-10T01:11:59"), at("2027-01-10T01:12:00")

    assert exhausted_at(status_of(DAY, early, 900), early) is None
    assert exhausted_at(status_of(DAY, late, 900), late) == late + HOUR_MS * 12 // 10 // 9
    assert exhausted_at(status_of(DAY, early, 1000), early) == early
    assert exhausted_at(status_of(DAY, early, 5000), early) == early


@pytest.mark.parametrize("window", [Window("sliding", 60_000), Window("none")])
@pytest.mark.parametrize("used", [0, 900, 1000])
def test_a_limit_without_an_end_has_no_such_moment(window: Window, used: int) -> None:
    """A sliding window forgets as it goes, and slots come back."""
    now_ms = at("2027-01-10T12:00:30")

    assert exhausted_at(status_of(window, now_ms, used), now_ms) is None


def test_what_nobody_uses_lasts() -> None:
    """Nothing used is no pace."""
    now_ms = at("2027-01-10T12:00:00")

    assert exhausted_at(status_of(DAY, now_ms, 0), now_ms) is None
