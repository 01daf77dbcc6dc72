"""Slots that move to another node while accounts in them are in use."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from llm_budget_mw.errors import StoreError
from llm_budget_mw.types import Plan, Principal
from tests.cluster.load import Load
from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import Cluster, Node, other_primary, poll
from tests.stores.kit import DAY, limit, limits, plan, someone

HOT = [Principal("alice", tenant="acme"), Principal("bob", tenant="acme")]
SLOT = key_slot(b"acme")
SWITCHES = key_slot(b"switches")


class Migration:
    """A slot on its way from its owner to another primary, step by step."""

    def __init__(self, cluster: Cluster, slot: int) -> None:
        self.slot = slot
        self.source = cluster.owner(slot)
        self.target = other_primary(cluster, self.source)
        self._cluster = cluster
        self._names = (cluster.name(self.source), cluster.name(self.target))

    def open(self) -> None:
        """Let both nodes know: keys that are not at the source any more are asked for."""
        source, target = self._names
        self._set(self.target, "IMPORTING", source)
        self._set(self.source, "MIGRATING", target)

    def is_asked_since(self, asked: int) -> bool:
        """Return whether the target has got calls; of the switches a process asks once a second."""
        return times_asked(self.target) > asked

    def move(self, most: int = 100) -> int:
        """Move so many of the keys that are there; return how many they were."""
        keys = self.source.client.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, most)
        for key in keys:
            at = ("127.0.0.1", self.target.port, key, 0, 5000)
            self.source.client.execute_command("MIGRATE", *at)
        return len(keys)

    def close(self) -> None:
        """Make the target the owner."""
        while self.move():
            pass
        for node in (self.target, self.source):
            self._set(node, "NODE", self._names[1])
        poll(lambda: self._cluster.owner(self.slot) is self.target, "the new owner is known")

    def _set(self, node: Node, *words: str) -> None:
        node.client.execute_command("CLUSTER", "SETSLOT", self.slot, *words)


def times_asked(node: Node) -> int:
    """Return how often a node was sent `ASKING`."""
    stats = node.client.info("commandstats")
    return int(stats.get("cmdstat_asking", {}).get("calls", 0))


def rejected_at(node: Node, word: str) -> int:
    """Return how often a node answered with this error since it started."""
    stats = node.client.info("errorstats")
    return int(stats.get(f"errorstat_{word}", {}).get("count", 0))


@pytest.mark.parametrize("slot", [SLOT, SWITCHES], ids=["accounts", "switches"])
def test_slot_moves_under_load(cluster: Cluster, slot: int) -> None:
    """While a slot moves there and back, every call is checked and charged once."""
    with Load(cluster.url, HOT) as load:
        for _ in range(2):
            migration = Migration(cluster, slot)
            asked = times_asked(migration.target)
            migration.open()
            load.wait_for(20)
            migration.move()
            load.wait_for(20)
            poll(partial(migration.is_asked_since, asked), "the target is asked")
            migration.close()
            load.wait_for(20)

    assert (load.unchecked, load.errors) == (0, {})
    assert load.charged() == load.expected()


def test_slot_moves_at_once(cluster: Cluster) -> None:
    """The same where the servers move a slot by themselves, which Valkey 9 does."""
    if cluster.kind == "redis":
        pytest.skip("Redis 7 cannot")
    with Load(cluster.url, HOT) as load:
        source = cluster.owner(SLOT)
        target = other_primary(cluster, source)
        to = ("SLOTSRANGE", SLOT, SLOT, "NODE", cluster.name(target))
        for _ in range(5):  # servers that are short of time give a migration up
            with contextlib.suppress(ResponseError, AssertionError):
                source.client.execute_command("CLUSTER", "MIGRATESLOTS", *to)
                poll(lambda: cluster.owner(SLOT) is target, "the slot has moved", 10)
                break
        assert cluster.owner(SLOT) is target
        load.wait_for(20)

    assert (load.unchecked, load.errors) == (0, {})
    assert load.charged() == load.expected()


def pair() -> Plan:
    """Return a call that counts for two accounts in one slot."""
    return plan(*(someone(name, limits(limit(1000, window=DAY))) for name in ("user", "team")))


@pytest.fixture
def halfway(cluster: Cluster) -> Iterator[Migration]:
    """Return a migration of a slot without other keys, that ends with the test."""
    migration = Migration(cluster, SLOT)
    migration.source.client.flushall()
    yield migration
    migration.close()


@pytest.mark.parametrize("way", WAYS)
def test_call_whose_accounts_are_apart(cluster: Cluster, halfway: Migration, way: str) -> None:
    """With one account here and one there a call waits until they are together again."""
    store = open_store(way, cluster.url)
    store.admit(pair())
    halfway.open()
    halfway.move(1)

    before = rejected_at(halfway.source, "TRYAGAIN")

    def reunite() -> None:
        poll(lambda: rejected_at(halfway.source, "TRYAGAIN") > before + 3, "it is tried again")
        halfway.move()

    with ThreadPoolExecutor(1) as pool:
        moved = pool.submit(reunite)
        assert store.admit(pair()).counters[2::5] == (2, 2)
        moved.result()
    store.close()


@pytest.mark.parametrize("way", WAYS)
def test_accounts_that_stay_apart(cluster: Cluster, halfway: Migration, way: str) -> None:
    """If they do not come together in time, that is an outage, and the message tells why."""
    store = open_store(way, cluster.url, deadline_ms=150)
    store.admit(pair())
    halfway.open()
    halfway.move(1)

    start = time.monotonic()
    with pytest.raises(StoreError, match="TryAgain"):
        store.admit(pair())
    assert time.monotonic() - start < 2
    halfway.move()
    assert store.admit(pair()).counters[2::5] == (2, 2)
    store.close()
