"""Servers that are stopped, killed and forked while calls run and settlements wait."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llm_budget_mw import Guard, Principal
from tests.deployment import PRICES
from tests.edge.driver import CHAT, ISSUER, QUESTION
from tests.processes import running
from tests.servers import Proxy, ValkeyServer, deliver, lose
from tests.stopping_site import STATE, VARIABLE

PATIENCE_S = 20.0
SITE = "tests.stopping_site"
GUNICORN = (
    *("gunicorn", "--log-level", "critical", "--bind", "127.0.0.1:{port}"),
    *("--worker-class", "gthread", "--threads", "8"),
)
SERVERS = {
    "gunicorn": (*GUNICORN, f"{SITE}:wsgi"),
    "uvicorn": ("uvicorn", "--log-level", "critical", "--port", "{port}", f"{SITE}:asgi"),
}
TOKENS = 42
"""Of each call, settled."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


class Deployment:
    """The servers of one test, the way to their store, and a look at its counters."""

    def __init__(self, valkey: ValkeyServer, spool: Path) -> None:
        self.proxy = Proxy(valkey.port)
        self.spool = spool
        self._config: dict[str, Any] = {
            "store": {"url": valkey.url, "prefix": f"t{secrets.token_hex(6)}", "deadline_ms": 300},
            "tiers": {
                "default": {
                    "tokens": {"limit": "1000000/day", "on_outage": "local"},
                    "local_share": 0.5,
                }
            },
            "routes": [{"path": CHAT, "dialect": "openai_chat"}],
            "jwt": ISSUER.config(),
            "prices": PRICES,
            "tokens": {"exact": False},
            "events": {"log": False, "metrics": False},
            "outage": {"failures": 1, "open_s": 0.1, "max_open_s": 0.2, "drain_s": 3.0},
        }
        self._guard = Guard.open(self._config)

    def environment(self, *, spools: bool = False) -> dict[str, str]:
        """Return what configures a server behind the proxy."""
        config = {**self._config, "store": {**self._config["store"], "url": self.proxy.url}}
        if spools:
            config["outage"] = {**config["outage"], "spool": str(self.spool), "drain_s": 0.2}
        return {VARIABLE: json.dumps(config)}

    def cut_off(self) -> None:
        """Lose every answer of the store."""
        self.proxy.fault = lose
        self.proxy.hang_up()

    def join(self) -> None:
        """Let the store answer again."""
        self.proxy.fault = deliver

    def used(self) -> int:
        """Return the tokens booked or held."""
        [status] = self._guard.limits(Principal("alice"))
        return status.used

    def close(self) -> None:
        self._guard.close()
        self.proxy.close()


@pytest.fixture
def deployment(valkey: ValkeyServer, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(valkey, tmp_path / "spool")
    yield made
    made.close()


class Site:
    """A server, asked by one client."""

    def __init__(self, url: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {ISSUER.token('alice')}"}
        one_way = httpx2.Limits(max_keepalive_connections=0)
        self.client = httpx2.Client(
            base_url=url, headers=headers, trust_env=False, timeout=20, limits=one_way
        )

    def call(self) -> None:
        """Make a call that is admitted."""
        answer = self.client.post(CHAT, json=QUESTION)
        assert answer.status_code == 200, answer.text

    def state(self) -> dict[str, Any]:
        """Return what the process that answers says of itself."""
        state: dict[str, Any] = self.client.get(STATE).json()
        return state


def stream(url: str, started: threading.Event, read: list[bytes]) -> None:
    """Read a stream to its end; it takes a second."""
    asked = {**QUESTION, "stream": True}
    with (
        contextlib.closing(Site(url).client) as client,
        client.stream("POST", CHAT, json=asked) as answer,
    ):
        for piece in answer.iter_raw():
            read.append(piece)
            started.set()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # nothing tells when it is so


@contextlib.contextmanager
def serving(server: str, environment: dict[str, str]) -> Iterator[Site]:
    """Run a server that is ready for an outage; stop it with SIGTERM."""
    with running(*SERVERS[server], **environment) as url:
        site = Site(url)
        site.call()
        until(lambda: site.state()["slot"] > 0)
        with contextlib.closing(site.client):
            yield site


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_is_told_to_stop_settles_everything(
    deployment: Deployment, server: str
) -> None:
    """Streams that are open end and settle; what waits is delivered as the store comes back."""
    started, read = threading.Event(), list[bytes]()
    with serving(server, deployment.environment()) as site:
        reader = threading.Thread(target=stream, args=(site.url, started, read))
        reader.start()
        assert started.wait(PATIENCE_S)
        deployment.cut_off()
        for _ in range(5):
            site.call()
        assert site.state()["waiting"] >= 5
        threading.Timer(0.5, deployment.join).start()
    reader.join()

    assert b"".join(read).endswith(b"[DONE]\n\n")
    assert deployment.used() == 7 * TOKENS


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_could_not_be_delivered_is_left_to_the_next_process(
    deployment: Deployment, server: str, end: signal.Signals
) -> None:
    """On disk, readable by nobody else, until it is delivered: once."""
    with serving(server, deployment.environment(spools=True)) as site:
        deployment.cut_off()
        for _ in range(5):
            site.call()
        if end == signal.SIGKILL:
            until(lambda: lines(deployment.spool) >= 5)
            os.kill(site.state()["pid"], end)
    [file] = deployment.spool.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert lines(deployment.spool) >= 5

    deployment.join()
    with serving(server, deployment.environment(spools=True)):
        until(lambda: deployment.used() == 7 * TOKENS)
        until(lambda: not list(deployment.spool.iterdir()))
    assert deployment.used() == 7 * TOKENS


def lines(spool: Path) -> int:
    """Return the number of settlements in all files of a directory."""
    with contextlib.suppress(FileNotFoundError):
        return sum(file.read_bytes().count(b"\n") for file in spool.iterdir())
    return 0


def test_workers_that_were_forked_share_nothing(deployment: Deployment) -> None:
    """With an application loaded before the fork, each worker has a slot of its own."""
    command = (*GUNICORN, "--preload", "--workers", "2", f"{SITE}:wsgi")
    with running(*command, **deployment.environment()) as url:
        site = Site(url)
        slots: dict[int, int] = {}

        def ready() -> bool:
            site.call()
            state = site.state()
            slots[state["pid"]] = state["slot"]
            return len(slots) == 2 and all(slots.values())

        until(ready)
        deployment.cut_off()
        for _ in range(20):
            site.call()
        deployment.join()
        site.client.close()

    assert sorted(slots.values()) == [1, 2]
    assert not deployment.used() % TOKENS
