"""Asking a store how it is: the one place of the checks that talks to a Redis or Valkey.

It is asked with more patience than requests have, to tell a slow one from none. What is
forbidden is left out of the facts; nothing here raises because of what it finds.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

from redis import exceptions

from llm_budget_mw.config import StoreConfig
from llm_budget_mw.diagnosis.facts import Failure, NodeFacts, Shape, StoreFacts
from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores._slots import FAILURES
from llm_budget_mw.stores._url import hosts, kind
from llm_budget_mw.stores.connect import client, connect
from llm_budget_mw.types import Limit, LimitSet, Offer, Plan, Subject, SubjectLimits, Window

_PATIENCE_MS = 3000
_ROUND_TRIPS = 5
_SETTINGS = ("save", "min-replicas-to-write")
_SUBJECT = Subject("doctor", "doctor")
_NEVER = Offer("", 0, 1, 1.0, 0, 1, 0, 0)
"""No store can admit it, so that nothing is written."""

_TRY = """
local key, failed = KEYS[1], {}
local function try(name, ...)
  local reply = redis.pcall(name, ...)
  if type(reply) == "table" and reply.err then failed[#failed + 1] = name .. " " .. reply.err end
end
"""
PROBES = (
    _TRY
    + """
try("TIME") try("PTTL", key) try("HGET", key, "x") try("HMGET", key, "x") try("HLEN", key)
try("HEXISTS", key, "x") try("HGETALL", key) try("HSCAN", key, 0) try("PEXPIRE", key, 1000)
try("HDEL", key, "x") try("GET", key) try("DEL", key)
return failed
""",
    # The first command of a script that writes is the one a full server refuses.
    _TRY
    + """
try("HSET", key, "x", "1") try("HINCRBY", key, "n", 1)
try("PEXPIRE", key, 1000) try("HDEL", key, "x", "n")
try("SET", key, "x", "PX", 1000) try("DEL", key)
return failed
""",
)
"""Scripts that try every command of the real ones on a key of their own, and leave no trace: the
second, which writes, is run only if the first showed that it can be taken back."""


def at_store(config: StoreConfig, *, scripts: bool = True) -> StoreFacts:
    """Ask a Redis or Valkey how it is; `scripts` tries what requests do, on a key of its own.

    Raises `ConfigurationError` for a URL that makes no sense.
    """
    patient = config.model_copy(update={"deadline_ms": max(config.deadline_ms, _PATIENCE_MS)})
    facts = StoreFacts(cast("Shape", kind(config.url) or "single"), config.deadline_ms)
    for url in _doors(config.url):
        with contextlib.closing(client(patient.model_copy(update={"url": url}))) as first:
            try:
                facts = _asked(replace(facts, failure=None), first, patient)
                break
            except FAILURES as error:
                facts = replace(facts, failure=_failure(error, patient.deadline_ms))
    # With the wrong kind of client everything would fail, and only say so again.
    tried = scripts and facts.failure is None and not facts.misnamed
    return replace(facts, **_tried(patient)) if tried else facts


def _doors(url: str) -> Iterator[str]:
    """Yield the servers to begin with; those of a cluster by themselves, as it may be none."""
    if kind(url) != "cluster":
        yield url
        return
    read = hosts(url)
    server = urlsplit(read.server)
    credentials = server.netloc.rpartition("localhost")[0]
    for host, port in read.addresses:
        shown = f"[{host}]" if ":" in host else host
        yield server._replace(netloc=f"{credentials}{shown}:{port}").geturl()


def _asked(facts: StoreFacts, first: Any, config: StoreConfig) -> StoreFacts:
    latency_ms, ahead_ms = _timed(first)
    node = _node(first, _name(config.url))
    clustered = bool(node.info.get("cluster_enabled")) if node.info is not None else None
    facts = replace(
        facts, latency_ms=latency_ms, ahead_ms=ahead_ms, clustered=clustered, nodes=(node,)
    )
    if facts.misnamed or not facts.clustered:
        return facts
    state = cast("Mapping[str, str] | None", _told(first, "CLUSTER INFO"))
    return replace(facts, cluster=state, nodes=_primaries(config) or facts.nodes)


def _tried(config: StoreConfig) -> dict[str, Any]:
    return {"scripts": _scripts(config), "forbidden": _forbidden(config), "tried": True}


def _timed(server: Any) -> tuple[float, float | None]:
    """Return the median round trip, and by how much the server's clock is ahead, in ms."""
    trips: list[tuple[float, float | None]] = []
    _told(server, "TIME")  # the connection is made with the first command
    for _ in range(_ROUND_TRIPS):
        start, began = time.perf_counter(), time.time()
        reply = cast("tuple[int, int] | None", _told(server, "TIME"))
        trip_ms = (time.perf_counter() - start) * 1000
        here_ms = began * 1000 + trip_ms / 2
        there_ms = reply[0] * 1000 + reply[1] / 1000 if reply else None
        trips.append((trip_ms, None if there_ms is None else there_ms - here_ms))
    # The shortest trip says most about the clock.
    return statistics.median(trip for trip, _ in trips), min(trips, key=lambda each: each[0])[1]


def _told(server: Any, *command: str) -> object | None:
    """Return a reply, None for one that says no: permission is missing, or it is unknown."""
    try:
        return cast("object", server.execute_command(*command))
    except exceptions.ResponseError:
        return None


def _node(server: Any, name: str) -> NodeFacts:
    info = cast("Mapping[str, Any] | None", _told(server, "INFO"))
    settings: dict[str, str] | None = None
    for setting in _SETTINGS:
        reply = cast("Mapping[str, str] | None", _told(server, "CONFIG GET", setting))
        if reply is not None:
            settings = (settings or {}) | dict(reply)
    return NodeFacts(name, info, settings)


def _name(url: str) -> str:
    parts = urlsplit(url)
    # Without what may stand in front of it: a password does not belong into a report.
    return parts.netloc.rpartition("@")[2] or parts.path


def _primaries(config: StoreConfig) -> tuple[NodeFacts, ...]:
    """Return every primary of a cluster; none where the cluster cannot be entered."""
    try:
        with contextlib.closing(client(config)) as cluster:
            return tuple(
                _node(cluster.get_redis_connection(node), node.name)
                for node in cluster.get_primaries()
            )
    except FAILURES:
        return ()


def _scripts(config: StoreConfig) -> Failure | None:
    """Try an admission that cannot be: the way of every request, which writes nothing."""
    limits = LimitSet((Limit("requests", "requests", 1, Window("fixed", 60_000)),))
    plan = Plan(secrets.token_hex(12), (SubjectLimits(_SUBJECT, limits),), (_NEVER,), 1000)
    with contextlib.closing(connect(config)) as store:
        try:
            store.admit(plan)
        except StoreError as error:
            return Failure("refused", str(error))
    return None


def _forbidden(config: StoreConfig) -> Mapping[str, str]:
    """Return the commands a script cannot run now, and what the server says to each."""
    key = f"{config.prefix}:1:{{doctor}}:doctor/{secrets.token_hex(8)}"
    replies: list[bytes] = []
    try:
        with contextlib.closing(client(config)) as server:
            for probe in PROBES:
                replies = replies or server.eval(probe, 1, key)
    except FAILURES as error:
        return {"EVAL": str(error)}
    parts = [reply.decode(errors="replace").partition(" ") for reply in replies]
    return {name: text for name, _, text in parts}


def _failure(error: Exception, patience_ms: int) -> Failure:
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return Failure("silent", f"no answer within {patience_ms} ms")
    if isinstance(error, exceptions.AuthenticationError):
        return Failure("credentials", f"the server refuses the credentials: {error}")
    if isinstance(error, exceptions.ConnectionError | OSError):
        # That of a Sentinel goes on with its clients, passwords and all.
        return Failure("unreachable", f"no connection: {str(error).partition(' : <')[0]}")
    return Failure("refused", f"the server answers with an error: {error}")
