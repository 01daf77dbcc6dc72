"""A cluster in ordinary use: what it answers, and what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.crc import key_slot

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.types import (
    STOPPED,
    Admission,
    Charges,
    Grant,
    Limit,
    Plan,
    Principal,
    Subject,
    SubjectLimits,
)
from tests.cluster.load import Load
from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import Cluster
from tests.servers import Proxy, free_port
from tests.stores.conftest import store_config
from tests.stores.kit import (
    DAY,
    NOTHING,
    UNFIT,
    Driven,
    granted_by,
    limit,
    limits,
    plan,
    tokens,
)

PARTITIONS = ["red", "green", "blue"]
"""Their slots lie on all three primaries."""
ASKED = 64
FIT = 20


def of(partition: str, *each: Limit, name: str = "user") -> SubjectLimits:
    return SubjectLimits(Subject(partition, name), limits(*each))


def day(amount: int) -> Limit:
    return limit(amount, window=DAY)


def held(store: Store, *entries: SubjectLimits) -> list[float]:
    """Return what is held of the first limit of each subject."""
    return [store.admit(plan(entry, offers=[UNFIT])).counters[2] for entry in entries]


def committed(store: Store, *entries: SubjectLimits) -> list[float]:
    """Return what is committed of the first limit of each subject."""
    return [store.admit(plan(entry, offers=[UNFIT])).counters[1] for entry in entries]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def store(cluster: Cluster, way: str) -> Iterator[Store]:
    opened = open_store(way, cluster.url)
    yield opened
    opened.close()


@pytest.mark.parametrize("partition", PARTITIONS)
def test_one_call(store: Store, partition: str) -> None:
    """A call is admitted, renewed and settled, and settled once, wherever its account is."""
    asked = plan(of(partition, day(100)))
    grant = granted_by(asked, store.admit(asked))

    assert store.renew(grant)
    assert store.settle(grant, Charges(1, 70, 0)) == "1"
    assert store.settle(grant, Charges(1, 70, 0)) == "2"
    assert committed(store, of(partition, day(100))) == [70]


def test_partitions_lie_apart(cluster: Cluster) -> None:
    """The other tests reach every primary."""
    assert len({cluster.owner(key_slot(name.encode())) for name in PARTITIONS}) == 3


def test_first_seed_is_gone(cluster: Cluster, way: str) -> None:
    """Any of the nodes in the URL will do."""
    rest = cluster.url.partition("://")[2]
    store = open_store(way, f"redis+cluster://127.0.0.1:{free_port()},{rest}")

    assert store.admit(plan(of("red", day(100)))).offer == 1
    store.close()


def test_seed_that_is_silent(cluster: Cluster, way: str) -> None:
    """A node that accepts and says nothing leaves time to ask the others."""
    proxy = Proxy(cluster.nodes[0].port)
    proxy.silent = True
    other = cluster.nodes[1].port
    url = f"redis+cluster://127.0.0.1:{proxy.port},127.0.0.1:{other}"
    stores = [open_store(way, url, deadline_ms=400) for _ in range(4)]

    for store in stores:  # the first may be lucky: they are asked in any order
        wanted = plan(of("red", day(100)))
        assert try_twice(store, wanted).offer == 1
        store.close()
    proxy.close()


def try_twice(store: Store, wanted: Plan) -> Admission:
    """Ask as two calls would: for threads the first may use up its time on a silent node."""
    try:
        return store.admit(wanted)
    except StoreError:
        return store.admit(wanted)


def test_threads_never_over(cluster: Cluster) -> None:
    """Of 64 calls by as many threads as many get in as fit, through few connections."""
    store = connect(store_config(cluster.url, connections=4))
    plans = [plan(of("red", day(FIT)), offers=[tokens(1)]) for _ in range(ASKED)]
    with ThreadPoolExecutor(ASKED) as pool:
        admissions = list(pool.map(store.admit, plans))

    assert sum(admission.offer for admission in admissions) == FIT
    assert held(store, of("red", day(FIT))) == [FIT]
    store.close()


async def test_tasks_never_over(cluster: Cluster) -> None:
    """The same for 640 tasks, more than there are connections."""
    store = connect_async(store_config(cluster.url, connections=4))
    plans = [plan(of("red", day(FIT)), offers=[tokens(1)]) for _ in range(10 * ASKED)]
    admissions = await asyncio.gather(*map(store.admit, plans))

    assert sum(admission.offer for admission in admissions) == FIT
    await store.close()


# Several partitions in one call


def three(amounts: tuple[int, int, int]) -> list[SubjectLimits]:
    pairs = zip(PARTITIONS, amounts, strict=True)
    return [of(partition, day(amount)) for partition, amount in pairs]


def test_partitions_of_one_call(store: Store) -> None:
    """A call over three partitions is held, renewed and settled in each."""
    entries = three((100, 100, 100))
    asked = plan(*entries, offers=[tokens(10)])
    grant = granted_by(asked, store.admit(asked))

    assert held(store, *entries) == [10, 10, 10]
    assert store.renew(grant)
    assert store.settle(grant, Charges(1, 7, 0)) == "111"
    assert store.settle(grant, Charges(1, 7, 0)) == "222"
    assert (held(store, *entries), committed(store, *entries)) == ([0, 0, 0], [7, 7, 7])


@pytest.mark.parametrize("short", range(3))
def test_one_partition_refuses(store: Store, short: int) -> None:
    """If it does not fit one of them, it is held in none, whichever is asked last."""
    amounts = [100, 100, 100]
    amounts[short] = 5
    entries = three((amounts[0], amounts[1], amounts[2]))

    assert store.admit(plan(*entries, offers=[tokens(10)])).offer == 0
    assert held(store, *entries) == [0, 0, 0]


def test_least_over_all_partitions(store: Store) -> None:
    """The output is what fits in all; those asked before the tightest hold what they could."""
    entries = three((90, 70, 80))
    asked = plan(*entries, offers=[tokens(10, 100, least=1)])
    grant = granted_by(asked, store.admit(asked))

    assert grant.output == 60
    assert held(store, *entries) == [70, 70, 80]
    assert store.settle(grant, Charges(1, 7, 0)) == "111"
    assert (held(store, *entries), committed(store, *entries)) == ([0, 0, 0], [7, 7, 7])


def test_renewal_when_one_part_is_gone(store: Store, cluster: Cluster) -> None:
    """A renewal tells that something is no longer held, and the rest is prolonged."""
    entries = three((100, 100, 100))
    asked = plan(*entries, offers=[tokens(10)])
    grant = granted_by(asked, store.admit(asked))
    forget(cluster, b"green")

    assert not store.renew(grant)
    assert store.settle(grant, Charges(1, 7, 0)) == "141"
    assert committed(store, *entries) == [7, 7, 7]


def forget(cluster: Cluster, partition: bytes) -> None:
    """Delete every account of a partition, as an eviction would."""
    slot = key_slot(partition)
    client = cluster.owner(slot).client
    for key in client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
        client.unlink(key)


def test_threads_over_partitions_never_over(cluster: Cluster) -> None:
    """Of 64 calls at once over three partitions no more are held anywhere than fit."""
    store = connect(store_config(cluster.url))
    entries = three((40, FIT, 30))

    def ask(_: int) -> bool:
        return store.admit(plan(*entries, offers=[tokens(1)])).offer > 0

    with ThreadPoolExecutor(ASKED) as pool:
        granted = sum(pool.map(ask, range(ASKED)))

    assert 0 < granted <= FIT
    assert held(store, *entries) == [granted] * 3
    store.close()


async def test_tasks_over_partitions_never_over(cluster: Cluster) -> None:
    """The same for tasks."""
    store = connect_async(store_config(cluster.url))
    entries = three((40, FIT, 30))
    plans = [plan(*entries, offers=[tokens(1)]) for _ in range(ASKED)]
    admissions = await asyncio.gather(*map(store.admit, plans))

    granted = sum(admission.offer for admission in admissions)
    assert 0 < granted <= FIT
    reading = [await store.admit(plan(entry, offers=[UNFIT])) for entry in entries]
    assert [admission.counters[2] for admission in reading] == [granted] * 3
    await store.close()


def test_settlement_without_admission_in_every_partition(store: Store) -> None:
    """What was admitted without the store is charged in each, once."""
    entries = three((100, 100, 100))
    asked = plan(*entries, offers=[tokens(10)])
    unchecked = Grant(asked, asked.offers[0], 0, None)

    assert store.settle(unchecked, Charges(1, 7, 0)) == "444"
    assert store.settle(unchecked, Charges(1, 7, 0)) == "222"
    assert committed(store, *entries) == [7, 7, 7]


# What a server forgets


def test_scripts_flushed_under_load(cluster: Cluster) -> None:
    """Nodes that forget the scripts, again and again, cost nobody anything."""
    with Load(cluster.url, [Principal("alice"), Principal("bob")]) as load:
        for _ in range(10):
            cluster.flush_scripts()
            load.wait_for(8)

    assert (load.unchecked, load.errors) == (0, {})
    assert load.charged() == load.expected()


def test_account_deleted_in_mid_call(store: Store, cluster: Cluster) -> None:
    """A call whose account was lost is charged to the new one when it settles, once."""
    asked = plan(of("red", day(100)), offers=[tokens(10)])
    grant = granted_by(asked, store.admit(asked))
    forget(cluster, b"red")

    assert store.settle(grant, Charges(1, 7, 0)) == "4"
    assert store.settle(grant, Charges(1, 7, 0)) == "2"
    assert committed(store, of("red", day(100))) == [7]


def test_account_deleted_and_used_again_in_mid_call(store: Store, cluster: Cluster) -> None:
    """So is one whose account was lost and is in use again: younger than the admission."""
    entry = of("red", day(100))
    asked = plan(entry, offers=[tokens(10)])
    grant = granted_by(asked, store.admit(asked))
    forget(cluster, b"red")
    following = plan(entry, offers=[tokens(1)])
    store.admit(following)

    assert store.settle(grant, Charges(1, 7, 0)) == "4"
    assert store.settle(grant, NOTHING) == "2"
    assert (committed(store, entry), held(store, entry)) == ([7], [1])


def test_a_stop_holds_in_every_process_when_it_is_reported(cluster: Cluster) -> None:
    """Each process has a copy of what is stopped, and the change waits until all are old."""
    config = store_config(cluster.url)
    here, there = connect(config), Driven(connect_async(config))

    def answer(switches: tuple[str, ...] = ("model/x", "*")) -> Admission:
        return there.admit(plan(of("red", day(9)))._replace(switches=switches))

    assert answer().offer == 1
    here.switch("stop", "*", "0 for a reason")
    assert answer()[1:3] == (STOPPED, 2)
    here.switch("resume", "*")
    here.switch("stop", "model/x", "0 for a reason")
    assert (answer().offer, answer().stopped) == (0, 1)
    assert answer(("model/y", "*")).offer == 1
    here.close()
    there.close()


def test_switches_cost_no_round_trips(cluster: Cluster) -> None:
    """Hundreds of admissions ask the server of the switches once a second."""
    store = connect(store_config(cluster.url))
    owner = cluster.owner(key_slot(b"switches")).client
    partition = next(
        name
        for name in PARTITIONS
        if cluster.owner(key_slot(name.encode())) != (cluster.owner(key_slot(b"switches")))
    )
    asked = of(partition, day(1000))
    store.admit(plan(asked)._replace(switches=("model/x", "*")))
    owner.config_resetstat()
    for _ in range(300):
        store.admit(plan(asked)._replace(switches=("model/x", "*")))
    stats = owner.info("commandstats")
    calls = sum(stats[name]["calls"] for name in stats if name.startswith("cmdstat_eval"))
    assert calls <= 5
    store.close()
