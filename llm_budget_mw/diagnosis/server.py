"""What is wrong with a store, from what it said of itself; no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_budget_mw.diagnosis.facts import Failure, NodeFacts, StoreFacts
from llm_budget_mw.diagnosis.finding import Finding, Severity

_OLDEST = {"redis": (6, 2), "valkey": (7, 2)}
_NEARLY_FULL, _FULL = 0.8, 0.95
_SKEW_MS = 2000
_SLOTS = 16384
_FORBIDDEN = re.compile("no permission|NOPERM|can't run|has no perm", re.IGNORECASE)
_REMEDIES = {
    "silent": "look whether the server hangs, and whether a firewall drops what is sent to it",
    "unreachable": "start the server, or correct store.url",
    "credentials": "correct user and password in store.url (LLM_BUDGET_STORE_URL)",
    "refused": "see what the server says",
}


def findings(facts: StoreFacts) -> Iterator[Finding]:
    """Yield what every check says of a store."""
    if facts.failure:
        yield _unreachable(facts.failure)
        return
    for check in _OF_STORE:
        yield from check(facts)
    for node in facts.nodes:
        # One server alone needs no name.
        where = f"{node.name}: " if len(facts.nodes) > 1 else ""
        for look in _OF_NODE:
            for found in look(node):
                yield found._replace(seen=where + found.seen)


def _unreachable(failure: Failure) -> Finding:
    return Finding("store.reachable", Severity.DANGER, failure.text, _REMEDIES[failure.kind])


def _latency(facts: StoreFacts) -> Iterator[Finding]:
    seen = f"answers in {facts.latency_ms:.1f} ms; store.deadline_ms is {facts.deadline_ms}"
    if facts.latency_ms >= facts.deadline_ms:
        yield Finding(
            "store.reachable",
            Severity.DANGER,
            f"{seen}: every call counts as an outage",
            "a larger store.deadline_ms, or a server that is nearer",
        )
    elif facts.latency_ms > facts.deadline_ms / 2:
        yield Finding(
            "store.reachable",
            Severity.WARNING,
            f"{seen}: a slow moment counts as an outage",
            "a larger store.deadline_ms, or a server that is nearer",
        )
    else:
        yield Finding("store.reachable", Severity.OK, seen)


def _clock(facts: StoreFacts) -> Iterator[Finding]:
    if facts.ahead_ms is None:
        yield _unseen("store.clock", "the server's clock (TIME)")
        return
    side = "ahead of" if facts.ahead_ms > 0 else "behind"
    seen = f"the server's clock is {abs(facts.ahead_ms) / 1000:.1f} s {side} this machine's"
    if abs(facts.ahead_ms) > _SKEW_MS:
        yield Finding(
            "store.clock",
            Severity.WARNING,
            f"{seen}: windows go by the server's, the expiry of credentials by this one",
            "set both by NTP",
        )
    else:
        yield Finding("store.clock", Severity.OK, seen)


def _scripts(facts: StoreFacts) -> Iterator[Finding]:
    if not facts.tried:
        return
    if facts.scripts is None and not facts.forbidden:
        yield Finding("store.scripts", Severity.OK, "scripts may do all they need")
        return
    said = facts.scripts.text if facts.scripts else next(iter(facts.forbidden.values()))
    what = "an admission" if facts.scripts else ", ".join(facts.forbidden)
    remedy = "see what else is found here; the server says why"
    if _FORBIDDEN.search(said):
        remedy = "allow what docs/operations.md lists, on the keys of store.prefix"
    yield Finding("store.scripts", Severity.DANGER, f"{what} does not work: {said}", remedy)


def _cluster(facts: StoreFacts) -> Iterator[Finding]:
    wanted = facts.shape == "cluster"
    if facts.clustered is None:
        yield _unseen("store.cluster", "whether it is a cluster (INFO)")
    elif facts.misnamed:
        yield Finding(
            "store.cluster",
            Severity.DANGER,
            "store.url speaks of a cluster, and the server is none"
            if wanted
            else "the server is part of a cluster, and store.url does not say so",
            f"write {'redis://' if wanted else 'redis+cluster://'} in store.url",
        )
    elif wanted:
        yield _state(facts.cluster)


def _state(cluster: Mapping[str, str] | None) -> Finding:
    if cluster is None:
        return _unseen("store.cluster", "the state of the cluster (CLUSTER INFO)")
    state = cluster.get("cluster_state", "unknown")
    served = _number(cluster, "cluster_slots_ok")
    seen = f"cluster_state is {state}, {served} of {_SLOTS} slots are served"
    if state != "ok" or served < _SLOTS:
        remedy = "bring back the primaries that are missing (CLUSTER NODES names them)"
        return Finding("store.cluster", Severity.DANGER, seen, remedy)
    return Finding("store.cluster", Severity.OK, seen)


def _version(node: NodeFacts) -> Iterator[Finding]:
    if node.info is None:
        yield _unseen("store.version", "version, memory, persistence and replicas (INFO)")
        return
    name = "valkey" if "valkey_version" in node.info else "redis"
    version = str(node.info.get(f"{name}_version", ""))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    shown = f"{name.title()} {version or 'of an unknown version'}"
    least = ".".join(map(str, _OLDEST[name]))
    if numbers < _OLDEST[name]:
        yield Finding(
            "store.version", Severity.DANGER, shown, f"{name.title()} {least} or later is needed"
        )
    else:
        yield Finding("store.version", Severity.OK, shown)


def _eviction(node: NodeFacts) -> Iterator[Finding]:
    policy = str((node.info or {}).get("maxmemory_policy", ""))
    if not policy:
        return
    bounded = _number(node.info or {}, "maxmemory") > 0
    if policy == "noeviction":
        yield Finding("store.eviction", Severity.OK, "maxmemory-policy is noeviction")
        return
    effect = "a budget whose key is evicted starts from zero"
    yield Finding(
        "store.eviction",
        Severity.DANGER if bounded else Severity.WARNING,
        f"maxmemory-policy is {policy}: {effect}"
        + ("" if bounded else ", as soon as maxmemory is set"),
        "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration",
    )


def _memory(node: NodeFacts) -> Iterator[Finding]:
    info = node.info or {}
    most, used = _number(info, "maxmemory"), _number(info, "used_memory")
    if not most:
        return
    share = used / most
    severity = Severity.OK
    if share >= _NEARLY_FULL:
        severity = Severity.DANGER if share >= _FULL else Severity.WARNING
    yield Finding(
        "store.memory",
        severity,
        f"{share:.0%} of maxmemory ({most} bytes) is used"
        + (": a full server takes no more writes" if severity else ""),
        "a larger maxmemory" if severity else "",
    )


def _evicted(node: NodeFacts) -> Iterator[Finding]:
    evicted = _number(node.info or {}, "evicted_keys")
    if evicted:
        yield Finding(
            "store.evicted",
            Severity.WARNING,
            f"{evicted} keys were evicted since the server started: some may have been budgets",
            "a server, or a maxmemory, of its own for budgets",
        )


def _persistence(node: NodeFacts) -> Iterator[Finding]:
    if node.info is None:
        return
    if _number(node.info, "aof_enabled"):
        yield Finding("store.persistence", Severity.OK, "appendonly is on")
    elif node.settings is None or "save" not in node.settings:
        yield _unseen("store.persistence", "whether snapshots are saved (CONFIG GET save)")
    elif node.settings["save"]:
        yield Finding(
            "store.persistence",
            Severity.NOTE,
            "appendonly is off: a crash forgets what was spent since the last snapshot",
            "appendonly yes, for budgets that must not forget",
        )
    else:
        yield Finding(
            "store.persistence",
            Severity.WARNING,
            "appendonly and save are off: a restart forgets all that was spent",
            "appendonly yes (appendfsync everysec loses about a second)",
        )


def _writes(node: NodeFacts) -> Iterator[Finding]:
    info = node.info or {}
    broken = [
        name
        for name in ("rdb_last_bgsave_status", "aof_last_write_status")
        if info.get(name, "ok") != "ok"
    ]
    if broken:
        yield Finding(
            "store.writes",
            Severity.DANGER,
            f"{', '.join(broken)}: the server cannot save, and may refuse to write",
            "look at its disk and its log",
        )


def _replication(node: NodeFacts) -> Iterator[Finding]:
    info = node.info or {}
    if info.get("role") in ("slave", "replica"):
        yield Finding(
            "store.replication",
            Severity.DANGER,
            "the server is a replica, which takes no writes",
            "name the primary in store.url, or a Sentinel (redis+sentinel://)",
        )
        return
    needed = _number(node.settings or {}, "min-replicas-to-write")
    have = _number(info, "connected_slaves")
    if needed > have:
        yield Finding(
            "store.replication",
            Severity.DANGER,
            f"min-replicas-to-write is {needed}, and {have} replicas are connected: no writes",
            "bring the replicas back",
        )
    elif have and not needed and node.settings is not None:
        yield Finding(
            "store.replication",
            Severity.NOTE,
            f"{have} replicas, min-replicas-to-write 0: a primary that is cut off goes on "
            "counting, and a failover forgets that",
            "min-replicas-to-write 1, to refuse rather than forget",
        )


def _unseen(check: str, what: str) -> Finding:
    return Finding(check, Severity.NOTE, f"could not look: {what}", "allow it, or look by hand")


def _number(source: Mapping[str, Any], name: str) -> int:
    text = str(source.get(name, 0))
    return int(text) if text.isdecimal() else 0


_OF_STORE: tuple[Callable[[StoreFacts], Iterator[Finding]], ...] = (
    _latency,
    _clock,
    _scripts,
    _cluster,
)
_OF_NODE: tuple[Callable[[NodeFacts], Iterator[Finding]], ...] = (
    _version,
    _eviction,
    _memory,
    _evicted,
    _persistence,
    _writes,
    _replication,
)
