"""Streams of Cohere: usage, text and ending, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.cohere import Cohere
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage
from tests.dialects.streaming import Seen, assert_cut_anyhow, assert_ends_anywhere, run

CALL = ModelCall("m", Prompt(), 10, stream=True)
BILLED = {"billed_units": {"input_tokens": 25.0, "output_tokens": 9}, "cached_tokens": 80}


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind} | fields, separators=(",", ":"), ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def message(kind: str, **content: Any) -> bytes:
    return event(kind, index=0, delta={"message": content})


def end(finish: str = "COMPLETE", **delta: Any) -> bytes:
    return event("message-end", id="1", delta={"finish_reason": finish, "usage": BILLED} | delta)


START = event("message-start", id="1", delta={"message": {"role": "assistant", "content": []}})
HELLO = message("content-delta", content={"text": 'Hé"l\nlo'})
DONE = b"data: [DONE]\n\n"

STREAMS = {
    "whole": START + HELLO + event("content-end", index=0) + end() + DONE,
    "without a marker": START + HELLO + end(),
    "cut": START + HELLO,
    "marker only": START + HELLO + DONE,
    "failed": START + HELLO + end("ERROR", error="sorry", usage=None) + DONE,
    "timed out": START + HELLO + end("TIMEOUT") + DONE,
    "an error's body": START + HELLO + end() + b'data: {"message":"no","id":"1"}\n\n' + DONE,
    "crlf": (START + HELLO + end() + DONE).replace(b"\n\n", b"\r\n\r\n"),
    "no last blank line": (START + HELLO + end())[:-1],
    "unknown events": b": ping\n\n" + event("debug", prompt="no") + HELLO + end(),
    "garbage": b"data: {x\n\nevent: message-end\n\n\xff\n\ndata: [1]\n\ndata: 5\n\n" + HELLO,
    "another format": b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n',
    "empty": b"",
}


def opened() -> StreamReader:
    return Cohere().open_stream(CALL, {"content-type": "text/event-stream"})


def read(*parts: bytes) -> Seen:
    return run(opened(), [b"".join(parts)])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Whole, in two anywhere, or byte by byte: same usage, text and ending, every byte out."""
    assert_cut_anyhow(opened, STREAMS[name])


@pytest.mark.parametrize(
    ("name", "usage", "text", "complete"),
    [
        ("whole", Usage(25, 9), 'Hé"l\nlo', True),
        ("without a marker", Usage(25, 9), 'Hé"l\nlo', True),
        ("cut", None, 'Hé"l\nlo', False),
        ("marker only", None, 'Hé"l\nlo', True),
        ("failed", None, 'Hé"l\nlo', False),
        ("timed out", Usage(25, 9), 'Hé"l\nlo', False),
        ("an error's body", Usage(25, 9), 'Hé"l\nlo', False),
        ("crlf", Usage(25, 9), 'Hé"l\nlo', True),
        ("no last blank line", Usage(25, 9), 'Hé"l\nlo', True),
        ("unknown events", Usage(25, 9), 'Hé"l\nlo', True),
        ("empty", None, "", False),
    ],
)
def test_usage_text_and_ending_are_read(
    name: str, usage: Usage | None, text: str, complete: bool
) -> None:
    """`message-end` has the usage and ends a stream, unless it says that it failed."""
    assert run(opened(), [STREAMS[name]])[1:] == (usage, text, complete, False)


@pytest.mark.parametrize("name", ["another format", "garbage"])
def test_a_stream_of_another_format_is_unknown(name: str) -> None:
    """Not empty: who knows what it generated."""
    seen = read(STREAMS[name])

    assert (seen.usage, seen.complete, seen.truncated) == (None, False, True)


def test_an_unfinished_event_is_not_of_another_format() -> None:
    """Most streams that are cut end in the middle of one; what came before can be counted."""
    assert not read(HELLO, end()[:-20]).truncated
    assert not read(HELLO, b"event: x").truncated


def test_a_stream_may_end_at_any_byte() -> None:
    """It is complete from its `message-end` on, and not before."""
    assert_ends_anywhere(opened, STREAMS["whole"])


def test_the_last_of_two_usages_stands() -> None:
    """They are never added, and one that reports nothing takes nothing back."""
    second = end(usage={"billed_units": {"input_tokens": 30, "output_tokens": 12}})

    assert read(end(), second, end(usage=None)).usage == Usage(30, 12)


def test_everything_generated_is_collected() -> None:
    """Text, thinking, plans, and calls with their arguments; citations are not."""
    seen = read(
        message("content-start", content={"type": "thinking", "thinking": "a"}),
        message("content-delta", content={"thinking": "b"}),
        message("tool-plan-delta", tool_plan="c"),
        message("tool-call-start", tool_calls={"function": {"name": "d", "arguments": ""}}),
        message("tool-call-delta", tool_calls={"function": {"arguments": '{"e'}}),
        message("tool-call-delta", tool_calls=[{"function": {"arguments": "f"}}, 5]),
        message("citation-start", citations={"text": "no"}),
        message("content-delta", content=5),
        message("content-delta", content={"text": 5}),
        event("content-delta", delta=[]),
    )

    assert seen[1:] == (None, 'abcd{"ef', False, False)


def test_a_stream_is_never_changed() -> None:
    """The reader lets the edge forward first, and returns each piece itself."""
    reader = opened()

    assert not reader.rewrites
    assert reader.feed(START) is START


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = Cohere().open_stream(CALL, {"content-encoding": "br"})

    assert (reader.feed(START), reader.usage, reader.truncated) == (START, None, True)


NAMES = ["message", "content", "text", "usage", "billed_units", "input_tokens", "tool_calls",
         "function", "arguments", "finish_reason", "error"]  # fmt: skip
KINDS = ["content-start", "content-delta", "tool-plan-delta", "tool-call-start", "message-end", "x"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=10,
)
pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([*STREAMS.values(), b"\n\n", b"data: "]),
    st.builds(lambda kind, delta: event(kind, delta=delta), st.sampled_from(KINDS), values),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(1, 40))
def test_any_stream_is_read_without_an_error_and_alike(parts: list[bytes], size: int) -> None:
    """Garbage never raises, passes unchanged, reads the same in any pieces, counts nothing < 0."""
    stream = b"".join(parts)
    seen = run(opened(), [stream[at : at + size] for at in range(0, len(stream), size)])

    assert seen == run(opened(), [stream])
    assert seen.passed == stream
    assert (
        seen.usage is None or min(seen.usage.input_tokens or 0, seen.usage.output_tokens or 0) >= 0
    )
