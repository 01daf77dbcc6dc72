"""Stores as tests of deployments open them."""

from __future__ import annotations

from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from tests.stores.conftest import store_config
from tests.stores.kit import Driven

WAYS = ["sync", "async"]


def open_store(way: str, url: str, deadline_ms: int = 5_000, connections: int = 64) -> Store:
    """Return a store of either kind, under a prefix of its own."""
    config = store_config(url, deadline_ms, connections)
    return connect(config) if way == "sync" else Driven(connect_async(config))
