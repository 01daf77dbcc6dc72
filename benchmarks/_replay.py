"""Commands made beforehand, and sent with almost no work: what servers can take by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import product
from time import perf_counter, process_time
from typing import Any, NamedTuple

from benchmarks._deployment import model_call, principals
from benchmarks._shards import Shards
from llm_budget_mw.assembly import build_engine
from llm_budget_mw.config import Config
from llm_budget_mw.stores import _commands, _partitions
from llm_budget_mw.stores._commands import Command
from llm_budget_mw.types import Admission, Charges, Grant, Plan

_LOT = 100
"""Commands in one write."""
_USED = Charges(requests=1, tokens=50, cost_nano=200_000)


class Call(NamedTuple):
    """The commands of one call, as the store makes them."""

    admit: list[Command]
    settle: list[Command]


class Done(NamedTuple):
    """What sending took."""

    seconds: float
    cpu_s: float


def calls(config: Config, count: int, *, clustered: bool) -> Iterator[Call]:
    """Make the commands of calls whose first offer will be granted."""
    engine, callers, call = build_engine(config), principals(), model_call()
    prefix, now = config.store.prefix, int(time.time() * 1000)
    for _ in range(count):
        plan = engine.plan(next(callers), call)
        plans, grants = [plan], [_granted(plan, now)]
        if clustered:
            plans = [group.plan for group in _partitions.groups(plan) if group.places]
            grants = [each for _, each in _partitions.split(grants[0])]
        yield Call(
            [_commands.admit(each, prefix, now) for each in plans],
            [_commands.settle(each, _USED, prefix, now) for each in grants],
        )


def _granted(plan: Plan, now: int) -> Grant:
    """Return the grant as it will be, but for what the counters say beside their windows."""
    offer = plan.offers[0]
    grant = Grant(plan, offer, offer.max_output, None)
    counters = [(start, 0, 0, 0, 0) for start in _commands.window_starts(grant, now)]
    return grant._replace(admission=Admission(now, 1, grant.output, sum(counters, ())))


def replay(shards: Shards, commands: Iterable[Command]) -> Done:
    """Send commands to their servers, a lot ahead of the replies."""
    queues = [list(_lots(queue)) for queue in _by_server(shards, commands)]
    connections: list[Any] = [node.client.connection_pool.get_connection() for node in shards.nodes]
    begin, cpu = perf_counter(), process_time()
    for number in range(max(map(len, queues)) + 1):
        for connection, queue in zip(connections, queues, strict=True):
            if number < len(queue):
                connection.send_packed_command([b"".join(queue[number])])
        for connection, queue in zip(connections, queues, strict=True):
            if 0 < number <= len(queue):
                for _ in queue[number - 1]:
                    connection.read_response()
    done = Done(perf_counter() - begin, process_time() - cpu)
    for node, connection in zip(shards.nodes, connections, strict=True):
        node.client.connection_pool.release(connection)
    return done


def _by_server(shards: Shards, commands: Iterable[Command]) -> list[list[bytes]]:
    """Return what is sent to each server, which then knows all scripts."""
    queues: list[list[bytes]] = [[] for _ in shards.nodes]
    scripts: set[_commands.Script] = set()
    for script, keys, args in commands:
        words = ("EVALSHA", script.sha, str(len(keys)), *keys, *args)
        queues[shards.place(keys[0])].append(_commands.wire(*words))
        scripts.add(script)
    for node, script in product(shards.nodes, scripts):
        node.client.script_load(script.source)
    return queues


def _lots(queue: list[bytes]) -> Iterator[list[bytes]]:
    for begin in range(0, len(queue), _LOT):
        yield queue[begin : begin + _LOT]
