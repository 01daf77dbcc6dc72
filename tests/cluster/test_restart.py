"""A server that comes back: with what it kept, with nothing, or not ready yet."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores.base import Store
from llm_budget_mw.types import Charges
from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import Node, binary, poll
from tests.stores.kit import DAY, UNFIT, granted_by, limit, limits, plan, tokens

FEW = limits(limit(1000, window=DAY))
APPENDING = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
FORGETFUL = ("--appendonly", "no", "--save", "")
SLOW = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
"""Loading takes 20 ms a key."""


@pytest.fixture
def nodes(kind: str, tmp_path: Path) -> Iterator[list[Node]]:
    """Hold servers that end with the test."""
    made = [
        Node(binary(kind), tmp_path / "keeps", *APPENDING),
        Node(binary(kind), tmp_path / "forgets", *FORGETFUL),
        Node(binary(kind), tmp_path / "slow", *FORGETFUL, *SLOW),
    ]
    yield made
    for node in made:
        node.close()


def books(store: Store) -> tuple[float, float]:
    """Return what is committed and held."""
    counters = store.admit(plan(FEW, offers=[UNFIT])).counters
    return counters[1], counters[2]


def test_crash_of_a_server_that_keeps_all(nodes: list[Node]) -> None:
    """With `appendfsync always` nothing is forgotten: a running call settles as if nothing was."""
    server = nodes[0]
    server.start()
    stores = [open_store(way, f"redis://127.0.0.1:{server.port}") for way in WAYS]
    plans = [plan(FEW, offers=[tokens(100)]) for _ in stores]
    pairs = list(zip(stores, plans, strict=True))
    grants = [granted_by(asked, store.admit(asked)) for store, asked in pairs]
    server.kill()
    server.start()

    for store, grant in zip(stores, grants, strict=True):
        assert store.settle(grant, Charges(1, 70, 0)) == "1"
        assert books(store) == (70, 0)
        store.close()


def test_crash_of_a_server_that_keeps_nothing(nodes: list[Node]) -> None:
    """Without persistence a running call is charged to the fresh account when it settles."""
    server = nodes[1]
    server.start()
    stores = [open_store(way, f"redis://127.0.0.1:{server.port}") for way in WAYS]
    plans = [plan(FEW, offers=[tokens(100)]) for _ in stores]
    pairs = list(zip(stores, plans, strict=True))
    grants = [granted_by(asked, store.admit(asked)) for store, asked in pairs]
    server.kill()
    server.start()

    for store, grant in zip(stores, grants, strict=True):
        assert store.settle(grant, Charges(1, 70, 0)) == "4"
        assert store.settle(grant, Charges(1, 70, 0)) == "2"
        assert books(store) == (70, 0)
        store.close()


def test_server_that_is_still_loading(nodes: list[Node]) -> None:
    """While a server reads its file it is away; then calls go on where they were."""
    server = nodes[2]
    server.start()
    url = f"redis://127.0.0.1:{server.port}"
    stores = [open_store(way, url, deadline_ms=1_000) for way in WAYS]
    for store in stores:
        store.admit(plan(FEW, offers=[tokens(100)]))
    for number in range(60):
        server.client.set(f"ballast{number}", secrets.token_bytes(3000))
    server.client.save()
    server.kill()
    server.launch()
    poll(lambda: loading(server), "it reads its file")

    for store in stores:
        with pytest.raises(StoreError, match=r"(?i)loading"):
            store.admit(plan(FEW))
    poll(lambda: not loading(server), "it has read its file")
    for store in stores:
        assert books(store) == (0, 100)
        store.close()


def loading(server: Node) -> bool:
    return bool(server.client.info("persistence")["loading"])
