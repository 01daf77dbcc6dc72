"""Verified credentials, remembered: a second request with the same one costs no signature.

The key is the whole SHA-256 of the whole credential. A part of either would let one
credential pass for another that begins the same way.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from llm_budget_mw.types import Principal

MAX_ENTRIES = 4096
MAX_AGE_S = 60
"""How long a withdrawn signing key or a changed scope may go unnoticed."""


class PrincipalCache:
    """Principals by digest, the least recently used dropped first; safe to share by threads."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes, now: float) -> Principal | None:
        """Return the principal of a credential verified within the last minute."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            principal, until = entry
            if now < until:
                self._entries.move_to_end(digest)
                return principal
            del self._entries[digest]
            return None

    def put(self, digest: bytes, principal: Principal, *, expires_at: float, now: float) -> None:
        """Remember a principal until its credential expires, at most for a minute."""
        with self._lock:
            self._entries[digest] = principal, min(expires_at, now + MAX_AGE_S)
            self._entries.move_to_end(digest)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
