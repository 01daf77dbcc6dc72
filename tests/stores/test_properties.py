"""What every store does, whatever is behind it."""

from __future__ import annotations

import pytest

from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import MAX_AMOUNT, Charges, Grant, Refusal, RefusalReason
from tests.stores.kit import (
    DAY,
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    MONTH,
    NOTHING,
    SLIDING,
    SLOT,
    START_MS,
    Bench,
    ManualClock,
    granted,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

THOUSAND = limits(limit(1000))


def unchecked(grant: Grant) -> Grant:
    """Return a grant as the outage rule makes it: the store's answer is not known."""
    return grant._replace(admission=None)


# Admission


def test_holds_what_the_offer_may_cost(bench: Bench) -> None:
    """A grant holds the input and every output token it allows."""
    grant = granted(bench.admit(plan(THOUSAND, offers=[tokens(100, 50)])))

    assert grant.output == 50
    assert bench.counters(THOUSAND)[0].held == 150


def test_last_token_is_admitted(bench: Bench) -> None:
    """A limit can be used up to its last token, and not beyond."""
    bench.take(THOUSAND, 999)

    assert bench.refuses(THOUSAND, 2)
    assert not bench.refuses(THOUSAND, 1)


def test_refused_leaves_no_trace(bench: Bench) -> None:
    """Of 990 left, 990 are left after 5000 were refused."""
    bench.take(THOUSAND, 10)

    assert bench.refuses(THOUSAND, 5000)
    assert bench.used(THOUSAND) == [10]


def test_all_or_nothing_over_limits(bench: Bench) -> None:
    """What one limit refuses is not charged to any other."""
    both = limits(limit(5, "requests"), limit(100), limit(3, "cost"))

    assert not bench.admit(plan(both, offers=[tokens(4)])).admitted
    assert bench.used(both) == [0, 0, 0]


def test_all_or_nothing_over_subjects(bench: Bench) -> None:
    """What one subject's limit refuses is not charged to another subject."""
    alice, acme = someone("alice", THOUSAND), someone("acme", limits(limit(10)))

    assert not bench.admit(plan(alice, acme, offers=[tokens(11)])).admitted
    assert bench.admit(plan(alice, acme, offers=[tokens(9)])).admitted
    assert bench.used(alice, acme) == [9, 9]


def test_full_slots_leave_requests_untouched(bench: Bench) -> None:
    """A call refused for concurrency does not count as a request."""
    both = limits(limit(10, "requests"), limit(1, "concurrency", SLOT))
    bench.take(both)

    assert bench.refuses(both)
    assert bench.used(both) == [1, 1]


def test_subjects_are_apart(bench: Bench) -> None:
    """One subject's use is nothing to another."""
    bench.admit(plan(someone("alice", THOUSAND), offers=[tokens(1000)]))

    assert bench.used(someone("alice", THOUSAND), someone("bob", THOUSAND)) == [1000, 0]


def test_minute_and_day_of_one_resource(bench: Bench) -> None:
    """Two windows of one resource both count; the day remembers what the minute forgets."""
    both = limits(limit(100), limit(250, window=DAY))
    for _ in range(2):
        bench.settle(bench.take(both, 100), 100)
        assert bench.refuses(both, 1)
        bench.clock.advance(MINUTE_MS)

    assert bench.used(both) == [0, 200]
    assert bench.refuses(both, 51)


def test_two_limits_that_differ_by_name_only(bench: Bench) -> None:
    """Each of two equal limits counts by itself."""
    twice = limits(limit(10, name="one"), limit(10, name="two"))
    bench.take(twice, 10)

    assert bench.used(twice) == [10, 10]


def test_amount_zero_refuses_for_ever(bench: Bench) -> None:
    """Nothing fits a limit of nothing, and waiting does not help."""
    decided = bench.admit(plan(limits(limit(0, "requests"))))

    assert isinstance(decided, Refusal)
    assert decided.reason is RefusalReason.NEVER


def test_what_costs_nothing_passes(bench: Bench) -> None:
    """A call that takes nothing of a limit passes, although it is used up and in debt."""
    bench.settle(bench.take(THOUSAND, 1000), 5000)

    free = tokens(0)._replace(per_output_tokens=0)
    assert bench.admit(plan(THOUSAND, offers=[free])).admitted


def test_largest_amount_is_exact(bench: Bench) -> None:
    """At 2^53 a single unit still makes the difference."""
    huge = limits(limit(MAX_AMOUNT))
    bench.take(huge, MAX_AMOUNT - 1)

    assert bench.refuses(huge, 2)
    assert not bench.refuses(huge, 1)


def test_output_shrinks_to_what_is_left(bench: Bench) -> None:
    """Near the limit the answer gets shorter, down to the least that is of use."""
    bench.take(THOUSAND, 700)

    grant = granted(bench.admit(plan(THOUSAND, offers=[tokens(100, 500, least=150)])))
    assert grant.output == 200
    assert not bench.admit(plan(THOUSAND, offers=[tokens(0, 500, least=150)])).admitted


def test_several_samplings_share_what_is_left(bench: Bench) -> None:
    """Output is granted per sampling: three of them get a third each, rounded down."""
    offer = tokens(0, 900, least=1)._replace(per_output_tokens=3)

    grant = granted(bench.admit(plan(THOUSAND, offers=[offer])))
    assert grant.output == 333
    assert bench.used(THOUSAND) == [999]


def test_first_offer_that_fits_wins(bench: Bench) -> None:
    """Offers are tried in order; a ceiling keeps an offer off the last part of a limit."""
    offers = [tokens(100, ceiling=0.5), tokens(100)._replace(model="small")]
    models = [granted(bench.admit(plan(THOUSAND, offers=offers))).offer.model for _ in range(7)]

    assert models == ["model"] * 5 + ["small"] * 2


def test_ceiling_is_of_what_is_spent_only(bench: Bench) -> None:
    """A ceiling does not apply to requests and slots."""
    slots = limits(limit(2, "requests"), limit(2, "concurrency", SLOT))
    low = plan(slots, offers=[tokens(1, ceiling=0.1)])

    assert bench.admit(low).admitted
    assert bench.used(slots) == [1, 1]


# Settlement


def test_settlement_gives_back_the_difference(bench: Bench) -> None:
    """What was held and not used can be used."""
    grant = bench.take(THOUSAND, 900)

    assert bench.settle(grant, 50) == "1"
    assert bench.used(THOUSAND) == [50]
    assert not bench.refuses(THOUSAND, 950)


def test_settling_twice_is_settling_once(bench: Bench) -> None:
    """A settlement that is delivered again changes nothing, also a day later."""
    grant = bench.take(THOUSAND, 900)

    assert [bench.settle(grant, 50) for _ in range(3)] == ["1", "2", "2"]
    assert bench.used(THOUSAND) == [50]


def test_release_restores(bench: Bench) -> None:
    """A release takes back every charge of the admission."""
    everything = limits(
        limit(5, "requests"), limit(9), limit(9, "cost"), limit(1, "concurrency", SLOT)
    )
    grant = bench.take(everything, 9)

    assert bench.store.settle(grant, NOTHING) == "1"
    assert bench.used(everything) == [0, 0, 0, 0]


def test_overrun_is_debt(bench: Bench) -> None:
    """Of 1000, 600 held and 1500 used: all of it is recorded, and blocks the next call."""
    grant = bench.take(THOUSAND, 600)
    bench.settle(grant, 1500)

    assert bench.used(THOUSAND) == [1500]
    assert bench.refuses(THOUSAND, 1)


def test_settlements_beyond_the_limit_add_up(bench: Bench) -> None:
    """Five settlements of 200 on a limit of 100 are 1000."""
    hundred = limits(limit(100))
    grants = [bench.take(hundred, 20) for _ in range(5)]

    assert [bench.settle(grant, 200) for grant in grants] == ["1"] * 5
    assert bench.used(hundred) == [1000]


def test_interleaved_calls_keep_the_sum(bench: Bench) -> None:
    """Admissions, settlements and releases in any order leave exactly what was used."""
    one, two = bench.take(THOUSAND, 100), bench.take(THOUSAND, 200)
    bench.settle(two, 20)
    three = bench.take(THOUSAND, 300)
    bench.store.settle(one, NOTHING)
    bench.settle(three, 333)

    counter = bench.counters(THOUSAND)[0]
    assert (counter.committed, counter.held) == (353, 0)


def test_settlement_after_the_window_does_not_touch_the_next(bench: Bench) -> None:
    """900 held in one minute and 50 settled in the next leave the next at 0, never below."""
    grant = bench.take(THOUSAND, 900)
    bench.clock.advance(MINUTE_MS)
    bench.settle(bench.take(THOUSAND, 1), 1)
    bench.settle(grant, 50)

    assert bench.counters(THOUSAND)[0][:3] == (bench.clock(), 1, 0)


def test_settlement_two_windows_later_touches_nothing(bench: Bench) -> None:
    """A settlement does not change windows that came after the next one."""
    sliding = limits(limit(1000, window=SLIDING))
    grant = bench.take(sliding, 900, lease_ms=5 * MINUTE_MS)
    for _ in range(2):
        bench.clock.advance(MINUTE_MS)
        bench.take(sliding, 1, lease_ms=5 * MINUTE_MS)

    assert bench.settle(grant, 50) == "1"
    assert bench.counters(sliding)[0] == (bench.clock(), 0, 1, bench.clock() - MINUTE_MS, 1)


def test_late_settlement_corrects_what_still_weighs(bench: Bench) -> None:
    """In a sliding window a settlement of the window before lowers what weighs of it."""
    sliding = limits(limit(1000, window=SLIDING))
    grant = bench.take(sliding, 900)
    bench.clock.advance(MINUTE_MS * 3 // 2)

    assert bench.used(sliding) == [450]
    bench.take(sliding, 1)
    bench.settle(grant, 100)
    assert bench.used(sliding) == [51]


def test_call_longer_than_its_window_is_charged_to_it(bench: Bench) -> None:
    """A call that outlives minutes and is renewed is charged to the day it began in."""
    both = limits(limit(1000), limit(1000, window=DAY))
    grant = bench.take(both, 100)
    for _ in range(10):
        bench.clock.advance(20_000)
        assert bench.store.renew(grant)

    assert bench.settle(grant, 70) == "1"
    assert bench.used(both) == [0, 70]


# Leases


def test_expired_reservation_is_charged(bench: Bench) -> None:
    """What nobody settles within its lease is charged by default; its slot is free."""
    both = limits(limit(1000, window=DAY), limit(1, "concurrency", SLOT))
    bench.take(both, 600, lease_ms=1000)
    bench.clock.advance(1000)

    grant = bench.take(both, 1)
    assert bench.used(both) == [601, 1]
    assert bench.settle(grant, 1) == "1"


def test_expired_reservation_is_given_back_where_asked(bench: Bench) -> None:
    """With `charge_on_expiry` off, what nobody settles was never used."""
    asked = plan(THOUSAND, offers=[tokens(600)], lease_ms=1000, charge_on_expiry=False)
    grant = granted(bench.admit(asked))
    bench.clock.advance(1000)

    assert bench.used(THOUSAND) == [0]
    assert bench.settle(grant, 100) == "3"
    assert bench.used(THOUSAND) == [100]


def test_settlement_after_expiry_replaces_the_charge(bench: Bench) -> None:
    """Late and repeated settlements of an expired reservation charge what was used, once."""
    grant = bench.take(THOUSAND, 600, lease_ms=1000)
    bench.clock.advance(1000)

    assert bench.used(THOUSAND) == [600]
    assert [bench.settle(grant, 100) for _ in range(3)] == ["3", "2", "2"]
    assert bench.used(THOUSAND) == [100]


def test_reservations_expire_one_after_the_other(bench: Bench) -> None:
    """Each reservation ends with its own lease, though nothing is admitted in between."""
    day = limits(limit(1000, window=DAY))
    for lease_ms in (3_000, 1_000, 2_000):
        bench.take(day, 100, lease_ms=lease_ms)

    held: list[int] = []
    for _ in range(4):
        held.append(bench.counters(day)[0].held)
        bench.clock.advance(1_000)
    assert held == [300, 200, 100, 0]


def test_renewed_lease_holds(bench: Bench) -> None:
    """A renewal counts from its own time."""
    grant = bench.take(THOUSAND, 600, lease_ms=1000)
    bench.clock.advance(900)
    assert bench.store.renew(grant)
    bench.clock.advance(900)

    assert bench.counters(THOUSAND)[0].held == 600


def test_renewal_never_shortens_a_lease(bench: Bench) -> None:
    """A renewal by a clock that was set back leaves the lease as it was."""
    grant = bench.take(THOUSAND, 600, lease_ms=10_000)
    bench.take(THOUSAND, 1, lease_ms=7_000)
    bench.clock.advance(-5_000)
    assert bench.store.renew(grant)
    bench.clock.advance(14_000)

    assert bench.counters(THOUSAND)[0][:3] == (START_MS, 1, 600)


def test_ended_reservation_cannot_be_renewed(bench: Bench) -> None:
    """Renewing says no after settlement, after expiry, and where it never was."""
    settled, expired = bench.take(THOUSAND, 1), bench.take(THOUSAND, 1, lease_ms=1000)
    bench.settle(settled, 1)
    bench.clock.advance(1000)
    bench.used(THOUSAND)
    never = expired._replace(plan=plan(someone("bob", THOUSAND)))

    assert [bench.store.renew(each) for each in (settled, expired, never)] == [False] * 3


# Repetition, and answers that are not known


def test_repeated_admission_is_charged_once(bench: Bench) -> None:
    """The same plan again, since its answer was lost, gets the same answer for one charge."""
    asked = plan(THOUSAND, offers=[tokens(100, 800, least=1)])
    first = granted(bench.admit(asked))

    assert granted(bench.admit(asked)).charges == first.charges
    assert bench.used(THOUSAND) == [900]


def test_repeated_admission_over_subjects_is_charged_once(bench: Bench) -> None:
    """That holds for each subject, also when one of them collects meanwhile."""
    alice, acme = someone("alice", THOUSAND), someone("acme", THOUSAND)
    bench.admit(plan(acme, lease_ms=500, offers=[tokens(7)]))
    asked = plan(alice, acme, offers=[tokens(100)])
    first = bench.admit(asked)
    bench.clock.advance(500)

    assert first.admitted
    assert bench.admit(asked).admitted
    assert bench.used(alice, acme) == [100, 107]


def test_ended_admission_does_not_come_back_to_life(bench: Bench) -> None:
    """An admission that arrives after its own release holds nothing."""
    asked = plan(THOUSAND, offers=[tokens(100)])
    lost = Grant(asked, asked.offers[0], 0, None)

    assert bench.store.settle(lost, NOTHING) == "4"
    assert not bench.admit(asked).admitted
    assert bench.used(THOUSAND) == [0]


def test_unknown_admission_is_released(bench: Bench) -> None:
    """An admission nobody heard of is given back by its id; again changes nothing."""
    lost = unchecked(bench.take(THOUSAND, 100))

    assert [bench.store.settle(lost, NOTHING) for _ in range(3)] == ["1", "2", "2"]
    assert bench.used(THOUSAND) == [0]


def test_call_without_reservation_is_charged_once(bench: Bench) -> None:
    """What the outage rule admitted is charged when the store is back, once."""
    asked = plan(THOUSAND, offers=[tokens(100)])
    grant = Grant(asked, asked.offers[0], 0, None)

    assert [bench.settle(grant, 70) for _ in range(3)] == ["4", "2", "2"]
    assert bench.used(THOUSAND) == [70]


def test_unheard_admission_is_settled_once(bench: Bench) -> None:
    """Where the store did hold a call the outage rule admitted, its settlement counts once."""
    grant = unchecked(bench.take(THOUSAND, 100))

    assert [bench.settle(grant, 70) for _ in range(3)] == ["1", "2", "2"]
    assert bench.used(THOUSAND) == [70]


def test_unheard_admission_is_settled_once_after_expiry(bench: Bench) -> None:
    """That holds after its lease, too."""
    grant = unchecked(bench.take(THOUSAND, 100, lease_ms=1000))
    bench.clock.advance(1000)
    bench.used(THOUSAND)

    assert [bench.settle(grant, 70) for _ in range(3)] == ["3", "2", "2"]
    assert bench.used(THOUSAND) == [70]


def admitted_elsewhere(at_ms: int) -> Grant:
    """Return a grant of which the store under test has lost everything."""
    clock = ManualClock(at_ms)
    return Bench(MemoryStore(clock), clock).take(limits(limit(1000, window=SLIDING)), 100)


def test_lost_call_is_charged_to_its_own_window(bench: Bench) -> None:
    """A call the store has lost is charged to the window it was admitted in, once."""
    sliding = limits(limit(1000, window=SLIDING))
    lost = admitted_elsewhere(START_MS)
    bench.clock.advance(1000)
    bench.take(sliding, 10, lease_ms=3 * MINUTE_MS)
    bench.clock.advance(MINUTE_MS - 1000)
    bench.take(sliding, 1)

    assert [bench.settle(lost, 70) for _ in range(3)] == ["4", "2", "2"]
    assert bench.used(sliding) == [81]


def test_lost_call_from_long_ago_is_not_charged_to_the_present(bench: Bench) -> None:
    """If nobody looks at its window any more, there is nothing to charge it to."""
    sliding = limits(limit(1000, window=SLIDING))
    lost = admitted_elsewhere(START_MS)
    bench.clock.advance(10 * MINUTE_MS)
    bench.take(sliding, 10)

    assert bench.settle(lost, 70) == "4"
    assert bench.used(sliding) == [10]


@pytest.mark.parametrize("known", [True, False])
def test_lost_call_from_the_future_is_charged_to_the_present(bench: Bench, known: bool) -> None:
    """A charge by a clock five minutes early counts now, and turns no window over."""
    sliding = limits(limit(1000, window=SLIDING))
    early = admitted_elsewhere(START_MS + 5 * MINUTE_MS)
    if known:
        bench.take(sliding, 10)
    early = unchecked(early) if known else early

    bench.clock.advance(1000)
    assert bench.settle(early, 70) == "4"
    assert bench.used(sliding) == [80 if known else 70]


# Time


def test_window_turns_over(bench: Bench) -> None:
    """A limit is whole again in the millisecond in which the next window begins."""
    bench.take(THOUSAND, 1000, lease_ms=MINUTE_MS * 2)
    bench.clock.advance(MINUTE_MS - 1)
    assert bench.refuses(THOUSAND)
    bench.clock.advance(1)

    assert not bench.refuses(THOUSAND, 1000)


def test_sliding_window_forgets_by_and_by(bench: Bench) -> None:
    """Of the window before weighs the part that is less than one length old, rounded up."""
    sliding = limits(limit(1000, window=SLIDING))
    bench.settle(bench.take(sliding, 100), 100)
    bench.clock.advance(MINUTE_MS)
    assert bench.used(sliding) == [100]

    bench.clock.advance(MINUTE_MS // 3)
    assert bench.used(sliding) == [67]
    assert bench.refuses(sliding, 934)
    assert not bench.refuses(sliding, 933)
    bench.clock.advance(MINUTE_MS)
    assert bench.used(sliding) == [0]


def test_calendar_month_turns_over(bench: Bench) -> None:
    """A month's budget is there again on the first, and the old month is not charged any more."""
    month = limits(limit(1000, "cost", MONTH))
    bench.clock.advance(31 * DAY_MS - 1000)
    grant = bench.take(month, 1000)
    bench.clock.advance(1000)

    assert not bench.refuses(month, 1000)
    bench.settle(grant, 700)
    assert bench.used(month) == [0]


def test_clock_that_goes_back_reopens_nothing(bench: Bench) -> None:
    """A subject's time never runs backwards, or a window that is over would open again."""
    bench.take(THOUSAND, 400)
    bench.clock.advance(MINUTE_MS)
    grant = bench.take(THOUSAND, 1000)
    bench.clock.advance(-HOUR_MS)

    assert bench.refuses(THOUSAND)
    bench.settle(grant, 5)
    assert bench.counters(THOUSAND)[0].committed == 5


def test_clock_that_goes_back_over_a_month_reopens_nothing(bench: Bench) -> None:
    """That holds for a calendar window, whose bounds the caller's clock chooses."""
    month = limits(limit(1000, "cost", MONTH))
    bench.clock.advance(31 * DAY_MS)
    bench.take(month, 1000)
    bench.clock.advance(-DAY_MS)

    assert bench.refuses(month)


def test_late_charge_does_not_turn_a_window_back(bench: Bench) -> None:
    """A charge without reservation by a clock that was set back stays out of the new window."""
    bench.take(THOUSAND, 10)
    bench.clock.advance(-MINUTE_MS)
    asked = plan(THOUSAND)
    bench.settle(Grant(asked, asked.offers[0], 0, None), 500)
    bench.clock.advance(MINUTE_MS)

    assert bench.used(THOUSAND) == [10]


# Limits that change while they count


def test_limit_raised_in_its_window(bench: Bench) -> None:
    """More is allowed at once, on top of what was used."""
    bench.take(THOUSAND, 1000)

    assert not bench.refuses(limits(limit(1500)), 500)
    assert bench.refuses(limits(limit(1500)), 501)


def test_limit_lowered_in_its_window(bench: Bench) -> None:
    """Less is allowed at once; what is over is a debt until the window ends."""
    bench.take(THOUSAND, 600, lease_ms=MINUTE_MS * 2)
    lower = limits(limit(500))

    assert bench.refuses(lower)
    bench.clock.advance(MINUTE_MS)
    assert not bench.refuses(lower, 500)


def test_limit_added_in_its_window(bench: Bench) -> None:
    """A new limit starts at nothing and leaves the old one as it was."""
    grant = bench.take(THOUSAND, 600)
    more = limits(limit(100, window=DAY), limit(1000))

    assert bench.used(more) == [0, 600]
    bench.take(more, 50)
    assert bench.settle(grant, 500) == "1"
    assert bench.used(more) == [50, 550]


def test_limit_removed_and_brought_back_in_its_window(bench: Bench) -> None:
    """A limit that is away for a while has forgotten nothing, and still settles."""
    both = limits(limit(1000), limit(1000, window=DAY))
    grant = bench.take(both, 600)
    bench.take(THOUSAND, 100)
    assert bench.settle(grant, 500) == "1"
    bench.take(THOUSAND, 100)

    assert bench.used(both) == [700, 500]


def test_limits_in_another_order(bench: Bench) -> None:
    """The order of limits does not matter to what is counted."""
    day, minute = limit(1000, window=DAY), limit(2000)
    bench.clock.advance(MINUTE_MS)
    grant = bench.take(limits(day, minute), 600)

    bench.take(limits(minute, day), 1)
    assert bench.settle(grant, 400) == "1"
    assert bench.used(limits(day, minute)) == [401, 401]


def test_expiry_after_limits_changed(bench: Bench) -> None:
    """A reservation expires in the limits it was made in, also in those that are gone."""
    both = limits(limit(1000, window=DAY), limit(1, "concurrency", SLOT))
    grant = bench.take(both, 600, lease_ms=1000)
    bench.clock.advance(1000)
    bench.take(limits(limit(5, "requests", DAY)))

    assert bench.used(both) == [600, 0]
    assert bench.settle(grant, 100) == "3"
    assert bench.used(both) == [100, 0]


def test_slots_alone(bench: Bench) -> None:
    """A limit on concurrency works without any other beside it."""
    slots = limits(limit(2, "concurrency", SLOT))
    first, _ = bench.take(slots), bench.take(slots)
    bench.clock.advance(1_000)

    assert bench.refuses(slots)
    bench.store.settle(first, Charges(1, 5, 5))
    assert not bench.refuses(slots)


def test_clock_is_told(bench: Bench) -> None:
    """`now_ms` is the store's clock."""
    bench.take(THOUSAND)

    assert bench.store.now_ms() == bench.clock()
