"""What happens while the store does not answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from llm_budget_mw.config import OutageConfig
from llm_budget_mw.outage import KEEP_S, Breaker, Outage, exposure
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import (
    Charges,
    Decision,
    Grant,
    Limit,
    LimitSet,
    OnOutage,
    Refusal,
    RefusalReason,
    Window,
)
from tests.stores.kit import DAY, MINUTE, MONTH, NOTHING, SLOT, limits, plan, tokens

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


def test_requests_leave_the_asking_to_others(breaker: Breaker, clock: Seconds) -> None:
    """While somebody beside them asks, they do so only if that one does not, for a second."""
    breaker.attended = True
    open_up(breaker)
    clock.now += breaker.probe_in() + 0.5
    assert not breaker.allows()
    clock.now += 0.6
    assert breaker.allows()
    assert not breaker.failed()
    clock.now += breaker.probe_in()

    assert breaker.probes()


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
    outage, each = Outage(CONFIG, shared=False), limits(rule("open"))
    decided = outage.admit(plan(each, offers=[tokens(500, 900, least=1)]))

    assert isinstance(decided, Grant)
    assert (decided.output, decided.admission) == (900, None)


def test_closed_limit_refuses() -> None:
    """One closed limit is enough to refuse, whatever the others say."""
    decided = admit(
        Outage(CONFIG, shared=False), limits(rule("open"), rule("closed"), rule("local", share=1))
    )

    assert isinstance(decided, Refusal)
    assert decided.reason is RefusalReason.STORE_DOWN
    assert "tokens-closed" in decided.message


def test_local_share_is_bounded() -> None:
    """Out of a share of a tenth of 1000, this process admits 100, however it is asked."""
    outage, each = Outage(CONFIG, shared=False), limits(rule("open"), rule("local", 1000, 0.1))
    with ThreadPoolExecutor(8) as pool:
        decided = list(pool.map(lambda _: outage.admit(plan(each, offers=[tokens(10)])), range(64)))

    assert sum(each.admitted for each in decided) == 10


@pytest.mark.parametrize("fixed", [10, 5000])
def test_local_share_used_up_is_an_outage(fixed: int) -> None:
    """Beyond the share it is the store that is missing: never "used up", never "too large"."""
    outage, each = Outage(CONFIG, shared=False), limits(rule("local", 100, 0.1))
    admit(outage, each)
    decided = outage.admit(plan(each, offers=[tokens(fixed)]))

    assert isinstance(decided, Refusal)
    assert (decided.reason, decided.admission) == (RefusalReason.STORE_DOWN, None)
    assert decided.retry_after_ms is not None


def test_settlement_frees_the_local_share() -> None:
    """What a locally admitted call did not use can be used by the next."""
    outage, each = Outage(CONFIG, shared=False), limits(rule("local", 100, 0.5))
    first = admit(outage, each, 50)
    assert isinstance(first, Grant)
    assert not outage.admit(plan(each, offers=[tokens(1)])).admitted
    outage.settle(first, Charges(1, 20, 0))
    outage.settle(first, Charges(1, 20, 0))

    assert admit(outage, each, 30).admitted
    assert not outage.admit(plan(each, offers=[tokens(1)])).admitted


def test_local_share_chooses_among_offers() -> None:
    """The share is spent like the limit: a smaller offer, a shorter answer."""
    outage, each = Outage(CONFIG, shared=False), limits(rule("local", 100, 0.5))
    decided = outage.admit(plan(each, offers=[tokens(60), tokens(20, 90, least=1)]))

    assert isinstance(decided, Grant)
    assert (decided.offer.fixed_tokens, decided.output) == (20, 30)
    assert decided.plan.subjects[0].limits is each


def test_settling_what_the_store_admitted_leaves_the_share_alone() -> None:
    """Only what this process admitted by itself counts against its share."""
    outage, each = Outage(CONFIG, shared=False), limits(rule("local", 100, 0.5))
    asked = plan(each, offers=[tokens(50)])
    outage.settle(Grant(asked, asked.offers[0], 0, None), Charges(1, 5000, 0))

    assert admit(outage, each, 50).admitted


def test_limits_without_local_share_are_skipped() -> None:
    """A subject whose limits are all open is not counted at all."""
    outage = Outage(CONFIG, shared=False)
    slots = limits(Limit("concurrency", "concurrency", 1, SLOT))

    assert all(admit(outage, slots).admitted for _ in range(3))


# The queue


def grant_of(number: int) -> Grant:
    asked = plan(limits(rule("open")), offers=[tokens(number)])
    return Grant(asked, asked.offers[0], 0, None)


def test_queue_keeps_the_order() -> None:
    """Settlements wait for the store in the order in which they came."""
    outage, grants = Outage(CONFIG, shared=False), [grant_of(number) for number in range(2)]
    for grant in grants:
        outage.keep(grant, Charges(1, 1, 1))

    assert outage.waiting == 2
    taken = [outage.take(), outage.take(), outage.take()]
    assert [[(each.grant, each.charges) for each in lot] for lot in taken] == [
        [(grants[0], Charges(1, 1, 1))],
        [(grants[1], Charges(1, 1, 1))],
        [],
    ]


def test_full_queue_counts_what_it_loses() -> None:
    """Beyond its bound a settlement is lost, and counted."""
    outage = Outage(CONFIG, shared=False)
    for number in range(5):
        outage.keep(grant_of(number), NOTHING)

    assert (outage.waiting, outage.lost) == (3, 2)


def test_abandoned_admission_is_released() -> None:
    """The release of an admission nobody heard of waits like a settlement, of nothing."""
    outage, asked = Outage(CONFIG, shared=False), grant_of(1).plan
    outage.abandon(asked)

    [kept] = outage.take()
    assert (kept.grant.plan, kept.grant.admission, kept.charges) == (asked, None, NOTHING)


def test_what_waited_for_too_long_is_lost(clock: Seconds) -> None:
    """After a day nobody knows whether the store had it already: it is counted, not charged."""
    outage = Outage(CONFIG, clock, shared=False)
    outage.keep(grant_of(1), NOTHING)
    clock.now += KEEP_S / 2
    outage.keep(grant_of(2), NOTHING)
    outage.keep(grant_of(3), NOTHING, waited_s=KEEP_S + 1)
    clock.now += KEEP_S / 2 + 1

    assert [kept.grant.offer.fixed_tokens for kept in outage.take(5)] == [2]
    assert outage.lost == 2


def test_what_is_put_back_is_never_lost() -> None:
    """It had its place before others took the room; those go first, should it never succeed."""
    outage = Outage(CONFIG, shared=False)
    outage.keep(grant_of(1), NOTHING)
    taken = outage.take()
    for number in (2, 3, 4):
        outage.keep(grant_of(number), NOTHING)
    outage.put_back(taken)

    assert [kept.grant.offer.fixed_tokens for kept in outage.take(9)] == [2, 3, 4, 1]
    assert outage.lost == 0


# Slots


class Crowd:
    """Processes that share slots in one store, without their processes."""

    def __init__(self, clock: Seconds, count: int, slots: int, local_s: int = 60) -> None:
        config = CONFIG.model_copy(update={"processes": slots, "local_s": local_s})
        self.clock = clock
        self.store = MemoryStore(lambda: int(clock.now * 1000))
        self.each = [Outage(config, clock) for _ in range(count)]

    def claim(self, number: int) -> int:
        """Have one of them ask for its slot."""
        slot = self.each[number].slot
        begun_at = slot.begin()
        slot.took(self.store.claim(*slot.claim), begun_at)
        return slot.number

    def spend(self, each: LimitSet) -> list[int]:
        """Have all of them admit calls of one token until none does; return how many each did."""
        asked = [itertools.takewhile(bool, self._admits(outage, each)) for outage in self.each]
        return [sum(1 for _ in calls) for calls in asked]

    def _admits(self, outage: Outage, each: LimitSet) -> Iterator[bool]:
        while True:
            yield outage.admit(plan(each, offers=[tokens(1)])).admitted


@pytest.mark.parametrize(("amount", "local_share"), [(1000, 0.1), (1003, 0.1), (30, 0.1), (9, 0.1)])
@pytest.mark.parametrize("processes", [1, 3, 4, 5, 40])
def test_all_processes_together_admit_no_more_than_the_share(
    clock: Seconds, amount: int, local_share: float, processes: int
) -> None:
    """However many there are; and the whole share, if there are as many as slots."""
    crowd = Crowd(clock, processes, slots=4)
    for number in range(processes):
        crowd.claim(number)

    spent = sum(crowd.spend(limits(rule("local", amount, local_share))))
    assert spent <= int(amount * local_share)
    if processes >= 4:
        assert spent == int(amount * local_share)


def test_a_process_without_a_slot_admits_nothing_local(clock: Seconds) -> None:
    """It is the store that is missing; limits that are open go on."""
    outage = Outage(CONFIG, clock)
    decided = admit(outage, limits(rule("open"), rule("local", 100, 1.0)))

    assert isinstance(decided, Refusal)
    assert decided.reason is RefusalReason.STORE_DOWN
    assert "tokens-local" in decided.message
    assert admit(outage, limits(rule("open"))).admitted


def test_a_slot_ends_before_the_store_can_give_it_away(clock: Seconds) -> None:
    """Its time counts from before the claim was sent, less what clocks may differ by."""
    crowd = Crowd(clock, 2, slots=1, local_s=60)
    each, slot = limits(rule("local", 100, 1.0)), crowd.each[0].slot
    begun_at = slot.begin()
    number = crowd.store.claim(*slot.claim)
    clock.now += 20  # the reply took its time
    slot.took(number, begun_at)
    assert slot.number == 1

    while slot.number:
        assert crowd.claim(1) == 0
        clock.now += 0.1
    assert not admit(crowd.each[0], each, 1).admitted
    assert 59 <= clock.now - begun_at < 60
    clock.now += 1
    assert crowd.claim(1) == 1


def test_a_slot_that_is_renewed_lasts(clock: Seconds) -> None:
    """As long as the store answers; what was spent from it stays spent."""
    crowd, each = Crowd(clock, 1, slots=2), limits(rule("local", 100, 0.2))
    crowd.claim(0)
    assert crowd.spend(each) == [10]
    for _ in range(5):
        clock.now += 50
        assert crowd.claim(0) == 1

    assert crowd.spend(each) == [0]


def test_a_call_of_a_slot_that_has_ended_does_not_grow(clock: Seconds) -> None:
    """What it was granted stays, more would be somebody else's."""
    crowd, each = Crowd(clock, 1, slots=1), limits(rule("local", 100, 1.0))
    crowd.claim(0)
    [outage] = crowd.each
    grant = outage.admit(plan(each, offers=[tokens(10, 10)]))
    assert isinstance(grant, Grant)
    assert outage.grow(grant, 20) == 20
    clock.now += 60

    assert outage.grow(grant, 30) == 10


def test_a_long_call_keeps_its_place(clock: Seconds) -> None:
    """A local slot of concurrency is renewed like one of the store."""
    outage = Outage(CONFIG, clock, shared=False)
    busy = limits(Limit("concurrency", "concurrency", 10, SLOT, "local", 0.1))
    grant = outage.admit(plan(busy, offers=[tokens(1)]))
    assert isinstance(grant, Grant)

    assert outage.renew(grant)
    outage.settle(grant, NOTHING)
    assert not outage.renew(grant)


def test_another_slot_is_another_part(clock: Seconds) -> None:
    """A process that changes slots has still but one part of the window."""
    crowd, each = Crowd(clock, 2, slots=2), limits(rule("local", 100, 0.21))
    assert [crowd.claim(0), crowd.claim(1)] == [1, 2]
    assert crowd.spend(each) == [11, 10]
    crowd.store.claim(*crowd.each[0].slot.release)
    clock.now += 61
    assert [crowd.claim(1), crowd.claim(0)] == [1, 2]

    assert crowd.spend(each) == [0, 1]


# What an outage can cost


def money(amount: int, window: Window, share: float = 0.1, name: str = "") -> Limit:
    return Limit(name or f"budget-{amount}", "cost", amount, window, "local", share)


@pytest.mark.parametrize(
    ("each", "most"),
    [
        ([], None),
        ([rule("open"), rule("local", share=0.5)], None),
        ([money(1000, MONTH)], 200),
        ([money(1000, MONTH), money(100, DAY)], 20),
        ([money(1000, MINUTE)], 1100),
        ([money(1000, MONTH), rule("closed")], 0),
        ([replace(money(1000, MONTH), shadow=True)], None),
    ],
)
def test_what_an_outage_can_cost_is_known_before(each: list[Limit], most: int | None) -> None:
    """In 600 seconds a day can turn once and a minute ten times; the least limit decides."""
    assert exposure(each, CONFIG) == most
