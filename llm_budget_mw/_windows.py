"""When windows begin and end, what still weighs from the one before, and when a charge fits.

Half-open windows of one kind tile time: every millisecond lies in exactly one. Times are
milliseconds since the epoch by the store's clock, never by a client's.
"""

from __future__ import annotations

import calendar
import math
from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from llm_budget_mw.types import CalendarUnit, Counter, Window

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Clock changes included; where the clock goes back two hours, one hour lasts three.
_LONGEST_MS: dict[CalendarUnit, int] = {
    "hour": 3 * _HOUR_MS,
    "day": 2 * _DAY_MS,
    "week": 8 * _DAY_MS,
    "month": 32 * _DAY_MS,
    "year": 367 * _DAY_MS,
}
_KEPT = 256
_latest: dict[Window, tuple[int, int]] = {}
"""The span each calendar window was last asked for: the same for hours, and dear to compute."""


def time_zone(name: str) -> tzinfo:
    """Return the time zone of an IANA name; raise `ValueError` if there is none."""
    if name == "UTC":
        return UTC  # also where the system has no time zone database
    try:
        return ZoneInfo(name)
    # OSError: the name is that of a folder of the database, such as "America".
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is not a time zone of this system: write one like Europe/Berlin, "
            "or install the package tzdata"
        ) from None


def in_utc(at_ms: int) -> str:
    """Return a moment in ISO 8601, to the second: `2027-01-19T12:00:00Z`."""
    return f"{_EPOCH + timedelta(milliseconds=at_ms):%Y-%m-%dT%H:%M:%SZ}"


def span(window: Window, now_ms: int) -> tuple[int, int]:
    """Return start and end of the window around `now_ms`; (0, 0) if it never ends."""
    if window.kind == "none":
        return 0, 0
    if window.kind != "calendar":
        start = now_ms - now_ms % window.length_ms
        return start, start + window.length_ms
    known = _latest.get(window)
    if known is None or not known[0] <= now_ms < known[1]:
        if len(_latest) >= _KEPT:
            _latest.clear()
        known = _latest[window] = _calendar_span(window, now_ms)
    return known


def _calendar_span(window: Window, now_ms: int) -> tuple[int, int]:
    index = _index(window, now_ms)
    # The wall clock is only a guess: an anchor or a clock change may put `now_ms` next door.
    while _begin(window, index) > now_ms:
        index -= 1
    while _begin(window, index + 1) <= now_ms:
        index += 1
    return _begin(window, index), _begin(window, index + 1)


def ttl_ms(window: Window) -> int:
    """Return how long a counter must be kept after its last use; 0 for concurrency.

    A fixed or sliding window is still read throughout the next one; a calendar window is
    kept a day longer than it can last, for settlements that come late.
    """
    if window.unit is not None:
        return _LONGEST_MS[window.unit] + _DAY_MS
    return 2 * window.length_ms


def carried(previous: int, window: Window, start_ms: int, now_ms: int) -> int:
    """Return what still weighs of the sum `previous` of the window before `start_ms`.

    In a sliding window that is the part of it less than one length old, rounded up; in the
    same doubles and the same order as the scripts of the store compute it.
    """
    length = window.length_ms
    left = min(length, length - (now_ms - start_ms))
    if window.kind != "sliding" or left <= 0:
        return 0
    return math.ceil(float(previous) * float(left) / float(length))


def used(counter: Counter, window: Window, now_ms: int) -> int:
    """Return what counts against a limit at `now_ms`, in the window of `counter`."""
    current = counter.committed + counter.held
    if counter.previous_start_ms != counter.start_ms - window.length_ms:
        return current
    return current + carried(counter.previous, window, counter.start_ms, now_ms)


def fits_at(counter: Counter, window: Window, usable: int, charge: int, now_ms: int) -> int | None:
    """Return the first moment from `now_ms` on at which `used + charge <= usable`.

    Holds if nothing else happens until then. `counter` is as of `now_ms`. None if that never
    comes: the charge is larger than all that is usable, or the window never ends.
    """
    if charge > usable:
        return None
    if used(counter, window, now_ms) + charge <= usable:
        return now_ms
    if window.kind == "none":
        return None
    end = span(window, max(now_ms, counter.start_ms))[1]
    if window.kind != "sliding":
        return end
    room = usable - charge
    rolled = Counter(end, 0, 0, counter.start_ms, counter.committed + counter.held)
    following = end + window.length_ms
    return (
        _first_fit(counter, window, room, now_ms, end)
        or _first_fit(rolled, window, room, end, following)
        or following
    )


def _first_fit(counter: Counter, window: Window, room: int, begin: int, end: int) -> int | None:
    """Return the first moment in `[begin, end)` at which no more than `room` is used."""

    def fits(at_ms: int) -> bool:
        return used(counter, window, at_ms) <= room

    # Use only falls within one window, so the moments that fit are all at its end.
    at_ms = begin + bisect_left(range(begin, end), True, key=fits)
    return at_ms if at_ms < end else None


def _index(window: Window, now_ms: int) -> int:
    """Return the number of the calendar unit that the wall clock shows at `now_ms`."""
    wall = (_EPOCH + timedelta(milliseconds=now_ms)).astimezone(time_zone(window.zone))
    match window.unit:
        case "hour":
            return wall.toordinal() * 24 + wall.hour
        case "day":
            return wall.toordinal()
        case "week":
            return (wall.toordinal() - 1) // 7  # day 1 of the calendar was a Monday
        case "month":
            return wall.year * 12 + wall.month - 1
        case _:
            return wall.year


@lru_cache(maxsize=4096)
def _begin(window: Window, index: int) -> int:
    """Return when the calendar unit with this number begins."""
    if window.unit == "hour":
        ordinal, hour = divmod(index, 24)
        day = date.fromordinal(ordinal)
    else:
        day, hour = _first_day(window, index), window.anchor_hour
    # A time the clock skips is read with the offset before, which gives the change itself or
    # shortly after; a time shown twice is the first one. Both keep the order of the units.
    begin = datetime.combine(day, time(hour), time_zone(window.zone))
    return (begin.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)


def _first_day(window: Window, index: int) -> date:
    match window.unit:
        case "day":
            return date.fromordinal(index)
        case "week":
            return date.fromordinal(index * 7 + 1)
        case "month":
            year, month = divmod(index, 12)
            last = calendar.monthrange(year, month + 1)[1]
            return date(year, month + 1, min(window.anchor_day, last))
        case _:
            return date(index, 1, 1)
