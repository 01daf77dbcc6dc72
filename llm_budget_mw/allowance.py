"""What this process may admit of `local` limits by itself: its slot.

The share of a limit that may be admitted without the store is divided into slots. A slot is a
lease in the store that one process holds at a time, so that any number of processes admits no
more than the share. Whoever has none, or has not heard of the store for too long, admits nothing.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace

from llm_budget_mw.config import Config, LimitedConfig, OutageConfig
from llm_budget_mw.types import Limit

_DRIFT = 0.99
"""Part of a lease that is used: our clock may be slower than the store's."""
_RENEW_S = 10.0
"""A store that came back empty hands slots out anew: those who have one ask this often."""
_LEAST_S = 0.05


class Slot:
    """The slot of this process, as far as it knows."""

    def __init__(
        self,
        config: OutageConfig,
        *,
        wanted: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = config.processes
        self.wanted = wanted
        self._lease_s = config.local_s
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """Be another process: one without a slot."""
        self._holder = os.urandom(12).hex()
        self._number = 0
        self._until = self._renew_at = -math.inf

    @property
    def number(self) -> int:
        """The number of the slot, from 1; 0 without one, or if its time is over."""
        return self._number if self._clock() < self._until else 0

    @property
    def claim(self) -> tuple[str, int, int]:
        """The arguments of `Store.claim`; if no slot is wanted, to give one back."""
        return self._holder, self.slots, self._lease_s * 1000 if self.wanted else 0

    @property
    def release(self) -> tuple[str, int, int]:
        """The arguments of `Store.claim` that give the slot back."""
        return self._holder, self.slots, 0

    def begin(self) -> float:
        """Return when a claim begins, to be told with its answer."""
        return self._clock()

    def took(self, number: int, begun_at: float) -> None:
        """Note the answer to a claim; its lease counts from before it was sent."""
        self._number = number
        self._until = begun_at + self._lease_s * _DRIFT
        # Jitter is no secret; it only keeps processes apart.
        part = random.uniform(0.5, 1.0)  # noqa: S311
        self._renew_at = self._clock() + min(_RENEW_S, self._lease_s / 4) * part

    def renew_in(self) -> float | None:
        """Return the seconds until the next claim; None if no slot is wanted."""
        return max(_LEAST_S, self._renew_at - self._clock()) if self.wanted else None


def share(limit: Limit) -> int:
    """Return what all processes together may admit of a limit without the store."""
    return int(limit.amount * limit.local_share)


def part(limit: Limit, number: int, slots: int) -> Limit:
    """Return the part of a limit that one slot is worth; the parts add up to its share."""
    each, rest = divmod(share(limit), slots)
    return replace(limit, amount=each + (number <= rest), carry=0, on_outage="open")


def needs_slots(config: Config) -> bool:
    """Return whether any limit of a configuration is `local`."""
    if config.mode == "shadow":
        return False
    return any(map(_has_local, (*config.tiers.values(), *config.limits)))


def _has_local(table: LimitedConfig) -> bool:
    rules = [
        written.on_outage or getattr(table.on_outage, option)
        for option, written in table.rated_limits
    ]
    if table.concurrency is not None:
        rules.append(table.on_outage.concurrency)
    return "local" in rules
