"""The keys an issuer publishes, and when to ask for them again: decisions without I/O.

A key set is a value; every question takes the time, every answer of the key server makes
a new set. The rules:

- keys are fresh for as long as the server says, and serve on while a new set is fetched;
- keys nobody could renew serve for `stale_s` more, and then no longer;
- a key that is not in the set is a reason to ask, but only once in a cool-down, so that
  invented key ids cannot make us a weapon against the issuer.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.identity.peek import Peek
from llm_budget_mw.identity.signatures import VerificationKey, read_jwk

MAX_KEYS = 100
MIN_AGE_S, MAX_AGE_S = 300, 86_400
RETRY_S = 2
"""Pause after a failure that leaves no key to serve with: every request is refused then."""

_MAX_AGE = re.compile(r'(?:^|[\s,])max-age="?(\d{1,12})', re.IGNORECASE)
_NO_CACHE = re.compile(r"(?:^|[\s,])no-(?:cache|store)", re.IGNORECASE)


def parse_jwks(body: bytes, algorithms: tuple[str, ...]) -> tuple[VerificationKey, ...]:
    """Read the usable keys of a JWK set (RFC 7517 section 5); at least one.

    Raises `ValueError` saying what is wrong. Members that are not usable are skipped.
    """
    members = _read_members(body)
    if members is None:
        raise ValueError("the answer is not a JWK set")
    if len(members) > MAX_KEYS:
        raise ValueError(f"the JWK set has more than {MAX_KEYS} keys")
    keys = (read_jwk(member, algorithms) for member in members)
    usable = tuple(key for key in keys if key is not None)
    if not usable:
        raise ValueError(f"the JWK set has no public key for {', '.join(algorithms)}")
    return usable


def _read_members(body: bytes) -> list[object] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    members = cast("dict[str, Any]", document).get("keys") if isinstance(document, dict) else None
    return cast("list[object]", members) if isinstance(members, list) else None


def read_max_age_s(cache_control: str, default_s: float) -> float:
    """Return for how long an answer with this `Cache-Control` is fresh, within bounds."""
    if _NO_CACHE.search(cache_control):
        return MIN_AGE_S
    match = _MAX_AGE.search(cache_control)
    return min(max(int(match[1]), MIN_AGE_S), MAX_AGE_S) if match else default_s


class Lookup(NamedTuple):
    """What a key set says about one credential."""

    key: VerificationKey | None
    fetch: bool
    """Whether the key server should be asked now: to wait for it, if there is no key."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one issuer at one time; times and durations are in seconds."""

    stale_s: float
    cooldown_s: float
    keys: tuple[VerificationKey, ...] = ()
    max_age_s: float = 0
    fetched_at: float = -math.inf
    attempted_at: float = -math.inf
    """End of the last fetch, whatever came of it."""

    def received(self, keys: tuple[VerificationKey, ...], max_age_s: float, now: float) -> KeySet:
        """Return the set after a fetch that brought keys."""
        return replace(self, keys=keys, max_age_s=max_age_s, fetched_at=now, attempted_at=now)

    def failed(self, now: float) -> KeySet:
        """Return the set after a fetch that brought none."""
        return replace(self, attempted_at=now)

    def look_up(self, wanted: Peek, now: float) -> Lookup:
        """Find the key for a credential, and say whether a fetch is due.

        Raises `AuthenticationError` if the credential names no key and several fit.
        """
        key = self._find(wanted) if self._is_usable(now) else None
        if key is not None and _is_within(now - self.fetched_at, self.max_age_s):
            return Lookup(key, fetch=False)
        pause_s = self.cooldown_s if self._is_usable(now) else min(self.cooldown_s, RETRY_S)
        return Lookup(key, fetch=not _is_within(now - self.attempted_at, pause_s))

    def refusal(self, now: float) -> AuthenticationError:
        """Return the error for a credential whose key was not found."""
        if self._is_usable(now):
            return AuthenticationError("the credential is signed with an unknown key")
        # Not the client's fault, and it may come back with the same credential.
        return AuthenticationError("keys unavailable", code=None, status=503)

    def _find(self, wanted: Peek) -> VerificationKey | None:
        fitting = [key for key in self.keys if wanted.alg in key.algorithms]
        if wanted.kid is not None:
            return next((key for key in fitting if key.kid == wanted.kid), None)
        if len(fitting) > 1:
            raise AuthenticationError("the credential does not name its key")
        return fitting[0] if fitting else None

    def _is_usable(self, now: float) -> bool:
        return bool(self.keys) and now - self.fetched_at < self.max_age_s + self.stale_s


def _is_within(elapsed_s: float, span_s: float) -> bool:
    # A clock that was set back must not stretch the span: then it counts as over.
    return 0 <= elapsed_s < span_s
