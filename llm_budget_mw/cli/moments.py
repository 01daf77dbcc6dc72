"""When a change ends, as operators write it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from llm_budget_mw._windows import time_zone
from llm_budget_mw.errors import ConfigurationError

_DURATION = re.compile(r"([0-9]{1,6})\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=10 * 366)


def end(until: str | None, duration: str | None, zone: str, now: datetime) -> datetime | None:
    """Return when a change ends; None for never. A time without a zone is in `zone`.

    Raises `ConfigurationError` saying how to write it.
    """
    if duration is not None:
        return now + _length(duration)
    return None if until is None else _time(until, zone)


def shown(moment: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _length(written: str) -> timedelta:
    match = _DURATION.fullmatch(written.strip())
    if match is None:
        raise ConfigurationError(f"--for {written!r} is not a duration: write 90m, 2h, 7d or 4w")
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if not timedelta() < length <= _LONGEST:
        raise ConfigurationError(f"--for {written!r} has to be above 0 and at most ten years")
    return length


def _time(written: str, zone: str) -> datetime:
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        raise ConfigurationError(
            f"--until {written!r} is not a time: write 2027-01-31 or 2027-01-31T18:00+01:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=time_zone(zone))
