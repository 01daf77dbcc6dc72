"""An application on gunicorn with threads, in a process of its own, and its clients in this one.

All clients are one thread with plain sockets: what it takes is the same for every application,
and little of the machine.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from time import perf_counter

from benchmarks import _server

_ROOT = Path(__file__).parents[1]
_START_S = 60.0
_ANSWER_S = 30.0
_STOP_S = 10.0
_THREADS = 16
_COMMAND = (
    *("gunicorn", "--worker-class", "gthread", "--workers", "1", "--threads", str(_THREADS)),
    *("--keep-alive", "600", "--log-level", "critical", "--no-control-socket"),
)


@contextlib.contextmanager
def served(factory: str, requests: list[bytes], connections: int) -> Iterator[Clients]:
    """Serve what a factory of `_sites` returns; give clients that send these requests in turn."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", *_COMMAND, "--bind", f"{address[0]}:{address[1]}"),
            f"benchmarks._sites:{factory}",
        ],
        cwd=_ROOT,
        env={**os.environ, "LLM_BUDGET_BENCH_REDIS_URL": _server.url()},
    )
    try:
        with contextlib.ExitStack() as stack:
            sockets = [_connected(address, process) for _ in range(connections)]
            for each in sockets:
                stack.callback(each.close)
            yield Clients(sockets, requests)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Clients:
    """Connections that are kept open, each of which sends when it has its last answer."""

    def __init__(self, sockets: list[socket.socket], requests: list[bytes]) -> None:
        self._sockets = sockets
        self._requests = cycle(requests)

    async def one_by_one(self, count: int) -> float:
        """Return the seconds of one of `count` requests on one connection."""
        return self._run(self._sockets[:1], count) / count

    async def all_at_once(self, each: int) -> float:
        """Return the seconds per request of all connections with `each` requests in turn."""
        return self._run(self._sockets, each) / (each * len(self._sockets))

    def _run(self, sockets: list[socket.socket], each: int) -> float:
        begin = perf_counter()
        with selectors.DefaultSelector() as selector:
            missing = dict.fromkeys(sockets, each)
            received = dict.fromkeys(sockets, b"")
            for client in sockets:
                selector.register(client, selectors.EVENT_READ)
                client.sendall(next(self._requests))
            while missing:
                for client in _readable(selector):
                    received[client] += _read(client)
                    if not _is_whole(received[client]):
                        continue
                    received[client] = b""
                    missing[client] -= 1
                    if missing[client]:
                        client.sendall(next(self._requests))
                    else:
                        del missing[client]
                        selector.unregister(client)
        return perf_counter() - begin


def _connected(address: tuple[str, int], process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            client = socket.create_connection(address, _ANSWER_S)
        except ConnectionRefusedError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the application did not start") from error
            time.sleep(0.01)  # the only way to learn that another process is ready
        else:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client


def _readable(selector: selectors.BaseSelector) -> list[socket.socket]:
    ready = selector.select(_ANSWER_S)
    if not ready:
        raise RuntimeError("the application did not answer")
    return [key.fileobj for key, _ in ready if isinstance(key.fileobj, socket.socket)]


def _read(client: socket.socket) -> bytes:
    piece = client.recv(65_536)
    if not piece:
        raise RuntimeError("the application closed a connection")
    return piece


def _is_whole(answer: bytes) -> bool:
    """Return whether an answer is whole; raises `RuntimeError` if it is a refusal."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the answer to a request was {answer[:200]!r}, not 200")
    _, _, length = head.lower().partition(b"content-length:")
    return len(body) == int(length.partition(b"\r\n")[0])
