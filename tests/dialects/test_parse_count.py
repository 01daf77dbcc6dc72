"""How often JSON is parsed to read usage: the cost of a long answer is its parsing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from llm_budget_mw.dialects.protocol import Dialect, StreamReader
from llm_budget_mw.types import ModelCall, Prompt
from tests.fuzz.seeds import SEEDS, Seeds, compact

CALL = ModelCall("m", Prompt(), 10, stream=True)
READING = [name for name in SEEDS if name != "custom"]
STREAMED = [name for name in READING if SEEDS[name].streams]
EVENTS = 50


def parses(work: Callable[[], object]) -> int:
    """Return how many documents were parsed, by whatever parser."""
    found = 0

    def note(frame: FrameType, event: str, called: object) -> None:
        nonlocal found
        if event == "c_call":
            found += getattr(called, "__name__", "") == "from_json"
        elif event == "call":
            found += frame.f_code is json.loads.__code__

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def opened(dialect: Dialect, stream_type: str) -> StreamReader:
    return dialect.open_stream(CALL, {"content-type": stream_type})


def each(reader: StreamReader, events: Iterable[bytes]) -> list[int]:
    """Return how many documents were parsed for each event, and for the end."""
    counts = [parses(partial(reader.feed, event)) for event in events]
    return [*counts, parses(reader.close)]


def read_all(reader: StreamReader, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        reader.feed(piece)
    reader.close()


def test_both_parsers_are_counted() -> None:
    """The package's own, and the one of the standard library."""
    seeds = SEEDS["openai_chat"]
    answer = compact(seeds.answers[0])

    assert parses(lambda: seeds.dialect.read_usage(answer, {})) == 1
    assert parses(lambda: json.loads(answer)) == 1
    assert parses(list) == 0


@pytest.mark.parametrize("name", READING)
def test_an_answer_is_parsed_once(name: str) -> None:
    """Whatever it is: an answer with usage, one without, or an error."""
    seeds = SEEDS[name]
    read = seeds.dialect.read_usage
    counts = [parses(partial(read, compact(body), seeds.headers)) for body in seeds.answers]

    assert counts == [1] * len(counts)


def test_what_is_not_read_is_not_parsed() -> None:
    """Nothing is known of the application's own answers."""
    seeds = SEEDS["custom"]
    reader = opened(seeds.dialect, seeds.stream_type)

    assert parses(lambda: seeds.dialect.read_usage(compact(seeds.answers[0]), {})) == 0
    assert sum(each(reader, map(seeds.write_event, seeds.streams[0]))) == 0


@pytest.mark.parametrize("name", STREAMED)
def test_an_event_is_parsed_once_at_most(name: str) -> None:
    """And the end of a stream that nothing is left of not at all."""
    seeds = SEEDS[name]
    for events in seeds.streams:
        reader = opened(seeds.dialect, seeds.stream_type)
        counts = each(reader, map(seeds.write_event, events))

        assert max(counts) <= most_of(seeds, events)
        assert counts[-1] == 0


def most_of(seeds: Seeds, events: tuple[Any, ...]) -> int:
    # OpenAI's words within Bedrock's chunk: the last, with both usages, is read by both.
    return 2 if seeds.dialect.name == "bedrock_invoke" and "choices" in events[-1] else 1


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("size", [1, 100, 10**6])
def test_the_pieces_make_no_difference(name: str, size: int) -> None:
    """Parsing waits for whole events, and never begins again."""
    seeds = SEEDS[name]
    for events in seeds.streams:
        stream = seeds.write(events)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        reader = opened(seeds.dialect, seeds.stream_type)

        assert parses(partial(read_all, reader, pieces)) <= most_of(seeds, events) + len(events) - 1


def test_elements_of_an_array_are_parsed_once() -> None:
    """The brackets around them not at all."""
    seeds = SEEDS["gemini"]
    events = [compact(event) for event in seeds.streams[0]]
    reader = opened(seeds.dialect, "application/json")
    pieces = [b"[" + events[0], *(b",\r\n" + event for event in events[1:]), b"\n]\n"]

    assert each(reader, pieces) == [1] * len(events) + [0, 0]


def _claude(text: str) -> dict[str, Any]:
    delta = {"type": "text_delta", "text": text}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


def _nova(text: str) -> dict[str, Any]:
    return {"contentBlockDelta": {"delta": {"text": text}, "contentBlockIndex": 0}}


def _chat(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "c", "model": "m", "choices": [choice], "usage": None}


def _response(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 0, "delta": text, "logprobs": []}


@pytest.mark.parametrize(
    ("name", "event", "most"),
    [
        ("openai_chat", _chat, 0),
        ("openai_compatible", _chat, 0),
        ("openai_responses", _response, 0),
        ("anthropic_messages", _claude, 0),
        # The first chunk tells whose words they are.
        ("bedrock_invoke", _chat, 1),
        ("bedrock_invoke", _claude, 1),
        ("bedrock_invoke", _nova, 1),
    ],
)
def test_events_of_text_alone_are_not_parsed(
    name: str, event: Callable[[str], dict[str, Any]], most: int
) -> None:
    """They cannot carry usage, and their text is all there still."""
    seeds = SEEDS[name]
    reader = opened(seeds.dialect, seeds.stream_type)
    events = [seeds.write_event(event(f" word {number}")) for number in range(EVENTS)]
    counts = each(reader, events)

    assert sum(counts) == most
    assert reader.text == "".join(f" word {number}" for number in range(EVENTS))


def test_the_last_chunk_is_parsed_once_with_its_metrics() -> None:
    """Claude's last event and Bedrock's own counts come in one document."""
    seeds = SEEDS["bedrock_invoke"]
    events = list(map(seeds.write_event, seeds.streams[0]))
    reader = opened(seeds.dialect, seeds.stream_type)
    counts = each(reader, events)

    assert b"invocationMetrics" in compact(seeds.streams[0][-1])
    assert (counts[0], counts[-2]) == (1, 1)
    assert reader.complete
