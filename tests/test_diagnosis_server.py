"""Findings on a store: from facts made up, and from real servers with something wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import redis

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.diagnosis import Finding, Severity, ask, server, worst
from llm_budget_mw.diagnosis.facts import Failure, NodeFacts, StoreFacts
from tests.servers import Proxy, ValkeyServer, free_port

WELL = {
    "redis_version": "7.2.4",
    "cluster_enabled": 0,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "used_memory": 1000,
    "aof_enabled": 1,
    "role": "master",
    "connected_slaves": 0,
}
SETTINGS = {"save": "", "min-replicas-to-write": "0"}
OK, NOTE, WARNING, DANGER = Severity


def node(settings: Mapping[str, str] | None = SETTINGS, **info: Any) -> NodeFacts:
    return NodeFacts("a:1", {**WELL, **info}, settings)


def store(**facts: Any) -> StoreFacts:
    well = StoreFacts(
        "single", 100, latency_ms=1.0, ahead_ms=0.0, tried=True, clustered=False, nodes=(node(),)
    )
    return replace(well, **facts)


def found(facts: StoreFacts, check: str) -> list[Finding]:
    return [finding for finding in server.findings(facts) if finding.check == check]


def only(facts: StoreFacts, check: str) -> Finding:
    [finding] = found(facts, check)
    return finding


def test_nothing_is_wrong_with_a_good_store() -> None:
    """Every finding is fine, and none asks for anything."""
    findings = list(server.findings(store()))

    assert worst(findings) is OK
    assert not any(finding.remedy for finding in findings)


@pytest.mark.parametrize("kind", ["silent", "unreachable", "credentials", "refused"])
def test_of_a_store_without_an_answer_nothing_else_is_said(kind: Any) -> None:
    """One danger, with what happened and what to do."""
    [finding] = server.findings(store(failure=Failure(kind, "what happened")))

    assert finding[:3] == ("store.reachable", DANGER, "what happened")
    assert finding.remedy


@pytest.mark.parametrize(("latency_ms", "severity"), [(50, OK), (51, WARNING), (100, DANGER)])
def test_latency_is_held_against_the_deadline(latency_ms: float, severity: Severity) -> None:
    """Half of it is a warning, all of it means that no call is checked."""
    assert only(store(latency_ms=latency_ms), "store.reachable").severity is severity


@pytest.mark.parametrize(
    ("ahead_ms", "severity", "seen"),
    [
        (1999.0, OK, "2.0 s ahead of"),
        (2001.0, WARNING, "2.0 s ahead of"),
        (-9000.0, WARNING, "9.0 s behind"),
        (None, NOTE, "could not look"),
    ],
)
def test_clocks_should_agree(ahead_ms: float | None, severity: Severity, seen: str) -> None:
    """Two seconds are too much, in either direction."""
    finding = only(store(ahead_ms=ahead_ms), "store.clock")

    assert finding.severity is severity
    assert seen in finding.seen


@pytest.mark.parametrize(
    ("info", "check", "severity"),
    [
        ({"redis_version": "6.2.0"}, "store.version", OK),
        ({"redis_version": "6.0.16"}, "store.version", DANGER),
        ({"redis_version": "10.0.0"}, "store.version", OK),
        ({"redis_version": ""}, "store.version", DANGER),
        ({"valkey_version": "7.2.0"}, "store.version", OK),
        # Valkey says it is a Redis 7.2, too.
        ({"valkey_version": "7.1.9"}, "store.version", DANGER),
        ({"maxmemory_policy": "allkeys-lru"}, "store.eviction", WARNING),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 9999}, "store.eviction", DANGER),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": 9999}, "store.eviction", DANGER),
        ({"maxmemory": 2000}, "store.memory", OK),
        ({"maxmemory": 1250}, "store.memory", WARNING),
        ({"maxmemory": 1050}, "store.memory", DANGER),
        ({"evicted_keys": 3}, "store.evicted", WARNING),
        ({"aof_enabled": 0}, "store.persistence", WARNING),
        ({"rdb_last_bgsave_status": "err"}, "store.writes", DANGER),
        ({"aof_last_write_status": "err"}, "store.writes", DANGER),
        ({"role": "slave"}, "store.replication", DANGER),
        ({"connected_slaves": 2}, "store.replication", NOTE),
    ],
)
def test_what_a_server_says_of_itself(info: Any, check: str, severity: Severity) -> None:
    """Each of these facts by itself has its severity."""
    assert only(store(nodes=(node(**info),)), check).severity is severity


def test_snapshots_are_better_than_nothing() -> None:
    """Without a log of writes a crash forgets a part, not all."""
    saved = node({**SETTINGS, "save": "3600 1"}, aof_enabled=0)

    assert only(store(nodes=(saved,)), "store.persistence").severity is NOTE


def test_missing_replicas_stop_writes() -> None:
    """Where more are required than there are."""
    lonely = node({**SETTINGS, "min-replicas-to-write": "2"}, connected_slaves=1)
    finding = only(store(nodes=(lonely,)), "store.replication")

    assert finding.severity is DANGER
    assert "2, and 1 replicas" in finding.seen


def test_what_may_not_be_looked_at_is_a_note() -> None:
    """And nothing that was not seen is taken for fine or for wrong."""
    blind = store(clustered=None, nodes=(NodeFacts("a:1"),))
    partly = store(nodes=(node(None, aof_enabled=0),))

    notes = {finding.check for finding in server.findings(blind) if finding.severity is NOTE}
    assert notes == {"store.cluster", "store.version"}
    assert worst(server.findings(blind)) is NOTE
    assert "CONFIG GET" in only(partly, "store.persistence").seen


def test_a_script_has_to_do_all_it_needs() -> None:
    """What is forbidden is allowed by an ACL, what fails for another reason is not."""
    acl = only(store(forbidden={"HLEN": "NOPERM no permissions", "HGETALL": "x"}), "store.scripts")
    full = only(store(scripts=Failure("refused", "OOM command not allowed")), "store.scripts")

    assert (acl.severity, full.severity) == (DANGER, DANGER)
    assert acl.seen.startswith("HLEN, HGETALL does not work")
    assert "allow" in acl.remedy
    assert "allow" not in full.remedy


@pytest.mark.parametrize(
    ("state", "served", "severity"),
    [("ok", 16384, OK), ("fail", 16384, DANGER), ("ok", 16383, DANGER)],
)
def test_a_cluster_serves_every_slot(state: str, served: int, severity: Severity) -> None:
    """Otherwise some principals cannot be counted."""
    said = {"cluster_state": state, "cluster_slots_ok": str(served)}
    facts = store(shape="cluster", clustered=True, cluster=said)

    assert only(facts, "store.cluster").severity is severity
    assert only(replace(facts, cluster=None), "store.cluster").severity is NOTE


@pytest.mark.parametrize(("shape", "clustered"), [("cluster", False), ("single", True)])
def test_the_url_says_what_the_server_is(shape: Any, clustered: bool) -> None:
    """A cluster's client for a single server works as little as the other way round."""
    finding = only(store(shape=shape, clustered=clustered), "store.cluster")

    assert finding.severity is DANGER
    assert ("redis+cluster://" in finding.remedy) is clustered


def test_servers_of_a_cluster_are_named() -> None:
    """One alone is not: there is nothing to tell apart."""
    nodes = (node(), replace(node(evicted_keys=1), name="b:2"))

    assert only(store(nodes=nodes), "store.evicted").seen.startswith("b:2: 1 keys")
    assert only(store(nodes=nodes[1:]), "store.evicted").seen.startswith("1 keys")


def test_the_probe_tries_every_command_of_the_scripts() -> None:
    """A command added to a script and not to the probe would go unseen."""
    folder = resources.files("llm_budget_mw.stores") / "lua"
    used = {
        command
        for file in folder.iterdir()
        for command in re.findall(r'call\("([A-Z]+)"', file.read_text("utf-8"))
    }

    assert used
    assert used <= set(re.findall(r'try\("([A-Z]+)"', "".join(ask.PROBES)))


# What follows asks real servers.


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as connected:
        yield connected
        connected.config_set("maxmemory-policy", "noeviction")
        connected.config_set("maxmemory", "0")
        connected.config_set("min-replicas-to-write", "0")
        connected.execute_command("ACL", "DELUSER", "app")


def seen(url: str, **options: Any) -> dict[str, Finding]:
    """Return the findings on a store by their names; its patience with a slow machine is large."""
    options = {"deadline_ms": 5000, **options}
    findings = server.findings(ask.at_store(StoreConfig(url=url, **options)))
    return {finding.check: finding for finding in findings}


def test_a_new_server_only_forgets(client: redis.Redis, valkey: ValkeyServer) -> None:
    """Its one fault is that it keeps nothing; and looking leaves nothing behind."""
    findings = seen(valkey.url)

    assert [name for name, finding in findings.items() if finding.severity] == ["store.persistence"]
    assert "Valkey" in findings["store.version"].seen
    assert client.keys("*") == []


def test_a_server_that_evicts(client: redis.Redis, valkey: ValkeyServer) -> None:
    """The policy and the memory come from the server itself."""
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", "100mb")
    findings = seen(valkey.url)

    assert findings["store.eviction"].severity is DANGER
    assert "104857600 bytes" in findings["store.memory"].seen


def test_a_full_server(client: redis.Redis, valkey: ValkeyServer) -> None:
    """Its own words say why an admission does not work."""
    client.config_set("maxmemory", "1")
    findings = seen(valkey.url)

    assert findings["store.memory"].severity is DANGER
    assert findings["store.scripts"].severity is DANGER
    assert "memory" in findings["store.scripts"].seen


def test_a_server_without_its_replicas(client: redis.Redis, valkey: ValkeyServer) -> None:
    """Reads work, so only trying to write shows it."""
    client.config_set("min-replicas-to-write", "1")
    findings = seen(valkey.url)

    assert findings["store.replication"].severity is DANGER
    assert "NOREPLICAS" in findings["store.scripts"].seen


def restricted(client: redis.Redis, valkey: ValkeyServer, *rights: str) -> str:
    server: Any = client
    server.execute_command("ACL", "SETUSER", "app", "on", ">p@ss", *rights)
    return f"redis://app:p%40ss@127.0.0.1:{valkey.port}/0"


def documented_rights() -> list[str]:
    operations = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    [sentence] = re.findall(
        r"user of Redis with restricted rights needs: (.*?)\.", operations, re.S
    )
    return [f"+{name.lower()}" for name in re.findall(r"`([A-Z]+)`", sentence)]


def test_the_documented_rights_suffice(client: redis.Redis, valkey: ValkeyServer) -> None:
    """What such a user may not look at is a note, and nothing is worse."""
    url = restricted(client, valkey, "~llmb:1:*", *documented_rights())
    findings = seen(url)

    assert findings["store.scripts"].severity is OK, findings["store.scripts"].seen
    assert worst(findings.values()) is NOTE
    assert "could not look" in findings["store.version"].seen


@pytest.mark.parametrize("missing", ["eval", "evalsha", "hscan", "hset", "pexpire", "hdel"])
def test_each_missing_right_is_found(
    missing: str, client: redis.Redis, valkey: ValkeyServer
) -> None:
    """It is named, and nothing was written to find it out."""
    url = restricted(client, valkey, "~llmb:1:*", "+@all", f"-{missing}")
    finding = seen(url)["store.scripts"]

    assert finding.severity is DANGER
    assert missing in finding.seen.lower()
    assert "allow" in finding.remedy
    assert client.keys("*") == []


def test_keys_of_another_prefix(client: redis.Redis, valkey: ValkeyServer) -> None:
    """Rights on other keys are no rights."""
    url = restricted(client, valkey, "~other:*", "+@all")

    assert seen(url)["store.scripts"].severity is DANGER


def test_a_wrong_password(client: redis.Redis, valkey: ValkeyServer) -> None:
    """Told apart from a server that is away, and not repeated in the report."""
    url = restricted(client, valkey, "+@all").replace("p%40ss", "hunter2")
    findings = seen(url)

    assert findings["store.reachable"].severity is DANGER
    assert "credentials" in findings["store.reachable"].seen
    assert "hunter2" not in str(findings)


def test_nobody_there() -> None:
    """Said with the address that was tried."""
    port = free_port()
    finding = seen(f"redis://127.0.0.1:{port}")["store.reachable"]

    assert finding.severity is DANGER
    assert str(port) in finding.seen


def test_nobody_behind_a_sentinel() -> None:
    """The line names the service, and no password."""
    url = f"redis+sentinel://app:hunter2@127.0.0.1:{free_port()}/budgets"
    finding = seen(url)["store.reachable"]

    assert finding.severity is DANGER
    assert "no sentinel names a primary of 'budgets'" in finding.seen
    assert "hunter2" not in finding.seen


def test_a_server_that_hangs(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for longer than requests would, and not for ever."""
    monkeypatch.setattr(ask, "_PATIENCE_MS", 300)
    proxy = Proxy(valkey.port)
    proxy.silent = True
    started = time.monotonic()
    finding = seen(proxy.url, deadline_ms=10)["store.reachable"]
    proxy.close()

    assert (finding.severity, finding.seen) == (DANGER, "no answer within 300 ms")
    assert time.monotonic() - started < 10


def test_a_server_that_is_slow(valkey: ValkeyServer) -> None:
    """It answers, but later than a request would wait."""
    proxy = Proxy(valkey.port)
    proxy.delay_s = 0.02
    finding = seen(proxy.url, deadline_ms=10)["store.reachable"]
    proxy.close()

    assert finding.severity is DANGER
    assert "store.deadline_ms is 10: every call" in finding.seen


def test_a_cluster(tmp_path: Path) -> None:
    """Without slots it serves nobody; with them, the URL has to say that it is one."""
    bus = ("--cluster-port", str(free_port()))
    with ValkeyServer("--cluster-enabled", "yes", "--dir", str(tmp_path), *bus) as running:
        url = f"redis+cluster://127.0.0.1:{running.port}"
        without = seen(url)
        with redis.Redis(port=running.port) as direct:
            direct.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            deadline = time.monotonic() + 20
            while direct.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                assert time.monotonic() < deadline
        complete, misnamed = seen(url), seen(running.url)

    assert without["store.cluster"].severity is DANGER
    assert "0 of 16384" in without["store.cluster"].seen
    assert complete["store.cluster"].severity is OK
    assert complete["store.scripts"].severity is OK
    assert "redis+cluster://" in misnamed["store.cluster"].remedy


def test_a_cluster_that_is_none(valkey: ValkeyServer) -> None:
    """A cluster's client would not even start."""
    finding = seen(f"redis+cluster://127.0.0.1:{valkey.port}")["store.cluster"]

    assert finding.severity is DANGER
    assert "redis://" in finding.remedy
