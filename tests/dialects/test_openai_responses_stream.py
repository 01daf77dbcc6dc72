"""Streams of responses: usage, text and ending, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_responses import OpenAIResponses
from llm_budget_mw.types import ModelCall, Prompt, Usage

CALL = ModelCall("m", Prompt(), 10, stream=True)
USAGE = {"input_tokens": 10, "output_tokens": 4, "total_tokens": 14}


def event(kind: str, end: str = "\n", **fields: Any) -> bytes:
    data = json.dumps({"type": kind} | fields, separators=(",", ":"))
    return f"event: {kind}{end}data: {data}{end}{end}".encode()


def status(kind: str, **fields: Any) -> bytes:
    response = {"id": "r", "object": "response", "status": kind, "model": "gpt-x"} | fields
    return event(f"response.{kind}", response=response, sequence_number=1)


def delta(text: Any, kind: str = "output_text") -> bytes:
    return event(f"response.{kind}.delta", item_id="i", delta=text, logprobs=[], obfuscation="x")


def item(kind: Any, when: str = "added", **fields: Any) -> bytes:
    return event(f"response.output_item.{when}", item={"type": kind} | fields)


CREATED = status("created", usage=None) + status("in_progress", usage=None) + item("message")
DONE = status("completed", usage=USAGE)

STREAMS = {
    "openai": CREATED + delta("Hel") + delta('l"o\\\n') + item("message", "done") + DONE,
    "incomplete": CREATED + delta("hi") + status("incomplete", usage=USAGE),
    "failed": CREATED + delta("hi") + status("failed", usage=USAGE, error={"code": "x"}),
    "failed without usage": CREATED + delta("hi") + status("failed", usage=None),
    "background": status("queued", usage=None) + CREATED + delta("hi") + DONE,
    "crlf": (delta("hi") + DONE).replace(b"\n", b"\r\n"),
    "data only": delta("hi").replace(b"event: response.output_text.delta\n", b"") + DONE,
    "done marker": delta("hi") + DONE + b"data: [DONE]\n\n",
    "comments": b": hello\n\n" + delta("hi") + event("keepalive") + DONE,
    "unicode": delta("héé\u2028") + delta("日本語 🎉") + DONE,
    "cut": delta("hi") + DONE[:-1],
    "cut in usage": delta("hi") + DONE[:-9],
    "error": delta("hi") + event("error", message="overloaded", code="x"),
    "garbage": b"data: {broken\n\ndata: 5\n\ndata: [1]\n\n\n\nfoo\n\n\x00\xff\n\n" + delta("hi"),
    "reasoning": item("reasoning") + delta("so", "reasoning_summary_text") + delta("hi") + DONE,
    "another format": b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n',
}


def run(chunks: list[bytes]) -> tuple[Usage | None, str, bool, bool]:
    reader = OpenAIResponses().open_stream(CALL, {})
    assert [reader.feed(chunk) for chunk in chunks] == chunks
    assert reader.close() == b""
    return reader.usage, reader.text, reader.complete, reader.truncated


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(name: str) -> None:
    """Cut in two anywhere, or into single bytes: same bytes out, usage, text and ending."""
    stream = STREAMS[name]
    whole = run([stream])

    assert run([stream[at : at + 1] for at in range(len(stream))]) == whole
    for at in range(len(stream)):
        assert run([stream[:at], stream[at:]]) == whole


@pytest.mark.parametrize(
    ("name", "text", "complete", "truncated"),
    [
        ("openai", 'Hell"o\\\n', True, False),
        ("incomplete", "hi", True, False),
        ("failed", "hi", True, False),
        ("failed without usage", "hi", True, False),
        ("background", "hi", True, False),
        ("data only", "hi", True, False),
        ("comments", "hi", True, False),
        ("unicode", "héé\u2028日本語 🎉", True, False),
        ("cut", "hi", True, False),
        ("cut in usage", "hi", False, False),
        ("error", "hi", False, False),
        ("garbage", "hi", False, False),
        ("reasoning", "sohi", True, True),
        ("another format", "", False, True),
    ],
)
def test_text_and_ending_are_read(name: str, text: str, complete: bool, truncated: bool) -> None:
    """Only a last event ends a stream; where more was generated than shown, that is noted."""
    assert run([STREAMS[name]])[1:] == (text, complete, truncated)


@pytest.mark.parametrize("name", STREAMS)
def test_usage_stands_in_the_last_event(name: str) -> None:
    """It is what that event says, and unknown without one."""
    silent = ("failed without usage", "cut in usage", "error", "garbage", "another format")
    expected = None if name in silent else Usage(10, 4, model="gpt-x")

    assert run([STREAMS[name]])[0] == expected


def test_a_stream_cut_at_any_byte_knows_no_usage_before_its_last_event() -> None:
    """Nothing is made up: until the last event is whole but for its line ends."""
    stream = STREAMS["openai"]
    for at in range(len(stream) - 2):
        usage, _, complete, _ = run([stream[:at]])

        assert (usage, complete) == (None, False)


def test_of_two_usages_the_last_counts() -> None:
    """They are not summed, and null does not take back what was said."""
    second = status("completed", usage={"input_tokens": 11, "output_tokens": 5})
    silent = status("completed", usage=None)

    assert run([DONE + second + silent])[0] == Usage(11, 5, model="gpt-x")


@pytest.mark.parametrize(
    "kind",
    [
        "output_text", "refusal", "function_call_arguments", "custom_tool_call_input",
        "reasoning_text", "code_interpreter_call_code", "mcp_call_arguments", "new_thing",
    ],
)  # fmt: skip
def test_everything_generated_is_collected(kind: str) -> None:
    """Text, arguments and code count as output, whatever the event is called."""
    assert run([delta("a", kind) + delta("b", kind)])[1:] == ("ab", False, False)


def test_a_delta_whose_members_are_in_another_order_is_read() -> None:
    """Order and repetition of members change nothing."""
    odd = b'data: {"delta":"a","type":"response.output_text.delta"}\n\n'
    twice = b'data: {"type":"response.output_text.delta","delta":"no","delta":"b"}\n\n'
    none = b'data: {"type":"response.output_text.delta","text":"c"}\n\n'

    assert run([odd + twice])[1:] == ("ab", False, False)
    assert run([odd + none])[1:] == ("a", False, True)


@pytest.mark.parametrize(
    "hidden",
    [
        item("reasoning"), item("web_search_call"), item("image_generation_call"),
        item([]), event("response.output_item.added"), delta("AAAA", "audio"), delta(5), delta({}),
        event("message_start", message={}),
    ],
)  # fmt: skip
def test_output_that_is_not_shown_is_noted(hidden: bytes) -> None:
    """Then the text cannot be counted for the whole."""
    assert run([hidden + delta("hi")])[1:] == ("hi", False, True)


@pytest.mark.parametrize(
    "known", [item("message"), item("message", "done"), event("response.new.done")]
)
def test_events_that_hide_nothing_are_passed_over(known: bytes) -> None:
    """Items shown in deltas, and unknown events of this format."""
    assert run([known + delta("hi")])[1:] == ("hi", False, False)


def test_the_name_of_a_function_is_generated_too() -> None:
    """It stands in the item, the arguments in its deltas; the finished item repeats both."""
    call = item("function_call", name="f") + delta("{}", "function_call_arguments")

    assert run([call + item("function_call", "done", name="f", arguments="{}")])[1] == "f{}"


def test_openai_own_sdk_reads_the_same() -> None:
    """The reader's text and usage are those the SDK finds."""
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers=headers, content=STREAMS["openai"])
    )
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport)) as sdk:
        events = list(sdk.responses.create(model="m", input="hi", stream=True))

    texts = [found.delta for found in events if found.type == "response.output_text.delta"]
    last = events[-1]
    usage, text, *_ = run([STREAMS["openai"]])
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert usage is not None
    assert ("".join(texts), last.response.usage.output_tokens) == (text, usage.output_tokens)


def test_a_compressed_stream_is_passed_on_unread() -> None:
    """What cannot be read is not touched."""
    reader = OpenAIResponses().open_stream(CALL, {"content-encoding": "gzip"})

    assert (reader.rewrites, reader.feed(DONE), reader.close()) == (False, DONE, b"")
    assert (reader.usage, reader.complete, reader.truncated) == (None, False, True)


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([*STREAMS.values(), CREATED, DONE, b"\n\n", b"data: ", b'"delta":"']),
    st.text(max_size=8).map(delta),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(1, 40))
def test_any_stream_is_read_without_an_error_and_alike(parts: list[bytes], size: int) -> None:
    """Garbage never raises, passes unchanged, and reads the same."""
    stream = b"".join(parts)

    assert run([stream[at : at + size] for at in range(0, len(stream), size)]) == run([stream])
