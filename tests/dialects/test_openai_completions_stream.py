"""Streams of legacy completions: usage, text and passed bytes, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_completions import OpenAICompletions
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage

DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    chunk = {"id": "c", "object": "text_completion", "model": "gpt-x"} | fields
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()


def text(piece: Any, **fields: Any) -> bytes:
    return event(choices=[{"text": piece, "index": 0, "logprobs": None}], **fields)


EXTRA = event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14})
TWO = event(choices=[{"text": "a", "index": 0}, {"text": "b", "index": 1}])

STREAMS = {
    "openai": text("Hel", usage=None) + text('l"o\n') + EXTRA + DONE,
    "crlf": (text("hi") + EXTRA + DONE).replace(b"\n", b"\r\n"),
    "two answers": TWO + TWO + EXTRA + DONE,
    "cut": text("hi") + EXTRA[:-9],
    "error": text("hi") + event(error={"message": "overloaded"}),
    "garbage": b"data: {broken\n\ndata: 5\n\n\x00\xff\n\n"
    + text(5)
    + text("hi")
    + event(choices=5),
    "two usages": text("hi") + EXTRA + EXTRA.replace(b":4,", b":5,") + DONE,
}


def open_stream(**body: Any) -> StreamReader:
    call = ModelCall("m", Prompt(), 16, stream=True, body=body)
    return OpenAICompletions().open_stream(call, {})


def run(chunks: list[bytes], **body: Any) -> tuple[bytes, Usage | None, str, bool, bool]:
    reader = open_stream(**body)
    out = [*map(reader.feed, chunks), reader.close()]
    return b"".join(out), reader.usage, reader.text, reader.complete, reader.truncated


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Cut in two anywhere, or into single bytes: same bytes out, usage, text and ending."""
    stream = STREAMS[name]
    whole = run([stream])

    assert run([stream[at : at + 1] for at in range(len(stream))]) == whole
    for at in range(len(stream)):
        assert run([stream[:at], stream[at:]]) == whole


@pytest.mark.parametrize(
    ("name", "generated", "complete", "output"),
    [
        ("openai", 'Hell"o\n', True, 4),
        ("crlf", "hi", True, 4),
        ("two answers", "abab", True, 4),
        ("cut", "hi", False, None),
        ("error", "hi", False, None),
        ("garbage", "hi", False, None),
        ("two usages", "hi", True, 5),
    ],
)
def test_text_usage_and_ending_are_read(
    name: str, generated: str, complete: bool, output: int | None
) -> None:
    """Text of all answers counts, the last usage stands, only the marker ends a stream."""
    _, usage, found, ended, truncated = run([STREAMS[name]])

    assert (found, ended, truncated) == (generated, complete, False)
    assert usage == (None if output is None else Usage(10, output, model="gpt-x"))


def test_only_a_caller_who_asked_sees_the_usage_chunk() -> None:
    """What `write_grant` asked for is taken out again, and nothing else."""
    stream = STREAMS["openai"]

    assert run([stream])[0] == stream.replace(EXTRA, b"")
    assert run([stream], stream_options={"include_usage": True})[0] == stream


def test_a_prompt_that_comes_back_is_no_output() -> None:
    """With `echo` the text cannot be counted for what was generated."""
    assert run([STREAMS["cut"]], echo=True)[4]


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    call = ModelCall("m", Prompt(), 16, stream=True)
    reader = OpenAICompletions().open_stream(call, {"content-encoding": "br"})

    assert (reader.rewrites, reader.feed(EXTRA), reader.usage) == (False, EXTRA, None)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.binary(max_size=20) | st.sampled_from(list(STREAMS.values())), max_size=4),
    st.integers(1, 40),
)
def test_any_stream_is_read_without_an_error_and_alike(parts: list[bytes], size: int) -> None:
    """Garbage never raises and reads the same."""
    stream = b"".join(parts)

    assert run([stream[at : at + size] for at in range(0, len(stream), size)]) == run([stream])
