"""Slots that processes hold: every store gives each of them to one at a time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import redis

from llm_budget_mw.stores.connect import connect
from tests.servers import ValkeyServer
from tests.stores.conftest import store_config
from tests.stores.kit import Bench

_LONG_MS = 60_000


def test_each_slot_has_one_holder(bench: Bench) -> None:
    """Whoever comes when all are taken has none."""
    claims = [bench.store.claim(holder, 2, _LONG_MS) for holder in ("ann", "bob", "cid")]

    assert claims == [1, 2, 0]


def test_a_holder_keeps_its_slot(bench: Bench) -> None:
    """Claiming again is renewing; an earlier slot that was freed does not tempt it."""
    assert [bench.store.claim(holder, 2, _LONG_MS) for holder in ("ann", "bob")] == [1, 2]
    assert bench.store.claim("ann", 2, 0) == 0

    assert bench.store.claim("bob", 2, _LONG_MS) == 2
    assert bench.store.claim("cid", 2, _LONG_MS) == 1


def test_to_give_back_what_one_has_not_is_nothing(bench: Bench) -> None:
    """No slot is taken or freed by it."""
    assert bench.store.claim("ann", 1, _LONG_MS) == 1

    assert bench.store.claim("bob", 1, 0) == 0
    assert bench.store.claim("bob", 1, _LONG_MS) == 0


def test_a_slot_nobody_renews_is_free_again(valkey: ValkeyServer, client: redis.Redis) -> None:
    """Its key expires by the server's clock, not before."""
    config = store_config(valkey.url)
    store = connect(config)
    assert store.claim("ann", 1, 300) == 1
    left_ms = client.pttl(f"{config.prefix}:1:{{outage}}:slot:1")
    assert 0 < left_ms <= 300

    deadline = time.monotonic() + 20
    while not store.claim("bob", 1, _LONG_MS):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # the server's clock has to pass
    assert store.claim("ann", 1, _LONG_MS) == 0
    store.close()


def test_many_claim_at_once(valkey: ValkeyServer) -> None:
    """As many get one as there are, each another."""
    store = connect(store_config(valkey.url))

    with ThreadPoolExecutor(16) as pool:
        claims = list(pool.map(lambda name: store.claim(f"p{name}", 5, _LONG_MS), range(64)))

    assert sorted(filter(None, claims)) == [1, 2, 3, 4, 5]
    store.close()
