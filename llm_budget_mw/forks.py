"""What a forked process must not share with its parent: locks, threads, connections, a slot.

A server may open an application before it forks its workers, and a program may fork at any
time. What is registered here is told in the child, before anything else runs there.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """An object that has to begin anew in a child."""

    def after_fork(self) -> None:
        """Forget what belongs to the parent; nothing else runs yet."""
        ...


_objects: WeakSet[Forked] = WeakSet()


def register(each: Forked) -> None:
    """Have `after_fork` called in every child of this process, while the object lives."""
    _objects.add(each)


def _begin_anew() -> None:
    for each in list(_objects):
        each.after_fork()


os.register_at_fork(after_in_child=_begin_anew)
