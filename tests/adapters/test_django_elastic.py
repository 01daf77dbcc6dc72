"""Streams of Django that grow, and end where they cannot: every iterator in every chain."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from llm_budget_mw.outputs import bucket_of, name_of
from tests.adapters.django_bench import MIXED, WORLDS, Bench
from tests.edge.driver import CHAT, DONE, QUESTION
from tests.edge.test_elastic import INPUT, LAST, WORD, said, words

EVENTS = "text/event-stream"
ASKED = {**QUESTION, "stream": True, "max_tokens": 4000}
ROUTE = {"path": CHAT, "dialect": "openai_chat", "hold": "elastic"}
every_iterator = pytest.mark.parametrize(
    ("world", "kind"), [(world, kind) for world in [*WORLDS, MIXED] for kind in WORLDS]
)
pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")


class Stream:
    """A stream of words that notes when it is closed."""

    def __init__(self, count: int) -> None:
        self.closed = False
        self._pieces = [*words(count), DONE]

    def answer(self, kind: str) -> StreamingHttpResponse:
        """Return an answer that is the only one to hold it."""
        content: Any = self._give() if kind == "sync" else self._give_on_a_loop()
        return StreamingHttpResponse(content, content_type=EVENTS)

    def _give(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        finally:
            self.closed = True

    async def _give_on_a_loop(self) -> AsyncIterator[bytes]:
        try:
            for piece in self._pieces:
                yield piece
        finally:
            self.closed = True


def elastic(world: str, answer: Callable[[], Any], tokens: int) -> Bench:
    """Return a view on an elastic route that has learned how long answers are."""
    tier = {"tokens": f"{tokens}/day", "max_tokens": 4000}

    def view(request: HttpRequest) -> Any:
        return answer()

    bench = Bench(world, view, tier=tier, routes=[ROUTE])
    bench.guard.outputs.learn({name_of(CHAT, "big"): {bucket_of(40): 20}})
    return bench


@every_iterator
async def test_a_long_answer_grows(world: str, kind: str) -> None:
    """Every byte arrives, and the reservation covered it."""
    async with elastic(world, lambda: Stream(90).answer(kind), 100_000) as bench:
        got = await bench.post(ASKED)

    assert got.body == b"".join([*words(90), DONE])
    assert bench.settled["grown"] >= 2
    assert (bench.settled["ending"], bench.settled["overrun"]) == ("complete", False)


@every_iterator
async def test_it_ends_where_no_more_is_held(world: str, kind: str) -> None:
    """All that is held arrives, then the end of its format; the iterator is closed."""
    stream = Stream(90)
    async with elastic(world, lambda: stream.answer(kind), INPUT + 100) as bench:
        got = await bench.post(ASKED)

    assert said(got.body) == WORD * 20
    assert got.body.endswith(LAST)
    assert stream.closed
    assert bench.settled["ending"] == "stopped"
    assert bench.settled["total_tokens"] == INPUT + 100


@pytest.mark.parametrize("world", WORLDS)
async def test_an_answer_in_one_piece_is_passed_on(world: str) -> None:
    """There is nothing to end; what comes on top of the reservation is charged."""
    body = b"".join([*words(90), DONE])
    headers = {"content-encoding": "gzip"}
    answer = HttpResponse(gzip.compress(body), content_type=EVENTS, headers=headers)
    async with elastic(world, lambda: answer, INPUT + 100) as bench:
        got = await bench.post(ASKED)

    assert got.body == body
    assert "content-encoding" not in got.headers
    assert bench.settled["total_tokens"] == INPUT + 90 * len(WORD)
    assert bench.settled["overrun"]
