"""More requests at once, more processes, more shards: what is measured, and what a model says.

Each process, server and the measuring itself share the cores of this machine, so a second process
or shard gives less here than on a core of its own. The model knows that: it adds up processor time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks._deployment import configuration
from benchmarks._processes import Job, Process
from benchmarks._replay import calls, replay
from benchmarks._shards import Shards, started
from benchmarks._toll import Toll, total
from benchmarks.measure import AT_ONCE, Goal, Result, Timings, alternate, at_least
from llm_budget_mw.config import Config

_ROUNDS = 7
_SECONDS = 1.0
_MANY = 500
_PROCESSES = (1, 2, 4)
_CLUSTERS = (1, 2, 3)
_ONE = "one server"
_CORES = os.cpu_count() or 1
_CALLS = 5000


def run() -> Iterable[Result]:
    """Measure the whole middleware, then servers alone, then their memory."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        deployments = {
            _cluster(count) if count else _ONE: stack.enter_context(
                started(folder / str(count), count)
            )
            for count in (0, *_CLUSTERS)
        }
        configs = {name: _config(each) for name, each in deployments.items()}
        yield Result("scale: cores for all processes and servers", _CORES)
        yield from _whole(deployments, configs)
        sites = {name: _Site(each, configs[name]) for name, each in deployments.items()}
        shared = _config(sites[_LARGEST].shards, {"of": "deployment", "budget": "$100000/month"})
        sites[f"{_LARGEST}, all share a limit"] = sites[_LARGEST]._replace(config=shared)
        yield from _servers(sites)
        yield from _memory(deployments[_ONE], configs[_ONE])


def _cluster(shards: int) -> str:
    return f"cluster of {shards}"


_LARGEST = _cluster(max(_CLUSTERS))


def _config(shards: Shards, *shared: Mapping[str, str]) -> Config:
    config = configuration(shared=shared)
    store = config.store.model_copy(update={"url": shards.url})
    return config.model_copy(update={"store": store})


class _Load(NamedTuple):
    """What one operation, or all in one round, took."""

    rate: float
    """A second."""
    client_us: float
    """Processor time of the processes, each."""
    servers: Toll
    """Of one operation."""
    hottest_us: float
    """Processor time of the server that worked most, each."""

    @classmethod
    def of(cls, count: int, rate: float, cpu_s: float, tolls: list[Toll]) -> _Load:
        hottest = max(toll.cpu_us for toll in tolls) / count
        return cls(rate, 1e6 * cpu_s / count, total(tolls).each(count), hottest)

    @property
    def cores(self) -> float:
        """How many cores processes and servers had: less than there are if others run beside them."""
        return self.rate * (self.client_us + self.servers.cpu_us) / 1e6

    def modelled(self, processes: int, cores: float = _CORES) -> float:
        """Return the operations a second of so many processes of one core at most each.

        The least of three bounds: the cores of the processes, that of the server that works
        most, and those of this machine, on which all of them run.
        """
        both = self.client_us + self.servers.cpu_us
        return min(processes * 1e6 / self.client_us, 1e6 / self.hottest_us, cores * 1e6 / both)


def _median(loads: list[_Load]) -> _Load:
    """Return the medians of all numbers over the rounds; the first only warmed up."""
    middle = statistics.median
    rates, clients, servers, hottest = zip(*loads[1:], strict=True)
    toll = Toll(*map(middle, zip(*servers, strict=True)))
    return _Load(middle(rates), middle(clients), toll, middle(hottest))


def _since(shards: Shards, before: list[Toll]) -> list[Toll]:
    return [now.since(then) for now, then in zip(shards.tolls(), before, strict=True)]


# The whole middleware.


class _Variant(NamedTuple):
    deployment: str
    processes: int
    at_once: int

    @property
    def name(self) -> str:
        each = "process" if self.processes == 1 else "processes"
        return f"{self.deployment}, {self.processes} {each}, {self.at_once} at once"


_VARIANTS = (
    *(_Variant(_ONE, processes, AT_ONCE) for processes in _PROCESSES),
    _Variant(_ONE, 1, _MANY),
    *(_Variant(_cluster(count), many, AT_ONCE) for count in _CLUSTERS for many in (1, 2)),
)


def _whole(deployments: Mapping[str, Shards], configs: Mapping[str, Config]) -> Iterator[Result]:
    processes = [Process(configs) for _ in range(max(_PROCESSES))]
    loads: dict[str, list[_Load]] = {variant.name: [] for variant in _VARIANTS}

    async def measured(variant: _Variant) -> float:
        shards, chosen = deployments[variant.deployment], processes[: variant.processes]
        before = shards.tolls()
        for process in chosen:
            process.begin(Job(variant.deployment, variant.at_once, _SECONDS))
        done = [process.end() for process in chosen]
        rate = sum(each.requests / each.seconds for each in done)
        count, cpu_s = sum(each.requests for each in done), sum(each.cpu_s for each in done)
        loads[variant.name].append(_Load.of(count, rate, cpu_s, _since(shards, before)))
        return 1 / rate

    variants = {variant.name: partial(measured, variant) for variant in _VARIANTS}
    timings = asyncio.run(alternate(_ROUNDS, variants))
    for process in processes:
        process.close()
    for variant in _VARIANTS:
        # Predicted from one process with as many at once: more of them have to follow from it.
        base = _median(loads[variant._replace(processes=1).name])
        load = _median(loads[variant.name])
        title = f"FastAPI, {variant.name}"
        yield Result(f"{title}: requests", load.rate, "/s")
        yield Result(f"{title}: modelled, with all cores", base.modelled(variant.processes), "/s")
        yield Result(f"{title}: cores got", load.cores)
        modelled = base.modelled(variant.processes, load.cores)
        yield Result(f"{title}: modelled, with the cores got", modelled, "/s")
        yield Result(f"{title}: processor time of processes", load.client_us, "us")
        yield from _of_servers(title, load)
    yield from _ratios(timings)


def _of_servers(title: str, load: _Load) -> Iterator[Result]:
    yield Result(f"{title}: processor time of servers", load.servers.cpu_us, "us")
    yield Result(f"{title}: of the busiest server", load.hottest_us, "us")


def _ratios(timings: Timings) -> Iterator[Result]:
    one = _Variant(_ONE, 1, AT_ONCE)

    def share(name: str, of: _Variant, base: _Variant, goal: Goal | None = None) -> Result:
        ratio = timings.ratio(base.name, of.name)
        return Result(f"FastAPI, requests a second: {name}", ratio, "x", goal)

    yield share(f"{_MANY} / {AT_ONCE} at once", one._replace(at_once=_MANY), one, at_least(0.9))
    yield share("2 processes / 1", one._replace(processes=2), one, at_least(1.5))
    yield share("4 processes / 1", one._replace(processes=4), one, at_least(1.5))
    for count in _CLUSTERS:
        cluster = _Variant(_cluster(count), 2, AT_ONCE)
        yield share(f"{_cluster(count)} / one server", cluster, one._replace(processes=2))


# Servers alone.


class _Site(NamedTuple):
    shards: Shards
    config: Config


def _servers(sites: Mapping[str, _Site]) -> Iterator[Result]:
    loads: dict[str, list[_Load]] = {name: [] for name in sites}

    async def measured(name: str) -> float:
        shards, config = sites[name]
        made = calls(config, _CALLS, clustered=shards.clustered)
        sent = [command for call in made for command in (*call.admit, *call.settle)]
        before = shards.tolls()
        seconds, cpu_s = replay(shards, sent)
        loads[name].append(_Load.of(_CALLS, _CALLS / seconds, cpu_s, _since(shards, before)))
        return seconds / _CALLS

    variants = {name: partial(measured, name) for name in sites}
    timings = asyncio.run(alternate(_ROUNDS, variants))
    for name in sites:
        load = _median(loads[name])
        yield Result(f"servers, {name}: admissions, each settled", load.rate, "/s")
        yield Result(f"servers, {name}: modelled, with all cores", load.modelled(1), "/s")
        yield Result(f"servers, {name}: cores got", load.cores)
        yield from _of_servers(f"servers, {name}", load)
        yield Result(f"servers, {name}: scripts", load.servers.scripts)
        yield Result(f"servers, {name}: in scripts", load.servers.script_us, "us")
        yield Result(f"servers, {name}: bytes to servers", load.servers.received, "bytes")
        yield Result(f"servers, {name}: bytes from servers", load.servers.sent, "bytes")
    for count in _CLUSTERS[1:]:
        ratio = timings.ratio(_cluster(1), _cluster(count))
        goal = at_least(1.5) if count == _CORES else None
        yield Result(f"servers, cluster of {count} / of 1", ratio, "x", goal)


def _memory(server: Shards, config: Config) -> Iterator[Result]:
    """Measure what calls in flight need beside the accounts of their principals."""
    made = list(calls(config, _CALLS, clustered=False))
    before = server.used_memory()
    replay(server, [command for call in made for command in call.admit])
    held = server.used_memory() - before
    replay(server, [command for call in made for command in call.settle])
    yield Result("memory: a call in flight", held / _CALLS, "bytes")
