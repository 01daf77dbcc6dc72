"""What operators change while calls run: additions, switches; and what limits may do besides."""

from __future__ import annotations

import dataclasses

import pytest

from llm_budget_mw import decision
from llm_budget_mw.stores._additions import MOST
from llm_budget_mw.types import (
    NOTHING,
    Charges,
    Grant,
    LimitSet,
    Refusal,
    RefusalReason,
    Subject,
    SubjectLimits,
    Window,
)
from tests.stores.kit import (
    DAY,
    DAY_MS,
    MINUTE_MS,
    MONTH,
    START_MS,
    Bench,
    granted,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

ALICE = Subject("acme", "alice")
HUNDRED = limits(limit(100, name="tokens"))


def lasting(minutes: int) -> int:
    return START_MS + minutes * MINUTE_MS


def refusal(bench: Bench, *entries: LimitSet, fixed: int) -> Refusal:
    decided = bench.admit(plan(*entries, offers=[tokens(fixed)]))
    assert isinstance(decided, Refusal)
    return decided


@pytest.mark.parametrize("kind", ["raise", "credit"])
def test_adds_to_an_amount(bench: Bench, kind: str) -> None:
    """An addition holds at once and until its time; the status shows it."""
    assert bench.refuses(HUNDRED, 120)
    assert bench.store.amend(ALICE, "add", f"{kind} tokens 30 {lasting(5)} order-1").changed == 1

    grant = bench.take(HUNDRED, 120)
    [status] = decision.statuses(grant)
    assert (status.limit.amount, status.used, status.remaining) == (130, 120, 10)
    bench.settle(grant, 20)
    assert bench.refuses(HUNDRED, 111)

    bench.clock.advance(5 * MINUTE_MS)
    assert bench.refuses(HUNDRED, 101)


def test_sets_an_amount(bench: Bench) -> None:
    """A set amount replaces the configured one, up or down, and an earlier set one."""
    bench.store.amend(ALICE, "add", "set tokens 10 0 a")
    assert bench.refuses(HUNDRED, 11)
    bench.store.amend(ALICE, "add", "raise tokens 5 0 b")
    changed = bench.store.amend(ALICE, "add", "set tokens 500 0 c")

    assert changed.lines == ("set tokens 500 0 c", "raise tokens 5 0 b")
    assert not bench.refuses(HUNDRED, 505)
    assert bench.refuses(HUNDRED, 506)


def test_raise_renews_credit_is_used_up(bench: Bench) -> None:
    """What a window used beyond its amount, credits have paid; a raise pays in every window."""
    bench.store.amend(ALICE, "add", "credit tokens 50 0 gift")
    bench.settle(bench.take(HUNDRED, 130), 130)
    bench.clock.advance(MINUTE_MS)
    assert bench.refuses(HUNDRED, 121)
    bench.settle(bench.take(HUNDRED, 120), 120)
    bench.clock.advance(MINUTE_MS)

    assert bench.refuses(HUNDRED, 101)
    bench.settle(bench.take(HUNDRED, 100), 100)
    assert bench.store.amend(ALICE, "show").lines == ("credit tokens 0 0 gift",)
    bench.clock.advance(MINUTE_MS)
    bench.store.amend(ALICE, "add", "raise tokens 20 0 more")
    for _ in range(3):
        bench.settle(bench.take(HUNDRED, 120), 120)
        bench.clock.advance(MINUTE_MS)


def test_refused_admission_uses_no_credit(bench: Bench) -> None:
    """A window that turns over with a refused admission has paid once, not twice."""
    bench.store.amend(ALICE, "add", "credit tokens 50 0 gift")
    bench.settle(bench.take(HUNDRED, 130), 130)
    bench.clock.advance(MINUTE_MS)
    for _ in range(3):
        assert bench.refuses(HUNDRED, 121)
    assert not bench.refuses(HUNDRED, 120)


def test_one_id_counts_once(bench: Bench) -> None:
    """A top-up repeated under its id changes nothing, also for a day after its end."""
    line = f"credit tokens 30 {lasting(1)} order-1"
    assert bench.store.amend(ALICE, "add", line).changed == 1
    assert bench.store.amend(ALICE, "add", line).changed == 0
    bench.clock.advance(DAY_MS)
    assert bench.store.amend(ALICE, "add", line) == (0, ())
    assert bench.refuses(HUNDRED, 101)


def test_takes_back(bench: Bench) -> None:
    """An addition is taken back by its id."""
    bench.store.amend(ALICE, "add", "raise tokens 30 0 a")
    bench.store.amend(ALICE, "add", "raise tokens 7 0 b")

    assert bench.store.amend(ALICE, "drop", "a") == (1, ("raise tokens 7 0 b",))
    assert bench.store.amend(ALICE, "drop", "a").changed == 0
    assert bench.refuses(HUNDRED, 108)
    assert not bench.refuses(HUNDRED, 107)


def test_additions_are_bounded(bench: Bench) -> None:
    """An account takes no more than so many, and says so."""
    for number in range(MOST):
        assert bench.store.amend(ALICE, "add", f"raise tokens 1 0 n{number}").changed == 1
    assert bench.store.amend(ALICE, "add", "raise tokens 1 0 last").changed == -1
    assert not bench.refuses(HUNDRED, 100 + MOST)


def test_addition_outlives_the_windows(bench: Bench) -> None:
    """An account with an addition is kept for it, however short its windows are."""
    bench.take(HUNDRED, 1)
    bench.store.amend(ALICE, "add", f"raise tokens 30 {START_MS + 30 * DAY_MS} a")
    bench.clock.advance(29 * DAY_MS)
    bench.store.admit(plan(someone("bob", HUNDRED)))
    assert not bench.refuses(HUNDRED, 130)


def test_reset_forgets_use_and_keeps_holds(bench: Bench) -> None:
    """What is settled is forgotten, what is held stands and settles as it would."""
    two = limits(limit(100, name="tokens"), limit(5, "requests", name="requests"))
    bench.settle(bench.take(two, 60), 60)
    held = bench.take(two, 30)
    assert bench.store.amend(ALICE, "reset", "tokens").changed == 1

    assert bench.used(two) == [30, 2]
    bench.settle(held, 10)
    assert bench.used(two) == [10, 2]
    assert bench.store.amend(Subject("acme", "nobody"), "reset", "tokens").changed == 0


def test_shadow_counts_and_lets_pass(bench: Bench) -> None:
    """A limit in shadow refuses nothing, counts everything and says what it would have done."""
    quiet = dataclasses.replace(limit(100, name="tokens"), shadow=True)
    both = limits(quiet, limit(3, "requests", name="requests"))
    assert decision.would_refuse(bench.take(both, 90)) == ()
    grant = bench.take(both, 90)

    assert decision.would_refuse(grant) == ("tokens",)
    assert [status.remaining for status in decision.statuses(grant)] == [0, 1]
    bench.take(both, 90)
    assert refusal(bench, both, fixed=1).refusing[0].limit.name == "requests"


def test_shadow_with_additions(bench: Bench) -> None:
    """An addition counts for what a shadow limit would have done."""
    quiet = limits(dataclasses.replace(limit(100, name="tokens"), shadow=True))
    bench.store.amend(ALICE, "add", "raise tokens 50 0 a")
    assert decision.would_refuse(bench.take(quiet, 140)) == ()
    assert decision.would_refuse(bench.take(quiet, 20)) == ("tokens",)


@pytest.mark.parametrize("window", [DAY, MONTH], ids=["fixed", "calendar"])
def test_carries_over_what_was_left(bench: Bench, window: Window) -> None:
    """The next window has what this one left, up to the cap; the one after has no more."""
    rolling = limits(dataclasses.replace(limit(100, name="x", window=window), carry=40))
    step = DAY_MS if window is DAY else 31 * DAY_MS
    assert bench.refuses(rolling, 101)
    bench.settle(bench.take(rolling, 75), 75)

    bench.clock.advance(step)
    assert bench.refuses(rolling, 126)
    bench.settle(bench.take(rolling, 125), 125)
    bench.clock.advance(step if window is DAY else 28 * DAY_MS)
    assert bench.refuses(rolling, 101)
    bench.settle(bench.take(rolling, 10), 10)
    bench.clock.advance(2 * step)
    assert bench.refuses(rolling, 141)
    assert not bench.refuses(rolling, 140)


def test_spared_subjects_are_not_charged(bench: Bench) -> None:
    """An offer is charged to the subject of its own model alone."""
    large, small = someone("large", limits(limit(50))), someone("small", limits(limit(100)))
    first = tokens(40)._replace(model="large", spares=0b10)
    second = tokens(40)._replace(model="small", spares=0b01)
    offers = [first, second]
    grants = [granted(bench.admit(plan(large, small, offers=offers))) for _ in range(3)]

    assert [grant.offer.model for grant in grants] == ["large", "small", "small"]
    assert bench.used(large, small) == [40, 80]
    decided = bench.admit(plan(large, small, offers=offers))
    assert isinstance(decided, Refusal)
    assert decided.binding
    assert decided.binding.subject.name in ("large", "small")
    for grant in grants:
        assert bench.store.settle(grant, Charges(1, 30, 30)) == "11"
    assert bench.used(large, small) == [30, 60]


def test_stopped_model_gives_way_to_the_next(bench: Bench) -> None:
    """An offer whose model is stopped is passed over; a call without another is refused."""
    offers = [tokens(1)._replace(model="large"), tokens(1)._replace(model="small")]
    switches = ("model/large", "model/small", "*", "acme:alice")

    def ask() -> Grant | Refusal:
        return bench.admit(plan(HUNDRED, offers=offers)._replace(switches=switches))

    assert granted(ask()).offer.model == "large"
    bench.store.switch("stop", "model/large", "0 prices went up")
    assert granted(ask()).offer.model == "small"
    bench.store.switch("stop", "model/small", f"{lasting(1)} for a minute")
    stopped = ask()
    assert isinstance(stopped, Refusal)
    assert stopped.reason is RefusalReason.STOPPED
    bench.clock.advance(MINUTE_MS)
    assert granted(ask()).offer.model == "small"
    assert bench.store.switch("resume", "model/large").changed == 1
    assert granted(ask()).offer.model == "large"


@pytest.mark.parametrize("name", ["*", "acme:alice"])
def test_stops_calls(bench: Bench, name: str) -> None:
    """What is stopped is refused, without limits too, and nothing is written."""
    asked = plan(HUNDRED)._replace(switches=("model/x", "*", "acme:alice"))
    assert bench.store.switch("stop", name, "0 maintenance").stopped == {name: "0 maintenance"}
    assert bench.store.switch("stop", name, "0 maintenance").changed == 0

    decided = bench.admit(asked)
    assert isinstance(decided, Refusal)
    assert (decided.reason, decided.retry_after_ms) == (RefusalReason.STOPPED, None)
    assert bench.used(HUNDRED) == [0]
    assert bench.store.switch("resume", name) == (1, {})
    assert bench.store.switch("resume", name).changed == 0
    assert bench.admit(asked).admitted


def test_stopping_leaves_running_calls_alone(bench: Bench) -> None:
    """A call that was admitted is repeated, renewed and settled as before."""
    asked = plan(HUNDRED)._replace(switches=("model/x", "*"))
    grant = granted(bench.admit(asked))
    bench.store.switch("stop", "*", "0 now")

    assert bench.admit(asked).admitted
    assert bench.store.renew(grant)
    assert bench.settle(grant, 1) == "1"


def test_a_hostile_reason_is_only_text(bench: Bench) -> None:
    """Blanks, line ends and other alphabets in a reason come back as they are."""
    value = "0 ein Grund\n* 0\x00 ✂"
    assert bench.store.switch("stop", "feature/chat", value).stopped == {"feature/chat": value}


def test_whole_sets_of_subjects(bench: Bench) -> None:
    """Additions of one subject do not reach another that has the same limit."""
    shared = SubjectLimits(Subject("deployment", "deployment"), limits(limit(150, name="tokens")))
    bench.store.amend(ALICE, "add", "raise tokens 900 0 a")
    decided = bench.admit(plan(HUNDRED, shared, offers=[tokens(200)]))

    assert isinstance(decided, Refusal)
    assert decided.binding
    assert decided.binding.subject.name == "deployment"
    grant = granted(bench.admit(plan(HUNDRED, shared, offers=[tokens(150)])))
    assert [status.limit.amount for status in decision.statuses(grant)] == [1000, 150]
    assert bench.store.settle(grant, NOTHING) == "11"
