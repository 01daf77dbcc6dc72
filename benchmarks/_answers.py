"""Answers of a megabyte and streams of 10,000 events, as each provider writes them."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

from pydantic_core import to_json

EVENTS = 10_000
_TEXT_BYTES = 1_000_000
_VECTORS = 32
"""Of 1,536 numbers each, they are a megabyte too."""
_MODEL = "model-of-the-house-2026-11"
_SOURCE = random.Random(1)
_PLAIN = ("the", "budget", "of", "a", "model", "is", "spent", "today", "once", "more")
_WORDS = (*_PLAIN * 6, "na\u00efve", '"no"', "end.\n")
"""Of sixty, three are not ASCII or have to be escaped."""
_IDEOGRAPHS = "\u7684\u4e00\u662f\u4e0d\u4e86\u4eba\u6211\u5728\u6709\u4ed6"

Fields = dict[str, Any]


class Event(NamedTuple):
    """One event of a stream."""

    data: bytes
    """The JSON a client parses; empty if it is none."""
    wire: bytes
    """All of it, as it is sent."""


class Sample(NamedTuple):
    """What one dialect is measured with."""

    name: str
    dialect: str
    answer: bytes = b""
    """Empty where it is that of another sample."""
    events: tuple[Event, ...] = ()
    """None where nothing is streamed."""
    stream_type: str = "text/event-stream"


def samples() -> Iterator[Sample]:
    """Yield at least one sample for each dialect that reads answers."""
    chat = _chat_answer(_TEXT)
    yield Sample("openai_chat", "openai_chat", chat, _chat_events(None))
    yield Sample("openai_chat, in Chinese", "openai_chat", _chat_answer(_CHINESE))
    yield Sample("openai_compatible", "openai_compatible", chat, _chat_events(_usage()))
    yield _openai_responses()
    yield _openai_completions()
    yield _openai_embeddings()
    yield _anthropic()
    yield _gemini("gemini", _crlf, "text/event-stream")
    yield _gemini("gemini, array", _element, "application/json")._replace(answer=b"")
    yield _bedrock()
    yield _invoke("bedrock_invoke, Claude", _CLAUDE_ANSWER, _claude_fields())
    yield _invoke("bedrock_invoke, Nova", _CONVERSE_ANSWER, _nova_fields())
    yield _cohere()
    yield _ollama()


def _words() -> Iterator[str]:
    """Yield the text of all events but the last ones."""
    for _ in range(EVENTS - 4):
        yield " " + _SOURCE.choice(_WORDS)


def _text() -> str:
    text = " ".join(_SOURCE.choices(_WORDS, k=_TEXT_BYTES // 4))
    return text[:_TEXT_BYTES]


_TEXT = _text()
_CHINESE = "".join(_SOURCE.choices(_IDEOGRAPHS, k=_TEXT_BYTES // 3))


def _usage() -> Fields:
    return {
        "prompt_tokens": 1200,
        "completion_tokens": EVENTS,
        "total_tokens": EVENTS + 1200,
        "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 300, "audio_tokens": 0},
    }


def _server_sent(fields: Fields, kind: str = "") -> Event:
    data = to_json(fields)
    name = f"event: {kind}\n".encode() if kind else b""
    return Event(data, name + b"data: " + data + b"\n\n")


def _named(fields: Fields) -> Event:
    return _server_sent(fields, fields["type"])


_DONE = Event(b"", b"data: [DONE]\n\n")


def _chat_answer(text: str) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return to_json({**_frame("chat.completion"), "choices": [choice], "usage": _usage()})


def _frame(kind: str) -> Fields:
    return {
        "id": "chatcmpl-B0123456789abcdefghijklmnopqr",
        "object": kind,
        "created": 1_800_000_000,
        "model": _MODEL,
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
    }


def _chat_events(running: Fields | None) -> tuple[Event, ...]:
    """Return a stream with this usage in every chunk, as vLLM sends it, and the whole at last."""
    frame = _frame("chat.completion.chunk")

    def chunk(delta: Fields, finish: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _server_sent({**frame, "choices": [choice], "usage": running})

    return (
        chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chunk({"content": word}) for word in _words()),
        chunk({}, "stop"),
        _server_sent({**frame, "choices": [], "usage": _usage()}),
        _DONE,
    )


def _openai_completions() -> Sample:
    def chunk(text: str, finish: str | None = None, **more: Any) -> Fields:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return {**_frame("text_completion"), "choices": [choice], **more}

    events = (
        *(_server_sent(chunk(word, usage=None)) for word in _words()),
        _server_sent(chunk("", "stop", usage=_usage())),
        _DONE,
    )
    answer = to_json(chunk(_TEXT, "stop", usage=_usage()))
    return Sample("openai_completions", "openai_completions", answer, events)


def _openai_responses() -> Sample:
    usage = {
        "input_tokens": 1200,
        "input_tokens_details": {"cached_tokens": 1024},
        "output_tokens": EVENTS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": EVENTS + 1200,
    }
    item = "msg_0123456789abcdef0123456789abcdef"
    content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": _TEXT}]
    output = [{"id": item, "type": "message", "status": "completed", "content": content}]
    answer: Fields = {
        "id": "resp_0123456789abcdef0123456789abcdef",
        "object": "response",
        "created_at": 1_800_000_000,
        "status": "completed",
        "model": _MODEL,
        "output": output,
        "tools": [],
        "usage": usage,
    }

    def delta(number: int, word: str) -> Fields:
        return {
            "type": "response.output_text.delta",
            "sequence_number": number,
            "item_id": item,
            "output_index": 0,
            "content_index": 0,
            "delta": word,
            "logprobs": [],
            "obfuscation": "AbCdEfGhIj",
        }

    started = {**answer, "status": "in_progress", "output": [], "usage": None}
    short = {**answer, "output": []}
    events = (
        _named({"type": "response.created", "sequence_number": 0, "response": started}),
        *(_named(delta(number, word)) for number, word in enumerate(_words(), 1)),
        _named({"type": "response.completed", "sequence_number": EVENTS, "response": short}),
    )
    return Sample("openai_responses", "openai_responses", to_json(answer), events)


def _openai_embeddings() -> Sample:
    vectors = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [round(_SOURCE.uniform(-0.1, 0.1), 17) for _ in range(1536)],
        }
        for index in range(_VECTORS)
    ]
    usage = {"prompt_tokens": 1200, "total_tokens": 1200}
    answer = {"object": "list", "data": vectors, "model": _MODEL, "usage": usage}
    return Sample("openai_embeddings", "openai_embeddings", to_json(answer))


_CLAUDE_USAGE = {
    "input_tokens": 1200,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 1024,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": EVENTS,
    "service_tier": "standard",
}
_CLAUDE_ANSWER = to_json(
    {
        "id": "msg_0123456789abcdefghijkl",
        "type": "message",
        "role": "assistant",
        "model": _MODEL,
        "content": [{"type": "text", "text": _TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _CLAUDE_USAGE,
    }
)


def _claude_fields() -> Iterator[Fields]:
    message = {"id": "msg_0", "type": "message", "role": "assistant", "model": _MODEL}
    yield {"type": "message_start", "message": {**message, "content": [], "usage": _CLAUDE_USAGE}}
    for word in _words():
        text = {"type": "text_delta", "text": word}
        yield {"type": "content_block_delta", "index": 0, "delta": text}
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": EVENTS}}
    yield {"type": "message_stop", **_METRICS}


def _anthropic() -> Sample:
    events = tuple(map(_named, _claude_fields()))
    return Sample("anthropic_messages", "anthropic_messages", _CLAUDE_ANSWER, events)


def _crlf(fields: Fields) -> Event:
    data = to_json(fields)
    return Event(data, b"data: " + data + b"\r\n\r\n")


def _element(fields: Fields) -> Event:
    data = to_json(fields, indent=2)
    return Event(data, b",\r\n" + data)


def _gemini(name: str, event: Callable[[Fields], Event], stream_type: str) -> Sample:
    def chunk(text: str, output: int, **more: Any) -> Fields:
        content = {"parts": [{"text": text}], "role": "model"}
        details = [{"modality": "TEXT", "tokenCount": 1200}]
        usage = {
            "promptTokenCount": 1200,
            "candidatesTokenCount": output,
            "totalTokenCount": 1200 + output,
            "promptTokensDetails": details,
        }
        return {
            "candidates": [{"content": content, "index": 0, **more}],
            "usageMetadata": usage,
            "modelVersion": _MODEL,
            "responseId": "0123456789abcdefghijklm",
        }

    ending = chunk("", EVENTS, finishReason="STOP")
    events = [*(event(chunk(word, at)) for at, word in enumerate(_words())), event(ending)]
    if event is _element:
        events = [Event(b"", b"["), events[0]._replace(wire=events[0].data), *events[1:]]
        events.append(Event(b"", b"\n]\n"))
    answer = to_json(chunk(_TEXT, EVENTS, finishReason="STOP"), indent=2)
    return Sample(name, "gemini", answer, tuple(events), stream_type)


_METRICS = {
    "amazon-bedrock-invocationMetrics": {
        "inputTokenCount": 1200,
        "outputTokenCount": EVENTS,
        "invocationLatency": 60_000,
        "firstByteLatency": 400,
    }
}
_CONVERSE_USAGE = {"inputTokens": 1200, "outputTokens": EVENTS, "totalTokens": EVENTS + 1200}
_CONVERSE_ANSWER = to_json(
    {
        "metrics": {"latencyMs": 60_000},
        "output": {"message": {"content": [{"text": _TEXT}], "role": "assistant"}},
        "stopReason": "end_turn",
        "usage": _CONVERSE_USAGE,
    }
)
_AWS = "application/vnd.amazon.eventstream"
_PADDING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _nova_fields() -> Iterator[Fields]:
    yield {"messageStart": {"role": "assistant"}}
    for word in _words():
        yield {"contentBlockDelta": {"delta": {"text": word}, "contentBlockIndex": 0}}
    yield {"messageStop": {"stopReason": "end_turn"}}
    yield {"metadata": {"usage": _CONVERSE_USAGE, "metrics": {}}, **_METRICS}


def _message(kind: str, data: bytes, payload: bytes) -> Event:
    """Return a message of AWS's event stream."""
    names = (":event-type", ":content-type", ":message-type")
    block = b""
    for name, value in zip(names, (kind, "application/json", "event"), strict=True):
        block += bytes([len(name)]) + name.encode() + b"\x07"
        block += struct.pack("!H", len(value)) + value.encode()
    prelude = struct.pack("!II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack("!I", crc32(prelude)) + block + payload
    return Event(data, message + struct.pack("!I", crc32(message)))


def _converse_events() -> Iterator[Event]:
    for fields in _nova_fields():
        kind, inner = next(iter(fields.items()))
        data = to_json({**inner, "p": _PADDING[: _SOURCE.randrange(len(_PADDING))]})
        yield _message(kind, data, data)


def _bedrock() -> Sample:
    return Sample("bedrock", "bedrock", _CONVERSE_ANSWER, tuple(_converse_events()), _AWS)


def _invoke(name: str, answer: bytes, chunks: Iterable[Fields]) -> Sample:
    events: list[Event] = []
    for fields in chunks:
        data = to_json(fields)
        inner = base64.b64encode(data).decode()
        padding = _PADDING[: _SOURCE.randrange(len(_PADDING))]
        events.append(_message("chunk", data, to_json({"bytes": inner, "p": padding})))
    return Sample(name, "bedrock_invoke", answer, tuple(events), _AWS)


def _cohere() -> Sample:
    tokens = {"input_tokens": 1200, "output_tokens": EVENTS}
    usage = {"billed_units": tokens, "tokens": tokens}
    message = {"role": "assistant", "content": [{"type": "text", "text": _TEXT}]}
    answer = {"id": "1", "finish_reason": "COMPLETE", "message": message, "usage": usage}

    def delta(word: str) -> Fields:
        inner = {"message": {"content": {"text": word}}}
        return {"type": "content-delta", "index": 0, "delta": inner}

    ending = {"finish_reason": "COMPLETE", "usage": usage}
    events = (
        _named({"id": "1", "type": "message-start", "delta": {"message": {"role": "assistant"}}}),
        *(_named(delta(word)) for word in _words()),
        _named({"type": "content-end", "index": 0}),
        _named({"type": "message-end", "delta": ending}),
    )
    return Sample("cohere", "cohere", to_json(answer), events)


def _ollama() -> Sample:
    def line(content: str, **more: Any) -> Fields:
        message = {"role": "assistant", "content": content}
        created = "2026-11-21T08:00:00.123456789Z"
        return {"model": _MODEL, "created_at": created, "message": message, **more}

    counts = {"done_reason": "stop", "prompt_eval_count": 1200, "eval_count": EVENTS}
    all_fields = [*(line(word, done=False) for word in _words()), line("", done=True, **counts)]
    events = tuple(Event(data, data + b"\n") for data in map(to_json, all_fields))
    answer = to_json(line(_TEXT, done=True, **counts))
    return Sample("ollama", "ollama", answer, events, "application/x-ndjson")
