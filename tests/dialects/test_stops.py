"""Streams that are ended early: at any event, in any format, as if by their output bound."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import anthropic
import httpx2
import openai
import pytest
from google import genai
from google.genai.types import FinishReason, HttpOptions

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects._eventstream import MessageSplitter, read_message
from llm_budget_mw.dialects._stream import unescape
from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import ModelCall, Prompt, Usage
from tests.dialects.streaming import chunk, event, run

USED = Usage(7, 5)
SSE = "text/event-stream"
AWS = "application/vnd.amazon.eventstream"
HEAD: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 9, "model": "m"}


def sse(fields: dict[str, Any]) -> bytes:
    """Return an event, with its type for a name if it has one."""
    name = f"event: {fields['type']}\n" if "type" in fields else ""
    return f"{name}data: {json.dumps(fields)}\n\n".encode()


def choice(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "finish_reason": finish, **fields}


def chat(*choices: dict[str, Any], **fields: Any) -> bytes:
    return sse({**HEAD, "choices": list(choices), **fields})


def say(text: str, index: int = 0) -> bytes:
    return chat(choice(index, delta={"content": text}))


def legacy(text: str, finish: str | None = None) -> bytes:
    return chat(choice(finish=finish, text=text), object="text_completion")


def answered(kind: str, number: int, **fields: Any) -> bytes:
    return sse({"type": f"response.{kind}", "sequence_number": number, **fields})


RESPONSE: dict[str, Any] = {
    "id": "r1", "object": "response", "created_at": 9, "model": "m", "status": "in_progress",
    "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
}  # fmt: skip
ITEM: dict[str, Any] = {
    "id": "m1", "type": "message", "role": "assistant", "status": "in_progress", "content": [],
}  # fmt: skip
PART: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
DONE_PART = {**PART, "text": "Hello"}
DONE_ITEM = {**ITEM, "status": "completed", "content": [DONE_PART]}
CALL_ITEM: dict[str, Any] = {
    "id": "f1", "type": "function_call", "call_id": "c", "name": "look", "arguments": "",
    "status": "in_progress",
}  # fmt: skip
PLACE = {"item_id": "m1", "output_index": 0, "content_index": 0}
FUNCTION = {"item_id": "f1", "output_index": 1}


def block(index: int, **content: Any) -> bytes:
    return sse({"type": "content_block_start", "index": index, "content_block": content})


def grow(index: int, **delta: Any) -> bytes:
    return sse({"type": "content_block_delta", "index": index, "delta": delta})


def close(index: int) -> bytes:
    return sse({"type": "content_block_stop", "index": index})


MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
    "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 1},
}  # fmt: skip
END_TURN = {"stop_reason": "end_turn", "stop_sequence": None}


def gemini(*parts: str, finish: str | None = None) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": part} for part in parts]}
    ending = {"finishReason": finish} if finish else {}
    return {
        "candidates": [{"content": content, "index": 0, **ending}],
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2, "totalTokenCount": 9},
        "modelVersion": "gemini-x",
    }


def google(*parts: str, finish: str | None = None) -> bytes:
    return f"data: {json.dumps(gemini(*parts, finish=finish))}\r\n\r\n".encode()


def element(before: str, *parts: str, finish: str | None = None) -> bytes:
    return f"{before}{json.dumps(gemini(*parts, finish=finish))}".encode()


def cohere(kind: str, index: int | None = None, **message: Any) -> bytes:
    place = {} if index is None else {"index": index}
    return sse({"type": kind, **place, "delta": {"message": message}})


def line(done: bool = False, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "created_at": "now", **fields, "done": done}).encode() + b"\n"


def nova(kind: str, **fields: Any) -> bytes:
    return chunk({kind: fields})


class Format(NamedTuple):
    """A stream of one format, whole, in events."""

    dialect: str
    kind: str
    events: tuple[bytes, ...]

    def open(self) -> StreamReader:
        call = ModelCall("m", Prompt(), 10, stream=True)
        return dialect_for(self.dialect).open_stream(call, {"content-type": self.kind})

    def stopped(self, at: int) -> bytes:
        """Return what the client gets if the event at `at` is not to pass."""
        reader = self.open()
        for each in self.events[: at + 1]:
            reader.look(each)
        return b"".join(self.events[:at]) + reader.stop(USED)


FORMATS = {
    "openai_chat": Format(
        "openai_chat",
        SSE,
        (
            chat(choice(delta={"role": "assistant", "content": ""})),
            say("Hel"),
            say("lo"),
            chat(choice(finish="stop", delta={})),
            b"data: [DONE]\n\n",
        ),
    ),
    "several choices": Format(
        "openai_compatible",
        SSE,
        (
            say("one"),
            say("two", 1),
            chat(choice(1, "stop", delta={})),
            say("more"),
            chat(choice(0, "stop", delta={})),
            b"data: [DONE]\n\n",
        ),
    ),
    "openai_completions": Format(
        "openai_completions",
        SSE,
        (legacy("Hel"), legacy("lo"), legacy("", "stop"), b"data: [DONE]\n\n"),
    ),
    "openai_responses": Format(
        "openai_responses",
        SSE,
        (
            answered("created", 0, response=RESPONSE),
            answered("in_progress", 1, response=RESPONSE),
            answered("output_item.added", 2, output_index=0, item=ITEM),
            answered("content_part.added", 3, part=PART, **PLACE),
            answered("output_text.delta", 4, delta="Hel", logprobs=[], **PLACE),
            answered("output_text.delta", 5, delta="lo", logprobs=[], **PLACE),
            answered("output_text.done", 6, text="Hello", logprobs=[], **PLACE),
            answered("content_part.done", 7, part=DONE_PART, **PLACE),
            answered("output_item.done", 8, output_index=0, item=DONE_ITEM),
            answered("output_item.added", 9, output_index=1, item=CALL_ITEM),
            answered("function_call_arguments.delta", 10, delta='{"a', **FUNCTION),
            answered("function_call_arguments.delta", 11, delta='":1}', **FUNCTION),
            answered("completed", 12, response={**RESPONSE, "status": "completed"}),
        ),
    ),
    "anthropic_messages": Format(
        "anthropic_messages",
        SSE,
        (
            sse({"type": "message_start", "message": MESSAGE}),
            block(0, type="thinking", thinking="", signature=""),
            grow(0, type="thinking_delta", thinking="hm"),
            grow(0, type="signature_delta", signature="AAAA"),
            close(0),
            sse({"type": "ping"}),
            block(1, type="text", text=""),
            grow(1, type="text_delta", text="Hel"),
            grow(1, type="text_delta", text="lo"),
            close(1),
            block(2, type="tool_use", id="t", name="look", input={}),
            grow(2, type="input_json_delta", partial_json='{"a": 1}'),
            close(2),
            sse({"type": "message_delta", "delta": END_TURN, "usage": {"output_tokens": 15}}),
            sse({"type": "message_stop"}),
        ),
    ),
    "gemini": Format("gemini", SSE, (google("Hel"), google("lo"), google("", finish="STOP"))),
    "gemini array": Format(
        "gemini",
        "application/json",
        (
            element("[", "Hel"),
            element(",\r\n", "lo"),
            element(",\r\n", "", finish="STOP"),
            b"\r\n]",
        ),
    ),
    "cohere": Format(
        "cohere",
        SSE,
        (
            sse({"type": "message-start", "id": "1", "delta": {"message": {"content": []}}}),
            cohere("content-start", 0, content={"type": "text", "text": ""}),
            cohere("content-delta", 0, content={"text": "Hel"}),
            cohere("content-delta", 0, content={"text": "lo"}),
            sse({"type": "content-end", "index": 0}),
            cohere("tool-call-start", 0, tool_calls={"function": {"name": "f", "arguments": ""}}),
            cohere("tool-call-delta", 0, tool_calls={"function": {"arguments": "{}"}}),
            sse({"type": "tool-call-end", "index": 0}),
            sse({"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}),
            b"data: [DONE]\n\n",
        ),
    ),
    "ollama chat": Format(
        "ollama",
        "application/x-ndjson",
        (
            line(message={"role": "assistant", "content": "Hel"}),
            line(message={"role": "assistant", "content": "lo"}),
            line(done=True, message={"role": "assistant", "content": ""}, done_reason="stop"),
        ),
    ),
    "ollama generate": Format(
        "ollama",
        "application/x-ndjson",
        (line(response="Hel"), line(response="lo"), line(done=True, response="")),
    ),
    "bedrock": Format(
        "bedrock",
        AWS,
        (
            event("messageStart", {"role": "assistant"}),
            event("contentBlockDelta", {"delta": {"text": "Hel"}, "contentBlockIndex": 0}),
            event("contentBlockDelta", {"delta": {"text": "lo"}, "contentBlockIndex": 0}),
            event("contentBlockStop", {"contentBlockIndex": 0}),
            event("messageStop", {"stopReason": "end_turn"}),
            event("metadata", {"usage": {"inputTokens": 7, "outputTokens": 5}}),
        ),
    ),
    "invoke claude": Format(
        "bedrock_invoke",
        AWS,
        (
            chunk({"type": "message_start", "message": MESSAGE}),
            chunk({"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}),
            chunk({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}),
            chunk({"type": "message_delta", "delta": END_TURN, "usage": {"output_tokens": 8}}),
            chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": {}}),
        ),
    ),
    "invoke chat": Format(
        "bedrock_invoke",
        AWS,
        (
            chunk({**HEAD, "choices": [choice(delta={"content": "hi"})]}),
            chunk({**HEAD, "choices": [choice(delta={"content": "ho"})]}),
        ),
    ),
    "invoke nova": Format(
        "bedrock_invoke",
        AWS,
        (
            nova("messageStart", role="assistant"),
            nova("contentBlockDelta", delta={"text": "hi"}, contentBlockIndex=0),
            nova("contentBlockDelta", delta={"text": "ho"}, contentBlockIndex=0),
            nova("messageStop", stopReason="end_turn"),
            nova("metadata", usage={"inputTokens": 7, "outputTokens": 5}),
        ),
    ),
    "invoke titan": Format(
        "bedrock_invoke", AWS, (chunk({"outputText": "hi", "index": 0}), chunk({"outputText": "."}))
    ),
    "invoke llama": Format(
        "bedrock_invoke", AWS, (chunk({"generation": "hi"}), chunk({"generation": "ho"}))
    ),
    "invoke mistral": Format(
        "bedrock_invoke",
        AWS,
        (chunk({"outputs": [{"text": "hi"}]}), chunk({"outputs": [{"text": "ho"}]})),
    ),
}

UNENDED = ("invoke chat", "invoke titan", "invoke llama", "invoke mistral")

BOUNDARIES = [
    pytest.param(name, at, id=f"{name}-{at}")
    for name, known in FORMATS.items()
    for at in range(len(known.events))
    # InvokeModel does not tell whose words to end a stream in before it has begun.
    if at or known.dialect != "bedrock_invoke"
]


@pytest.mark.parametrize(("name", "at"), BOUNDARIES)
def test_a_stopped_stream_is_a_complete_one(name: str, at: int) -> None:
    """Stopped before any event, it reads as a stream with its own terminator; nothing twice."""
    known = FORMATS[name]
    stopped = known.stopped(at)

    seen = run(known.open(), [stopped])
    assert seen.complete
    assert b"".join(known.events[:at]) == stopped[: len(b"".join(known.events[:at]))]
    assert seen.text == run(known.open(), [b"".join(known.events[:at])]).text


@pytest.mark.parametrize("name", FORMATS)
def test_events_are_cut_alike_from_any_pieces(name: str) -> None:
    """Cut out of single bytes, the events are those that were sent, whole and in order."""
    known = FORMATS[name]
    stream, reader = b"".join(known.events), known.open()

    events = [e for at in range(len(stream)) for e in reader.cut(stream[at : at + 1])]
    rest = reader.rest()

    assert (*events, *filter(None, [rest])) == known.events


@pytest.mark.parametrize("name", FORMATS)
def test_the_output_of_its_events_is_its_text(name: str) -> None:
    """What events hold for output adds up to the text, and it is never less than a token."""
    known = FORMATS[name]
    reader = known.open()
    output = [reader.look(each) or b"" for each in known.events]
    shown = [each for each, raw in zip(output, known.events, strict=True) if each != raw]

    assert unescape(b"".join(shown)) == run(known.open(), list(known.events)).text


ENDED = [name for name in FORMATS if name not in UNENDED]


@pytest.mark.parametrize("name", ENDED)
def test_nothing_follows_a_stream_that_has_ended(name: str) -> None:
    """Behind its own last event there is nothing left to be said."""
    known = FORMATS[name]
    reader = known.open()
    for each in (*known.events, known.events[0]):
        reader.look(each)

    assert reader.stop(USED) == b""


LAST = {
    ("openai_chat", 2): (
        b'data: {"id":"c1","object":"chat.completion.chunk","created":9,"model":"m","choices":'
        b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    ),
    ("openai_chat", 4): b"data: [DONE]\n\n",
    ("several choices", 3): (
        b'data: {"id":"c1","object":"chat.completion.chunk","created":9,"model":"m","choices":'
        b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    ),
    ("openai_completions", 1): (
        b'data: {"id":"c1","object":"text_completion","created":9,"model":"m","choices":'
        b'[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    ),
    ("anthropic_messages", 8): (
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":1}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens",'
        b'"stop_sequence":null},"usage":{"output_tokens":5}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
    ("anthropic_messages", 10): (
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens",'
        b'"stop_sequence":null},"usage":{"output_tokens":5}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
    ("gemini", 1): (
        b'data: {"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},'
        b'"finishReason":"MAX_TOKENS","index":0}],"modelVersion":"gemini-x"}\r\n\r\n'
    ),
    ("gemini array", 1): (
        b',\r\n{"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},'
        b'"finishReason":"MAX_TOKENS","index":0}],"modelVersion":"gemini-x"}]'
    ),
    ("gemini array", 0): (
        b'[{"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},'
        b'"finishReason":"MAX_TOKENS","index":0}]}]'
    ),
    ("cohere", 3): (
        b'event: content-end\ndata: {"type":"content-end","index":0}\n\n'
        b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"MAX_TOKENS"}}'
        b"\n\ndata: [DONE]\n\n"
    ),
    ("ollama chat", 1): (
        b'{"model":"m","created_at":"now","message":{"role":"assistant","content":""},'
        b'"done":true,"done_reason":"length","eval_count":5}\n'
    ),
    ("ollama generate", 1): (
        b'{"model":"m","created_at":"now","response":"",'
        b'"done":true,"done_reason":"length","eval_count":5}\n'
    ),
    ("bedrock", 2): event("contentBlockStop", {"contentBlockIndex": 0})
    + event("messageStop", {"stopReason": "max_tokens"})
    + event(
        "metadata",
        {
            "usage": {"inputTokens": 7, "outputTokens": 5, "totalTokens": 12},
            "metrics": {"latencyMs": 0},
        },
    ),
}


@pytest.mark.parametrize(("name", "at"), LAST)
def test_how_a_stream_ends(name: str, at: int) -> None:
    """To the byte, in the words of its format."""
    known = FORMATS[name]

    assert known.stopped(at)[len(b"".join(known.events[:at])) :] == LAST[name, at]


def inner(stream: bytes) -> Iterator[dict[str, Any]]:
    """Yield the chunks of an InvokeModelWithResponseStream."""
    for raw in MessageSplitter().feed(stream):
        message = read_message(raw)
        assert message is not None
        yield json.loads(base64.b64decode(json.loads(message.payload)["bytes"]))


INVOKED: dict[str, list[dict[str, Any]]] = {
    "invoke claude": [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    ],
    "invoke chat": [
        {
            **HEAD,
            "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
        }
    ],
    "invoke nova": [
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "max_tokens"}},
        {
            "metadata": {
                "usage": {"inputTokens": 7, "outputTokens": 5, "totalTokens": 12},
                "metrics": {"latencyMs": 0},
            }
        },
    ],
    "invoke titan": [{"outputText": "", "index": 0, "completionReason": "LENGTH"}],
    "invoke llama": [{"generation": "", "stop_reason": "length"}],
    "invoke mistral": [{"outputs": [{"text": "", "stop_reason": "length"}]}],
}


@pytest.mark.parametrize("name", INVOKED)
def test_how_each_family_behind_invoke_ends(name: str) -> None:
    """In its own words, with Bedrock's counts in the last chunk."""
    known = FORMATS[name]
    at = 2 if name in ("invoke claude", "invoke nova") else 1
    found = list(inner(known.stopped(at)))[at:]

    counts = {"inputTokenCount": 7, "outputTokenCount": 5}
    assert found.pop() == {**INVOKED[name][-1], "amazon-bedrock-invocationMetrics": counts}
    assert found == INVOKED[name][:-1]


# The providers' own SDKs


def served(known: Format, at: int) -> httpx2.Client:
    """Return an HTTP client that gets this stream, stopped there."""
    answer = httpx2.Response(200, headers={"content-type": known.kind}, content=known.stopped(at))
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))


@pytest.mark.parametrize("at", range(5))
def test_openai_sdk_chat(at: int) -> None:
    """The answer so far, cut short by its length."""
    http = served(FORMATS["openai_chat"], at)
    with (
        openai.OpenAI(api_key="k", http_client=http) as sdk,
        sdk.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": "hi"}]
        ) as seen,
    ):
        if at == 4:
            assert seen.get_final_completion().choices[0].finish_reason == "stop"
            return
        with pytest.raises(openai.LengthFinishReasonError) as cut:
            seen.get_final_completion()
    [answer] = cut.value.completion.choices
    assert (answer.message.content or "") == ["", "", "Hel", "Hello"][at]


@pytest.mark.parametrize("at", range(4))
def test_openai_sdk_plain_chunks(at: int) -> None:
    """Chunk by chunk: the text that was passed on, then `length`."""
    http = served(FORMATS["openai_chat"], at)
    with openai.OpenAI(api_key="k", http_client=http) as sdk:
        chunks = list(
            sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
        )

    texts = [found.choices[0].delta.content or "" for found in chunks]
    assert "".join(texts) == ["", "", "Hel", "Hello"][at]
    assert [found.choices[0].finish_reason for found in chunks] == [None] * at + ["length"]


@pytest.mark.parametrize("at", range(13))
def test_openai_sdk_responses(at: int) -> None:
    """The response is incomplete for its output bound, and holds what was passed on."""
    http = served(FORMATS["openai_responses"], at)
    with openai.OpenAI(api_key="k", http_client=http) as sdk:
        events = list(sdk.responses.create(model="m", input="hi", stream=True))

    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == ("" if at < 5 else "Hel" if at == 5 else "Hello")
    assert [found.sequence_number for found in events] == list(range(len(events)))
    if at > 10:
        assert last.response.output[1].model_dump()["arguments"] == ['{"a', '{"a":1}'][at - 11]


@pytest.mark.parametrize("at", range(15))
def test_anthropic_sdk(at: int) -> None:
    """The message so far, stopped by `max_tokens`."""
    http = served(FORMATS["anthropic_messages"], at)
    with (
        anthropic.Anthropic(api_key="k", http_client=http) as sdk,
        sdk.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        ) as seen,
    ):
        message = seen.get_final_message()

    text = "".join(part.text for part in message.content if part.type == "text")
    assert text == ("" if at < 8 else "Hel" if at == 8 else "Hello")
    assert message.stop_reason == ("end_turn" if at == 14 else "max_tokens")
    assert message.usage.output_tokens == (15 if at == 14 else 5)


@pytest.mark.parametrize("at", range(3))
def test_google_sdk(at: int) -> None:
    """The last chunk says `MAX_TOKENS`, behind all that was passed on."""
    options = HttpOptions(httpx_client=served(FORMATS["gemini"], at))
    sdk: Any = genai.Client(api_key="k", http_options=options)

    chunks = list(sdk.models.generate_content_stream(model="m", contents="hi"))

    assert "".join(found.text or "" for found in chunks) == ["", "Hel", "Hello"][at]
    assert chunks[-1].candidates
    assert chunks[-1].candidates[0].finish_reason == FinishReason.MAX_TOKENS
