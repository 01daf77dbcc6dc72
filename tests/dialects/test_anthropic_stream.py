"""Streams of messages: cumulative usage, text and ending, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage

CALL = ModelCall("m", Prompt(), 10, stream=True)


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind} | fields, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def start(**usage: Any) -> bytes:
    return event("message_start", message={"model": "claude-x", "usage": usage})


def delta(kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=0, delta={"type": kind} | fields)


def block(kind: str, **fields: Any) -> bytes:
    return event("content_block_start", index=0, content_block={"type": kind} | fields)


def finish(**usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


START = start(input_tokens=25, cache_read_input_tokens=5, output_tokens=1)
PING = event("ping")
HELLO = delta("text_delta", text='Hel"lo\n')
STOP = event("message_stop")
ERROR = event("error", error={"type": "overloaded_error", "message": "later"})

STREAMS = {
    "whole": START + PING + block("text", text="") + HELLO + finish(output_tokens=15) + STOP,
    "cut": START + HELLO,
    "error": START + HELLO + ERROR,
    "crlf": (START + HELLO + finish(output_tokens=15) + STOP).replace(b"\n", b"\r\n"),
    "no last blank line": (START + HELLO + finish(output_tokens=15) + STOP)[:-1],
    "garbage": b"data: {x\n\nevent: message_delta\n\n\xff\xfe\n\ndata: [1]\n\n" + HELLO,
    "thinking": START
    + block("thinking", thinking="")
    + delta("thinking_delta", thinking="hm")
    + delta("signature_delta", signature="AAAA")
    + HELLO,
}


def run(chunks: list[bytes]) -> tuple[bytes, Usage | None, str, bool, bool]:
    reader: StreamReader = AnthropicMessages().open_stream(CALL, {})
    out = [reader.feed(chunk) for chunk in chunks]
    out.append(reader.close())
    return b"".join(out), reader.usage, reader.text, reader.complete, reader.truncated


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Cut in two anywhere, or into single bytes: same usage, text and ending, every byte out."""
    stream = STREAMS[name]
    whole = run([stream])

    assert whole[0] == stream
    assert run([stream[at : at + 1] for at in range(len(stream))]) == whole
    for at in range(len(stream)):
        assert run([stream[:at], stream[at:]]) == whole


@pytest.mark.parametrize(
    ("name", "output", "text", "complete"),
    [
        ("whole", 15, 'Hel"lo\n', True),
        ("crlf", 15, 'Hel"lo\n', True),
        ("no last blank line", 15, 'Hel"lo\n', True),
        ("cut", None, 'Hel"lo\n', False),
        ("error", None, 'Hel"lo\n', False),
    ],
)
def test_usage_text_and_ending_are_read(
    name: str, output: int | None, text: str, complete: bool
) -> None:
    """Output is what the last delta says; the few tokens of the start are no estimate of it."""
    expected = Usage(30, output, cache_read_tokens=5, model="claude-x")

    assert run([STREAMS[name]])[1:] == (expected, text, complete, False)


def test_later_counts_replace_earlier_ones_field_by_field() -> None:
    """Counts are cumulative: the last value of each field stands, null takes nothing back."""
    split = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100}
    usage = run(
        [
            start(input_tokens=10, cache_creation_input_tokens=100, cache_creation=split),
            finish(output_tokens=5, server_tool_use={"web_search_requests": 1}),
            finish(output_tokens=9, input_tokens=400, cache_creation_input_tokens=None),
            finish(output_tokens=None, cache_read_input_tokens=50),
        ]
    )[1]

    assert usage == Usage(
        550,
        9,
        cache_read_tokens=50,
        cache_write_tokens=100,
        cache_write_1h_tokens=100,
        web_searches=1,
        model="claude-x",
    )


def test_iterations_of_a_stream_are_extra() -> None:
    """A compaction reported at the end is billed beside the answer."""
    usage = run(
        [START, finish(output_tokens=8, iterations=[{"type": "compaction", "input_tokens": 7}])]
    )[1]

    assert usage is not None
    assert usage.extra == (Usage(7, None, model="claude-x"),)


def test_a_stream_without_usage_is_unknown() -> None:
    """Text alone is no report."""
    assert run([HELLO, event("message_delta", delta={}), STOP])[1] is None


def test_everything_generated_is_collected() -> None:
    """Thinking, tool names and tool input are output; search results and citations are not."""
    stream = [
        delta("thinking_delta", thinking="a"),
        block("tool_use", name="b", input={}),
        delta("input_json_delta", partial_json='{"c'),
        block("text", text="d"),
        delta("text_delta", text="e", extra=1),
        delta("citations_delta", citation={"cited_text": "no"}),
        block("web_search_tool_result", content=[{"title": "no"}]),
        delta("compaction_delta", content="f"),
    ]

    assert run(stream)[2:] == ('ab{"cdef', False, False)


@pytest.mark.parametrize(
    "hidden", [delta("signature_delta", signature="A"), block("redacted_thinking", data="A")]
)
def test_hidden_thinking_is_noted(hidden: bytes) -> None:
    """Thinking is billed whole and shown as a summary, or not at all."""
    text, _, truncated = run([hidden, HELLO])[2:]

    assert (text, truncated) == ('Hel"lo\n', True)


def test_a_stream_is_never_changed() -> None:
    """The reader lets the edge forward first, and returns each chunk itself."""
    reader = AnthropicMessages().open_stream(CALL, {})

    assert not reader.rewrites
    assert reader.feed(START) is START


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = AnthropicMessages().open_stream(CALL, {"content-encoding": "br"})

    assert (reader.feed(START), reader.usage, reader.truncated) == (START, None, True)


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([*STREAMS.values(), PING, STOP, b"\n\n", b"data: ", b'"delta":{"type":"']),
    st.text(max_size=8).map(lambda text: delta("text_delta", text=text)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(1, 40))
def test_any_stream_is_read_without_an_error_and_alike(parts: list[bytes], size: int) -> None:
    """Garbage never raises, passes unchanged, and reads the same in any pieces."""
    stream = b"".join(parts)
    cut = run([stream[at : at + size] for at in range(0, len(stream), size)])

    assert cut == run([stream])
    assert cut[0] == stream
