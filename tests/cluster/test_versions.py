"""Two versions of the scripts side by side, as in a deployment that replaces one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import redis

from llm_budget_mw.stores.connect import connect
from llm_budget_mw.stores.redis import RedisStore
from llm_budget_mw.types import Charges
from tests.cluster.topology import Cluster
from tests.stores.conftest import store_config
from tests.stores.kit import DAY, UNFIT, granted_by, limit, limits, plan, tokens

FEW = limits(limit(1000, window=DAY))


class OtherVersion:
    """A client that sends the same scripts as another text, with a name of their own."""

    def __init__(self, client: redis.RedisCluster) -> None:
        self._client = client
        self._names: dict[str, str] = {}
        self.sent: set[str] = set()

    def evalsha(self, sha: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        other = self._names.get(sha)
        if other is None:
            raise redis.exceptions.NoScriptError
        self.sent.add(other)
        return self._client.evalsha(other, numkeys, *keys_and_args)

    def eval(self, script: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        text = f"-- an older version\n{script}"
        ours, theirs = (
            hashlib.sha1(each.encode(), usedforsecurity=False).hexdigest()
            for each in (script, text)
        )
        self._names[ours] = theirs
        return self._client.eval(text, numkeys, *keys_and_args)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def stores(cluster: Cluster) -> Iterator[list[RedisStore]]:
    """Return stores of two versions with the same keys; the other goes through redis-py."""
    config = store_config(cluster.url)
    old = OtherVersion(redis.RedisCluster("127.0.0.1", cluster.nodes[0].port))
    present = connect(config)
    assert isinstance(present, RedisStore)
    both = [RedisStore(old, prefix=config.prefix, partitioned=True), present]
    yield both
    assert old.sent
    for store in both:
        store.close()


@pytest.mark.parametrize("first", [0, 1], ids=["old", "new"])
def test_call_begun_by_one_and_ended_by_the_other(stores: list[RedisStore], first: int) -> None:
    """What one version admitted, the other renews and settles; both see one account."""
    one, other = stores[first], stores[1 - first]
    for number in range(1, 4):
        asked = plan(FEW, offers=[tokens(100)])
        grant = granted_by(asked, one.admit(asked))

        assert other.renew(grant)
        assert other.settle(grant, Charges(1, 70, 0)) == "1"
        assert one.settle(grant, Charges(1, 70, 0)) == "2"
        for store in stores:
            counters = store.admit(plan(FEW, offers=[UNFIT])).counters
            assert counters[1:3] == (70 * number, 0)
