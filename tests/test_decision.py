"""Refusals: which limit, why, and until when exactly."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from llm_budget_mw import decision
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import (
    Admission,
    Grant,
    Limit,
    LimitSet,
    Offer,
    Refusal,
    RefusalReason,
    Resource,
    Window,
)
from tests.stores.kit import (
    DAY,
    DAY_MS,
    MINUTE,
    MINUTE_MS,
    MONTH,
    NOTHING,
    SLIDING,
    SLOT,
    START_MS,
    Bench,
    ManualClock,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

THOUSAND = limits(limit(1000))
HOUR_MS = 3_600_000


def new_bench(now_ms: int = START_MS) -> Bench:
    clock = ManualClock(now_ms)
    return Bench(MemoryStore(clock), clock)


def refusal(bench: Bench, each: LimitSet, *offers: Offer) -> Refusal:
    decided = bench.admit(plan(each, offers=offers or [tokens(1)]))
    assert isinstance(decided, Refusal)
    return decided


def spend(bench: Bench, each: LimitSet, amount: int) -> None:
    bench.settle(bench.take(each, 0), amount)


def test_grant_names_its_offer() -> None:
    """A grant is the offer the store chose, with the output it allows."""
    decided = new_bench().admit(plan(THOUSAND, offers=[tokens(1001), tokens(900, 200, least=1)]))

    assert isinstance(decided, Grant)
    assert (decided.offer, decided.output) == (decided.plan.offers[1], 100)


def test_used_up() -> None:
    """What is spent comes back when the window ends, and the message says when."""
    bench = new_bench(START_MS + 1_500)
    spend(bench, THOUSAND, 1000)

    refused = refusal(bench, THOUSAND)
    assert refused.reason is RefusalReason.EXHAUSTED
    assert refused.retry_after_ms == MINUTE_MS - 1_500
    assert "room again in 59 s" in refused.message


def test_busy() -> None:
    """What only calls in flight hold may be free any time: come back soon."""
    bench = new_bench()
    bench.take(THOUSAND, 1000)

    refused = refusal(bench, THOUSAND)
    assert (refused.reason, refused.retry_after_ms) == (RefusalReason.BUSY, decision.BUSY_MS)
    assert "in flight" in refused.message


def test_busy_at_the_end_of_a_window() -> None:
    """If the window ends before calls in flight are likely to, that is when to come back."""
    bench = new_bench(START_MS + MINUTE_MS - 300)
    bench.take(THOUSAND, 1000)

    refused = refusal(bench, THOUSAND)
    assert (refused.reason, refused.retry_after_ms) == (RefusalReason.BUSY, 300)


def test_slots_are_busy() -> None:
    """A slot is never used up, only taken."""
    slots = limits(limit(1, "concurrency", SLOT))
    bench = new_bench()
    bench.take(slots)

    refused = refusal(bench, slots)
    assert (refused.reason, refused.retry_after_ms) == (RefusalReason.BUSY, decision.BUSY_MS)


@pytest.mark.parametrize("offer", [tokens(1001), tokens(501, 500), tokens(501, ceiling=0.5)])
def test_never(offer: Offer) -> None:
    """What is larger than all a limit allows does not fit tomorrow either."""
    refused = refusal(new_bench(), THOUSAND, offer)

    assert (refused.reason, refused.retry_after_ms) == (RefusalReason.NEVER, None)
    assert "larger than the whole limit" in refused.message


def test_binding_limit_refuses_for_longest() -> None:
    """Of all limits in the way, the one that stays longest is named; the others are listed."""
    three = limits(limit(10), limit(10, window=DAY), limit(10, "requests"))
    bench = new_bench()
    spend(bench, three, 10)

    refused = refusal(bench, three)
    assert refused.binding is not None
    assert refused.binding.limit.window == DAY
    assert [status.limit.window for status in refused.refusing] == [MINUTE, DAY]
    assert refused.retry_after_ms == DAY_MS


def test_limit_that_fits_exactly_does_not_refuse() -> None:
    """A limit with just enough left is not among those in the way."""
    both = limits(limit(10), limit(1, "requests", DAY))
    bench = new_bench()
    spend(bench, both, 4)

    refused = refusal(bench, both, tokens(6))
    assert [status.limit.resource for status in refused.refusing] == ["requests"]


def test_offer_that_fits_soonest_decides() -> None:
    """An offer that can never fit, or only later, does not make the caller wait for it."""
    both = limits(limit(100), limit(1000, "cost", DAY))
    bench = new_bench()
    spend(bench, both, 100)
    small, dear = tokens(50)._replace(fixed_nano=10), tokens(50)._replace(fixed_nano=950)

    refused = refusal(bench, both, tokens(101), dear, small)
    assert refused.retry_after_ms == MINUTE_MS
    assert refused.binding is not None
    assert refused.binding.limit.resource == "tokens"


def test_free_offer_is_not_held_up_by_debt() -> None:
    """A limit of which an offer takes nothing is not among those in the way."""
    both = limits(limit(100, "cost", DAY), limit(1, "concurrency", SLOT))
    bench = new_bench()
    spend(bench, both, 500)
    bench.admit(plan(both, offers=[Offer("free", 0, 0, 1.0, 0, 0, 0, 0)]))

    refused = refusal(bench, both, Offer("free", 0, 0, 1.0, 0, 0, 0, 0))
    assert [status.limit.resource for status in refused.refusing] == ["concurrency"]


def test_statuses() -> None:
    """Remaining is never negative; use and reset are told for each limit of each subject."""
    month, slots = limit(1000, "cost", MONTH), limit(2, "concurrency", SLOT)
    bench = new_bench()
    spend(bench, limits(month, slots), 1500)
    decided = bench.admit(
        plan(someone("alice", limits(month, slots)), someone("acme", THOUSAND), offers=[tokens(0)])
    )

    told = [(each.remaining, each.used, each.reset_ms) for each in decision.statuses(decided)]
    assert told == [(0, 1500, 31 * DAY_MS), (2, 0, None), (1000, 0, MINUTE_MS)]


def test_statuses_without_a_store() -> None:
    """Where the store was not asked, nothing is known."""
    asked = plan(THOUSAND)

    assert decision.statuses(Grant(asked, asked.offers[0], 0, None)) == ()


def test_store_down() -> None:
    """A closed limit refuses without the store, for a moment."""
    refused = decision.store_down(plan(THOUSAND), THOUSAND.limits[0])

    assert (refused.reason, refused.retry_after_ms) == (RefusalReason.STORE_DOWN, decision.BUSY_MS)
    assert refused.binding is None
    assert THOUSAND.names[0] in refused.message


def test_reservation_that_ended_before_its_answer() -> None:
    """A refusal nothing is in the way of is no crash: the caller tries again."""
    bench = new_bench()
    asked = plan(THOUSAND)
    bench.store.settle(Grant(asked, asked.offers[0], 0, None), NOTHING)

    refused = bench.admit(asked)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.STORE_DOWN


def test_counters_of_another_store_do_not_confuse() -> None:
    """A refusal is explained from the numbers of the answer alone."""
    answer = Admission(START_MS, 0, 0, (float(START_MS), 990.0, 5.0, 0.0, 0.0))

    refused = decision.decide(plan(THOUSAND, offers=[tokens(10)]), answer)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.BUSY
    assert refused.refusing[0].used == 995


RESOURCES: list[Resource] = ["requests", "tokens", "cost"]
WINDOWS = [MINUTE, SLIDING, DAY, MONTH, Window("sliding", HOUR_MS), Window("fixed", 1)]
any_limits = st.lists(
    st.builds(
        lambda amount, resource, window: limit(amount, resource, window),
        st.integers(1, 300),
        st.sampled_from(RESOURCES),
        st.sampled_from(WINDOWS),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda each: each.name,
)
any_offers = st.lists(
    st.builds(
        tokens,
        st.integers(0, 150),
        st.integers(0, 60),
        ceiling=st.sampled_from([1.0, 0.7, 0.3]),
    ),
    min_size=1,
    max_size=3,
)
history = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90_000)), min_size=2, max_size=8)


@settings(max_examples=300)
@given(any_limits, any_offers, history, st.integers(0, 40 * DAY_MS))
def test_retry_after_is_exact(
    each: list[Limit], offers: Sequence[Offer], calls: list[tuple[int, int]], start: int
) -> None:
    """If nothing else happens, the call fits at that time, and not a millisecond before."""
    bench, entry = new_bench(START_MS + start), LimitSet(tuple(each))
    for amount, pause in calls:
        granted = bench.admit(plan(entry, offers=[tokens(0)]))
        if isinstance(granted, Grant):
            bench.settle(granted, amount)
        bench.clock.advance(pause)
    refused = bench.admit(plan(entry, offers=offers))
    if isinstance(refused, Grant) or refused.retry_after_ms is None:
        return
    event("refused for some time")
    assert refused.retry_after_ms > 0

    bench.clock.advance(refused.retry_after_ms - 1)
    assert not bench.admit(plan(entry, offers=offers)).admitted
    bench.clock.advance(1)
    assert bench.admit(plan(entry, offers=offers)).admitted
