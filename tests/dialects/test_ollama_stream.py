"""Streams of Ollama: lines, usage, text and ending, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects import _ndjson
from llm_budget_mw.dialects.ollama import Ollama
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage
from tests.dialects.streaming import Seen, assert_cut_anyhow, assert_ends_anywhere, run

CALL = ModelCall("m", Prompt(), 10, stream=True)


def line(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields, ensure_ascii=False).encode() + b"\n"


def chat(**message: Any) -> bytes:
    return line(message={"role": "assistant"} | message, done=False)


COUNTS = {"prompt_eval_count": 26, "eval_count": 9}
HELLO = chat(content='Hé"l\nlo')
DONE = line(message={"content": ""}, done=True, done_reason="stop", **COUNTS)
WHOLE = HELLO + DONE

STREAMS = {
    "chat": WHOLE,
    "generate": line(response='Hé"l\n', done=False) + line(response="lo", done=True, **COUNTS),
    "prompt remembered": HELLO + line(done=True, eval_count=9),
    "cut": HELLO,
    "crlf": WHOLE.replace(b"\n", b"\r\n"),
    "no last line end": WHOLE[:-1],
    "cut in a line": WHOLE[:-3],
    "blank lines": b"\n\n" + HELLO + b" \n" + DONE + b"\n",
    "error": HELLO + line(error="sorry"),
    "error at the end": WHOLE + line(error="sorry"),
    "loaded": line(response="", done=True, done_reason="load"),
    "garbage": b"{x\n\xff\xfe\n[1]\n5\n" + WHOLE,
    "another format": b'data: {"choices":[]}\n\n{"usage":{}}\n',
    "image": line(done=False, completed=1, image=None) + line(image="AAAA", done=True),
    "empty": b"",
}


def opened() -> StreamReader:
    return Ollama().open_stream(CALL, {"content-type": "application/x-ndjson"})


def read(*parts: bytes) -> Seen:
    return run(opened(), [b"".join(parts)])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Whole, in two anywhere, or byte by byte: same usage, text and ending, every byte out."""
    assert_cut_anyhow(opened, STREAMS[name])


@pytest.mark.parametrize(
    ("name", "usage", "text", "complete", "truncated"),
    [
        ("chat", Usage(26, 9, model="m"), 'Hé"l\nlo', True, False),
        ("generate", Usage(26, 9, model="m"), 'Hé"l\nlo', True, False),
        ("prompt remembered", Usage(None, 9, model="m"), 'Hé"l\nlo', True, False),
        ("cut", None, 'Hé"l\nlo', False, False),
        ("crlf", Usage(26, 9, model="m"), 'Hé"l\nlo', True, False),
        ("no last line end", Usage(26, 9, model="m"), 'Hé"l\nlo', True, False),
        ("cut in a line", None, 'Hé"l\nlo', False, False),
        ("blank lines", Usage(26, 9, model="m"), 'Hé"l\nlo', True, False),
        ("error", None, 'Hé"l\nlo', False, False),
        ("error at the end", Usage(26, 9, model="m"), 'Hé"l\nlo', False, False),
        ("loaded", Usage(0, 0, model="m"), "", True, False),
        ("garbage", Usage(26, 9, model="m"), 'Hé"l\nlo', True, True),
        ("another format", None, "", False, True),
        ("image", None, "", True, True),
        ("empty", None, "", False, False),
    ],
)
def test_usage_text_and_ending_are_read(
    name: str, usage: Usage | None, text: str, complete: bool, truncated: bool
) -> None:
    """The line that is done has the counts; lines of another format are unknown, not empty."""
    assert run(opened(), [STREAMS[name]])[1:] == (usage, text, complete, truncated)


def test_a_stream_may_end_at_any_byte() -> None:
    """It is complete once its last line is whole, and not before."""
    assert_ends_anywhere(opened, WHOLE)
    assert not read(WHOLE[:-2]).complete


def test_the_last_of_two_usages_stands() -> None:
    """They are never added, and one that reports nothing takes nothing back."""
    second = line(done=True, prompt_eval_count=30, eval_count=12)

    assert read(DONE, second, line(done=True)).usage == Usage(30, 12, model="m")


def test_everything_generated_is_collected() -> None:
    """Text, thinking, and calls with their arguments."""
    seen = read(
        chat(thinking="a"),
        line(response="", thinking="b"),
        chat(tool_calls=[{"function": {"name": "c", "arguments": {"d": 1}}}]),
        chat(content=5, thinking=[], tool_calls={}),
        line(message=5),
    )

    assert seen[1:] == (None, 'ab{"name":"c","arguments":{"d":1}}', False, False)


def test_a_line_too_long_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece or in many: usage is unknown from there, and everything passes."""
    monkeypatch.setattr(_ndjson, "MAX_EVENT_BYTES", len(HELLO))
    stream = HELLO + DONE + HELLO
    seen = read(stream)

    assert len(DONE) > len(HELLO)
    assert (seen.usage, seen.text, seen.truncated) == (None, 'Hé"l\nlo', True)
    for size in (1, 7, len(HELLO)):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert run(opened(), pieces) == seen


def test_a_stream_is_never_changed() -> None:
    """The reader lets the edge forward first, and returns each piece itself."""
    reader = opened()

    assert not reader.rewrites
    assert reader.feed(HELLO) is HELLO


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = Ollama().open_stream(CALL, {"content-encoding": "zstd"})

    assert (reader.feed(DONE), reader.usage, reader.truncated) == (DONE, None, True)


NAMES = ["message", "content", "response", "thinking", "tool_calls", "function", "done", "error",
         "eval_count", "prompt_eval_count", "image", "done_reason"]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=10,
)
pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([*STREAMS.values(), b"\n"]),
    values.map(lambda value: json.dumps(value).encode() + b"\n"),
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
