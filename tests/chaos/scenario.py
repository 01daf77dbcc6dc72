"""One run: load, faults, an end in good order, and the audit."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from llm_budget_mw.config import load
from tests.chaos import journal
from tests.chaos.accounts import Books
from tests.chaos.asking import GENERATION_S, principals
from tests.chaos.audit import Fault, Verdict, audit
from tests.chaos.faults import FAULTS, while_cut_off
from tests.chaos.ledgers import Account, Call, Ledgers, Worker, read_bills, read_worker
from tests.chaos.load import Load
from tests.chaos.settings import LEASE_S
from tests.chaos.worker import Kind
from tests.chaos.world import World

WORKERS: tuple[Kind, ...] = ("relay", "threads", "tasks")
_BETWEEN_S = 0.2
_GLIMPSE_S = 0.5


@dataclass(frozen=True)
class Report:
    """What a run was, and what its audit says."""

    seed: int
    verdict: Verdict
    happened: Counter[str]
    """Faults, by name."""
    outcomes: Counter[str]
    """What settlements met, by the digit of `Store.settle`."""
    events: Counter[str]
    most_waiting: int
    """Settlements that one worker had queued when it reached the store again, at most."""
    ledgers: Ledgers


async def run(seconds: float, seed: int, folder: Path, say: Callable[[str], None]) -> Report:
    """Run for some time and compare the ledgers; `say` takes a line of progress."""
    with World(folder, seed) as world:
        watch = _Watch(world)
        await asyncio.gather(world.provider.ready(), world.start(*WORKERS))
        async with Load(world) as load_on_relays, watch:
            happened = await _trouble(world, seconds, say)
        await world.end()
        say("waiting for the leases of the dead")
        await asyncio.sleep(LEASE_S + 1)
        accounts = await asyncio.to_thread(watch.last)
    ledgers, lines = _ledgers(world, accounts)
    ledgers.heard, ledgers.glimpses = load_on_relays.heard, watch.glimpses
    verdict = audit(ledgers)
    verdict.faults.extend(
        Fault("complaint", f"{process.name}: {line}")
        for process in (*world.past, world.provider)
        for line in process.complaints()
    )
    outcomes = Counter(line["outcome"] for line in lines if line["what"] == "settled")
    events = Counter(line["name"] for line in lines if line["what"] == "event")
    waiting = [line.get("waiting", 0) for line in lines]
    return Report(seed, verdict, happened, outcomes, events, max(waiting), ledgers)


async def _trouble(world: World, seconds: float, say: Callable[[str], None]) -> Counter[str]:
    """Let one fault after the other happen, each of them with and without an outage around."""
    happened = Counter[str]()
    until = time.monotonic() + seconds
    for name, cut_off in _deck(world.rng):
        await asyncio.sleep(_BETWEEN_S)
        if time.monotonic() > until:
            break
        title = f"{name} while cut off" if cut_off else name
        say(title)
        happened[title] += 1
        await (while_cut_off(world, FAULTS[name]) if cut_off else FAULTS[name](world))
    return happened


def _deck(rng: random.Random) -> Iterator[tuple[str, bool]]:
    """Yield every fault in one of its two ways, then every fault in the other, and so on."""
    yield "kill in stream", False  # at once, so that there is time for what it leaves to expire
    while True:
        ways = {name: rng.random() < 0.5 for name in FAULTS}
        for _ in range(2):
            yield from rng.sample(sorted(ways.items()), len(ways))
            ways = {name: not cut_off for name, cut_off in ways.items()}


class _Watch:
    """Looks at the accounts of those who call now, again and again, past the proxy."""

    def __init__(self, world: World) -> None:
        self.glimpses: list[Account] = []
        config = {**world.settings.config, "store": {**world.settings.config["store"]}}
        config["store"].update(url=world.server.url, deadline_ms=10_000)
        self._books = Books(load(config))
        self._began_at = world.began_at

    async def __aenter__(self) -> _Watch:
        """Begin."""
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def last(self) -> list[Account]:
        """Return all accounts, with what is past its lease ended."""
        everyone = [who for number in range(self._generation() + 1) for who in principals(number)]
        self._books.collect(everyone)
        accounts = self._books.accounts(everyone)
        self._books.close()
        return accounts

    def _generation(self) -> int:
        return int((time.time() - self._began_at) / GENERATION_S)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_GLIMPSE_S)
            with contextlib.suppress(redis.RedisError):  # the store is frozen, or starting
                self.glimpses += await asyncio.to_thread(
                    self._books.accounts, principals(self._generation())
                )


def _ledgers(world: World, accounts: list[Account]) -> tuple[Ledgers, list[dict[str, Any]]]:
    workers, calls, lines = dict[str, Worker](), dict[str, Call](), list[dict[str, Any]]()
    for process in world.past:
        written = journal.read(world.settings.journal(process.name))
        lines += written
        workers[process.name], of_worker = read_worker(process.name, written)
        calls.update(of_worker)
    bills = read_bills(journal.read(world.settings.journal(world.provider.name)))
    return Ledgers(bills, calls, workers, accounts), lines
