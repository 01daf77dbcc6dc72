"""Streams that grow, and end where they cannot, in a world that calls and returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from llm_budget_mw.elastic import StoppedError
from llm_budget_mw.outputs import bucket_of, name_of
from llm_budget_mw.types import Grant
from tests.edge.driver import CHAT, DONE, QUESTION, USAGE_EVENT, delta
from tests.edge.test_elastic import EXPECTED, INPUT, LAST, WORD, said, words
from tests.wsgi.driver import Bench, Body, Exchange, streaming

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ASKED = {**QUESTION, "stream": True, "max_tokens": 4000}
WITH_USAGE = {**ASKED, "stream_options": {"include_usage": True}}
ROUTE = {"path": CHAT, "dialect": "openai_chat", "hold": "elastic"}


def elastic(app: WSGIApplication, tokens: int = 100_000, **tier: Any) -> Bench:
    """Return an application on an elastic route that has learned how long answers are."""
    bench = Bench(app, {"tokens": f"{tokens}/day", "max_tokens": 4000, **tier}, routes=[ROUTE])
    bench.guard.outputs.learn({name_of(CHAT, "big"): {bucket_of(40): 20}})
    return bench


class Noting:
    """An application whose body is kept, to be looked at."""

    def __init__(self, *pieces: bytes) -> None:
        self.body = Body(*pieces)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return self.body


def test_a_long_answer_grows_and_passes_unchanged() -> None:
    """Ten times what was expected: every byte is there, and the reservation covered it."""
    stream = [*words(90), USAGE_EVENT, DONE]
    bench = elastic(streaming(*stream))

    assert bench.post(WITH_USAGE).body == b"".join(stream)
    assert bench.settled["grown"] >= 2
    assert bench.settled["held_tokens"] >= INPUT + 90 * len(WORD)
    assert bench.settled["ending"] == "complete"


@pytest.mark.parametrize("size", [1, 64, 10**6])
@pytest.mark.parametrize("room", [EXPECTED, 100, 399])
def test_ends_at_an_event_where_no_more_is_held(room: int, size: int) -> None:
    """Cut anyhow on the way, it ends between two events, with all that is held passed on."""
    stream = b"".join([*words(100), USAGE_EVENT, DONE])
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    bench = elastic(streaming(*pieces), INPUT + room)
    answer = bench.post(WITH_USAGE)

    assert said(answer.body) == WORD * (room // len(WORD))
    assert answer.body.endswith(LAST)
    assert bench.settled["ending"] == "stopped"
    assert bench.settled["total_tokens"] == INPUT + room // len(WORD) * len(WORD)
    assert bench.settled["held_tokens"] <= INPUT + room


def test_the_handler_is_ended_too() -> None:
    """What the application gave is asked for nothing more, and closed once."""
    app = Noting(*words(100))
    bench = elastic(app, INPUT + 50)
    bench.post(ASKED)

    assert app.body.closed == 1
    assert len(list(app.body)) == 89


def test_a_client_that_leaves_is_charged_for_what_passed() -> None:
    """The server closes the answer, and nothing stays held."""
    bench = elastic(streaming(*words(100)), INPUT + 300)
    bench.post(ASKED, leave_after=20)

    assert bench.settled["ending"] == "cut"
    assert bench.settled["total_tokens"] == INPUT + 20 * len(WORD)
    assert len(bench.store.settled) == 1


def test_what_is_written_is_covered_too() -> None:
    """The old way to answer: `write` passes on what is held, then raises."""
    raised: list[BaseException] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/event-stream")])
        try:
            for word in words(100):
                write(word)
        except OSError as error:
            raised.append(error)
            raise
        return []

    bench = elastic(app, INPUT + 50)
    answer = bench.post(ASKED)

    assert said(answer.body) == WORD * 10
    assert answer.body.endswith(LAST)
    assert [type(error) for error in raised] == [StoppedError]
    assert bench.settled["ending"] == "stopped"


@pytest.mark.parametrize(("rule", "ending"), [("open", "complete"), ("closed", "stopped")])
def test_the_store_goes_away_in_the_middle(rule: str, ending: str) -> None:
    """Where the store does not answer, the outage rule of the limits decides."""

    def away(environ: WSGIEnvironment) -> None:
        bench.store.down = True

    rules = {"requests": "open", "tokens": rule, "budget": "open", "concurrency": "open"}
    bench = elastic(streaming(*words(100), DONE, before=away), on_outage=rules)
    bench.post(ASKED)

    assert bench.settled["ending"] == ending


def test_the_next_piece_leaves_before_more_is_asked_for() -> None:
    """Ahead of need the store is asked between two pieces, not in front of one."""
    order: list[str] = []
    bench = elastic(streaming(*words(12)))
    grow = bench.store.grow

    def noting(grant: Grant, output: int) -> int:
        order.append(f"grow after {len(exchange.pieces)}")
        return grow(grant, output)

    bench.store.grow = noting  # type: ignore[method-assign]
    exchange = Exchange(ASKED)
    exchange.run(bench.middleware)

    assert order == ["grow after 7"]
    assert said(exchange.body) == WORD * 12


def test_the_last_event_may_have_no_end() -> None:
    """A stream that breaks off in an event passes on all of it that is there."""
    bench = elastic(streaming(*words(3), delta(WORD)[:-2]))

    assert bench.post(WITH_USAGE).body == b"".join(words(3)) + delta(WORD)[:-2]
