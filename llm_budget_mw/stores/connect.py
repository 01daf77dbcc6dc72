"""A store from a configuration: the URL decides.

redis-py is set up on purpose: one immediate retry and only after a lost connection (every
script may be repeated under its id, so a lost reply is charged once), none after a time-out,
a pool that waits instead of raising, and the deadline on each step that can wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.cluster
import redis.connection
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.stores._cluster import Cluster, ClusterScripts
from llm_budget_mw.stores._direct import DirectScripts
from llm_budget_mw.stores._sentinel import AsyncWaitingPool, AsyncWatchers, WaitingPool, Watchers
from llm_budget_mw.stores._slots import Address
from llm_budget_mw.stores._url import hosts, kind
from llm_budget_mw.stores.base import AsyncStore, Store
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.stores.redis import AsyncRedisStore, RedisStore

_Clock = Callable[[], int]


def connect(config: StoreConfig, *, test_clock: _Clock | None = None) -> Store:
    """Return the store a configuration names, for threads; nothing is connected yet.

    Raises `ConfigurationError` if the URL cannot be understood. Every `memory://` store has
    counters of its own, an asynchronous one in the same process too.
    """
    if config.url.startswith("memory://"):
        return MemoryStore(test_clock) if test_clock else MemoryStore()
    made = _maker(config, _SYNC)()
    clustered = isinstance(made, Cluster)
    scripts = ClusterScripts(made) if clustered else DirectScripts(made)
    return RedisStore(scripts, prefix=config.prefix, partitioned=clustered, test_clock=test_clock)


def connect_async(config: StoreConfig, *, test_clock: _Clock | None = None) -> AsyncStore:
    """Return the store a configuration names, for event loops; see `connect`."""
    if config.url.startswith("memory://"):
        return AsyncMemoryStore(MemoryStore(test_clock) if test_clock else None)
    return AsyncRedisStore(
        _maker(config, _ASYNC),
        prefix=config.prefix,
        deadline_s=config.deadline_ms / 1000,
        partitioned=kind(config.url) == "cluster",
        test_clock=test_clock,
    )


def client(config: StoreConfig) -> Any:
    """Return the redis-py client for a URL that is not `memory://`, to look at its server.

    Raises `ConfigurationError` as `connect` does. Of a cluster, making it already connects.
    """
    made = _maker(config, _SYNC)()
    if not isinstance(made, Cluster):
        return made
    node: Any = redis.cluster.ClusterNode
    seeds = [node(*seed) for seed in made.seeds]
    options = {**_options(config, _SYNC), **_SYNC.parse_url(_server(config.url))}
    encrypted = options.pop("connection_class", None) is not None
    for name in ("host", "timeout", "db"):
        options.pop(name, None)
    return redis.RedisCluster(startup_nodes=seeds, ssl=encrypted, **options)


class _Library(NamedTuple):
    """The half of redis-py for threads, or the one for event loops; both are half typed."""

    clients: Any
    parse_url: Callable[[str], Any]
    retry: type
    sentinels: type
    sentinel_pool: type
    socket_waits: bool
    """Whether sockets have a time-out; on an event loop one is over the whole command."""


_SYNC = _Library(
    redis,
    redis.connection.parse_url,  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    Retry,
    Watchers,
    WaitingPool,
    socket_waits=True,
)
_ASYNC = _Library(
    redis.asyncio,
    redis.asyncio.connection.parse_url,
    AsyncRetry,
    AsyncWatchers,
    AsyncWaitingPool,
    socket_waits=False,
)


def _maker(config: StoreConfig, library: _Library) -> Callable[[], Any]:
    """Return what makes the client or the `Cluster`, with everything in the URL checked now."""
    making = {"cluster": _of_cluster, "sentinel": _of_sentinel}.get(kind(config.url), _of_server)
    try:
        make = making(config, library)
        # A connection that is not opened: an option it does not know shows here.
        library.clients.ConnectionPool.from_url(_server(config.url)).make_connection()
    except (ValueError, TypeError) as error:
        # Neither the URL nor its password belongs into a log.
        raise ConfigurationError(f"store.url cannot be used: {error}") from None
    return make


def _server(url: str) -> str:
    return hosts(url).server if kind(url) else url


def _of_server(config: StoreConfig, library: _Library) -> Callable[[], Any]:
    pools, options = library.clients.BlockingConnectionPool, _options(config, library)
    return lambda: library.clients.Redis.from_pool(pools.from_url(config.url, **options))


def _of_cluster(config: StoreConfig, library: _Library) -> Callable[[], Any]:
    read = hosts(config.url)
    pools = library.clients.BlockingConnectionPool
    options = {**_options(config, library), **library.parse_url(read.server)}

    def node(address: Address) -> Any:
        at = {"host": address[0], "port": address[1]}
        return library.clients.Redis.from_pool(pools(**{**options, **at}))

    return lambda: Cluster(read.addresses, node, config.deadline_ms / 1000)


def _of_sentinel(config: StoreConfig, library: _Library) -> Callable[[], Any]:
    read, options = hosts(config.url), _options(config, library)
    server = library.parse_url(read.server)
    encrypted = {name: value for name, value in server.items() if name.startswith("ssl")}
    if server.pop("connection_class", None):  # the pool chooses a kind of its own
        server["ssl"] = encrypted["ssl"] = True
    del server["host"]
    # One that is silent must leave time for the others, and for the server.
    share_s = config.deadline_ms / 1000 / (len(read.addresses) + 1)
    asking = {"socket_timeout": share_s, "socket_connect_timeout": share_s}
    asking["retry"] = options["retry"]

    def make() -> Any:
        manager: Any = library.sentinels(read.addresses, sentinel_kwargs={**asking, **encrypted})
        return manager.master_for(
            read.service, connection_pool_class=library.sentinel_pool, **{**options, **server}
        )

    return make


def _options(config: StoreConfig, library: _Library) -> dict[str, Any]:
    """Return how a pool and its connections wait."""
    deadline_s = config.deadline_ms / 1000
    return {
        "socket_timeout": deadline_s if library.socket_waits else None,
        "socket_connect_timeout": deadline_s,
        "retry": library.retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
        "max_connections": config.max_connections,
        "timeout": deadline_s,
    }
