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
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks._deployment import configuration, model_call, principals
from benchmarks._processes import Job, Process
from benchmarks._shards import Shards, started
from benchmarks._toll import Toll, total
from benchmarks.measure import AT_ONCE, Result, Timings, alternate, at_least
from llm_budget_mw.assembly import build_engine
from llm_budget_mw.config import Config
from llm_budget_mw.stores import _commands, _partitions
from llm_budget_mw.types import Charges, Grant

_ROUNDS = 2
_SECONDS = 1.0
_MANY = 500
_PROCESSES = (1, 2, 4)
_CLUSTERS = (1, 2, 3)
_ONE = "one server"
_CORES = os.cpu_count() or 1
_CALLS = 5000
_LOT = 100
"""Commands in one write, where nothing but servers are measured."""
_USED = Charges(requests=1, tokens=50, cost_nano=200_000)


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
        yield from _servers(deployments, configs)
        yield from _memory(deployments[_ONE], configs[_ONE])


def _cluster(shards: int) -> str:
    return f"cluster of {shards}"


def _config(shards: Shards) -> Config:
    config = configuration()
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

    def modelled(self, processes: int) -> float:
        """Return the operations a second of so many processes of one core at most each.

        The first of three bounds: the cores of the processes, of the server that works
        most, and of this machine, on which all of them run.
        """
        both = self.client_us + self.servers.cpu_us
        bounds = processes * 1e6 / self.client_us, 1e6 / self.hottest_us, _CORES * 1e6 / both
        return min(bounds)


def _median(loads: list[_Load]) -> _Load:
    """Return the medians of all numbers over the rounds; the first only warmed up."""
    middle = partial(statistics.median)
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


def _whole(
    deployments: Mapping[str, Shards], configs: Mapping[str, Config]
) -> Iterator[Result]:
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
        yield from _lines(f"FastAPI, {variant.name}", load, base.modelled(variant.processes))
    yield from _ratios(timings)


def _lines(title: str, load: _Load, modelled: float) -> Iterator[Result]:
    yield Result(f"{title}: requests", load.rate, "/s")
    yield Result(f"{title}: requests, modelled", modelled, "/s")
    yield Result(f"{title}: processor time, processes", load.client_us, "us")
    yield from _of_servers(title, load)


def _of_servers(title: str, load: _Load) -> Iterator[Result]:
    servers = load.servers
    yield Result(f"{title}: processor time, servers", servers.cpu_us, "us")
    yield Result(f"{title}: processor time, busiest server", load.hottest_us, "us")
    yield Result(f"{title}: in scripts", servers.script_us, "us")
    yield Result(f"{title}: scripts", servers.scripts)
    yield Result(f"{title}: bytes to servers", servers.received, "bytes")
    yield Result(f"{title}: bytes from servers", servers.sent, "bytes")


def _ratios(timings: Timings) -> Iterator[Result]:
    one = _Variant(_ONE, 1, AT_ONCE)

    def share(name: str, of: _Variant, base: _Variant, goal: float | None = None) -> Result:
        ratio = timings.ratio(base.name, of.name)
        return Result(f"FastAPI, requests a second: {name}", ratio, "x", goal and at_least(goal))

    yield share(f"{_MANY} / {AT_ONCE} at once", one._replace(at_once=_MANY), one, 0.9)
    yield share("2 processes / 1", one._replace(processes=2), one, 1.5)
    yield share("4 processes / 1", one._replace(processes=4), one, 1.5)
    for count in _CLUSTERS:
        cluster = _Variant(_cluster(count), 2, AT_ONCE)
        yield share(f"{_cluster(count)} / one server", cluster, one._replace(processes=2))


# Servers alone: commands made beforehand, and replies that nobody reads.


class _Call(NamedTuple):
    """The commands of one call, each with the number of its server."""

    admit: list[tuple[int, bytes]]
    settle: list[tuple[int, bytes]]


def _calls(shards: Shards, config: Config, count: int) -> Iterator[_Call]:
    """Make the commands of calls as the store does."""
    engine, callers, call = build_engine(config), principals(), model_call()
    prefix, now = config.store.prefix, int(time.time() * 1000)
    for _ in range(count):
        plan = engine.plan(next(callers), call)
        grant = Grant(plan, plan.offers[0], plan.offers[0].max_output, None)
        plans, grants = [plan], [grant]
        if shards.clustered:
            plans = [group.plan for group in _partitions.groups(plan)]
            grants = [each for _, each in _partitions.split(grant)]
        yield _Call(
            [_sent(shards, _commands.admit(each, prefix, now)) for each in plans],
            [_sent(shards, _commands.settle(each, _USED, prefix, now)) for each in grants],
        )


def _sent(shards: Shards, command: _commands.Command) -> tuple[int, bytes]:
    script, keys, args = command
    for node in shards.nodes:
        _load(node.client, script)
    return shards.place(keys[0]), _commands.wire("EVALSHA", script.sha, str(len(keys)), *keys, *args)


def _load(client: Any, script: _commands.Script, known: set[tuple[int, str]] = set()) -> None:
    if (id(client), script.sha) not in known:
        client.script_load(script.source)
        known.add((id(client), script.sha))


def _servers(
    deployments: Mapping[str, Shards], configs: Mapping[str, Config]
) -> Iterator[Result]:
    loads: dict[str, list[_Load]] = {name: [] for name in deployments}

    async def measured(name: str) -> float:
        shards = deployments[name]
        made = list(_calls(shards, configs[name], _CALLS))
        sent = [command for call in made for command in (*call.admit, *call.settle)]
        before, cpu = shards.tolls(), time.process_time()
        seconds = _replay(shards, sent)
        cpu_s = time.process_time() - cpu
        loads[name].append(_Load.of(_CALLS, _CALLS / seconds, cpu_s, _since(shards, before)))
        return seconds / _CALLS

    variants = {name: partial(measured, name) for name in deployments}
    timings = asyncio.run(alternate(_ROUNDS, variants))
    for name in deployments:
        load = _median(loads[name])
        yield Result(f"servers, {name}: admissions, each settled", load.rate, "/s")
        yield Result(f"servers, {name}: modelled", load.modelled(1), "/s")
        yield from _of_servers(f"servers, {name}", load)
    for count in _CLUSTERS[1:]:
        ratio = timings.ratio(_cluster(1), _cluster(count))
        goal = at_least(1.5) if count == _CORES else None
        yield Result(f"servers, cluster of {count} / of 1", ratio, "x", goal)


def _replay(shards: Shards, commands: list[tuple[int, bytes]]) -> float:
    """Send commands to their servers, a lot ahead of the replies; return the seconds."""
    queues: list[list[bytes]] = [[] for _ in shards.nodes]
    for place, command in commands:
        queues[place].append(command)
    lots = [[each[at : at + _LOT] for at in range(0, len(each), _LOT)] for each in queues]
    connections = [node.client.connection_pool.get_connection() for node in shards.nodes]
    begin = perf_counter()
    for number in range(max(map(len, lots)) + 1):
        for connection, queue in zip(connections, lots, strict=True):
            if number < len(queue):
                connection.send_packed_command([b"".join(queue[number])])
        for connection, queue in zip(connections, lots, strict=True):
            if 0 < number <= len(queue):
                for _ in queue[number - 1]:
                    connection.read_response()
    seconds = perf_counter() - begin
    for node, connection in zip(shards.nodes, connections, strict=True):
        node.client.connection_pool.release(connection)
    return seconds


def _memory(server: Shards, config: Config) -> Iterator[Result]:
    """Measure what calls in flight need beside the accounts of their principals."""
    made = list(_calls(server, config, _CALLS))
    before = server.used_memory()
    _replay(server, [command for call in made for command in call.admit])
    held = server.used_memory() - before
    _replay(server, [command for call in made for command in call.settle])
    yield Result("memory: a call in flight", held / _CALLS, "bytes")
