"""Servers of applications in processes of their own, started as a user starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers import free_port

ROOT = Path(__file__).parents[1]
START_S = 30.0


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[str]:
    """Run a module such as `uvicorn` with `{port}` among its options; give the base URL."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *[part.format(port=port) for part in command]],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",
                **environment,
            },
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + START_S
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read().decode()}")
                time.sleep(0.02)  # the only way to learn that another process is ready
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def on_gunicorn(
    target: str, *options: str, **environment: str
) -> contextlib.AbstractContextManager[str]:
    """Serve `module:application` with threads; give the base URL."""
    command = ("gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning")
    return running(*command, *options, target, **environment)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
