"""From a URL to a store: every kind of server, and URLs that cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.errors import ConfigurationError, StoreError
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.types import Charges
from tests.servers import Proxy, ValkeyServer, free_port
from tests.stores.conftest import store_config
from tests.stores.kit import START_MS, Driven, ManualClock, granted_by, limit, limits, plan

FEW = limits(limit(5, "requests"))
KINDS = ["sync", "async"]


def open_store(kind: str, url: str) -> Store:
    config = store_config(url, 2_000)
    return connect(config) if kind == "sync" else Driven(connect_async(config))


def works(store: Store) -> bool:
    asked = plan(FEW)
    grant = granted_by(asked, store.admit(asked))
    done = (
        store.renew(grant),
        store.settle(grant, Charges(1, 1, 1)),
        store.settle(grant, Charges(1, 1, 1)),
    )
    store.close()
    return done == (True, "1", "2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("url", ["memory://", "redis://", "unix://"])
def test_kinds_of_server(kind: str, url: str, tmp_path: Path) -> None:
    """Memory, TCP and a socket in the file system all work."""
    path = tmp_path / "valkey.sock"
    with ValkeyServer("--unixsocket", str(path)) as server:
        where = {"memory://": url, "redis://": server.url, "unix://": f"unix://{path}"}

        assert works(open_store(kind, where[url]))


@pytest.mark.parametrize("kind", KINDS)
def test_password_and_database(kind: str) -> None:
    """Credentials and the number of the database come from the URL."""
    with ValkeyServer("--requirepass", "p@ss") as server:
        url = f"redis://:p%40ss@127.0.0.1:{server.port}/3"

        assert works(open_store(kind, url))
        with redis.Redis(port=server.port, password="p@ss", db=3) as client:
            assert client.dbsize() == 1


def poll(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a cluster of one, which owns every slot."""
    folder = str(tmp_path_factory.mktemp("cluster"))
    # Otherwise the nodes would talk on a port 10000 higher, where there may be none.
    bus = ("--cluster-port", str(free_port()))
    with ValkeyServer("--cluster-enabled", "yes", "--dir", folder, *bus) as server:
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            poll(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield f"redis+cluster://127.0.0.1:{server.port}"


@pytest.mark.parametrize("kind", KINDS)
def test_cluster(kind: str, cluster: str) -> None:
    """A cluster is used through any of its nodes."""
    with redis.Redis.from_url(cluster.replace("+cluster", "")) as client:
        client.script_flush()

    assert works(open_store(kind, cluster))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_start_while_nobody_is_there(kind: str, scheme: str) -> None:
    """A program can start during an outage: nothing is connected before the first command."""
    store = open_store(kind, f"{scheme}://127.0.0.1:{free_port()}")

    with pytest.raises(StoreError):
        store.admit(plan(FEW))
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_cluster_without_a_command(kind: str) -> None:
    """A store that was never used can be closed."""
    open_store(kind, f"redis+cluster://127.0.0.1:{free_port()}").close()


@pytest.mark.parametrize("kind", KINDS)
def test_silent_cluster(kind: str, cluster: str) -> None:
    """A cluster that does not answer is an error in time."""
    proxy = Proxy(int(cluster.rpartition(":")[2]))
    proxy.silent = True
    config = store_config(f"redis+cluster://127.0.0.1:{proxy.port}", 150)
    store = connect(config) if kind == "sync" else Driven(connect_async(config))

    start = time.monotonic()
    with pytest.raises(StoreError):
        store.admit(plan(FEW))
    assert time.monotonic() - start < 2
    store.close()
    proxy.close()


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server and a sentinel that watches it under the name `main`."""
    file = tmp_path_factory.mktemp("sentinel") / "sentinel.conf"
    with ValkeyServer("--requirepass", "p@ss") as server:
        auth = "sentinel auth-pass main p@ss"
        file.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n{auth}\n")
        with ValkeyServer(str(file), "--sentinel") as watcher:
            yield f"redis+sentinel://:p%40ss@127.0.0.1:{watcher.port}"


@pytest.mark.parametrize("kind", KINDS)
def test_sentinel(kind: str, sentinel: str) -> None:
    """Sentinels are asked for the primary; those that are gone are passed over."""
    assert works(open_store(kind, f"{sentinel}/main"))
    address = sentinel.replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1")
    assert works(open_store(kind, f"{address}/main/0"))


@pytest.mark.parametrize("kind", KINDS)
def test_sentinel_that_knows_no_such_service(kind: str, sentinel: str) -> None:
    """A service no sentinel knows is an outage, not a crash."""
    store = open_store(kind, f"{sentinel}/other")

    with pytest.raises(StoreError, match="other"):
        store.admit(plan(FEW))
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:port",
        "redis://127.0.0.1:6379?socket_timeout=soon",
        "redis://127.0.0.1?colour=red",
        "redis+cluster://127.0.0.1:99999",
        "redis+cluster://127.0.0.1,127.0.0.2:port",
        "redis+cluster://127.0.0.1/3",
        "redis+cluster://127.0.0.1/?db=3",
        "redis+cluster://",
        "redis+sentinel://127.0.0.1",
        "redis+sentinel:///main",
        "redis+sentinel://127.0.0.1:port/main",
        "redis+sentinel://127.0.0.1/main/zero",
        "redis+sentinel://127.0.0.1/main?db=1",
        "rediss+sentinel://127.0.0.1/main?ssl_colour=red",
    ],
)
@pytest.mark.parametrize("opening", [connect, connect_async])
def test_url_that_cannot_be_used(opening: Callable[[StoreConfig], object], url: str) -> None:
    """A wrong URL is found at the start; the message does not tell the password."""
    secret = url.replace("://", "://:s3cret@")

    with pytest.raises(ConfigurationError, match=r"store\.url") as raised:
        opening(StoreConfig(url=secret))
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_goes_by_a_test_clock(kind: str) -> None:
    """A store in memory takes a test clock, too."""
    clock, config = ManualClock(), StoreConfig()
    opened = (
        connect(config, test_clock=clock)
        if kind == "sync"
        else Driven(connect_async(config, test_clock=clock))
    )

    assert opened.admit(plan(FEW)).now_ms == opened.now_ms() == START_MS
    opened.close()
