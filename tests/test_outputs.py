"""Tests of `llm_budget_mw.outputs`: how long answers are expected to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw import outputs
from llm_budget_mw.outputs import Outputs, bucket_of, merged, most_of, name_of, quantile
from llm_budget_mw.types import Offer, Plan
from tests.deployment import ManualClock

COUNTS = st.dictionaries(st.integers(0, 124), st.integers(1, 2000), max_size=20)
OFFER = Offer("big", 4000, 10, 1.0, 100, 1, 0, 0)
PLAN = Plan("id", (), (OFFER, OFFER._replace(model="small")), 1000)


def knowing(tokens: int, answers: int = 20, route: str = "/chat") -> Outputs:
    """Return what has learned that all answers of one model are this long."""
    known = Outputs(ManualClock())
    known.learn({name_of(route, "big"): {bucket_of(tokens): answers}})
    return known


@given(st.integers(0, 2**31))
def test_a_bucket_holds_its_answers(tokens: int) -> None:
    """No answer is longer than its bucket says, and a bucket is at most a fifth too long."""
    most = most_of(bucket_of(tokens))

    assert max(tokens, 1) <= most <= max(1, 1.19 * tokens)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_buckets_keep_the_order(one: int, other: int) -> None:
    """A longer answer is never in a lower bucket."""
    assert (one <= other) <= (bucket_of(one) <= bucket_of(other))


@given(st.lists(st.integers(1, 100_000), min_size=20, max_size=300), st.floats(0.01, 1.0))
def test_a_quantile_is_not_exceeded_by_its_part(answers: list[int], part: float) -> None:
    """At least so many answers are no longer, and it is no higher than it needs to be."""
    counts: dict[int, int] = {}
    for tokens in answers:
        counts[bucket_of(tokens)] = counts.get(bucket_of(tokens), 0) + 1

    found = quantile(counts, part)

    assert found is not None
    assert sum(tokens <= found for tokens in answers) >= part * len(answers)
    assert sum(tokens < found / 1.2 for tokens in answers) < part * len(answers)


def test_few_answers_tell_nothing() -> None:
    """Nobody guesses from nineteen."""
    assert quantile({}, 0.9) is None
    assert quantile({4: 19}, 0.9) is None
    assert quantile({4: 20}, 0.9) == 2


@given(COUNTS, COUNTS)
def test_merging_keeps_few_and_halves_many(one: dict[int, int], other: dict[int, int]) -> None:
    """Together they are the sum, or half of it, rounded down in each bucket."""
    both = merged(one, other)
    summed = {key: one.get(key, 0) + other.get(key, 0) for key in {*one, *other}}

    if sum(summed.values()) <= outputs.MOST_ANSWERS:
        assert both == summed
    else:
        assert both == {key: count // 2 for key, count in summed.items() if count // 2}


@given(st.text(), st.text(), st.text(), st.text())
def test_names_cannot_be_forged(route: str, model: str, other: str, another: str) -> None:
    """Each pair has a name of its own, short, without what separates keys."""
    one, two = name_of(route, model), name_of(other, another)

    assert (one == two) == ((route, model) == (other, another))
    assert len(one) <= 200
    assert not set(one) & set("{}: \n")


def test_a_long_name_is_hashed() -> None:
    """A model's name comes from outside, and may be of any length."""
    assert name_of("/chat", "x" * 250) != name_of("/chat", "x" * 251)
    assert len(name_of("/chat", "x" * 250)) < 80


def test_a_plan_holds_what_is_expected() -> None:
    """The bound stays what it was; a model nobody knows holds all of it."""
    first, second = knowing(200).sized(PLAN, "/chat").offers

    assert (first.max_output, first.bound) == (215, 4000)
    assert second == PLAN.offers[1]


def test_another_route_is_another_matter() -> None:
    """What is known of one route says nothing of another."""
    assert knowing(200).sized(PLAN, "/other") == PLAN


def test_no_more_than_the_bound_and_no_less_than_is_of_use() -> None:
    """Long answers leave the plan as it is, short ones hold the least the caller wants."""
    assert knowing(9000).sized(PLAN, "/chat") == PLAN
    assert knowing(3).sized(PLAN, "/chat").offers[0].max_output == 10


def test_a_plan_is_sized_once() -> None:
    """What was sized before keeps its bound."""
    known = knowing(200)
    sized = known.sized(PLAN, "/chat")

    assert known.sized(sized, "/chat") == sized


def test_what_was_noted_is_due_once() -> None:
    """Answers are given out in a batch, the next one some seconds later."""
    clock = ManualClock()
    known = Outputs(clock)
    known.note("/chat", "big", 200)
    known.note("/chat", "big", 210)
    known.note("/chat", "big", 7)

    name = name_of("/chat", "big")
    assert known.due() == {name: {31: 2, 12: 1}}
    known.note("/chat", "big", 7)
    assert known.due() is None
    clock.now += 5
    assert known.due() == {name: {12: 1}}
    clock.now += 5
    assert known.due() is None


def test_a_new_process_asks_what_others_know() -> None:
    """The first call of a route asks for its histogram; it holds all, the next one does not."""
    known = Outputs(ManualClock())
    assert known.sized(PLAN, "/chat") == PLAN

    asked = known.due()
    assert asked == {name_of("/chat", "big"): {}, name_of("/chat", "small"): {}}
    known.learn({name_of("/chat", "big"): {bucket_of(200): 50}})
    assert known.sized(PLAN, "/chat").offers[0].max_output == 215


def test_names_from_outside_are_bounded() -> None:
    """Beyond some hundred models a further one is held in full, and nothing is kept of it."""
    known = Outputs(ManualClock())
    for number in range(1000):
        known.note("/chat", f"model-{number}", 200)
        known.sized(PLAN._replace(offers=(OFFER._replace(model=f"other-{number}"),)), "/chat")

    due = known.due()
    assert due is not None
    assert len(due) == 256
