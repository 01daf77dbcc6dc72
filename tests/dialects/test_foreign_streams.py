"""A stream in another format than was expected is unknown, not empty."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.dialects.protocol import RequestHead, StreamReader
from llm_budget_mw.types import ModelCall, Prompt
from tests.dialects.streaming import Seen, assert_cut_anyhow, event, run

SSE = {"content-type": "text/event-stream"}
CALL = ModelCall("m", Prompt(), 9, stream=True)
HEAD = RequestHead("POST", "/")


def sse(*events: Any) -> bytes:
    """Return events of a name, where they have a type, and data."""
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return b"".join(lines)


STREAMS = {
    "openai_chat": sse(
        {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "hi"}}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    )
    + b"data: [DONE]\n\n",
    "anthropic_messages": sse(
        {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ),
    "openai_responses": sse(
        {"type": "response.created", "response": {"status": "in_progress"}},
        {"type": "response.output_text.delta", "delta": "hi"},
        {
            "type": "response.completed",
            "response": {"usage": {"input_tokens": 3, "output_tokens": 1}},
        },
    ),
    "gemini": sse(
        {"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}]},
        {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1}},
    ),
    "cohere": sse(
        {"type": "content-delta", "delta": {"message": {"content": {"text": "hi"}}}},
        {"type": "message-end", "delta": {"usage": {"billed_units": {"input_tokens": 3}}}},
    ),
    "ollama": b'{"message":{"content":"hi"}}\n{"done":true,"eval_count":1}\n',
    "bedrock": event("contentBlockDelta", {"delta": {"text": "hi"}}) + event("messageStop", {}),
}
NO_STREAM = {
    "JSON": b'{"choices":[{"message":{"content":"hi"}}]}',
    "JSON over lines": b'{\n "choices": []\n}\n',
    "a page": b"<!doctype html>\n\n<p>data: sign in\n\n",
    "words": b"hi there",
    "lines of JSON": b'{"text":"hi"}\n\n{"text":"hi"}\n\n',
    "garbage": b"data: hi\n\ndata: there\n\n",
    "another gzip": b"\x1f\x8b\x08\x00 data",
}
READS_EVENTS = ("openai_chat", "openai_responses", "anthropic_messages", "gemini", "cohere")
"""Dialects whose streams are server-sent events."""


def opened(name: str) -> StreamReader:
    return dialect_for(name).open_stream(CALL, SSE)


def unknown(seen: Seen) -> bool:
    return seen.usage is None and seen.truncated and not seen.text


@pytest.mark.parametrize("spoken", STREAMS)
@pytest.mark.parametrize("expected", READS_EVENTS)
def test_a_stream_of_another_format_is_unknown(spoken: str, expected: str) -> None:
    """Whoever counted its text would find none; its own dialect knows it."""
    seen = run(opened(expected), [STREAMS[spoken]])

    if spoken == expected:
        assert not seen.truncated
    else:
        assert unknown(seen)


@pytest.mark.parametrize("name", NO_STREAM)
@pytest.mark.parametrize("expected", READS_EVENTS)
def test_what_is_no_stream_at_all_is_unknown(name: str, expected: str) -> None:
    """Sent as one, and cut in any way."""
    assert unknown(assert_cut_anyhow(lambda: opened(expected), NO_STREAM[name]))


@pytest.mark.parametrize("expected", READS_EVENTS)
@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b": still thinking\n\n",
        b"\n\n",
        b"eve",
        b"event: x\r\n",
        b'data: {"a',
        b"\xef\xbb\xbf: a",
    ],
)
def test_a_stream_that_has_said_nothing_is_not_unknown(expected: str, stream: bytes) -> None:
    """It was cut before anything was generated that anybody saw."""
    seen = run(opened(expected), [stream])

    assert (seen.text, seen.truncated, seen.complete) == ("", False, False)


def test_a_stray_event_does_not_make_a_stream_unknown() -> None:
    """An event nobody knows, in a stream that is of the format."""
    for name in ("openai_chat", "anthropic_messages"):
        stray = sse({"vendor": "x"}) + b"data: garbage\n\n"
        seen = run(opened(name), [stray + STREAMS[name] + stray])
        assert (seen.text, seen.truncated) == ("hi", False)


def test_an_error_alone_is_no_other_format() -> None:
    """All providers end a stream with one that looks much the same."""
    failure = sse({"type": "error", "error": {"type": "overloaded_error", "message": "later"}})

    for name in ("openai_chat", "anthropic_messages", "openai_responses"):
        assert not run(opened(name), [failure]).truncated


@pytest.mark.parametrize("name", DIALECTS)
def test_streams_in_json_can_be_read_where_that_is_said(name: str) -> None:
    """One object, an array, and one of neither."""
    dialect = DIALECTS[name]
    if not dialect.streams_json:
        return
    chunk = b'{"candidates":[{"content":{"parts":[{"text":"hi"}]},"finishReason":"STOP"}]}'

    def seen(body: bytes) -> Seen:
        headers = {"content-type": "application/json"}
        return assert_cut_anyhow(lambda: dialect.open_stream(CALL, headers), body)

    assert seen(chunk)[2:] == ("hi", True, False)
    assert seen(b" \n" + chunk + b"\n")[2:] == ("hi", True, False)
    assert seen(b"[" + chunk + b"\n,\n" + chunk + b"]\n")[2:] == ("hihi", True, False)
    assert seen(b"[" + chunk)[2:] == ("hi", False, False)
    assert seen(b"[" + chunk + b',{"candid')[2:] == ("hi", False, False)
    assert seen(b'{"error":{"code":400}}')[2:] == ("", False, False)
    for body in (b'{"choices":[]}', b"<p>no", b'"text"', b"[7]", b"data: {}\n\n"):
        assert unknown(seen(body)), body
