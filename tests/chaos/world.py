"""All the processes of a run: store, proxy, provider, workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from llm_budget_mw.testing import Issuer
from tests.chaos.proxy import Proxy
from tests.chaos.settings import Settings, configuration
from tests.chaos.worker import Kind
from tests.processes import ROOT, START_S
from tests.servers import ValkeyServer, free_port

_END_S = 20.0
_COMPLAINTS = (b"Traceback", b"never retrieved", b"never awaited")
"""Nothing that is expected to happen to a worker makes it say such a thing."""


class DurableServer(ValkeyServer):
    """A Valkey that has on disk what it answers, and comes back with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.persistence = (
            *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            *("--dir", str(folder)),
        )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def forget_scripts(self) -> None:
        """Let it forget every script it knows."""
        with redis.Redis(port=self.port, socket_timeout=_END_S) as client:
            client.script_flush()


@dataclass(eq=False)
class Process:
    """A worker or the provider."""

    name: str
    kind: Kind | None
    popen: subprocess.Popen[bytes]
    output: Path
    port: int = 0
    listening: set[object] = field(default_factory=set[object])
    """Streams that are open, as far as whoever drives the run knows."""

    @property
    def url(self) -> str:
        """Base URL of a relay or of the provider."""
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        """Wait until it listens; raises `RuntimeError` if it does not."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {self.output.read_text()}")
            await asyncio.sleep(0.02)  # the only way to learn that another process is ready

    async def ended(self) -> None:
        """Wait until it has ended; one that does not is killed, and that is no good order."""
        try:
            await asyncio.to_thread(self.popen.wait, _END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            await asyncio.to_thread(self.popen.wait)

    def complaints(self) -> list[str]:
        """Return what it said, if it said something that it should not."""
        said = self.output.read_bytes()
        return [said.decode()] if any(words in said for words in _COMPLAINTS) else []


class World:
    """One run's processes; leaves none behind."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.workers: list[Process] = []
        """Those that live."""
        self.past: list[Process] = []
        self._replacing: set[asyncio.Task[None]] = set()
        self._folder = folder
        self._names = itertools.count()
        self.issuer = Issuer()
        self.server = DurableServer(folder)
        self.server.start()
        self.proxy = Proxy(self.server.port, seed)
        self.provider = self._run("provider", None, free_port())
        self.began_at = time.time()
        url = f"redis://127.0.0.1:{self.proxy.port}/0"
        config = configuration(url, self.issuer)
        self.settings = Settings(str(folder), self.provider.url, config, seed, self.began_at)
        self._path = self.settings.write(folder / "settings.json")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in (*self.past, *self.workers, self.provider):
            process.popen.kill()
            process.popen.wait()
        self.proxy.close()
        self.server.stop()

    @property
    def relays(self) -> list[Process]:
        """Workers that can be called."""
        return [worker for worker in self.workers if worker.kind == "relay"]

    async def start(self, *kinds: Kind) -> None:
        """Start workers, and let them take part as soon as they can."""
        started = [self._worker(kind) for kind in kinds]
        await asyncio.gather(*[each.ready() for each in started if each.kind == "relay"])
        self.workers += started

    def replace(self, worker: Process) -> None:
        """Put another worker in the place of one that is about to end, when it has."""
        self.workers.remove(worker)
        self.past.append(worker)
        task = asyncio.create_task(self._replace(worker))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, worker: Process) -> None:
        await worker.ended()
        if worker.kind is not None:
            await self.start(worker.kind)

    async def end(self) -> None:
        """End all workers in good order, then the provider, which then has billed everything."""
        await asyncio.gather(*self._replacing)
        self.past += self.workers
        ending, self.workers = self.workers, []
        for processes in (ending, [self.provider]):
            for process in processes:
                process.popen.terminate()
            await asyncio.gather(*[process.ended() for process in processes])

    def _worker(self, kind: Kind) -> Process:
        return self._run(f"{kind}-{next(self._names)}", kind, free_port())

    def _run(self, name: str, kind: Kind | None, port: int) -> Process:
        if kind is None:
            journal = self._folder / "provider.jsonl"
            command = ["tests.chaos.provider", str(journal), str(port)]
        else:
            command = ["tests.chaos.worker", str(self._path), kind, name, str(port)]
        output = self._folder / f"{name}.log"
        path = f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"
        with output.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
            )
        return Process(name, kind, popen, output, port)
