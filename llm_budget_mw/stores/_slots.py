"""The way through a cluster: which node holds a slot, and what to do when it is another one.

Pure, and shared by threads and event loops: a journey is a generator that yields what to send
where and is given the reply, or the error that came in its place. Not redis-py's cluster
clients: the asynchronous one asks (`ASKING`) on one connection and calls on another, so that a
slot that moves is out of reach, and both close the connections of calls under way when they
read the map again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, cast

from redis import exceptions
from redis.crc import key_slot

from llm_budget_mw.errors import StoreError

FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
"""All that redis-py raises for a server that does not do what it should."""
Address = tuple[str, int]
_AT_ONCE = 3
"""Attempts without a pause: the owner, the one it tells of, the one that is to be asked."""
_PAUSE_S = 0.01
"""Before each further one: keys are on their way, or nodes do not agree yet."""


class Call(NamedTuple):
    """Send the call to this node."""

    address: Address
    asking: bool = False
    """Whether with `ASKING`: the slot is on its way there."""


class Reread(NamedTuple):
    """Read the map again, unless somebody has since; an error in reply if nobody can tell it."""

    reading: int


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Step = Call | Reread | Pause
Journey = Generator[Step, object, object]


class Slots:
    """The map of a cluster as last heard. Whoever travels by it has a deadline: it does not end."""

    def __init__(self, seeds: Sequence[Address]) -> None:
        self.nodes = frozenset(seeds)
        """Every node that is known, primary or replica."""
        self.reading = 0
        """Grows with every attempt to read the map."""
        self._seeds = tuple(seeds)
        self._owners: dict[int, Address] = {}
        self._doubted = True
        self._suspects: set[Address] = set()
        self._hint: Address | None = None

    def journey(self, key: str) -> Journey:
        """Return the steps of one call; its value is the reply, or the error it failed with."""
        slot, failure = key_slot(key.encode()), None
        if self._doubted:
            failure = yield Reread(self.reading)
        step = self._to_owner(slot)
        if step is None:
            return failure or exceptions.ClusterDownError(f"no node is known for slot {slot}")
        for attempt in itertools.count(1):
            answer = yield step
            following = yield from self._after(answer, slot, step)
            if following is None:
                return answer
            if attempt >= _AT_ONCE:
                yield Pause(_PAUSE_S)
            step = following
        raise AssertionError

    def sources(self) -> list[Address]:
        """Return the nodes to ask for the map, the likeliest to know first."""
        nodes = sorted(self.nodes)
        random.shuffle(nodes)
        hinted = [self._hint] if self._hint else []
        found = dict.fromkeys([*hinted, *nodes, *self._seeds])
        return sorted(found, key=self._suspects.__contains__)

    def begin_reading(self) -> None:
        """Note an attempt to read the map, so that those who wait for it need no other."""
        self.reading += 1

    def read(self, reply: object, source: Address) -> None:
        """Take over what a node replied to `CLUSTER SLOTS`."""
        owners: dict[int, Address] = {}
        nodes: set[Address] = set()
        for first, last, *holders in cast("list[Any]", reply):
            addresses = [_address(holder, source) for holder in holders]
            nodes.update(addresses)
            owners.update(dict.fromkeys(range(first, last + 1), addresses[0]))
        if not owners:
            raise exceptions.ClusterDownError("no slot is assigned")
        self.nodes, self._owners = frozenset(nodes), owners
        self._doubted, self._hint = False, None
        self._suspects.clear()

    def doubt(self, suspect: Address) -> None:
        """Have the map read before the next call, and not by this node if there are others."""
        self._doubted = True
        self._suspects.add(suspect)

    def _to_owner(self, slot: int) -> Call | None:
        address = self._owners.get(slot)
        return Call(address) if address else None

    def _after(self, answer: object, slot: int, step: Call) -> Generator[Step, object, Call | None]:
        """Return where to try next; None if there is no better place."""
        error = answer.__cause__ if isinstance(answer, StoreError) else answer
        if isinstance(error, exceptions.MovedError):
            return self._moved(error, slot, step)
        if isinstance(error, exceptions.AskError):
            return Call(_told(error, step), asking=True)
        if isinstance(error, exceptions.TryAgainError):
            return self._to_owner(slot)
        if not isinstance(error, _AWAY):
            return None
        self.doubt(step.address)
        yield Reread(self.reading)
        other = self._to_owner(slot)
        return other if other and other.address != step.address else None

    def _moved(self, error: exceptions.MovedError, slot: int, step: Call) -> Call:
        address = _told(error, step)
        self._owners[slot] = address
        self._doubted, self._hint = True, address
        return Call(address)


_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    OSError,
)
"""Errors after which another node may be the one to ask."""


def _told(error: exceptions.AskError, step: Call) -> Address:
    host, port = cast("Address", error.node_addr)  # pyright: ignore[reportUnknownMemberType]
    # Without a host it is another port of the node that said so.
    return host or step.address[0], port


def _address(holder: list[Any], source: Address) -> Address:
    host, port = holder[0], int(holder[1])
    name = host.decode() if isinstance(host, bytes) else host
    return name or source[0], port
