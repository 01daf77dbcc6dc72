"""Slots that processes hold, on clusters and behind sentinels."""

from __future__ import annotations

import pytest

from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import Cluster, Sentinels

_LONG_MS = 60_000


@pytest.mark.parametrize("way", WAYS)
def test_a_cluster_gives_each_slot_to_one(cluster: Cluster, way: str) -> None:
    """All of them are on one node, so that one script sees them."""
    store = open_store(way, cluster.url)

    assert [store.claim(holder, 3, _LONG_MS) for holder in ("a", "b", "a")] == [1, 2, 1]
    assert [store.claim("a", 3, 0), store.claim("c", 3, _LONG_MS)] == [0, 1]
    store.close()


@pytest.mark.parametrize("way", WAYS)
def test_the_primary_gives_slots(sentinels: Sentinels, way: str) -> None:
    """The one the sentinels name."""
    store = open_store(way, sentinels.url)

    assert [store.claim(holder, 1, _LONG_MS) for holder in ("a", "b", "a")] == [1, 0, 1]
    store.close()
