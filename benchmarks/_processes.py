"""Processes that send requests through the whole middleware, each on an event loop of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any, NamedTuple

from starlette.types import ASGIApp

from benchmarks import peers
from benchmarks._deployment import Request, ask, log_to_nowhere, requests
from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.config import Config


class Job(NamedTuple):
    """What a process does next."""

    deployment: str
    at_once: int
    seconds: float


class Done(NamedTuple):
    """What it did."""

    requests: int
    seconds: float
    cpu_s: float


class Process:
    """A process with an application for each configuration."""

    def __init__(self, configs: Mapping[str, Config]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, configs), daemon=True)
        self._process.start()

    def begin(self, job: Job) -> None:
        """Have it begin; it works by itself until `end`."""
        self._pipe.send(job)

    def end(self) -> Done:
        """Wait for what it did."""
        done: Done = self._pipe.recv()
        return done

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _main(pipe: Connection[Any, Any], configs: Mapping[str, Config]) -> None:
    log_to_nowhere()
    asyncio.run(_serve(pipe, configs))


async def _serve(pipe: Connection[Any, Any], configs: Mapping[str, Config]) -> None:
    apps = {
        name: BudgetMiddleware(peers.fastapi_app(), config=config)
        for name, config in configs.items()
    }
    source = requests()
    while True:
        # In a thread, so that the middleware's own tasks go on.
        job: Job = await asyncio.to_thread(pipe.recv)
        pipe.send(await _work(apps[job.deployment], source, job))


async def _work(app: ASGIApp, source: Iterator[Request], job: Job) -> Done:
    begin, cpu = perf_counter(), process_time()

    async def one_after_the_other() -> int:
        count = 0
        while perf_counter() < begin + job.seconds:
            await ask(app, next(source))
            count += 1
        return count

    counts = await asyncio.gather(*(one_after_the_other() for _ in range(job.at_once)))
    return Done(sum(counts), perf_counter() - begin, process_time() - cpu)
