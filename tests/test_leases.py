"""Tests of `llm_budget_mw.leases`: one thread for all running calls, and only while there are any."""

from __future__ import annotations

import threading

from llm_budget_mw.guard import Guard
from llm_budget_mw.leases import Leases
from llm_budget_mw.types import Grant
from tests.deployment import (
    ManualClock,
    SwitchStore,
    call_of,
    configured,
    engine_of,
    origin_of,
)


def grant(**tier: str) -> Grant:
    """Return an admission with a lease of 60 s."""
    config = configured(tier)
    decided = Guard(engine_of(config), config, SwitchStore()).decide(origin_of(call_of("hi")))
    assert isinstance(decided, Grant)
    return decided


def test_a_lease_is_renewed_at_half_of_it() -> None:
    """Again and again, until the call is dropped."""
    renewed: list[Grant] = []
    clock = ManualClock()
    leases = Leases(renewed.append, clock)
    held = grant(requests="9/day")
    leases.keep(held)

    for now, count in ((29, 0), (30, 1), (59, 1), (60, 2)):
        clock.now = now
        leases.renew_due()
        assert len(renewed) == count

    leases.drop(held)
    clock.now = 1000
    leases.renew_due()
    assert len(renewed) == 2
    leases.close()


def test_a_call_that_ends_while_it_is_renewed_stays_ended() -> None:
    """Its lease is not taken up again."""
    clock = ManualClock()
    held = grant(requests="9/day")
    leases = Leases(lambda given: leases.drop(given), clock)
    leases.keep(held)

    clock.now = 30
    leases.renew_due()

    renewed: list[Grant] = []
    leases._renew = renewed.append
    clock.now = 1000
    leases.renew_due()
    assert renewed == []
    leases.close()


def test_the_thread_ends_with_the_last_call_and_starts_with_the_next() -> None:
    """A process that has nothing to keep has no thread of ours."""
    renewed = threading.Event()
    leases = Leases(lambda given: renewed.set())
    plan = grant(requests="9/day").plan._replace(lease_ms=20)
    held = grant(requests="9/day")._replace(plan=plan)

    for _ in range(2):
        renewed.clear()
        leases.keep(held)
        thread = leases._thread
        assert thread is not None
        assert renewed.wait(10)
        leases.drop(held)
        thread.join(10)
        assert not thread.is_alive()
    leases.close()


def test_a_call_without_limits_needs_no_lease() -> None:
    """Nothing is held for it."""
    leases = Leases(lambda given: None)

    leases.keep(grant())

    assert leases._thread is None
