"""Whose turn it is: round robin over principals, first come first served inside one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Place = TypeVar("Place")


class Line(Generic[Place]):
    """Places of those who wait; every operation takes the same time, however many they are."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._lanes: OrderedDict[str, OrderedDict[Place, None]] = OrderedDict()
        """By principal; the first place of the first lane is next."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def head(self) -> Place | None:
        """The place whose turn it is; None if nobody waits."""
        for lane in self._lanes.values():
            return next(iter(lane))
        return None

    def join(self, principal: str, place: Place) -> bool:
        """Put a place at the end of its principal's lane; False if the line is full."""
        if self._length >= self._longest:
            return False
        self._lanes.setdefault(principal, OrderedDict())[place] = None
        self._length += 1
        return True

    def leave(self, principal: str, place: Place, *, served: bool) -> None:
        """Take a place out; a principal that was served waits for all others' next turn."""
        lane = self._lanes[principal]
        del lane[place]
        self._length -= 1
        if not lane:
            del self._lanes[principal]
        elif served:
            self._lanes.move_to_end(principal)
