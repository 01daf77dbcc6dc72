"""Scripts of a cluster, for threads and for event loops: each node is used like a server.

Where a call goes is decided in `_slots.py`; here it is sent. Commands of one turn of an event
loop leave together for each node, and a connection at hand is kept for each.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import redis.asyncio
from redis import exceptions

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores._commands import Command, wire
from llm_budget_mw.stores._direct import DirectScripts
from llm_budget_mw.stores._link import Link, Together, late, store_error
from llm_budget_mw.stores._slots import FAILURES, Address, Call, Pause, Reread, Slots, Step

_MAP = ("CLUSTER", "SLOTS")


class Cluster(NamedTuple):
    """A cluster that is not connected yet."""

    seeds: tuple[Address, ...]
    node: Callable[[Address], Any]
    """Makes the client of one node, for threads or for an event loop."""
    deadline_s: float


class ClusterScripts:
    """The scripts of a cluster, for threads; a `Scripts` like a client."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._slots = Slots(cluster.seeds)
        self._nodes: dict[Address, DirectScripts] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def evalsha(self, sha: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        """Run a script the node of the first key knows."""
        return self._run(keys_and_args[0], wire("EVALSHA", sha, str(numkeys), *keys_and_args))

    def eval(self, script: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        """Run a script."""
        return self._run(keys_and_args[0], wire("EVAL", script, str(numkeys), *keys_and_args))

    def close(self) -> None:
        """Let go of connections."""
        for address in list(self._nodes):
            self._nodes.pop(address).close()

    def _run(self, key: str | bytes, command: bytes) -> object:
        end = time.monotonic() + self._cluster.deadline_s
        steps, answer = self._slots.journey(cast("str", key)), None
        try:
            while True:
                answer = self._take(steps.send(answer), command, end, answer)
        except StopIteration as arrived:
            reply: object = arrived.value
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _take(self, step: Step, command: bytes, end: float, before: object) -> object:
        """Do one step; past the end of its time, fail as the one before did."""
        if time.monotonic() > end:
            late = exceptions.TimeoutError("no node answered in time")
            raise before if isinstance(before, Exception) else late
        if isinstance(step, Pause):
            time.sleep(step.seconds)  # keys on their way: nobody tells when they are there
            return before
        if isinstance(step, Reread):
            return self._reread(step, end)
        try:
            return self._node(step.address).call(command, asking=step.asking)
        except FAILURES as error:
            return error

    def _reread(self, step: Reread, end: float) -> object:
        """Read the map; return the error of the last node asked if none could tell it."""
        failure: object = None
        with self._reading:
            if self._slots.reading != step.reading:
                return None
            self._slots.begin_reading()
            for source in self._slots.sources():
                try:
                    self._slots.read(self._node(source).call(wire(*_MAP)), source)
                except FAILURES as error:
                    self._slots.doubt(source)
                    failure = error
                else:
                    self._forget_gone()
                    return None
                if time.monotonic() > end:
                    break
        return failure

    def _node(self, address: Address) -> DirectScripts:
        with self._lock:
            node = self._nodes.get(address)
            if node is None:
                node = self._nodes[address] = DirectScripts(self._cluster.node(address))
            return node

    def _forget_gone(self) -> None:
        with self._lock:
            gone = [self._nodes.pop(each) for each in self._nodes.keys() - self._slots.nodes]
        for node in gone:
            node.close()


class _ClusterLink:
    """The scripts of a cluster, for one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._slots = Slots(cluster.seeds)
        self._nodes: dict[Address, Together] = {}
        self._reading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, command: Command) -> object:
        steps, answer = self._slots.journey(command.keys[0]), None
        step: Step | None = None
        try:
            async with asyncio.timeout(self._cluster.deadline_s):
                while True:
                    step = steps.send(answer)
                    answer = await self._take(step, command, answer)
        except StopIteration as arrived:
            answer = arrived.value
        except TimeoutError:
            if isinstance(step, Call):
                self._slots.doubt(step.address)
            if not isinstance(answer, Exception):
                raise late(self._cluster.deadline_s) from None
        if isinstance(answer, StoreError):
            raise answer
        if isinstance(answer, Exception):
            raise store_error(answer)
        return answer

    async def close(self) -> None:
        for address in list(self._nodes):
            await self._nodes.pop(address).close()
        await asyncio.gather(*self._closing)

    async def _take(self, step: Step, command: Command, before: object) -> object:
        """Do one step."""
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return before
        if isinstance(step, Reread):
            return await self._reread(step)
        try:
            return await self._node(step.address).run(command, asking=step.asking)
        except StoreError as error:
            return error

    async def _reread(self, step: Reread) -> object:
        """Like `ClusterScripts._reread`; a node that is silent must not use up the time."""
        failure: object = None
        async with self._reading:
            if self._slots.reading != step.reading:
                return None
            self._slots.begin_reading()
            for source in self._slots.sources():
                try:
                    async with asyncio.timeout(self._cluster.deadline_s / 4):
                        reply = await self._node(source).ask(*_MAP)
                    self._slots.read(reply, source)
                except FAILURES as error:
                    self._slots.doubt(source)
                    failure = error
                else:
                    self._forget_gone()
                    return None
        return failure

    def _node(self, address: Address) -> Together:
        node = self._nodes.get(address)
        if node is None:
            client = self._cluster.node(address)
            node = self._nodes[address] = Together(client, self._cluster.deadline_s)
        return node

    def _forget_gone(self) -> None:
        for address in self._nodes.keys() - self._slots.nodes:
            closing = asyncio.create_task(self._nodes.pop(address).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def link_to(client: redis.asyncio.Redis | Cluster, deadline_s: float) -> Link:
    """Return the link over a client of the running loop, or to the nodes of a cluster."""
    if isinstance(client, Cluster):
        return _ClusterLink(client)
    return Together(client, deadline_s)
