"""A primary behind sentinels that dies, hangs or hands over while calls are made."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from llm_budget_mw.types import Charges, Principal
from tests.cluster.load import Load
from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import SERVICE, Node, Sentinels, poll
from tests.servers import Proxy
from tests.stores.kit import DAY, granted_by, limit, limits, plan

_log = logging.getLogger(__name__)
WHO = [Principal("alice"), Principal("bob")]
FEW = limits(limit(100, window=DAY))
MOST_LOST = 40
"""Settlements a crash may forget that no replica had heard of yet, on a slow machine."""


@pytest.mark.parametrize("way", WAYS)
def test_one_call(sentinels: Sentinels, way: str) -> None:
    """A call is admitted, renewed and settled by the primary the sentinels name."""
    store = open_store(way, sentinels.url)
    asked = plan(FEW)
    grant = granted_by(asked, store.admit(asked))

    assert store.renew(grant)
    assert store.settle(grant, Charges(1, 1, 1)) == "1"
    store.close()


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("valkey", Node.kill), ("redis", Node.kill), ("valkey", Node.pause)],
    ids=["valkey-dies", "redis-dies", "valkey-hangs"],
)
def test_primary_goes_away(sentinels: Sentinels, ending: Callable[[Node], None]) -> None:
    """Calls go on, by the rule for outages, until a replica is there; nothing counts twice."""
    with Load(sentinels.url, WHO, deadline_ms=300) as load:
        primary = sentinels.primary()
        ending(primary)
        poll(lambda: sentinels.primary() is not primary, "another primary")
        load.wait_until_checked()
        if ending is Node.pause:
            primary.resume()
            poll(lambda: primary.client.role()[0] == b"slave", "the old one follows")
            load.wait_until_checked()

    charged = load.charged()
    assert all(charged[name][0] <= calls for name, calls in load.calls.items())
    lost = load.calls.total() - sum(requests for requests, _ in charged.values())
    numbers = (load.calls.total(), load.unchecked, lost)
    _log.info("%d calls, %d unchecked, %d forgotten: %s", *numbers, load.errors)
    assert lost <= MOST_LOST


@pytest.mark.parametrize("kind", ["redis"])
def test_primary_is_demoted_behind_the_back(sentinels: Sentinels) -> None:
    """A primary that has become a replica is left for the new one, over open connections too."""
    stores = [open_store(way, sentinels.url, deadline_ms=2_000) for way in WAYS]
    for store in stores:
        store.admit(plan(FEW))
    primary = sentinels.primary()
    poll(lambda: len({node.client.dbsize() for node in sentinels.servers}) == 1, "all are alike")
    poll(lambda: fail_over(sentinels.watchers[0]), "a failover that is asked for")
    poll(lambda: all_name_another(sentinels, primary), "another primary")
    poll(lambda: primary.client.role()[0] == b"slave", "the old one follows")

    for store in stores:
        assert store.admit(plan(FEW)).counters[2] == 2
        store.close()


def fail_over(watcher: Node) -> bool:
    """Ask for a failover; an error if the sentinel does not know the replicas well enough yet."""
    return bool(watcher.client.execute_command("SENTINEL", "FAILOVER", SERVICE))


def all_name_another(sentinels: Sentinels, primary: Node) -> bool:
    return all(sentinels.primary(watcher) is not primary for watcher in sentinels.watchers)


@pytest.mark.parametrize("way", WAYS)
def test_sentinel_that_is_silent(sentinels: Sentinels, way: str) -> None:
    """A sentinel that accepts and says nothing leaves time to ask the next one."""
    silent = Proxy(sentinels.watchers[0].port)
    silent.silent = True
    others = sentinels.url.partition(",")[2]
    store = open_store(way, f"redis+sentinel://127.0.0.1:{silent.port},{others}", 600)

    assert store.admit(plan(FEW)).offer == 1
    store.close()
    silent.close()
