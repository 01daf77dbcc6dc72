"""Primaries of a cluster that die, hang or hand over while calls are made."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from redis.crc import key_slot

from llm_budget_mw.errors import StoreError
from llm_budget_mw.types import Principal
from tests.cluster.load import Load
from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import Cluster, Node, other_primary, poll, promoted
from tests.stores.kit import DAY, limit, limits, plan

_log = logging.getLogger(__name__)
WHO = [Principal(f"user{number}", tenant=f"team{number}") for number in range(9)]
"""They lie on all three primaries."""
MOST_LOST = 40
"""Settlements a crash may forget that the replica had not heard of yet, on a slow machine."""


def check_books(load: Load) -> int:
    """Check that nothing was charged twice; return the number of calls that were forgotten."""
    charged, lost = load.charged(), 0
    for name, calls in load.calls.items():
        requests, _ = charged[name]
        assert requests <= calls, name
        lost += calls - requests
    return lost


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("valkey", Node.kill), ("redis", Node.kill), ("valkey", Node.pause)],
    ids=["valkey-dies", "redis-dies", "valkey-hangs"],
)
def test_primary_goes_away(cluster: Cluster, ending: Callable[[Node], None]) -> None:
    """Calls go on, by the rule for outages, until the replica is there; nothing counts twice."""
    with Load(cluster.url, WHO, deadline_ms=200) as load:
        primary = cluster.owner(0)
        replica = cluster.replica_of(primary)
        ending(primary)
        poll(lambda: promoted(replica), "the replica takes over")
        load.wait_until_checked()
    if ending is Node.pause:
        primary.resume()

    lost = check_books(load)
    numbers = (load.calls.total(), load.unchecked, lost)
    _log.info("%d calls, %d unchecked, %d forgotten: %s", *numbers, load.errors)
    assert lost <= MOST_LOST


def test_primary_hands_over(cluster: Cluster) -> None:
    """A failover that is asked for costs nothing: every call is checked and counted once."""
    with Load(cluster.url, WHO) as load:
        cluster.hand_over(cluster.replica_of(cluster.owner(0)))
        load.wait_for(40)

    assert (load.unchecked, load.errors) == (0, {})
    assert load.charged() == load.expected()


@pytest.mark.parametrize("kind", ["valkey"])
def test_part_of_the_cluster_is_gone(cluster: Cluster) -> None:
    """Without a primary and its replica the cluster is down: an outage, until they are back."""
    few = limits(limit(100, window=DAY))
    stores = [open_store(way, cluster.url, deadline_ms=1_000) for way in WAYS]
    assert [store.admit(plan(few)).counters[2] for store in stores] == [1, 1]
    primary = other_primary(cluster, cluster.owner(key_slot(b"acme")))
    for node in (primary, cluster.replica_of(primary)):
        node.kill()
    survivor = next(node for node in cluster.nodes if node.runs)
    poll(lambda: b"cluster_state:fail" in survivor.client.execute_command("CLUSTER", "INFO"))

    for store in stores:
        with pytest.raises(StoreError, match="ClusterDown"):
            store.admit(plan(few))
    cluster.revive()
    for store in stores:
        assert store.admit(plan(few)).counters[2] == 2
        store.close()
