"""Servers to scale over: one by itself, or a cluster of primaries without replicas."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from redis.crc import key_slot

from benchmarks._toll import Toll
from tests.cluster.topology import SLOTS, Node, poll
from tests.servers import free_port, valkey_binary

_OPTIONS = ("--save", "", "--appendonly", "no")


class Shards(NamedTuple):
    """Servers that are running."""

    url: str
    """The address for a store."""
    nodes: Sequence[Node]
    clustered: bool

    def tolls(self) -> list[Toll]:
        """Return what each has done so far."""
        return [Toll.of(node.client) for node in self.nodes]

    def place(self, key: str) -> int:
        """Return the number of the server that has a key."""
        return key_slot(key.encode()) * len(self.nodes) // SLOTS

    def used_memory(self) -> int:
        """Return the bytes of all servers."""
        return sum(int(node.client.info("memory")["used_memory"]) for node in self.nodes)


@contextlib.contextmanager
def started(folder: Path, shards: int) -> Generator[Shards]:
    """Run a cluster of so many shards, or one server that is none (0)."""
    with contextlib.ExitStack() as stack:
        nodes: list[Node] = []
        for number in range(shards or 1):
            clustered = _clustered(free_port()) if shards else ()
            node = Node(valkey_binary(), folder / str(number), *_OPTIONS, *clustered)
            stack.callback(node.close)
            node.start()
            nodes.append(node)
        if shards:
            _join(nodes)
        scheme = "redis+cluster" if shards else "redis"
        yield Shards(f"{scheme}://127.0.0.1:{nodes[0].port}", nodes, bool(shards))


def _clustered(bus: int) -> tuple[str, ...]:
    return ("--cluster-enabled", "yes", "--cluster-port", str(bus))


def _join(nodes: Sequence[Node]) -> None:
    # Those that `place` says.
    bounds = [-(-SLOTS * number // len(nodes)) for number in range(len(nodes) + 1)]
    first = nodes[0]
    bus = int(first.client.config_get("cluster-port")["cluster-port"])
    for number, (node, (begin, end)) in enumerate(zip(nodes, pairwise(bounds), strict=True)):
        node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        if node is not first:
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, bus)
    for node in nodes:
        poll(partial(_is_whole, node, len(nodes)), "a whole cluster")


def _is_whole(node: Node, count: int) -> bool:
    lines = node.client.execute_command("CLUSTER", "INFO").split(b"\r\n")
    return b"cluster_state:ok" in lines and b"cluster_known_nodes:%d" % count in lines
