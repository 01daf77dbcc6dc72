"""Processes that fork after they have opened and used a guard."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.guard import Guard
from llm_budget_mw.stores.connect import connect
from llm_budget_mw.types import Charges, Usage
from tests.deployment import ALICE, call_of, configured, engine_of, origin_of
from tests.servers import ValkeyServer

_CALLS = 100
_PATIENCE_S = 20.0
ORIGIN = origin_of(call_of("x" * 84))
DONE = Outcome(Ending.COMPLETE, Usage(40, 60))
COST = 40 * 2_500 + 60 * 10_000


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def guard(valkey: ValkeyServer) -> Iterator[Guard]:
    store = {"url": valkey.url, "prefix": f"t{secrets.token_hex(6)}", "deadline_ms": 5000}
    config = configured({"budget": "$10/day"}, store=store, outage={"processes": 2})
    made = Guard(engine_of(config), config, connect(config.store))
    yield made
    made.close()


def in_a_child(work: Callable[[], Any]) -> Callable[[], Any]:
    """Do something in a fork of this process; return what waits for its result."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is the subject
        child = os.fork()
    if not child:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)

    def result() -> Any:
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return json.loads(said)

    return result


def calls(guard: Guard) -> int:
    """Make calls until there is a slot, and so many at least; return how many."""
    made, deadline = 0, time.monotonic() + _PATIENCE_S
    while made < _CALLS or (not guard.outage.slot.number and time.monotonic() < deadline):
        held = guard.hold(guard.decide(ORIGIN), ORIGIN)
        assert held
        guard.settle(held, DONE)
        made += 1
    return made


def test_parent_and_child_go_on_side_by_side(guard: Guard) -> None:
    """Each with connections, a thread and a slot of its own; every call is booked once."""
    made = calls(guard)
    assert guard.outage.slot.number == 1
    waiting = in_a_child(lambda: [calls(guard), guard.outage.slot.number])
    made += calls(guard)
    [of_child, slot] = waiting()

    assert (guard.outage.slot.number, slot) == (1, 2)
    [status] = guard.limits(ALICE)
    assert status.used == (made + of_child) * COST


def test_what_waits_is_the_parents(guard: Guard) -> None:
    """A child does not deliver it a second time, nor write it down."""
    held = guard.hold(guard.decide(ORIGIN), ORIGIN)
    assert held
    while not guard.outage.breaker.failed():
        pass  # until it is open: nobody delivers
    guard.outage.keep(held.grant, Charges(1, 2, 3))
    assert guard.outage.waiting == 1

    assert in_a_child(lambda: guard.outage.waiting)() == 0


def test_a_lock_that_another_thread_holds_is_free_in_the_child(guard: Guard) -> None:
    """Nobody is there to release it."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with guard.outage._lock, guard.leases._lock:
            taken.set()
            done.wait(_PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(_PATIENCE_S)
    waiting = in_a_child(lambda: [guard.outage.queued(), calls(guard) > 0])
    done.set()
    holder.join()

    assert waiting() == [[], True]
