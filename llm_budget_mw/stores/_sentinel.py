"""Connections to the primary that sentinels name, with what redis-py's lack.

They are waited for when all are in use, and the primary is the one that clients are meant to
use (`GET-MASTER-ADDR-BY-NAME`): what redis-py looks at (`SENTINEL MASTERS`) names the old one
until a failover is over for every replica, seconds after the new one has begun to serve.
"""

from __future__ import annotations

from typing import Any, cast

import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions

_UNREACHABLE = (exceptions.ConnectionError, exceptions.TimeoutError)
_Address = tuple[str, int]


class WaitingPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections for threads to the present primary."""


class AsyncWaitingPool(
    redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool
):
    """The same for an event loop."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections to the sentinels as well; redis-py forgets them."""
        await super().disconnect(inuse_connections)
        manager = cast("Any", self).sentinel_manager
        for sentinel in manager.sentinels:
            await sentinel.aclose()


class Watchers(redis.sentinel.Sentinel):
    """Sentinels, for threads."""

    def discover_master(self, service_name: str) -> _Address:
        """Return where clients should go, by the first sentinel that answers."""
        failure: Exception | None = None
        for sentinel in self.sentinels:
            try:
                reply = cast("Any", sentinel).execute_command(*_question(service_name))
            except _UNREACHABLE as error:
                failure = error
            else:
                if reply:
                    self.sentinels = _preferring(sentinel, self.sentinels)
                    return _read(reply)
        raise _nobody(service_name, failure)


class AsyncWatchers(redis.asyncio.sentinel.Sentinel):
    """Sentinels, for an event loop."""

    async def discover_master(self, service_name: str) -> _Address:
        """Like `Watchers.discover_master`."""
        failure: Exception | None = None
        for sentinel in self.sentinels:
            try:
                reply = await cast("Any", sentinel).execute_command(*_question(service_name))
            except _UNREACHABLE as error:
                failure = error
            else:
                if reply:
                    self.sentinels = _preferring(sentinel, self.sentinels)
                    return _read(reply)
        raise _nobody(service_name, failure)


def _question(service: str) -> tuple[str, str, str]:
    return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", service


def _read(reply: list[bytes]) -> _Address:
    host, port = reply
    return host.decode(), int(port)


def _preferring(one: Any, sentinels: list[Any]) -> list[Any]:
    """Return sentinels with the one that answered in front."""
    return sorted(sentinels, key=lambda each: each is not one)


def _nobody(service: str, failure: Exception | None) -> Exception:
    why = f": {failure}" if failure else ""
    return redis.sentinel.MasterNotFoundError(f"no sentinel names a primary of {service!r}{why}")
