"""What happens while the store does not answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_budget_mw.config import OutageConfig
from llm_budget_mw.outage import Breaker, Outage
from llm_budget_mw.types import (
    Charges,
    Decision,
    Grant,
    Limit,
    LimitSet,
    OnOutage,
    Refusal,
    RefusalReason,
)
from tests.stores.kit import DAY, NOTHING, SLOT, limits, plan, tokens

CONFIG = OutageConfig(failures=3, open_s=1.0, max_open_s=8.0, queue=3)


class Seconds:
    """A monotonic clock that goes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def breaker(clock: Seconds) -> Breaker:
    return Breaker(CONFIG, clock)


def open_up(breaker: Breaker) -> None:
    while not breaker.failed():
        pass


# The breaker


def test_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    """Only failures without an answer between them count."""
    assert [breaker.failed(), breaker.failed(), breaker.succeeded()] == [False] * 3
    assert [breaker.failed() for _ in range(3)] == [False, False, True]
    assert not breaker.allows()


def test_one_probe_at_a_time(breaker: Breaker, clock: Seconds) -> None:
    """When its time is over, an open breaker lets one caller ask; the others wait for it."""
    open_up(breaker)
    clock.now += CONFIG.open_s

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: breaker.allows(), range(64))) == 1


def test_answer_closes(breaker: Breaker, clock: Seconds) -> None:
    """The first answer closes the breaker, and says so once."""
    open_up(breaker)
    clock.now += CONFIG.open_s
    assert breaker.allows()

    assert [breaker.succeeded(), breaker.succeeded()] == [True, False]
    assert breaker.allows()
    assert [breaker.failed(), breaker.failed()] == [False, False]


def pauses(breaker: Breaker, clock: Seconds, count: int) -> list[float]:
    """Return how long the breaker stays open after each of so many failed probes."""
    lengths: list[float] = []
    for _ in range(count):
        begin = clock.now
        while not breaker.allows():
            clock.now += 0.01
        lengths.append(clock.now - begin)
        assert not breaker.failed()
    return lengths


def test_pause_doubles_and_varies(breaker: Breaker, clock: Seconds) -> None:
    """Each failed probe doubles the pause up to its bound, shortened by up to a half."""
    open_up(breaker)

    bounds = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    for length, bound in zip(pauses(breaker, clock, 6), bounds, strict=True):
        assert bound / 2 - 0.02 <= length <= bound + 0.02


def test_pause_is_short_again_after_an_answer(breaker: Breaker, clock: Seconds) -> None:
    """An outage does not make the next one longer."""
    open_up(breaker)
    pauses(breaker, clock, 5)
    breaker.succeeded()
    open_up(breaker)
    clock.now += CONFIG.open_s

    assert breaker.allows()


def test_pauses_differ_between_processes(clock: Seconds) -> None:
    """Many processes that lose the store at once do not come back at once."""
    breakers = [Breaker(CONFIG, clock) for _ in range(20)]
    for each in breakers:
        open_up(each)
    clock.now += CONFIG.open_s * 0.75

    assert 0 < sum(each.allows() for each in breakers) < 20


def test_calls_under_way_do_not_prolong_the_pause(breaker: Breaker, clock: Seconds) -> None:
    """Failures of calls begun before the breaker opened say nothing new."""
    open_up(breaker)
    assert not any(breaker.failed() for _ in range(50))
    clock.now += CONFIG.open_s

    assert breaker.allows()


def test_probe_that_never_reports(breaker: Breaker, clock: Seconds) -> None:
    """A probe that was cancelled does not keep the breaker open for ever."""
    open_up(breaker)
    clock.now += CONFIG.open_s
    assert breaker.allows()
    assert not breaker.allows()
    clock.now += CONFIG.open_s

    assert breaker.allows()


# The rule for each limit


def rule(on_outage: OnOutage, amount: int = 100, share: float = 0.0) -> Limit:
    return Limit(f"tokens-{on_outage}", "tokens", amount, DAY, on_outage, share)


def admit(outage: Outage, each: LimitSet, fixed: int = 10) -> Decision:
    return outage.admit(plan(each, offers=[tokens(fixed), tokens(1)]))


def test_open_limits_admit_all() -> None:
    """Where all limits are open, the first offer is granted in full, and nobody counts."""
    outage, each = Outage(CONFIG), limits(rule("open"))
    decided = outage.admit(plan(each, offers=[tokens(500, 900, least=1)]))

    assert isinstance(decided, Grant)
    assert (decided.output, decided.admission) == (900, None)


def test_closed_limit_refuses() -> None:
    """One closed limit is enough to refuse, whatever the others say."""
    decided = admit(Outage(CONFIG), limits(rule("open"), rule("closed"), rule("local", share=1)))

    assert isinstance(decided, Refusal)
    assert decided.reason is RefusalReason.STORE_DOWN
    assert "tokens-closed" in decided.message


def test_local_share_is_bounded() -> None:
    """Out of a share of a tenth of 1000, this process admits 100, however it is asked."""
    outage, each = Outage(CONFIG), limits(rule("open"), rule("local", 1000, 0.1))
    with ThreadPoolExecutor(8) as pool:
        decided = list(pool.map(lambda _: outage.admit(plan(each, offers=[tokens(10)])), range(64)))

    assert sum(each.admitted for each in decided) == 10


@pytest.mark.parametrize("fixed", [10, 5000])
def test_local_share_used_up_is_an_outage(fixed: int) -> None:
    """Beyond the share it is the store that is missing: never "used up", never "too large"."""
    outage, each = Outage(CONFIG), limits(rule("local", 100, 0.1))
    admit(outage, each)
    decided = outage.admit(plan(each, offers=[tokens(fixed)]))

    assert isinstance(decided, Refusal)
    assert (decided.reason, decided.admission) == (RefusalReason.STORE_DOWN, None)
    assert decided.retry_after_ms is not None


def test_settlement_frees_the_local_share() -> None:
    """What a locally admitted call did not use can be used by the next."""
    outage, each = Outage(CONFIG), limits(rule("local", 100, 0.5))
    first = admit(outage, each, 50)
    assert isinstance(first, Grant)
    assert not outage.admit(plan(each, offers=[tokens(1)])).admitted
    outage.settle(first, Charges(1, 20, 0))
    outage.settle(first, Charges(1, 20, 0))

    assert admit(outage, each, 30).admitted
    assert not outage.admit(plan(each, offers=[tokens(1)])).admitted


def test_local_share_chooses_among_offers() -> None:
    """The share is spent like the limit: a smaller offer, a shorter answer."""
    outage, each = Outage(CONFIG), limits(rule("local", 100, 0.5))
    decided = outage.admit(plan(each, offers=[tokens(60), tokens(20, 90, least=1)]))

    assert isinstance(decided, Grant)
    assert (decided.offer.fixed_tokens, decided.output) == (20, 30)
    assert decided.plan.subjects[0].limits is each


def test_settling_what_the_store_admitted_leaves_the_share_alone() -> None:
    """Only what this process admitted by itself counts against its share."""
    outage, each = Outage(CONFIG), limits(rule("local", 100, 0.5))
    asked = plan(each, offers=[tokens(50)])
    outage.settle(Grant(asked, asked.offers[0], 0, None), Charges(1, 5000, 0))

    assert admit(outage, each, 50).admitted


def test_limits_without_local_share_are_skipped() -> None:
    """A subject whose limits are all open is not counted at all."""
    outage = Outage(CONFIG)
    slots = limits(Limit("concurrency", "concurrency", 1, SLOT))

    assert all(admit(outage, slots).admitted for _ in range(3))


# The queue


def grant_of(number: int) -> Grant:
    asked = plan(limits(rule("open")), offers=[tokens(number)])
    return Grant(asked, asked.offers[0], 0, None)


def test_queue_keeps_the_order() -> None:
    """Settlements wait for the store in the order in which they came."""
    outage, grants = Outage(CONFIG), [grant_of(number) for number in range(2)]
    for grant in grants:
        outage.keep(grant, Charges(1, 1, 1))

    assert outage.waiting == 2
    taken = [outage.take(), outage.take(), outage.take()]
    assert taken == [(grants[0], Charges(1, 1, 1)), (grants[1], Charges(1, 1, 1)), None]


def test_full_queue_counts_what_it_loses() -> None:
    """Beyond its bound a settlement is lost, and counted."""
    outage = Outage(CONFIG)
    for number in range(5):
        outage.keep(grant_of(number), NOTHING)

    assert (outage.waiting, outage.lost) == (3, 2)


def test_abandoned_admission_is_released() -> None:
    """The release of an admission nobody heard of waits like a settlement, of nothing."""
    outage, asked = Outage(CONFIG), grant_of(1).plan
    outage.abandon(asked)

    taken = outage.take()
    assert taken is not None
    assert (taken[0].plan, taken[0].admission, taken[1]) == (asked, None, NOTHING)
