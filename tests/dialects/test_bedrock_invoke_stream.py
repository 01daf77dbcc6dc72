"""Streams of InvokeModel in every family: usage, text and ending, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.bedrock_invoke import BedrockInvoke
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage
from tests.dialects.streaming import (
    Seen,
    assert_cut_anyhow,
    assert_ends_anywhere,
    chunk,
    event,
    failure,
    frame,
    run,
)

CALL = ModelCall("m", Prompt(), 10, stream=True)
METRICS: dict[str, Any] = {
    "amazon-bedrock-invocationMetrics": {
        "inputTokenCount": 21, "outputTokenCount": 9, "cacheReadInputTokenCount": 4,
        "cacheWriteInputTokenCount": 5, "invocationLatency": 100,
    }
}  # fmt: skip
MEASURED = Usage(30, 9, cache_read_tokens=4, cache_write_tokens=5)

CLAUDE: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"model": "c", "usage": {"input_tokens": 21}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 'Hé"l\nlo'}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 8}},
    {"type": "message_stop"},
]
NOVA: list[dict[str, Any]] = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"delta": {"text": "hello"}, "contentBlockIndex": 0}},
    {"messageStop": {"stopReason": "end_turn"}},
    {"metadata": {"usage": {"inputTokens": 21, "outputTokens": 8}}},
]
TITAN: list[dict[str, Any]] = [
    {"outputText": "hel", "index": 0, "totalOutputTextTokenCount": None, "inputTextTokenCount": 21},
    {"outputText": "lo", "totalOutputTextTokenCount": 8, "completionReason": "FINISH"},
]
LLAMA: list[dict[str, Any]] = [
    {
        "generation": "hel",
        "prompt_token_count": 21,
        "generation_token_count": 1,
        "stop_reason": None,
    },
    {
        "generation": "lo",
        "prompt_token_count": None,
        "generation_token_count": 8,
        "stop_reason": "stop",
    },
]
OPENAI: list[dict[str, Any]] = [
    {"model": "q", "choices": [{"index": 0, "delta": {"content": "hello"}}]},
    {
        "model": "q",
        "choices": [{"delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 8, "total_tokens": 29},
    },
]
MISTRAL: list[dict[str, Any]] = [
    {"outputs": [{"text": "hello", "stop_reason": None}]},
    {"outputs": [{"text": ""}]},
]


def stream(chunks: list[Any]) -> bytes:
    return b"".join(map(chunk, chunks))


STREAMS = {
    "claude": stream(CLAUDE),
    "claude, measured": stream([*CLAUDE[:2], CLAUDE[3] | METRICS]),
    "claude, cut": stream(CLAUDE[:2]),
    "claude, indented": stream([json.dumps(part, indent=2).encode() for part in CLAUDE]),
    "nova": stream(NOVA),
    "nova, measured": stream([*NOVA[:2], METRICS]),
    "titan": stream(TITAN),
    "titan, cut": stream(TITAN[:1]),
    "llama": stream(LLAMA),
    "llama, cut": stream(LLAMA[:1]),
    "llama, measured": stream([LLAMA[0], LLAMA[1] | METRICS]),
    "openai": stream(OPENAI),
    "openai, measured": stream([OPENAI[0], OPENAI[1] | METRICS]),
    "mistral": stream([*MISTRAL[:1], MISTRAL[1] | METRICS]),
    "exception": stream(LLAMA[:1]) + failure("throttlingException"),
    "exception at the end": stream([LLAMA[0], METRICS]) + failure("modelTimeoutException"),
    "another format": stream([{"event_type": "text-generation", "words": "hi"}]),
    "garbage": chunk(b"\xff{") + event("chunk", {"bytes": "A"}) + event("chunk", [1]) + frame(b""),
    "unknown events": event("pong", {"a": 1}) + stream(LLAMA),
    "no event type": frame(b'{"bytes":"' + b"e30=" + b'"}') + stream(LLAMA),
    "converse": event("contentBlockDelta", {"delta": {"text": "no"}}),
    "server-sent events": b'data: {"type":"message_stop"}\n\n',
    "empty": b"",
}  # fmt: skip


def opened() -> StreamReader:
    return BedrockInvoke().open_stream(CALL, {})


def read(*parts: bytes) -> Seen:
    return run(opened(), [b"".join(parts)])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Whole, in two anywhere, or byte by byte: same usage, text and ending, every byte out."""
    assert_cut_anyhow(opened, STREAMS[name])


@pytest.mark.parametrize(
    ("name", "usage", "text", "complete", "truncated"),
    [
        ("claude", Usage(21, 8, model="c"), 'Hé"l\nlo', True, False),
        ("claude, measured", Usage(21, 9, model="c"), 'Hé"l\nlo', True, False),
        ("claude, cut", Usage(21, None, model="c"), 'Hé"l\nlo', False, False),
        ("claude, indented", Usage(21, 8, model="c"), 'Hé"l\nlo', True, False),
        ("nova", Usage(21, 8), "hello", True, False),
        ("nova, measured", MEASURED, "hello", True, False),
        ("titan", Usage(21, 8), "hello", True, False),
        ("titan, cut", Usage(21, None), "hel", False, False),
        ("llama", Usage(21, 8), "hello", True, False),
        ("llama, cut", Usage(21, 1), "hel", False, False),
        ("llama, measured", Usage(21, 8), "hello", True, False),
        ("openai", Usage(21, 8, model="q"), "hello", False, False),
        ("openai, measured", Usage(21, 8, model="q"), "hello", True, False),
        ("mistral", MEASURED, "hello", True, False),
        ("exception", Usage(21, 1), "hel", False, False),
        ("exception at the end", Usage(21, 1), "hel", False, False),
        ("another format", None, "", False, True),
        ("garbage", None, "", False, True),
        ("unknown events", Usage(21, 8), "hello", True, True),
        ("no event type", Usage(21, 8), "hello", True, True),
        ("converse", None, "", False, True),
        ("server-sent events", None, "", False, True),
        ("empty", None, "", False, False),
    ],
)
def test_usage_text_and_ending_are_read(
    name: str, usage: Usage | None, text: str, complete: bool, truncated: bool
) -> None:
    """The model's own counts stand; what they leave open is taken from Bedrock's metrics."""
    assert run(opened(), [STREAMS[name]])[1:] == (usage, text, complete, truncated)


@pytest.mark.parametrize("name", ["claude", "nova, measured", "llama", "openai, measured"])
def test_a_stream_may_end_at_any_byte(name: str) -> None:
    """It is complete with its last message, and not before."""
    assert_ends_anywhere(opened, STREAMS[name])


def test_the_last_metrics_stand() -> None:
    """They are never added, and metrics without a count take nothing back."""
    more = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 5, "outputTokenCount": 6}}
    none = {"amazon-bedrock-invocationMetrics": None}

    assert read(stream([METRICS, more, none])).usage == Usage(5, 6)
    assert not read(stream([MISTRAL[0], none])).complete


def test_the_served_tier_is_told_by_a_header() -> None:
    """It decides the price."""
    headers = {"x-amzn-bedrock-service-tier": "flex"}
    reader = BedrockInvoke().open_stream(CALL, headers)
    silent = BedrockInvoke().open_stream(CALL, headers)

    assert run(reader, [STREAMS["llama"]]).usage == Usage(21, 8, service_tier="flex")
    assert run(silent, [b""]).usage is None


def test_escaped_base64_is_read() -> None:
    """JSON may write a slash as two characters."""
    raw = chunk({"generation": "??????"})
    assert b"/" in raw
    data = json.dumps({"bytes": "eyJnZW5lcmF0aW9uIjoiPz8/Pz8/In0="}).replace("/", "\\/")

    assert read(frame(data.encode(), event_type="chunk")).text == "??????"


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("text", ["", "hello", 'a"b', "a\\b", "a\nb", "é", "\x7f", "usage", "{}"])
def test_text_is_read_as_json_writes_it(text: str, ascii_only: bool) -> None:
    """Whether it has to be escaped or not."""
    part = {"contentBlockDelta": {"delta": {"text": text}, "contentBlockIndex": 0}}
    raw = json.dumps(part, separators=(",", ":"), ensure_ascii=ascii_only).encode()

    assert read(chunk(raw), chunk(raw))[1:] == (None, text * 2, False, False)


@pytest.mark.parametrize("index", [b"07", b"-1", b"1.5", b"1e2", b"100", b'"1"', b"null", b"x"])
def test_any_index_of_a_block_reads_the_same(index: bytes) -> None:
    """What is no JSON has no text that could be counted, and a number says nothing."""
    raw = b'{"contentBlockDelta":{"delta":{"text":"hi"},"contentBlockIndex":' + index + b"}}"
    seen = read(chunk(NOVA[0]), chunk(raw))

    assert (seen.text, seen.truncated) == (("", True) if index in (b"07", b"x") else ("hi", False))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "TEXT"}},
        {"contentBlockDelta": {"delta": {"text": "TEXT"}, "contentBlockIndex": 0}},
        {"outputText": "TEXT"},
        {"generation": "TEXT"},
        {"choices": [{"index": 0, "delta": {"content": "TEXT"}}]},
    ],
)
def test_text_about_metrics_is_text(part: dict[str, Any]) -> None:
    """The words of a model cannot pass for the counts of Bedrock."""
    told = json.dumps(METRICS)
    raw = json.dumps(part).replace('"TEXT"', json.dumps(told)).encode()

    assert read(chunk(part), chunk(raw))[1:] == (None, "TEXT" + told, False, False)


def test_a_stream_is_never_changed() -> None:
    """The reader lets the edge forward first, and returns each piece itself."""
    reader = opened()
    piece = STREAMS["nova"]

    assert not reader.rewrites
    assert reader.feed(piece) is piece


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = BedrockInvoke().open_stream(CALL, {"content-encoding": "gzip"})

    assert (reader.feed(STREAMS["nova"]), reader.usage) == (STREAMS["nova"], None)


NAMES = [
    "type", "delta", "text", "usage", "choices", "outputText", "generation", "prompt_token_count",
    "totalOutputTextTokenCount", "metadata", "contentBlockDelta", "outputs", "stop_reason",
    "amazon-bedrock-invocationMetrics", "inputTokenCount", "bytes", "message_start", "message",
]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=10,
)
pieces = st.one_of(
    st.binary(max_size=20),
    st.binary(max_size=20).map(chunk),
    values.map(chunk),
    st.builds(event, st.sampled_from(["chunk", "x"]), values),
    st.sampled_from(list(STREAMS.values())),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(1, 60))
def test_any_stream_is_read_without_an_error_and_alike(parts: list[bytes], size: int) -> None:
    """Garbage never raises, passes unchanged, reads the same in any pieces, counts nothing < 0."""
    whole = b"".join(parts)
    seen = run(opened(), [whole[at : at + size] for at in range(0, len(whole), size)])

    assert seen == run(opened(), [whole])
    assert seen.passed == whole
    assert (
        seen.usage is None or min(seen.usage.input_tokens or 0, seen.usage.output_tokens or 0) >= 0
    )
