"""Group after group gives what one step would, and gives back what a later group refuses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.stores import _partitions
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import (
    NOTHING,
    STOPPED,
    Admission,
    Charges,
    Grant,
    Offer,
    Plan,
    Subject,
    SubjectLimits,
)
from tests.stores.kit import SLOT, UNFIT, ManualClock, limit, limits, plan, tokens

SWITCHES = ("model/a", "model/b", "*")
amounts = st.integers(1, 300)
offers = st.lists(
    st.builds(
        lambda fixed, output, least, spares: tokens(
            fixed, output, least=min(least, output)
        )._replace(spares=spares),
        st.integers(0, 60),
        st.integers(0, 60),
        st.integers(0, 40),
        st.integers(0, 7),
    ),
    min_size=2,
    max_size=2,
)


def in_groups(store: MemoryStore, asked: Plan) -> Admission:
    """Admit a plan the way a cluster has to."""
    steps = _partitions.admission(asked)
    try:
        step = next(steps)
        while True:
            if isinstance(step, Plan):
                assert len({entry.subject.partition for entry in step.subjects}) <= 1
                step = steps.send(store.admit(step))
            else:
                assert store.settle(step, NOTHING) == "1" * len(step.plan.subjects)
                step = steps.send(None)
    except StopIteration as done:
        answer = done.value
        assert isinstance(answer, Admission)
        return answer


def entries(sizes: list[int]) -> list[SubjectLimits]:
    """Three subjects of two partitions, the first and the last of the same."""
    return [
        SubjectLimits(
            Subject("even" if place % 2 == 0 else "odd", f"s{place}"),
            limits(limit(size), limit(9, "concurrency", SLOT)),
        )
        for place, size in enumerate(sizes)
    ]


@settings(deadline=None)
@given(
    st.lists(amounts, min_size=3, max_size=3),
    st.lists(offers, min_size=1, max_size=8),
    st.sampled_from([None, "model/a", "model/b", "*"]),
)
def test_the_same_as_one_step(
    sizes: list[int], calls: list[list[Offer]], stopped: str | None
) -> None:
    """Offer, output and what is left of every limit are those of one atomic admission."""
    subjects, clock = entries(sizes), ManualClock()
    whole, split = MemoryStore(clock), MemoryStore(clock)
    if stopped:
        whole.switch("stop", stopped, "0 now")
        split.switch("stop", stopped, "0 now")
    for each in calls:
        asked = plan(*subjects, offers=each)._replace(switches=SWITCHES)
        expected, got = whole.admit(asked), in_groups(split, asked)
        assert (got.offer, got.stopped) == (expected.offer, expected.stopped)
        if expected.offer == STOPPED:
            continue
        assert got.output == expected.output or not expected.offer
        look = plan(*subjects, offers=[UNFIT])
        # What a group holds may be more than the last one granted, never less.
        seen, real = split.admit(look).counters, whole.admit(look).counters
        assert all(a >= b for a, b in zip(seen, real, strict=True))
        if got.offer:
            offer = asked.offers[got.offer - 1]
            assert len(got.counters) == len(expected.counters)
            grant = Grant(asked, offer, got.output, got)
            used = grant.charges
            assert whole.settle(grant._replace(admission=expected), used) == "111"
            parts = [(part, split.settle(share, used)) for part, share in _partitions.split(grant)]
            assert _partitions.in_order(asked, parts) == "111"
        assert split.admit(look).counters == whole.admit(look).counters


def test_without_an_admission_every_group_is_settled() -> None:
    """What the outage rule let pass is charged in every partition."""
    asked = plan(*entries([10, 10, 10]))
    grant = Grant(asked, asked.offers[0], 0, None)
    store = MemoryStore(ManualClock())
    parts = [
        (part, store.settle(share, Charges(1, 5, 5))) for part, share in _partitions.split(grant)
    ]
    assert _partitions.in_order(asked, parts) == "444"


def test_what_groups_tell_names_the_subject_in_the_plan() -> None:
    """A threshold crossed in the second group is that of the plan's own numbering."""
    asked = plan(*entries([10, 10, 10]))
    even, odd = _partitions.groups(asked)
    told = _partitions.in_order(asked, [(even, "11 2.1.t.1.9"), (odd, "1 1.1.a.7.2")])
    assert told == "111 3.1.t.1.9 2.1.a.7.2"
