"""The copy of what is stopped, and what it answers to a plan."""

from __future__ import annotations

from llm_budget_mw.stores import _switches
from llm_budget_mw.stores._switches import KEPT_MS, Copy
from llm_budget_mw.types import STOPPED
from tests.stores.kit import START_MS, UNFIT, plan, tokens

SWITCHES = ("model/a", "model/b", "*", "acme:alice")
ASKED = plan(offers=[tokens(1, 5), tokens(1, 7)])._replace(switches=SWITCHES)


def test_one_asks_in_time_and_all_too_late() -> None:
    """While one of many renews a copy the others go by it, but never for longer than it may last."""
    copy = Copy()
    assert copy.fresh(START_MS) is None
    copy.note({"*": "0 x"}, START_MS)
    assert copy.fresh(START_MS + 699) == {"*": "0 x"}

    answers = [copy.fresh(START_MS + 700) for _ in range(3)]
    assert answers == [None, {"*": "0 x"}, {"*": "0 x"}]
    assert [copy.fresh(START_MS + KEPT_MS) for _ in range(2)] == [None, None]


def test_a_copy_serves_for_a_minute_while_nobody_answers() -> None:
    """Older, or of a clock that was set back, it says nothing."""
    copy = Copy()
    copy.note({}, START_MS)
    assert copy.last(START_MS + 59_999) == {}
    assert copy.last(START_MS + 60_000) is None
    assert copy.last(START_MS - 1) is None


def test_the_first_offer_that_is_not_stopped() -> None:
    """Its whole output, and a bit for each model that is."""
    answer = _switches.answer(ASKED, {"model/a": "0 dear"}, START_MS)
    assert (answer.offer, answer.output, answer.stopped) == (2, 7, 1)
    both = {"model/a": "0 dear", "model/b": f"{START_MS + 1} soon over"}
    assert _switches.answer(ASKED, both, START_MS)[1:5] == (0, 0, (), 3)
    assert _switches.answer(ASKED, both, START_MS + 1).offer == 2


def test_a_stopped_call_names_its_switch() -> None:
    """The first of those that stop it, by number from 1."""
    answer = _switches.answer(ASKED, {"acme:alice": "0 loop", "other": "0 x"}, START_MS)
    assert (answer.offer, answer.output) == (STOPPED, 4)


def test_who_only_looks_is_granted_nothing() -> None:
    """An offer nobody can grant is not granted by switches either."""
    assert _switches.answer(plan(offers=[UNFIT]), {}, START_MS).offer == 0
