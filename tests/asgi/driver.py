"""Guarded applications on real servers, and clients that may behave badly on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import redis
import uvicorn
from hypercorn.asyncio import serve
from hypercorn.config import Config as HypercornConfig
from starlette.types import ASGIApp

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.engine import Engine
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.stores.base import AsyncStore
from tests.deployment import PRICES, Recorder
from tests.edge.driver import CHAT, ISSUER, LIMITS, QUESTION, ROUTES
from tests.servers import ValkeyServer, free_port

PATIENCE_S = 20.0
STREAMED = {**QUESTION, "stream": True}


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so that another thread or process makes so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.002)  # nothing tells this thread what another one has done


def settings(tier: Mapping[str, Any], url: str = "memory://", **store: Any) -> dict[str, Any]:
    """Return a configuration with one tier, and keys of its own in the store."""
    return {
        "store": {"url": url, "prefix": f"t{secrets.token_hex(6)}", "deadline_ms": 2000, **store},
        "jwt": ISSUER.config(),
        "routes": ROUTES,
        "tiers": {"default": dict(tier)},
        "prices": PRICES,
        "tokens": {"exact": False},
        "events": {"log": False, "metrics": False, "span": False},
    }


class Site:
    """A guarded application with a store of its own, and what its sink was told."""

    def __init__(
        self,
        app: ASGIApp,
        tier: Mapping[str, Any] = LIMITS,
        *,
        lease_ms: int = 60_000,
        replaced: AsyncStore | None = None,
        sections: Mapping[str, Any] | None = None,
        **store: Any,
    ) -> None:
        self.sink = Recorder()
        config = {**settings(tier, **store), **(sections or {})}
        opened = AsyncGuard.open(config, store=replaced)
        rules = opened.engine
        engine = Engine(rules.policy, rules.prices, rules.estimator, lease_ms)
        self.guard = AsyncGuard(engine, opened.config, opened.store, [self.sink])
        self.app = BudgetMiddleware(app, guard=self.guard)

    def settled(self, count: int = 1) -> list[dict[str, Any]]:
        """Return all settlements, as soon as there are so many."""
        until(
            lambda: len(self.sink.named("budget.settled")) >= count,
            f"{count} settlements, only {self.sink.names}",
        )
        return self.sink.named("budget.settled")


class UvicornServer:
    """uvicorn in a thread, on a free loopback port."""

    def __init__(self, app: ASGIApp, *, grace_s: int = 5) -> None:
        self.port = free_port()
        config = uvicorn.Config(
            app, port=self.port, log_level="critical", timeout_graceful_shutdown=grace_s
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Shut down, and cancel what takes longer than the grace."""
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started, "uvicorn started")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class HypercornServer:
    """hypercorn in a thread, on a free loopback port."""

    def __init__(self, app: ASGIApp) -> None:
        self.port = free_port()
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Shut down."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: _listens(self.port), "hypercorn started")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        config = HypercornConfig()
        config.bind = [f"127.0.0.1:{self.port}"]
        config.errorlog = config.accesslog = None
        config.graceful_timeout = 1.0
        app: Any = self._app  # the same protocol under other names
        self._loop.run_until_complete(serve(app, config, shutdown_trigger=self._over.wait))
        self._loop.close()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class RawClient:
    """One connection over which a client says what it likes, and leaves when it likes."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), PATIENCE_S)
        self.seen = b""

    def say(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def ask(self, body: object, path: str = CHAT, *headers: str, who: str = "alice") -> None:
        """Send a whole request."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.say(head(path, f"content-length: {len(raw)}", *headers, who=who) + raw)

    def read_until(self, marker: bytes) -> bytes:
        """Read as far as these bytes, or to the end of the connection."""
        while marker not in self.seen:
            data = self._socket.recv(65536)
            if not data:
                break
            self.seen += data
        return self.seen

    def read_all(self) -> bytes:
        """Read to the end of the connection."""
        with contextlib.suppress(ConnectionResetError):
            while data := self._socket.recv(65536):
                self.seen += data
        return self.seen

    def leave(self) -> None:
        """Reset the connection, as a process does that is killed."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def head(path: str, *headers: str, who: str | None = "alice") -> bytes:
    """Return the head of a POST request of a user, or of nobody."""
    credential = [f"authorization: Bearer {ISSUER.token(who)}"] if who else []
    lines = [f"POST {path} HTTP/1.1", "host: localhost", *credential, *headers, "", ""]
    return "\r\n".join(lines).encode()


def chunked(body: bytes, size: int) -> bytes:
    """Return a body in chunks of a size, as HTTP/1.1 sends it."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return b"".join([*framed, b"0\r\n\r\n"])


def commands(server: ValkeyServer, *names: str) -> int:
    """Return how often a server has run these commands, or all but INFO and AUTH."""
    with redis.Redis.from_url(server.url) as client:
        stats: Any = client.info("commandstats")
    wanted = {f"cmdstat_{name}" for name in names}
    own = {"cmdstat_info", "cmdstat_client|setinfo", "cmdstat_hello"}
    return sum(
        entry["calls"]
        for name, entry in stats.items()
        if (name in wanted if wanted else name not in own)
    )


@contextlib.contextmanager
def on_uvicorn(app: ASGIApp) -> Iterator[str]:
    """Serve an application with uvicorn; give its address."""
    with UvicornServer(app) as server:
        yield server.url
