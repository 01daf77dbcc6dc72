"""How long a provider asks its callers to wait, read from headers that may say anything.

What cannot be read, lies in the past or is longer than a day counts as not said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_DAY_S = 86_400.0
_LONGEST = 64
"""Characters of a value worth reading."""
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:h|ms|m|s|us|µs|ns))+", re.ASCII)
_PART = re.compile(r"([\d.]+)(h|ms|m|s|us|µs|ns)", re.ASCII)
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `retry-after-ms`, else of `retry-after`: a number or an HTTP date."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _sensible(milliseconds / 1000)
    value = headers.get("retry-after", "").strip()
    seconds = _number(value)
    return _sensible(_until(_http_date(value)) if seconds is None else seconds)


def reset_s(value: str) -> float | None:
    """Return the seconds of a reset: a duration (`1m30.5s`), a number of seconds, or a date."""
    value = value.strip()
    if len(value) > _LONGEST:
        return None
    seconds = _number(value)
    if seconds is None:
        seconds = _duration(value)
    return _within_a_day(_until(_timestamp(value)) if seconds is None else seconds)


def _number(value: str) -> float | None:
    value = value.strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def _duration(value: str) -> float | None:
    if not _DURATION.fullmatch(value):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(value))


def _http_date(value: str) -> datetime | None:
    if len(value) > _LONGEST:
        return None
    try:
        return parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _timestamp(value: str) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _until(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() - time.time()


def _sensible(seconds: float | None) -> float | None:
    """Return a wait worth the name: zero asks for nothing."""
    within = _within_a_day(seconds)
    return within or None


def _within_a_day(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 <= seconds <= _DAY_S else None
