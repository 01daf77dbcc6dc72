"""Streams of chat completions: usage, text and passed bytes, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw import _sse
from llm_budget_mw.dialects import _stream
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage

USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
DONE = b"data: [DONE]\n\n"


def event(end: str = "\n", **fields: Any) -> bytes:
    chunk = {"id": "c", "model": "gpt-x-2026", "service_tier": "default"} | fields
    return f"data: {json.dumps(chunk, separators=(',', ':'))}{end}{end}".encode()


def delta(text: str, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event(choices=[choice], **fields)


def output(**members: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": members}])


FIRST = output(role="assistant", content="", refusal=None)
LAST = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
EXTRA = event(choices=[], usage=USAGE)

STREAMS = {
    "openai": FIRST + delta("Hel", usage=None) + delta('l"o\\\n', usage=None) + LAST + EXTRA + DONE,
    "azure": event(choices=[], id="", model="", prompt_filter_results=[{}]) + FIRST + EXTRA + DONE,
    "groq": delta("hi") + event(choices=[{"delta": {}}], x_groq={"id": "r", "usage": USAGE}) + DONE,
    "mistral": delta("hi") + delta(" you", usage=USAGE) + DONE,
    "openrouter": b": OPENROUTER PROCESSING\n\n" + delta("hi") + delta("", usage=USAGE) + DONE,
    "crlf": (delta("hi") + EXTRA + DONE).replace(b"\n", b"\r\n"),
    "cr": (delta("hi") + EXTRA + DONE).replace(b"\n", b"\r"),
    "multi-line": b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":10}}\n\n' + DONE,
    "running totals": b"".join(
        delta("x", usage=USAGE | {"completion_tokens": n, "total_tokens": 10 + n}) for n in range(5)
    ),
    "unicode": delta("héé\u2028") + delta("日本語 🎉") + output(content="\ud83c") + EXTRA,
    "cut": delta("hi") + EXTRA[:-1],
    "cut in usage": delta("hi") + EXTRA[:-9],
    "error": delta("hi") + event(error={"message": "overloaded", "code": 503}),
    "garbage": b"data: {broken\n\ndata: 5\n\ndata: [1]\n\n\n\nfoo\n\n\x00\xff\n\n" + delta("hi"),
    "no usage": FIRST + delta("hi", usage=None) + DONE,
    "bom": b"\xef\xbb\xbf" + EXTRA + DONE,
}


def open_stream(*, asked: bool, headers: dict[str, str] | None = None) -> StreamReader:
    body = {"stream_options": {"include_usage": True}} if asked else {}
    call = ModelCall("m", Prompt(), None, stream=True, body=body)
    return OpenAIChat().open_stream(call, headers or {})


def run(chunks: list[bytes], *, asked: bool = False) -> tuple[bytes, Usage | None, str, bool, bool]:
    reader = open_stream(asked=asked)
    out = [reader.feed(chunk) for chunk in chunks]
    out.append(reader.close())
    return b"".join(out), reader.usage, reader.text, reader.complete, reader.truncated


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str, asked: bool) -> None:
    """Cut in two anywhere, or into single bytes: same bytes out, usage, text and ending."""
    stream = STREAMS[name]
    whole = run([stream], asked=asked)

    assert run([stream[at : at + 1] for at in range(len(stream))], asked=asked) == whole
    for at in range(len(stream)):
        assert run([stream[:at], stream[at:]], asked=asked) == whole


@pytest.mark.parametrize("name", STREAMS)
def test_a_caller_who_asked_for_usage_gets_every_byte(name: str) -> None:
    """Nothing was injected, so nothing is changed, and chunks go on as they come."""
    reader = open_stream(asked=True)

    assert not reader.rewrites
    assert run([STREAMS[name]], asked=True)[0] == STREAMS[name]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("openai", EXTRA),
        ("azure", EXTRA),
        ("unicode", EXTRA),
        ("crlf", EXTRA.replace(b"\n", b"\r\n")),
        ("cr", EXTRA.replace(b"\n", b"\r")),
        ("cut", EXTRA[:-1]),
        ("bom", b"\xef\xbb\xbf" + EXTRA),
        ("multi-line", STREAMS["multi-line"].removesuffix(DONE)),
    ],
)
def test_a_caller_who_did_not_ask_never_sees_the_extra_chunk(name: str, extra: bytes) -> None:
    """The usage chunk that only the middleware asked for is taken out, the rest stays."""
    passed, usage, *_ = run([STREAMS[name]])

    assert usage is not None
    assert passed == STREAMS[name].replace(extra, b"")


@pytest.mark.parametrize("asked", [True, False])
def test_openai_own_sdk_reads_what_was_passed_on(asked: bool) -> None:
    """A caller who did not ask for usage meets no chunk without choices."""
    passed = run([STREAMS["openai"]], asked=asked)[0]
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers=headers, content=passed)
    )
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport)) as sdk:
        chunks = list(sdk.chat.completions.create(model="m", messages=[], stream=True))

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == 'Hell"o\\\n'
    assert all(chunk.choices for chunk in chunks) is not asked


@pytest.mark.parametrize("name", ["groq", "mistral", "openrouter", "running totals", "error"])
def test_usage_that_comes_with_output_is_left_in(name: str) -> None:
    """Only a chunk with no choices at all can have been injected."""
    assert run([STREAMS[name]])[0] == STREAMS[name]


def test_chunks_pass_at_once_and_only_an_unfinished_event_waits() -> None:
    """Each feed returns all events it completes."""
    reader = open_stream(asked=False)
    first, second = delta("a"), delta("b")

    assert reader.feed(first) is first
    assert reader.feed(second[:20]) == b""
    assert reader.feed(second[20:] + first[:5]) == second
    assert reader.close() == first[:5]


@pytest.mark.parametrize(
    ("name", "text", "complete"),
    [
        ("openai", 'Hell"o\\\n', True),
        ("azure", "", True),
        ("groq", "hi", True),
        ("mistral", "hi you", True),
        ("multi-line", "", True),
        ("running totals", "xxxxx", False),
        ("cut", "hi", False),
        ("error", "hi", False),
        ("garbage", "hi", False),
        ("unicode", "héé\u2028日本語 🎉\ufffd", False),
    ],
)
def test_text_and_ending_are_read(name: str, text: str, complete: bool) -> None:
    """Text is what was generated; only the terminator makes a stream complete."""
    assert run([STREAMS[name]])[2:] == (text, complete, False)


@pytest.mark.parametrize("name", ["openai", "azure", "groq", "mistral", "openrouter", "cr", "cut"])
def test_usage_is_found_wherever_it_stands(name: str) -> None:
    """A chunk of its own, the last one with choices, or `x_groq`: the counts are the same."""
    usage = run([STREAMS[name]])[1]

    assert usage == Usage(10, 4, model="gpt-x-2026", service_tier="default")


@pytest.mark.parametrize("name", ["error", "garbage", "no usage", "cut in usage"])
def test_usage_that_did_not_come_is_unknown(name: str) -> None:
    """No usage, or half of it, is None and never zero."""
    assert run([STREAMS[name]])[1] is None


def test_the_last_usage_wins() -> None:
    """Running totals are not summed, and null does not take back what was said."""
    later = run([STREAMS["running totals"] + delta("", usage=None) + event(usage={"x": 1})])[1]

    assert later == Usage(10, 4, model="gpt-x-2026", service_tier="default")


def test_everything_generated_is_collected() -> None:
    """Reasoning, tool calls, refusals and parts count as output; ids and roles do not."""
    stream = [
        output(role="assistant", reasoning_content="a"),
        output(reasoning="b", reasoning_details=[{"text": "again"}]),
        output(tool_calls=[{"index": 0, "id": "t", "function": {"name": "c", "arguments": "{d"}}]),
        output(function_call={"arguments": "e"}),
        output(refusal="f"),
        output(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "g"}]}]),
        output(content="h", tool_calls=[{"function": {"arguments": "i"}}]),
        event(choices=[{"delta": {"content": "j"}}, {"delta": {"content": "k"}}]),
        event(choices=[{"delta": {"refusal": "l"}}, {"delta": {"content": "m"}}]),
        output(role="assistant", content="n"),
    ]

    assert run(stream)[2] == "abc{defghijklmn"


@pytest.mark.parametrize("member", ["audio", "images"])
def test_output_that_is_not_text_is_noted(member: str) -> None:
    """Sound and pictures cannot be counted from text."""
    text, _, truncated = run([output(**{member: {"data": "AAAA"}}), delta("hi")])[2:]

    assert (text, truncated) == ("hi", True)


def test_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the limit is not kept, and noted."""
    monkeypatch.setattr(_stream, "MAX_TEXT_BYTES", 10)
    text, _, truncated = run([delta("12345678"), delta("90abc"), output(refusal="defg")])[2:]

    assert (text, truncated) == ("12345678", True)


@pytest.mark.parametrize("size", [1, 50, 10_000])
@pytest.mark.parametrize("asked", [True, False])
def test_an_endless_event_is_passed_on_unread(
    asked: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an event that is too large every byte passes, and usage is unknown."""
    monkeypatch.setattr(_sse, "MAX_EVENT_BYTES", 500)
    stream = delta("hi") + delta("x" * 600, usage=USAGE) + EXTRA + DONE
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]

    assert run(chunks, asked=asked) == (stream, None, "hi", False, True)


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = open_stream(asked=False, headers={"content-encoding": "gzip"})

    assert (reader.rewrites, reader.feed(EXTRA), reader.close()) == (False, EXTRA, b"")
    assert (reader.usage, reader.complete, reader.text, reader.truncated) == (None, False, "", True)


@pytest.mark.parametrize("encoding", ["identity", " Identity", ""])
def test_an_identity_encoding_is_none(encoding: str) -> None:
    """A stream that says it is not compressed is read."""
    assert open_stream(asked=False, headers={"content-encoding": encoding}).rewrites


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"\\ud83c", "\ufffd"), (b"a\\x", "a\\x"), (b"\xff", "\ufffd"), (b"a\tb", "a\tb")],
)
def test_text_that_is_no_json_is_still_text(raw: bytes, text: str) -> None:
    """Half a surrogate pair, a wrong escape or a raw control character can be counted."""
    stream = delta("HERE").replace(b"HERE", raw)

    assert run([stream])[2] == text


def test_a_surrogate_pair_cut_between_two_chunks_is_one_character() -> None:
    """Pieces are joined before they are decoded."""
    stream = [delta("HERE").replace(b"HERE", half) for half in (b"\\ud83c", b"\\udf89")]

    assert run(stream)[2] == "🎉"


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([*STREAMS.values(), FIRST, LAST, EXTRA, DONE, b"\n\n", b"data: ", b'"delta"']),
    st.text(max_size=8).map(delta),
    st.text(max_size=8).map(lambda text: output(reasoning=text)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(1, 40), st.booleans())
def test_any_stream_is_read_without_an_error_and_alike(
    parts: list[bytes], size: int, asked: bool
) -> None:
    """Garbage never raises, passes unchanged if nothing was injected, and reads the same."""
    stream = b"".join(parts)
    cut = run([stream[at : at + size] for at in range(0, len(stream), size)], asked=asked)

    assert cut == run([stream], asked=asked)
    assert not asked or cut[0] == stream
