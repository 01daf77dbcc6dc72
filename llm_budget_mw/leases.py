"""Renewing the leases of running calls where no event loop does: one thread for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llm_budget_mw import forks
from llm_budget_mw.types import Grant

_LOOKS = 4
"""How often in the time of a lease the thread looks."""


class Leases:
    """The running calls of one guard.

    The thread starts with the first call and ends when it finds none.
    """

    def __init__(
        self, renew: Callable[[Grant], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._renew = renew
        self._clock = clock
        self._closed = threading.Event()
        self.after_fork()
        forks.register(self)

    def after_fork(self) -> None:
        """Have no calls and no thread: those are the parent's."""
        self._due: dict[str, tuple[Grant, float]] = {}
        """Reservation id -> what to renew, and when."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def keep(self, grant: Grant) -> None:
        """Renew this lease at half of it, until it is dropped."""
        if not grant.plan.subjects:
            return
        with self._lock:
            self._due[grant.plan.id] = (grant, self._next(grant))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run,
                    args=(grant.plan.lease_ms / 1000 / _LOOKS,),
                    name="llm-budget-leases",
                    daemon=True,
                )
                self._thread.start()

    def drop(self, grant: Grant) -> None:
        """Stop: the call has ended."""
        with self._lock:
            self._due.pop(grant.plan.id, None)

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()

    def renew_due(self) -> None:
        """Renew every lease of which half is over."""
        now = self._clock()
        with self._lock:
            due = [grant for grant, at in self._due.values() if at <= now]
        for grant in due:
            self._renew(grant)
            with self._lock:
                if grant.plan.id in self._due:
                    self._due[grant.plan.id] = (grant, self._next(grant))

    def _next(self, grant: Grant) -> float:
        return self._clock() + grant.plan.lease_ms / 2000

    def _run(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.renew_due()
            with self._lock:
                if not self._due:
                    self._thread = None
                    return
