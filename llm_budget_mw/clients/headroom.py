"""What a provider says is left of its own limits, for each key and model.

Only ever a reason to wait a little: whatever a provider writes into its headers, nobody is
held back for longer than `LONGEST_S` after the answer that said so.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from llm_budget_mw.clients import waits

LONGEST_S = 60.0
_KEPT = 256
"""Pairs of key and model known at a time; the least recently heard of goes first."""
_TOO_MANY = 429
_COUNT = re.compile(r"\d{1,15}", re.ASCII)
_CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
_FORMS = (
    ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    (
        "anthropic-ratelimit-{}-limit",
        "anthropic-ratelimit-{}-remaining",
        "anthropic-ratelimit-{}-reset",
    ),
)
_SALT = secrets.token_bytes(16)

Counted = Literal["requests", "tokens"]
Key = tuple[str, str]
"""A digest of where a request goes and with which credential, and the model."""


class Room(NamedTuple):
    """What is left of one limit of a provider."""

    limit: int
    remaining: int
    reset_at: float
    """When it will be whole again, by the clock of its `Headroom`, in seconds."""


class _Heard(NamedTuple):
    rooms: Mapping[Counted, Room]
    at: float
    not_before: float
    """When the provider wants to hear of us again."""


def key_of(host: str, headers: Mapping[str, str], model: str) -> Key:
    """Return the key of a request; no credential can be read from it."""
    digest = hashlib.blake2b(host.encode(), key=_SALT, digest_size=16)
    for name in _CREDENTIALS:
        digest.update(b"\0" + headers.get(name, "").encode(errors="replace"))
    return digest.hexdigest(), model


class Headroom:
    """The latest word of a provider on each key and model; for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: OrderedDict[Key, _Heard] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, key: Key, status: int, headers: Mapping[str, str]) -> None:
        """Note what an answer says; one that says nothing that can be read changes nothing."""
        now = self._clock()
        rooms: dict[Counted, Room] = {
            name: room for name in _COUNTED if (room := _room(headers, name, now))
        }
        # A `retry-after` on an answer that succeeded means nothing.
        pause_s = waits.retry_after_s(headers) if status == _TOO_MANY else None
        if not rooms and pause_s is None:
            return
        with self._lock:
            self._heard[key] = _Heard(rooms, now, now + (pause_s or 0.0))
            self._heard.move_to_end(key)
            if len(self._heard) > _KEPT:
                self._heard.popitem(last=False)

    def room(self, key: Key, counted: Counted) -> Room | None:
        """Return what was last said of a limit; None if nothing was."""
        with self._lock:
            heard = self._heard.get(key)
        return heard.rooms.get(counted) if heard else None

    def wait_s(self, key: Key, tokens: int) -> float:
        """Return how many seconds to hold back a call of so many tokens; 0 for none."""
        with self._lock:
            heard = self._heard.get(key)
        if heard is None:
            return 0.0
        now = self._clock()
        fits_at = [_fits_at(room, {"requests": 1}.get(name, tokens), heard.at)
                   for name, room in heard.rooms.items()]  # fmt: skip
        until = min(max(heard.not_before, *fits_at, 0.0), heard.at + LONGEST_S)
        return max(0.0, until - now)


_COUNTED: tuple[Counted, ...] = ("requests", "tokens")


def _room(headers: Mapping[str, str], counted: Counted, now: float) -> Room | None:
    for names in _FORMS:
        limit, remaining, reset = (headers.get(name.format(counted), "") for name in names)
        reset_s = waits.reset_s(reset)
        if _COUNT.fullmatch(limit) and _COUNT.fullmatch(remaining) and reset_s is not None:
            room = Room(int(limit), int(remaining), now + reset_s)
            if 0 <= room.remaining <= room.limit and room.limit:
                return room
    return None


def _fits_at(room: Room, need: int, heard_at: float) -> float:
    """Return when `need` will be there: these limits fill up evenly until their reset."""
    missing = min(need, room.limit) - room.remaining
    if missing <= 0:
        return heard_at
    return heard_at + (room.reset_at - heard_at) * missing / (room.limit - room.remaining)
