"""Windows tile time in every zone, and `fits_at` tells the first moment that fits."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_budget_mw._windows import carried, fits_at, span, time_zone, ttl_ms, used
from llm_budget_mw.types import CalendarUnit, Counter, Window

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NONE = Window("none")
SLIDING = Window("sliding", MINUTE)

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Sao_Paulo",  # its clock used to change at midnight
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # left out 30 December 2011
    "Asia/Kathmandu",
    "Antarctica/Troll",  # by two hours
    "America/St_Johns",  # at one minute past midnight until 2011
)
units = st.sampled_from(["hour", "day", "week", "month", "year"])
calendars = st.builds(
    Window,
    st.just("calendar"),
    unit=units,
    zone=st.sampled_from(ZONES),
    anchor_day=st.sampled_from([1, 15, 28, 29, 30, 31]),
    anchor_hour=st.integers(0, 23),
)
lengths = st.integers(1, 1000) | st.sampled_from([MINUTE, HOUR, 7 * DAY, 365 * DAY])
rolling = st.builds(Window, st.sampled_from(["fixed", "sliding"]), length_ms=lengths)
moments = st.integers(0, 80 * 365 * DAY)


def at(zone: str, wall: str, fold: int = 0) -> int:
    """Return the milliseconds at which the clock of a zone shows a time."""
    moment = datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(moment.timestamp()) * 1000


@given(calendars | rolling, moments)
def test_a_moment_lies_in_its_window(window: Window, now_ms: int) -> None:
    """A window begins at or before the moment it is asked for, and ends after it."""
    start, end = span(window, now_ms)

    assert start <= now_ms < end


@given(calendars | rolling, st.integers(3 * 366 * DAY, 80 * 365 * DAY))
@example(Window("calendar", unit="day", zone="Pacific/Apia"), at("Pacific/Apia", "2011-12-31"))
@example(
    Window("calendar", unit="hour", zone="Australia/Lord_Howe"),
    at("Australia/Lord_Howe", "2025-04-06T02:00"),
)
def test_windows_tile_time(window: Window, now_ms: int) -> None:
    """A window is the same from its first to its last millisecond, and borders on its neighbours."""
    start, end = span(window, now_ms)

    assert span(window, start) == span(window, end - 1) == (start, end)
    assert span(window, start - 1)[1] == start
    assert span(window, end)[0] == end


@pytest.mark.parametrize("unit", ["day", "month"])
@pytest.mark.parametrize("zone", ZONES)
def test_years_of_windows_follow_each_other(zone: str, unit: CalendarUnit) -> None:
    """Walking from window to window through three years leaves no gap and no overlap."""
    window = Window("calendar", unit=unit, zone=zone, anchor_day=31, anchor_hour=2)
    now, final = at("UTC", "2010-12-01"), at("UTC", "2013-01-01")
    walked = []
    while now < final:
        walked.append(span(window, now))
        now = walked[-1][1]

    assert all(before[1] == after[0] for before, after in pairwise(walked))
    assert all(end - start <= ttl_ms(window) for start, end in walked)


@given(calendars | rolling, moments)
def test_a_counter_outlives_its_window(window: Window, now_ms: int) -> None:
    """A counter is kept for longer than any window lasts, clock changes included."""
    start, end = span(window, now_ms)

    assert end - start < ttl_ms(window)


@pytest.mark.parametrize(
    ("window", "now", "start", "end"),
    [
        pytest.param(
            Window("calendar", unit="day", zone="Europe/Berlin"),
            "2025-03-30T12:00", "2025-03-30", "2025-03-31", id="a day of 23 hours",
        ),
        pytest.param(
            Window("calendar", unit="day", zone="Europe/Berlin", anchor_hour=2),
            "2025-03-30T12:00", "2025-03-30T03:00", "2025-03-31T02:00", id="anchor in the gap",
        ),
        pytest.param(
            Window("calendar", unit="day", zone="Europe/Berlin", anchor_hour=6),
            "2025-11-05T05:59", "2025-11-04T06:00", "2025-11-05T06:00", id="before the anchor",
        ),
        pytest.param(
            Window("calendar", unit="day", zone="Pacific/Apia"),
            "2011-12-29T23:00", "2011-12-29", "2011-12-31", id="the day Samoa left out",
        ),
        pytest.param(
            Window("calendar", unit="day", zone="America/Sao_Paulo"),
            "2018-11-04T12:00", "2018-11-04T01:00", "2018-11-05", id="no midnight",
        ),
        pytest.param(
            Window("calendar", unit="hour", zone="Europe/Berlin"),
            "2025-10-26T02:30", "2025-10-26T02:00", "2025-10-26T03:00", id="an hour shown twice",
        ),
        pytest.param(
            Window("calendar", unit="hour", zone="Asia/Kathmandu"),
            "2025-11-05T09:50", "2025-11-05T09:00", "2025-11-05T10:00", id="quarter hours",
        ),
        pytest.param(
            Window("calendar", unit="week", zone="Europe/Berlin"),
            "2025-11-09T23:00", "2025-11-03", "2025-11-10", id="Sunday ends a week",
        ),
        pytest.param(
            Window("calendar", unit="month", zone="Europe/Berlin", anchor_day=15),
            "2025-11-14", "2025-10-15", "2025-11-15", id="billing day",
        ),
        pytest.param(
            Window("calendar", unit="month", zone="UTC", anchor_day=31),
            "2024-02-29", "2024-02-29", "2024-03-31", id="clamped in a leap year",
        ),
        pytest.param(
            Window("calendar", unit="month", zone="UTC", anchor_day=29),
            "2025-02-28", "2025-02-28", "2025-03-29", id="clamped in another year",
        ),
        pytest.param(
            Window("calendar", unit="year", zone="America/St_Johns", anchor_hour=6),
            "2024-01-01T05:00", "2023-01-01T06:00", "2024-01-01T06:00", id="a year begins at its anchor",
        ),
    ],
)  # fmt: skip
def test_calendar_windows_on_the_wall_clock(window: Window, now: str, start: str, end: str) -> None:
    """Calendar windows begin and end when the clock on the wall says so."""
    expected = at(window.zone, start), at(window.zone, end)

    assert span(window, at(window.zone, now)) == expected


def test_an_hour_shown_twice_is_one_window() -> None:
    """When the clock goes back, both passages of the repeated hour share a window."""
    window = Window("calendar", unit="hour", zone="Europe/Berlin")
    first = at("Europe/Berlin", "2025-10-26T02:30")
    second = at("Europe/Berlin", "2025-10-26T02:30", fold=1)

    assert second - first == HOUR
    assert span(window, first) == span(window, second)


def test_a_day_that_began_is_not_left_again() -> None:
    """Where the clock goes back over midnight, the day that had begun goes on."""
    window = Window("calendar", unit="day", zone="America/St_Johns")
    first = at("America/St_Johns", "2010-11-07")
    again = at("America/St_Johns", "2010-11-06T23:30", fold=1)

    assert first < again
    assert span(window, again) == (first, at("America/St_Johns", "2010-11-08"))


def test_concurrency_has_no_window() -> None:
    """A window of kind `none` never ends, and its counter has no lifetime of its own."""
    assert span(NONE, 123) == (0, 0)
    assert ttl_ms(NONE) == 0


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "America", "../../etc/passwd", "", "\0", "A" * 9999]
)
def test_an_unknown_zone_is_named(name: str) -> None:
    """Whatever is no time zone raises `ValueError` with a remedy."""
    with pytest.raises(ValueError, match=r"is not a time zone.*Europe/Berlin"):
        time_zone(name)


def test_utc_needs_no_database() -> None:
    """UTC is known also where the system has no time zone database."""
    assert time_zone("UTC") is UTC


@given(st.integers(0, 2**53), rolling, moments)
def test_what_is_carried_only_falls(previous: int, window: Window, now_ms: int) -> None:
    """Within a window the weight of the one before falls from all of it to something or nothing."""
    start, end = span(window, now_ms)
    now, later = carried(previous, window, start, now_ms), carried(previous, window, start, end - 1)

    assert 0 <= later <= now <= carried(previous, window, start, start) <= previous + 1
    assert carried(previous, window, start, end) == 0


@pytest.mark.parametrize(
    ("elapsed_ms", "weight"), [(-5, 100), (0, 100), (1, 100), (30_000, 50), (59_999, 1)]
)
def test_carried_is_rounded_up(elapsed_ms: int, weight: int) -> None:
    """A part of a unit still counts as one, and a clock gone back never makes more of it."""
    assert carried(100, SLIDING, 0, elapsed_ms) == weight


def test_carried_computes_as_lua_does() -> None:
    """Sums beyond 2**53 round like doubles: the exact quotient here is one less."""
    previous, length = 2**53 - 1, 3 * 365 * DAY
    window = Window("sliding", length)

    assert carried(previous, window, 0, 1) == math.ceil(float(previous) * (length - 1) / length)
    assert carried(previous, window, 0, 1) != -(-previous * (length - 1) // length)


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_use_includes_the_window_before_only_if_sliding(kind: str) -> None:
    """Committed, held, and the rest of a sliding window's predecessor count."""
    window = Window("sliding" if kind == "sliding" else "fixed", MINUTE)
    counter = Counter(2 * MINUTE, 10, 5, MINUTE, 100)

    assert used(counter, window, 2 * MINUTE + MINUTE // 2) == (65 if kind == "sliding" else 15)


def test_use_ignores_an_older_window() -> None:
    """What was used two windows ago no longer weighs."""
    assert used(Counter(2 * MINUTE, 10, 5, 0, 100), SLIDING, 2 * MINUTE) == 15


amounts = st.integers(0, 200) | st.integers(0, 2**53)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Counter, Window, int, int, int]:
    """Return a counter as of now, its window, what is usable, a charge, and now."""
    window = draw(calendars | rolling)
    now = draw(moments)
    start = span(window, now)[0]
    before = start - draw(st.sampled_from([1, 2])) * window.length_ms
    counter = Counter(start, draw(amounts), draw(amounts), before, draw(amounts))
    usable = draw(amounts)
    return counter, window, usable, draw(st.integers(0, usable)), now


def used_later(counter: Counter, window: Window, at_ms: int) -> int:
    """Return what is used at a later time if nothing happens until then, window by window."""
    while counter.start_ms < span(window, at_ms)[0]:
        following = span(window, counter.start_ms)[1]
        total = counter.committed + counter.held
        counter = Counter(following, 0, 0, counter.start_ms, total)
    return used(counter, window, at_ms)


@given(situations())
@example((Counter(0, 100, 0, -MINUTE, 100), SLIDING, 150, 40, 0))
@example((Counter(0, 100, 0, -MINUTE, 0), SLIDING, 100, 100, 0))
def test_fits_at_is_the_first_moment_that_fits(
    situation: tuple[Counter, Window, int, int, int],
) -> None:
    """At the moment it returns the charge fits; a millisecond before it does not."""
    counter, window, usable, charge, now = situation
    moment = fits_at(counter, window, usable, charge, now)

    assert moment is not None
    assert moment >= now
    assert used_later(counter, window, moment) + charge <= usable
    assert moment == now or used_later(counter, window, moment - 1) + charge > usable


@given(
    st.builds(Window, st.just("sliding"), length_ms=st.integers(1, 12)),
    st.lists(st.integers(0, 40), min_size=5, max_size=5),
    st.integers(0, 11),
)
def test_fits_at_agrees_with_trying_every_moment(
    window: Window, amounts: list[int], offset: int
) -> None:
    """No earlier moment fits, as trying each in turn shows."""
    committed, held, previous, usable, charge = amounts
    start = 1000 * window.length_ms
    now = start + offset % window.length_ms
    counter = Counter(start, committed, held, start - window.length_ms, previous)
    tried = range(now, start + 2 * window.length_ms + 1)
    fitting = (at for at in tried if used_later(counter, window, at) + charge <= usable)

    assert fits_at(counter, window, usable, charge, now) == next(fitting, None)


@pytest.mark.parametrize(
    "window", [NONE, SLIDING, Window("fixed", MINUTE), Window("calendar", unit="day")]
)
def test_a_charge_above_the_limit_never_fits(window: Window) -> None:
    """Waiting cannot help a charge that is larger than all that is usable."""
    assert fits_at(Counter(0, 0, 0, 0, 0), window, 9, 10, 0) is None


def test_fits_at_without_a_window() -> None:
    """A concurrent call fits now or, as long as nobody ends one, never."""
    assert fits_at(Counter(0, 0, 3, 0, 0), NONE, 4, 1, 77) == 77
    assert fits_at(Counter(0, 0, 4, 0, 0), NONE, 4, 1, 77) is None


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_fits_at_after_the_clock_went_back(kind: str) -> None:
    """A counter whose window lies ahead of the clock is waited for, not misread."""
    window = Window("sliding" if kind == "sliding" else "fixed", MINUTE)
    counter = Counter(5 * MINUTE, 10, 0, 4 * MINUTE, 0)

    assert fits_at(counter, window, 10, 10, 4 * MINUTE) == (6 if kind == "fixed" else 7) * MINUTE
