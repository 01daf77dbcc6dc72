"""A store from a configuration: the URL decides.

redis-py is set up on purpose: one immediate retry and only after a lost connection (every
script may be repeated under its id, so a lost reply is charged once), none after a time-out,
a pool that waits instead of raising, and the deadline on each step that can wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import SplitResult, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.stores._direct import DirectScripts
from llm_budget_mw.stores.base import AsyncStore, Store
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.stores.redis import AsyncRedisStore, RedisStore

_Clock = Callable[[], int]
_CLUSTER = "redis+cluster:"
_SENTINEL = "redis+sentinel:"
_SENTINEL_PORT = 26379


def connect(config: StoreConfig, *, test_clock: _Clock | None = None) -> Store:
    """Return the store a configuration names, for threads; nothing is connected yet.

    Raises `ConfigurationError` if the URL cannot be understood. Every `memory://` store has
    counters of its own, an asynchronous one in the same process too.
    """
    if config.url.startswith("memory://"):
        return MemoryStore(test_clock) if test_clock else MemoryStore()
    make = _maker(config, _SYNC)
    cluster = config.url.startswith(_CLUSTER)
    client = _LazyCluster(make) if cluster else DirectScripts(make())
    return RedisStore(client, prefix=config.prefix, partitioned=cluster, test_clock=test_clock)


def connect_async(config: StoreConfig, *, test_clock: _Clock | None = None) -> AsyncStore:
    """Return the store a configuration names, for event loops; see `connect`."""
    if config.url.startswith("memory://"):
        return AsyncMemoryStore(MemoryStore(test_clock) if test_clock else None)
    return AsyncRedisStore(
        _maker(config, _ASYNC),
        prefix=config.prefix,
        deadline_s=config.deadline_ms / 1000,
        partitioned=config.url.startswith(_CLUSTER),
        test_clock=test_clock,
    )


def client(config: StoreConfig) -> Any:
    """Return the redis-py client for a URL that is not `memory://`, to look at its server.

    Raises `ConfigurationError` as `connect` does. Of a cluster, making it already connects.
    """
    return _maker(config, _SYNC)()


class _LazyCluster:
    """A cluster client made by the first command: redis-py's connects when it is made."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._client: Any = None

    def evalsha(self, sha: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        return self._ready().evalsha(sha, numkeys, *keys_and_args)

    def eval(self, script: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        return self._ready().eval(script, numkeys, *keys_and_args)

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _ready(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client


class _WaitingSentinelPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to the present master that are waited for when all are in use."""


class _AsyncWaitingSentinelPool(
    redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool
):
    """The same for an event loop."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections to the sentinels as well; redis-py forgets them."""
        await super().disconnect(inuse_connections)
        manager = cast("Any", self).sentinel_manager
        for sentinel in manager.sentinels:
            await sentinel.aclose()


class _Library(NamedTuple):
    """The half of redis-py for threads, or the one for event loops; both are half typed."""

    clients: Any
    retry: type
    sentinel_pool: type
    socket_waits: bool
    """Whether sockets have a time-out; on an event loop one is over the whole command."""


_SYNC = _Library(redis, Retry, _WaitingSentinelPool, socket_waits=True)
_ASYNC = _Library(redis.asyncio, AsyncRetry, _AsyncWaitingSentinelPool, socket_waits=False)


def _maker(config: StoreConfig, library: _Library) -> Callable[[], Any]:
    """Return what makes the client, with everything in the URL checked now."""
    url, clients, options = config.url, library.clients, _options(config, library)
    waiting = {"max_connections": config.max_connections, "timeout": config.deadline_ms / 1000}
    try:
        if url.startswith(_SENTINEL):
            sentinels = _sentinels(urlsplit(url))
            return lambda: _of_sentinel(sentinels, library, options, waiting)
        if url.startswith(_CLUSTER):
            url = url.replace(_CLUSTER, "redis:")
            clients.ConnectionPool.from_url(url)
            return lambda: clients.RedisCluster.from_url(url, **options)
        clients.ConnectionPool.from_url(url)
    except ValueError as error:
        # Neither the URL nor its password belongs into a log.
        raise ConfigurationError(f"store.url cannot be used: {error}") from None
    pools = clients.BlockingConnectionPool
    return lambda: clients.Redis.from_pool(pools.from_url(url, **options, **waiting))


def _options(config: StoreConfig, library: _Library) -> dict[str, Any]:
    deadline_s = config.deadline_ms / 1000
    return {
        "socket_timeout": deadline_s if library.socket_waits else None,
        "socket_connect_timeout": deadline_s,
        "retry": library.retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
    }


class _Sentinels(NamedTuple):
    addresses: list[tuple[str, int]]
    service: str
    server: dict[str, Any]
    """Credentials and database of the servers the sentinels watch."""


def _sentinels(parts: SplitResult) -> _Sentinels:
    """Read `redis+sentinel://[user:password@]host[:port],.../service[/database]`."""
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not hosts or not service or parts.query:
        raise ValueError(
            "write redis+sentinel://[user:password@]host[:port],.../service[/database]"
        )
    server = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        "db": int(database or 0),
    }
    return _Sentinels([_address(host) for host in hosts.split(",")], unquote(service), server)


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "localhost", parts.port or _SENTINEL_PORT


def _of_sentinel(
    sentinels: _Sentinels,
    library: _Library,
    options: Mapping[str, Any],
    waiting: Mapping[str, Any],
) -> Any:
    manager = library.clients.sentinel.Sentinel(sentinels.addresses, sentinel_kwargs=options)
    return manager.master_for(
        sentinels.service,
        connection_pool_class=library.sentinel_pool,
        **sentinels.server,
        **options,
        **waiting,
    )
