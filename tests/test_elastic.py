"""Tests of `llm_budget_mw.elastic`: what may pass, and when more is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.elastic import Elastic, StoppedError
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.tap import Tap
from llm_budget_mw.types import Grant, ModelCall, Offer, Plan, Prompt
from tests.edge.driver import DONE, delta

CALL = ModelCall("big", Prompt(), 4000, stream=True)


def by_bytes(text: str) -> int:
    return len(text.encode())


def by_four(text: str) -> int:
    return -(-len(text) // 4)


def elastic(
    output: int, count: Callable[[str], int] = by_bytes, *, samplings: int = 1, bound: int = 4000
) -> Elastic:
    """Return the hold of a stream that has begun."""
    offer = Offer("big", output, 1, 1.0, 100, samplings, 0, 0, bound=bound)
    grant = Grant(Plan("id", (), (offer,), 1000), offer, output, None)
    tap = Tap(dialect_for("openai_chat"), CALL)
    tap.start(200, {"content-type": "text/event-stream"})
    return Elastic(grant, tap, count)


def passing(hold: Elastic, *texts: str) -> int:
    """Take events of these texts; return how many of them may pass."""
    hold.take(b"".join(map(delta, texts)), more=True)
    return hold.ready().count(b"data: ")


def test_what_is_held_may_pass() -> None:
    """Up to the last token, and not beyond."""
    hold = elastic(10)

    assert passing(hold, "hello", "world", "!") == 2
    assert hold.waits
    assert hold.passed == 10


def test_a_piece_of_an_event_waits_for_the_rest() -> None:
    """Only whole events pass: the stream may have to end at any of them."""
    hold = elastic(10)
    event = delta("hi")
    hold.take(event[:-1], more=True)
    assert hold.ready() == b""
    assert not hold.waits

    hold.take(event[-1:], more=True)
    assert hold.ready() == event


def test_it_asks_ahead() -> None:
    """At three quarters it asks for half as much again, or for a least step."""
    hold = elastic(1000)
    passing(hold, "x" * 750)
    assert hold.ask() is None
    passing(hold, "x")
    assert hold.ask() == 1500

    small = elastic(20)
    passing(small, "x" * 16)
    assert small.ask() == 84


def test_it_never_asks_beyond_the_bound() -> None:
    """What is held in full is enough, whatever passes."""
    hold = elastic(100, bound=130)
    passing(hold, "x" * 90)
    assert hold.ask() == 130
    hold.answer(130, 130)

    assert passing(hold, "x" * 5000) == 1
    assert hold.ask() is None
    assert hold.grown == 1


def test_refused_it_asks_for_less_once_it_has_to() -> None:
    """First not at all, then for halves of the step, last for what waits; then it is over."""
    hold = elastic(100)
    passing(hold, "x" * 80)
    assert hold.ask() == 164
    hold.answer(164, 100)
    assert hold.ask() is None
    assert not hold.exhausted

    passing(hold, "x" * 25)
    asked: list[int] = []
    while not hold.exhausted:
        asked.append(hold.ask() or 0)
        hold.answer(asked[-1], 100)
    assert asked == [132, 116, 108, 105]


def test_what_is_granted_is_passed_on() -> None:
    """An event that waited passes as soon as it is covered, and the next step is larger."""
    hold = elastic(100)
    assert passing(hold, "x" * 90, "y" * 100) == 1
    hold.answer(hold.ask() or 0, 190)

    assert hold.ready() == delta("y" * 100)
    assert (hold.output, hold.grown, hold.waits) == (190, 1, False)


def test_a_tokenizer_makes_room() -> None:
    """Bytes are counted as tokens only as long as that is no hindrance."""
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return by_four(text)

    hold = elastic(100, count)
    assert passing(hold, *["word"] * 99) == 99
    assert hold.passed <= 100
    assert passing(hold, "word", "word") == 1
    # Some dozen times, not with every event.
    assert len(counted) < 60


def test_text_is_counted_as_it_is_not_as_json_writes_it() -> None:
    """What JSON writes in six bytes is one character of three."""
    hold = elastic(6)

    assert passing(hold, "日", "本", "語") == 2


def test_each_sampling_has_its_hold() -> None:
    """Three samplings hold three times as much, and what is asked for is that of one."""
    hold = elastic(10, samplings=3)

    assert passing(hold, "x" * 30, "x" * 10) == 1
    asked = [0]
    while not hold.exhausted:
        asked.append(hold.ask() or 0)
        hold.answer(asked[-1], 10)
    assert asked[-1] == 14


def test_events_without_output_always_pass() -> None:
    """Nothing is generated with them."""
    hold = elastic(5)
    passing(hold, "hello")
    hold.take(b": ping\n\n" + DONE, more=True)

    assert hold.ready() == b": ping\n\n" + DONE


def test_a_stopped_stream_takes_nothing_more() -> None:
    """Who goes on is told, and the call ended because of us."""
    hold = elastic(5)
    passing(hold, "hello", "world")
    assert hold.stop().endswith(DONE)

    with pytest.raises(StoppedError):
        hold.raise_if_stopped()
    seen = hold.outcome(Outcome(Ending.CUT, None, 10))
    assert (seen.ending, seen.counted_output, seen.grown) == (Ending.STOPPED, 5, 0)


PIECES = st.lists(st.text(max_size=40), max_size=30)


@settings(max_examples=200, deadline=None)
@given(PIECES, st.integers(1, 60), st.integers(0, 500), st.integers(1, 50), st.sampled_from("bf"))
def test_never_more_passes_than_is_held(
    texts: list[str], held: int, room: int, size: int, counter: str
) -> None:
    """However it is cut and whatever the store has: whole events, all of them covered."""
    count = by_bytes if counter == "b" else by_four
    hold = elastic(held, count)
    stream = b"".join([*map(delta, texts), DONE])
    passed = b""
    for at in range(0, len(stream), size):
        hold.take(stream[at : at + size], more=at + size < len(stream))
        while not hold.exhausted:
            passed += hold.ready()
            assert hold.passed <= hold.output
            asked = hold.ask()
            if asked is None:
                break
            hold.answer(asked, asked if asked <= held + room else hold.output)
    shown = [json.loads(e[6:]) for e in passed.split(b"\n\n") if e and e != DONE.strip()]
    words = [each["choices"][0]["delta"]["content"] for each in shown]

    assert words == texts[: len(words)]
    assert sum(map(count, words)) <= held + room
    assert stream.startswith(passed)
    if hold.exhausted:
        assert sum(map(count, words)) + count(texts[len(words)]) > held + room
    else:
        assert passed == stream
