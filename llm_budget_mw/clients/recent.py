"""What one process sent in the last minute: exact, so that no minute ever holds more.

Whichever minutes a provider counts in, or whether it fills a bucket, a limit kept in every
minute is kept in its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.types import MAX_AMOUNT

_MARGIN = 1.01


@dataclass(frozen=True, slots=True)
class UpstreamLimit:
    """What a provider allows one of our keys for one of its models, or a group of them."""

    name: str
    """Names the counters that processes share."""
    requests: int | None = None
    tokens: int | None = None
    """Input and output together; None for no limit."""
    per_s: float = 60.0
    """Length of any window these may be used in."""

    def __post_init__(self) -> None:
        """Raise `ConfigurationError` for a limit that cannot be kept."""
        if not self.name:
            raise ConfigurationError("name: an upstream limit has to have one, such as its model's")
        if self.requests is None and self.tokens is None:
            raise ConfigurationError(
                f"upstream limit {self.name}: give `requests`, `tokens` or both per {self.per_s:g} s"
            )
        for option, amount in (("requests", self.requests), ("tokens", self.tokens)):
            if amount is not None and not _is_amount(amount):
                raise ConfigurationError(
                    f"upstream limit {self.name}: {option} is {amount!r}; it has to be a whole "
                    f"number from 1 to 2**53, or None for no limit"
                )
        if not 0.001 <= self.per_s <= 86_400:  # noqa: PLR2004 (a millisecond, a day)
            raise ConfigurationError(
                f"upstream limit {self.name}: per_s is {self.per_s!r}; it has to be from 0.001 to "
                "86400 seconds"
            )

    @property
    def window_s(self) -> float:
        """How long a call counts: a little longer, as some take longer on their way."""
        return self.per_s * _MARGIN

    def weight(self, tokens: int) -> int:
        """Return what to count for a call of so many tokens.

        An estimate larger than the whole limit is cut to it: such a call goes out alone, and
        its provider has the last word.
        """
        return max(0, min(tokens, self.tokens if self.tokens is not None else MAX_AMOUNT))


@dataclass(eq=False, slots=True)
class Entry:
    """One call that was sent."""

    at: float
    tokens: int
    gone: bool = False
    """True once it is too old to matter."""


class Recent:
    """The calls of the last window; times are seconds of one monotonic clock."""

    def __init__(self, limit: UpstreamLimit) -> None:
        self._limit = limit
        self._window_s = limit.window_s
        self._entries: deque[Entry] = deque()
        self._tokens = 0

    def wait_s(self, tokens: int, now: float) -> float:
        """Return the seconds until a call fits, if nothing else happens.

        `tokens` are a `weight`, so that it fits at last.
        """
        self._forget(now)
        too_many = self._excess(self._limit.requests, len(self._entries), 1)
        too_much = self._excess(self._limit.tokens, self._tokens, tokens)
        until, oldest = now, iter(self._entries)
        while too_many > 0 or too_much > 0:
            entry = next(oldest)  # without any of them every weight fits
            too_many -= 1
            too_much -= entry.tokens
            until = entry.at + self._window_s
        return until - now

    def add(self, tokens: int, now: float) -> Entry:
        """Count a call that is being sent."""
        entry = Entry(now, tokens)
        self._entries.append(entry)
        self._tokens += tokens
        return entry

    def correct(self, entry: Entry, tokens: int) -> None:
        """Count what a call really used in place of its estimate."""
        if not entry.gone:
            self._tokens += tokens - entry.tokens
            entry.tokens = tokens

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0].at + self._window_s <= now:
            entry = self._entries.popleft()
            entry.gone = True
            self._tokens -= entry.tokens

    @staticmethod
    def _excess(limit: int | None, used: int, more: int) -> int:
        return 0 if limit is None else used + more - limit


def _is_amount(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_AMOUNT
