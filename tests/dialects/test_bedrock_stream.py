"""Streams of Converse: usage, text and ending, however they are cut."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.bedrock import Bedrock
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage
from tests.dialects.streaming import (
    Seen,
    assert_cut_anyhow,
    assert_ends_anywhere,
    event,
    failure,
    frame,
    run,
)

CALL = ModelCall("m", Prompt(), 10, stream=True)
USAGE = {"inputTokens": 21, "outputTokens": 9, "totalTokens": 30}


def opened() -> StreamReader:
    return Bedrock().open_stream(CALL, {"content-type": "application/vnd.amazon.eventstream"})


def delta(**content: Any) -> bytes:
    return event("contentBlockDelta", {"delta": content, "contentBlockIndex": 0, "p": "abc"})


def metadata(**more: Any) -> bytes:
    return event("metadata", {"usage": USAGE, "metrics": {"latencyMs": 5}} | more)


def read(*parts: bytes) -> Seen:
    return run(opened(), [b"".join(parts)])


START = event("messageStart", {"role": "assistant"})
HELLO = delta(text='Hé"l\nlo')
STOP = event("messageStop", {"stopReason": "end_turn"})
END = STOP + metadata()

STREAMS = {
    "whole": START + HELLO + END,
    "cut": START + HELLO,
    "cut in a message": (START + HELLO + END)[:-3],
    "no metadata": START + HELLO + STOP,
    "exception": START + HELLO + failure("throttlingException"),
    "exception at the end": START + HELLO + END + failure("modelStreamErrorException"),
    "unknown events": START + event("pong", {"delta": {"text": "no"}}) + frame(b"\xff{") + END,
    "server-sent events": b'event: metadata\ndata: {"usage":{"inputTokens":1}}\n\n',
    "json": b'{"usage":{"inputTokens":1,"outputTokens":1}}',
    "empty": b"",
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Whole, in two anywhere, or byte by byte: same usage, text and ending, every byte out."""
    assert_cut_anyhow(opened, STREAMS[name])


@pytest.mark.parametrize(
    ("name", "usage", "text", "complete", "truncated"),
    [
        ("whole", Usage(21, 9), 'Hé"l\nlo', True, False),
        ("cut", None, 'Hé"l\nlo', False, False),
        ("cut in a message", None, 'Hé"l\nlo', False, False),
        ("no metadata", None, 'Hé"l\nlo', False, False),
        ("exception", None, 'Hé"l\nlo', False, False),
        ("exception at the end", Usage(21, 9), 'Hé"l\nlo', False, False),
        ("unknown events", Usage(21, 9), "", True, True),
        ("server-sent events", None, "", False, True),
        ("json", None, "", False, True),
        ("empty", None, "", False, False),
    ],
)
def test_usage_text_and_ending_are_read(
    name: str, usage: Usage | None, text: str, complete: bool, truncated: bool
) -> None:
    """The last event is `metadata`; a stream in another format is unknown, not empty."""
    assert run(opened(), [STREAMS[name]])[1:] == (usage, text, complete, truncated)


def test_a_stream_may_end_at_any_byte() -> None:
    """It is complete with its last byte, and not before."""
    assert_ends_anywhere(opened, STREAMS["whole"])
    assert not run(opened(), [STREAMS["whole"][:-1]]).complete


@pytest.mark.parametrize(
    ("parts", "text", "truncated"),
    [
        ([delta(reasoningContent={"text": "hm"})], "hm", False),
        ([delta(reasoningContent={"signature": "AA"})], "", True),
        ([delta(reasoningContent={"redactedContent": "AA"})], "", True),
        ([event("contentBlockStart", {"start": {"toolUse": {"name": "f"}}})], "f", False),
        ([event("contentBlockStart", {"start": {"image": {"format": "png"}}})], "", True),
        ([delta(toolUse={"input": '{"a":'})], '{"a":', False),
        ([delta(citation={"title": "no"}), delta(toolResult=[{"text": "no"}])], "", False),
        ([delta(image={"source": {"bytes": "AA"}})], "", True),
        ([delta(hologram=1)], "", True),
        ([delta(text=5), delta(toolUse="x"), delta(reasoningContent=None)], "", False),
        ([event("contentBlockDelta", [1])], "", True),
        ([event("chunk", {"bytes": "AA=="})], "", True),
        ([event("contentBlockStart", None), event("contentBlockStop", {})], "", False),
        ([event("initial-response", {}), START], "", False),
    ],
)
def test_everything_generated_is_collected(parts: list[bytes], text: str, truncated: bool) -> None:
    """Text, reasoning and tools are output, results are not; what is hidden is noted."""
    seen = read(*parts)

    assert (seen.text, seen.truncated) == (text, truncated)


def test_the_last_of_two_usages_stands() -> None:
    """They are never added, and one that reports nothing takes nothing back."""
    second = metadata(usage={"inputTokens": 30, "outputTokens": 12})
    seen = read(STOP, metadata(), second, metadata(usage=None))

    assert seen.usage == Usage(30, 12)


def test_model_and_tier_are_told_by_metadata() -> None:
    """A prompt router says which model it chose, and the tier is the one that was served."""
    router = {"promptRouter": {"invokedModelId": "arn:aws:bedrock:::foundation-model/a.b"}}
    seen = read(STOP, metadata(trace=router, serviceTier={"type": "flex"}))

    assert seen.usage == Usage(
        21, 9, model="arn:aws:bedrock:::foundation-model/a.b", service_tier="flex"
    )


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("text", ["", "hello", 'a"b', "a\\b", "a\nb", "é", "\x7f", "usage", "{}"])
def test_text_is_read_as_json_writes_it(text: str, ascii_only: bool) -> None:
    """Whether it has to be escaped or not, and with padding or without."""
    plain = {"delta": {"text": text}, "contentBlockIndex": 0}
    payloads = [
        json.dumps(part, separators=(",", ":"), ensure_ascii=ascii_only).encode()
        for part in (plain, plain | {"p": "abcABC012"}, plain | {"p": "é"})
    ]
    events = [frame(data, event_type="contentBlockDelta") for data in payloads]

    assert read(*events)[1:] == (None, text * 3, False, False)


@pytest.mark.parametrize("index", [b"07", b"-1", b"1.5", b"1e2", b"100", b'"1"', b"null", b"x"])
def test_any_index_of_a_block_reads_the_same(index: bytes) -> None:
    """What is no JSON has no text that could be counted, and a number says nothing."""
    data = b'{"delta":{"text":"hi"},"contentBlockIndex":' + index + b"}"
    seen = read(START, frame(data, event_type="contentBlockDelta"))

    assert (seen.text, seen.truncated) == (("", True) if index in (b"07", b"x") else ("hi", False))


def test_a_stream_is_never_changed() -> None:
    """The reader lets the edge forward first, and returns each piece itself."""
    reader = opened()

    assert not reader.rewrites
    assert reader.feed(START) is START


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = Bedrock().open_stream(CALL, {"content-encoding": "gzip"})

    assert (reader.feed(END), reader.usage, reader.truncated) == (END, None, True)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["delta", "text", "usage", "start", "toolUse", "inputTokens", "outputTokens",
             "cacheDetails", "totalTokens", "trace", "serviceTier", "reasoningContent"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip
kinds = st.sampled_from(["contentBlockDelta", "contentBlockStart", "messageStop", "metadata", ""])
pieces = st.one_of(
    st.binary(max_size=30).map(lambda raw: frame(raw, event_type="metadata")),
    st.binary(max_size=20),
    st.sampled_from([*STREAMS.values(), STOP]),
    st.builds(event, kinds, values),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(1, 60))
def test_any_stream_is_read_without_an_error_and_alike(parts: list[bytes], size: int) -> None:
    """Garbage never raises, passes unchanged, reads the same in any pieces, counts nothing < 0."""
    stream = b"".join(parts)
    seen = run(opened(), [stream[at : at + size] for at in range(0, len(stream), size)])

    assert seen == run(opened(), [stream])
    assert seen.passed == stream
    assert (
        seen.usage is None or min(seen.usage.input_tokens or 0, seen.usage.output_tokens or 0) >= 0
    )


def test_payload_bytes_are_not_text() -> None:
    """Encrypted reasoning counts as hidden, never as its base64."""
    seen = read(delta(reasoningContent={"redactedContent": base64.b64encode(b"x" * 99).decode()}))

    assert (seen.text, seen.truncated) == ("", True)
