"""Streams of Gemini, as events and as one array: usage, text and ending, however cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw import _sse
from llm_budget_mw.dialects import _json_array
from llm_budget_mw.dialects.gemini import Gemini
from llm_budget_mw.types import ModelCall, Prompt, Usage

CALL = ModelCall("m", Prompt(), 10, stream=True)
EVENTS = {"content-type": "text/event-stream"}
ARRAY = {"content-type": "application/json; charset=UTF-8"}


def usage(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    total = prompt + output + more.get("thoughtsTokenCount", 0)
    counts = {"promptTokenCount": prompt, "candidatesTokenCount": output, "totalTokenCount": total}
    return {"usageMetadata": counts | more, "modelVersion": "gemini-x"}


def candidate(*parts: Any, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    ending = {"finishReason": finish} if finish else {}
    return {"content": {"role": "model", "parts": list(parts)}, "index": index} | ending


def text(piece: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"candidates": [candidate({"text": piece}, finish=finish)]} | more


FIRST = text("Hel", **usage(9, 50))
LAST = text('l"o\\\n}]', "STOP", **usage(8, 4))
BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}}

CHUNKS: dict[str, list[Any]] = {
    "plain": [FIRST, LAST],
    "usage late": [text("hi"), text("", "STOP", **usage(8, 4))],
    "no usage": [text("hi"), text("", "STOP")],
    "only traffic at last": [FIRST, text("", "STOP", usageMetadata={"trafficType": "ON_DEMAND"})],
    "unfinished": [FIRST],
    "two candidates": [
        {"candidates": [candidate({"text": "a"}), candidate({"text": "b"}, index=1, finish="STOP")]},
        {"candidates": [candidate({"text": "c"}, finish="STOP")]} | usage(8, 4),
    ],
    "one candidate cut": [
        {"candidates": [candidate({"text": "a"}), candidate({"text": "b"}, index=1, finish="STOP")]},
    ],
    "blocked": [BLOCKED | {"usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8}}],
    "error": [FIRST, {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}],
    "error at the end": [FIRST, LAST, {"error": {"code": 500}}],
    "unicode": [text("héé\u2028"), text("日本語 🎉[{", "STOP", **usage(8, 4))],
    "thinking": [text("hi", "STOP", **usage(8, 4, thoughtsTokenCount=3))],
    "another format": [{"choices": [{"delta": {"content": "hi"}}]}, {"type": "message_stop"}],
    "garbage": [5, [], [[1], {}], "x", None, {}, text("hi")],
}  # fmt: skip


def as_events(chunks: list[Any], end: str = "\r\n") -> bytes:
    return "".join(f"data: {json.dumps(chunk)}{end}{end}" for chunk in chunks).encode()


def as_array(chunks: list[Any]) -> bytes:
    inner = "\n,\r\n".join(json.dumps(chunk, indent=1, ensure_ascii=False) for chunk in chunks)
    return f"[{inner}\n]\n".encode()


STREAMS = {
    **{f"events, {name}": (EVENTS, as_events(chunks)) for name, chunks in CHUNKS.items()},
    **{f"array, {name}": (ARRAY, as_array(chunks)) for name, chunks in CHUNKS.items()},
    "events, broken": (EVENTS, b"data: {broken\n\nfoo\n\n\x00\xff\n\n" + as_events([LAST], "\n")),
    "events, marker": (EVENTS, as_events([FIRST, LAST]) + b"data: [DONE]\n\n"),
    "array, broken": (ARRAY, b'[{"a\\"b": "\\u00e9\\\\"}, {]]}}} "\xff' + as_array([LAST])),
    "array, empty": (ARRAY, b"[]"),
    "array, no array": (ARRAY, json.dumps(FIRST | {"x": [{}], "y": {"z": []}}).encode()),
    "array, errors": (ARRAY, b'[{"error":{"code":429}}]'),
    "array, that is events": (ARRAY, as_events([FIRST, LAST])),
    "events, that are an array": (EVENTS, as_array([FIRST, LAST])),
    "no type": ({}, as_events([FIRST, LAST])),
}


def run(headers: dict[str, str], chunks: list[bytes]) -> tuple[Usage | None, str, bool, bool]:
    reader = Gemini().open_stream(CALL, headers)
    assert [reader.feed(chunk) for chunk in chunks] == chunks
    assert reader.close() == b""
    return reader.usage, reader.text, reader.complete, reader.truncated


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Cut in two anywhere, or into single bytes: same bytes out, usage, text and ending."""
    headers, stream = STREAMS[name]
    whole = run(headers, [stream])

    assert run(headers, [stream[at : at + 1] for at in range(len(stream))]) == whole
    for at in range(len(stream)):
        assert run(headers, [stream[:at], stream[at:]]) == whole


@pytest.mark.parametrize("framing", ["events", "array"])
@pytest.mark.parametrize(
    ("name", "counts", "generated", "complete", "truncated"),
    [
        ("plain", (8, 4), 'Hell"o\\\n}]', True, False),
        ("usage late", (8, 4), "hi", True, False),
        ("no usage", None, "hi", True, False),
        ("only traffic at last", (9, 50), "Hel", True, False),
        ("unfinished", (9, 50), "Hel", False, False),
        ("two candidates", (8, 4), "abc", True, False),
        ("one candidate cut", None, "ab", False, False),
        ("blocked", (8, 0), "", True, False),
        ("error", (9, 50), "Hel", False, False),
        ("error at the end", (8, 4), 'Hell"o\\\n}]', False, False),
        ("unicode", (8, 4), "héé\u2028日本語 🎉[{", True, False),
        ("thinking", (8, 7), "hi", True, True),
        ("another format", None, "", False, True),
    ],
)
def test_usage_text_and_ending_are_read(
    framing: str,
    name: str,
    counts: tuple[int, int] | None,
    generated: str,
    complete: bool,
    truncated: bool,
) -> None:
    """The last counts stand, and a stream is whole when every candidate has finished."""
    headers, stream = STREAMS[f"{framing}, {name}"]
    found, *rest = run(headers, [stream])

    assert (found and (found.input_tokens, found.output_tokens)) == counts
    assert rest == [generated, complete, truncated]


@pytest.mark.parametrize(
    ("name", "counts", "complete"),
    [
        ("events, broken", (8, 4), True),
        ("events, marker", (8, 4), True),
        ("events, that are an array", None, False),
        ("array, empty", None, False),
        ("array, no array", (9, 50), False),
        ("array, errors", None, False),
        ("no type", (8, 4), True),
    ],
)
def test_what_is_not_of_the_format_is_no_usage(
    name: str, counts: tuple[int, int] | None, complete: bool
) -> None:
    """Neither an error nor a guess."""
    headers, stream = STREAMS[name]
    found, _, ended, _ = run(headers, [stream])

    assert (found and (found.input_tokens, found.output_tokens), ended) == (counts, complete)


@pytest.mark.parametrize("name", ["events, plain", "array, plain"])
def test_a_stream_cut_at_any_byte_is_not_complete(name: str) -> None:
    """Until its last chunk, and of an array the bracket, is there; usage is the last seen."""
    headers, stream = STREAMS[name]
    end = stream.rfind(b"]" if headers is ARRAY else b"}")
    for at in range(end):
        found, _, complete, _ = run(headers, [stream[:at]])

        assert not complete
        assert found is None or found.output_tokens in (4, 50)


def test_everything_generated_is_collected() -> None:
    """Thoughts, calls and code count as output; what tools gave back does not."""
    parts = [
        {"text": "a", "thought": True},
        {"functionCall": {"name": "f", "args": {"x": 1}}},
        {"executable_code": {"language": "PYTHON", "code": "print()"}},
        {"codeExecutionResult": {"output": "no"}},
        {"text": 5},
        5,
    ]
    stream = as_events([{"candidates": [candidate(*parts), 5, {"index": -1}, {"index": "x"}]}])

    assert run(EVENTS, [stream])[1] == 'a{"name":"f","args":{"x":1}}print()'


@pytest.mark.parametrize(
    "part", [{"inlineData": {"data": "AAAA"}}, {"text": "", "thoughtSignature": "s"}, {"file_data": {}}]
)  # fmt: skip
def test_output_that_is_not_shown_as_text_is_noted(part: dict[str, Any]) -> None:
    """Pictures and sealed thoughts cannot be counted from text."""
    assert run(EVENTS, [as_events([{"candidates": [candidate(part)]}, text("hi")])])[3]


def test_endless_searches_are_bounded() -> None:
    """No more of them are kept than any answer has."""
    queries = [str(number) for number in range(3000)]
    chunk = {"candidates": [{"groundingMetadata": {"webSearchQueries": queries}}]}
    found = run(EVENTS, [as_events([chunk | usage(1, 1)])])[0]

    assert found is not None
    assert found.web_searches == 1024


@pytest.mark.parametrize("size", [1, 50, 10_000])
@pytest.mark.parametrize("headers", [EVENTS, ARRAY])
def test_an_endless_chunk_is_passed_on_unread(
    headers: dict[str, str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a chunk that is too large every byte passes, and usage is unknown."""
    monkeypatch.setattr(_sse, "MAX_EVENT_BYTES", 500)
    monkeypatch.setattr(_json_array, "MAX_EVENT_BYTES", 500)
    chunks = [text("hi"), text("x" * 600), LAST]
    stream = as_array(chunks) if headers is ARRAY else as_events(chunks)
    cut = [stream[at : at + size] for at in range(0, len(stream), size)]

    assert run(headers, cut) == (None, "hi", False, True)


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = Gemini().open_stream(CALL, EVENTS | {"content-encoding": "gzip"})

    assert (reader.rewrites, reader.feed(b"x"), reader.close()) == (False, b"x", b"")
    assert (reader.usage, reader.complete, reader.truncated) == (None, False, True)


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([stream for _, stream in STREAMS.values()]),
    st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"data: ", b"\n\n"]),
    st.text(max_size=8).map(lambda piece: as_events([text(piece)])),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=8), st.integers(1, 40), st.sampled_from([EVENTS, ARRAY]))
def test_any_stream_is_read_without_an_error_and_alike(
    parts: list[bytes], size: int, headers: dict[str, str]
) -> None:
    """Garbage never raises, passes unchanged, and reads the same."""
    stream = b"".join(parts)
    cut = [stream[at : at + size] for at in range(0, len(stream), size)]

    assert run(headers, cut) == run(headers, [stream])
