"""Realistic requests, answers and streams of every dialect, to be broken."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.dialects.protocol import Dialect

Field = tuple[str, ...]
"""The names on the way from the top of a body to a field."""


class Seeds(NamedTuple):
    """What is known to be fine in one dialect."""

    dialect: Dialect
    paths: tuple[str, ...]
    requests: tuple[dict[str, Any], ...]
    answers: tuple[dict[str, Any], ...]
    streams: tuple[tuple[Any, ...], ...]
    """Events as JSON; text stands for itself."""
    write_event: Callable[[Any], bytes]
    stream_type: str
    bounds: tuple[Field, ...]
    """Where a written request may bound its output."""
    budgets: tuple[Field, ...] = ()
    """Where it may bound the thinking within."""
    headers: Mapping[str, str] = {}
    """Of an answer, besides its type."""
    any_case: bool = False
    """True if a server takes names in capitals for the same fields."""

    def write(self, events: Sequence[Any]) -> bytes:
        """Return a stream of these events."""
        return b"".join(map(self.write_event, events))


def compact(value: Any) -> bytes:
    """Return JSON without spaces, lone surrogates and infinities included."""
    return json.dumps(value, separators=(",", ":")).encode()


def _server_sent(event: Any) -> bytes:
    if isinstance(event, str):
        return f"data: {event}\n\n".encode("utf-8", "surrogatepass")
    kind = event.get("type") if isinstance(event, dict) else None
    name = f"event: {kind}\n" if isinstance(kind, str) else ""
    return name.encode("utf-8", "surrogatepass") + b"data: " + compact(event) + b"\n\n"


def _line(event: Any) -> bytes:
    return compact(event) + b"\n"


def framed(payload: bytes, **headers: str) -> bytes:
    """Return one message of AWS's event stream."""
    block = b""
    for name, value in headers.items():
        key = f":{name.replace('_', '-')}".encode()
        text = value.encode("utf-8", "surrogatepass")[:65535]
        block += struct.pack("!B", len(key)) + key + struct.pack("!BH", 7, len(text)) + text
    prelude = struct.pack("!II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack("!I", crc32(prelude)) + block + payload
    return message + struct.pack("!I", crc32(message))


def _converse_event(event: Any) -> bytes:
    if isinstance(event, dict) and len(event) == 1:
        [(kind, payload)] = event.items()
        if "Exception" in kind:
            return framed(compact(payload), exception_type=kind, message_type="exception")
        return framed(compact(payload), event_type=kind, message_type="event")
    return framed(compact(event), event_type="chunk", message_type="event")


def _invoke_event(event: Any) -> bytes:
    inner = base64.b64encode(compact(event)).decode()
    return framed(compact({"bytes": inner, "p": "abc"}), event_type="chunk", message_type="event")


_PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}

_CHAT_USAGE = {
    "prompt_tokens": 1200,
    "completion_tokens": 350,
    "total_tokens": 1550,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 7, "cache_write_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 300, "audio_tokens": 5},
}


def _chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c", "model": "gpt-4o", "choices": [choice], **more}


_CHAT_REQUESTS: tuple[dict[str, Any], ...] = (
    {
        "model": "gpt-4o",
        "max_completion_tokens": 900,
        "n": 2,
        "stream": True,
        "service_tier": "flex",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "name": "ann",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": _PNG, "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "JVBERi0="}},
                ],
            },
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}},
            {"type": "web_search_preview"},
        ],
        "response_format": {"type": "json_schema", "json_schema": _SCHEMA},
    },
    {
        "model": "m",
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "messages": [{"role": "user", "content": "hello"}],
    },
)
_CHAT_ANSWERS: tuple[dict[str, Any], ...] = (
    {
        "id": "c",
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": _CHAT_USAGE,
    },
    {
        "model": "deepseek-chat",
        "usage": {
            "prompt_tokens": 35,
            "completion_tokens": 12,
            "total_tokens": 109,
            "prompt_cache_hit_tokens": 30,
            "prompt_cache_miss_tokens": 5,
        },
    },
    {"error": {"message": "overloaded", "type": "server_error", "code": 503}},
)
_CHAT_STREAMS: tuple[tuple[Any, ...], ...] = (
    (
        _chunk({"role": "assistant", "content": ""}, usage=None),
        _chunk({"content": "Hel"}, usage=None),
        _chunk({"content": "lo"}, usage=None),
        _chunk({"reasoning_content": 'h"m\n'}),
        _chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}),
        {"id": "c", "model": "gpt-4o", "choices": [], "usage": _CHAT_USAGE},
        "[DONE]",
    ),
    (
        _chunk({"content": "hi"}),
        _chunk({}, x_groq={"id": "r", "usage": _CHAT_USAGE}),
        {"error": {"message": "later", "code": 429}},
        "[DONE]",
    ),
)
_CHAT_BOUNDS: tuple[Field, ...] = tuple(
    (name,)
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens", "maxOutputTokens")
)

_RESPONSES_USAGE = {
    "input_tokens": 328,
    "output_tokens": 52,
    "total_tokens": 380,
    "input_tokens_details": {
        "cached_tokens": 10,
        "cache_write_tokens": 20,
        "cache_write_tokens_details": {"ttl_12h_tokens": 5},
    },
    "output_tokens_details": {"reasoning_tokens": 40},
}
_RESPONSE = {
    "object": "response",
    "status": "completed",
    "model": "gpt-5",
    "service_tier": "default",
    "usage": _RESPONSES_USAGE,
    "tools": [{"type": "image_generation", "model": "gpt-image-1"}],
    "tool_usage": {
        "image_gen": {"input_tokens": 10, "output_tokens": 200, "cached_tokens": 1},
        "web_search": {"num_requests": 2},
    },
    "output": [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"svg_usage": {"model": "gpt-5", "input_tokens": 3, "output_tokens": 4}},
    ],
}
_MESSAGE_USAGE = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 188,
    "cache_read_input_tokens": 2048,
    "cache_creation": {"ephemeral_5m_input_tokens": 88, "ephemeral_1h_input_tokens": 100},
    "output_tokens": 393,
    "output_tokens_details": {"thinking_tokens": 200},
    "server_tool_use": {"web_search_requests": 1},
    "service_tier": "standard",
    "iterations": [
        {"type": "message", "input_tokens": 21, "output_tokens": 393},
        {"type": "compaction", "input_tokens": 55196, "output_tokens": 125},
        {"type": "advisor_message", "model": "claude-x", "input_tokens": 9, "output_tokens": 8},
    ],
}
_CLAUDE_REQUEST: dict[str, Any] = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 5000,
    "stream": True,
    "thinking": {"type": "enabled", "budget_tokens": 4000},
    "system": [{"type": "text", "text": "Be.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "hello"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {"type": "image", "source": {"type": "base64", "data": "iVBORw0KGgo="}},
                {"type": "document", "source": {"type": "text", "data": "long"}, "title": "t"},
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text"}]},
                {"type": "redacted_thinking", "data": "AAAA"},
            ],
        },
    ],
    "tools": [{"name": "f", "input_schema": _SCHEMA}, {"type": "web_search_20250305"}],
}
_CLAUDE_EVENTS: tuple[Any, ...] = (
    {"type": "message_start", "message": {"model": "claude-x", "usage": _MESSAGE_USAGE}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 'H"\n'}},
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": "{}"},
    },
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": 21, "output_tokens": 15, "cache_read_input_tokens": 2048},
    },
    {"type": "message_stop"},
)
_CLAUDE_ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "later"}}

_GEMINI_USAGE = {
    "promptTokenCount": 35,
    "candidatesTokenCount": 12,
    "thoughtsTokenCount": 62,
    "toolUsePromptTokenCount": 4,
    "totalTokenCount": 113,
    "cachedContentTokenCount": 5,
    "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}],
    "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 2}],
    "serviceTier": "standard",
}
_GEMINI_ANSWER = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": "hi"}]},
            "finishReason": "STOP",
            "index": 0,
            "groundingMetadata": {"webSearchQueries": ["a", "b"]},
        }
    ],
    "usageMetadata": _GEMINI_USAGE,
    "modelVersion": "gemini-3-pro",
}
_CONVERSE_USAGE = {
    "inputTokens": 433,
    "outputTokens": 16,
    "totalTokens": 3201,
    "cacheReadInputTokens": 2752,
    "cacheReadInputTokenCount": 2752,
    "cacheWriteInputTokens": 30,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 20}, {"ttl": "5m", "inputTokens": 10}],
}
_METRICS = {
    "amazon-bedrock-invocationMetrics": {"inputTokenCount": 21, "outputTokenCount": 9},
}
_COHERE_USAGE = {
    "billed_units": {"input_tokens": 25.0, "output_tokens": 9},
    "tokens": {"input_tokens": 95, "output_tokens": 11},
    "cached_tokens": 80,
}
_SSE = "text/event-stream"
_AWS = "application/vnd.amazon.eventstream"


def _chat_seeds(name: str) -> Seeds:
    return Seeds(
        DIALECTS[name],
        ("/v1/chat/completions", "/openai/deployments/d/chat/completions"),
        _CHAT_REQUESTS,
        _CHAT_ANSWERS,
        _CHAT_STREAMS,
        _server_sent,
        _SSE,
        _CHAT_BOUNDS,
    )


_ALL = (
    _chat_seeds("openai_chat"),
    _chat_seeds("openai_compatible"),
    Seeds(
        DIALECTS["openai_responses"],
        ("/v1/responses", "/v1/responses", "/v1/responses/compact", "/v1/responses/input_tokens"),
        (
            {
                "model": "gpt-5",
                "max_output_tokens": 700,
                "stream": True,
                "instructions": "Be brief.",
                "previous_response_id": "r",
                "input": [
                    {"role": "user", "content": "hello"},
                    {"content": [{"type": "input_text", "text": "x"}], "role": "user"},
                    {"content": [{"type": "input_image", "image_url": _PNG}], "role": "user"},
                    {"type": "function_call_output", "call_id": "1", "output": "42"},
                    {"type": "item_reference", "id": "i"},
                ],
                "tools": [
                    {"type": "function", "name": "f", "parameters": _SCHEMA},
                    {"type": "namespace", "tools": [{"type": "mcp"}]},
                    {"type": "shell", "environment": {"type": "local"}},
                ],
                "reasoning": {"effort": "low"},
                "text": {"format": {"type": "json_object"}},
            },
            {"model": "gpt-5", "input": "hello", "background": True},
        ),
        (
            _RESPONSE,
            {"object": "response.input_tokens", "input_tokens": 9},
            {**_RESPONSE, "status": "queued", "usage": None},
        ),
        (
            (
                {"type": "response.created", "response": {**_RESPONSE, "usage": None}},
                {"type": "response.output_item.added", "item": {"type": "message"}},
                {"type": "response.output_text.delta", "delta": 'H"\n', "sequence_number": 2},
                {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
                {"type": "response.completed", "response": _RESPONSE},
            ),
            (
                {"type": "response.output_text.delta", "delta": "hi"},
                {"type": "error", "message": "overloaded", "code": "x"},
                {"type": "response.failed", "response": {**_RESPONSE, "status": "failed"}},
            ),
        ),
        _server_sent,
        _SSE,
        (("max_output_tokens",), ("max_completion_tokens",), ("max_tokens",)),
    ),
    Seeds(
        DIALECTS["openai_completions"],
        ("/v1/completions",),
        (
            {"model": "m", "prompt": ["a", "b"], "max_tokens": 25, "n": 2, "best_of": 3},
            {"model": "m", "prompt": [[1, 2], [3]], "stream": True, "suffix": "x"},
            {"model": "m", "prompt": [1, 2, 3], "echo": True, "stream": True},
        ),
        _CHAT_ANSWERS,
        (
            (
                {"model": "m", "choices": [{"index": 0, "text": "Hel"}]},
                {"model": "m", "choices": [{"index": 0, "text": "lo", "finish_reason": "stop"}]},
                {"model": "m", "choices": [], "usage": _CHAT_USAGE},
                "[DONE]",
            ),
        ),
        _server_sent,
        _SSE,
        _CHAT_BOUNDS,
    ),
    Seeds(
        DIALECTS["openai_embeddings"],
        ("/v1/embeddings",),
        (
            {"model": "e", "input": "hello", "dimensions": 256},
            {"model": "e", "input": ["a", "b"], "input_type": "query"},
            {"model": "e", "input": [[1, 2], [3]]},
        ),
        (
            {
                "model": "e",
                "data": [{"embedding": [0.1, -0.2]}],
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            },
        ),
        (({"usage": {"prompt_tokens": 8}}, "[DONE]"),),
        _server_sent,
        _SSE,
        (),
    ),
    Seeds(
        DIALECTS["anthropic_messages"],
        ("/v1/messages",),
        (_CLAUDE_REQUEST, {"model": "c", "max_tokens": 9, "messages": [{"content": "hi"}]}),
        (
            {"model": "claude-x", "content": [{"type": "text"}], "usage": _MESSAGE_USAGE},
            _CLAUDE_ERROR,
        ),
        (_CLAUDE_EVENTS, (*_CLAUDE_EVENTS[:4], _CLAUDE_ERROR)),
        _server_sent,
        _SSE,
        (("max_tokens",),),
        (("thinking", "budget_tokens"),),
    ),
    Seeds(
        DIALECTS["gemini"],
        (
            "/v1beta/models/gemini-3-pro:generateContent",
            "/v1beta/models/gemini-3-pro:streamGenerateContent",
            "/v1beta/tunedModels/t:streamGenerateContent",
        ),
        (
            {
                "contents": [
                    {
                        "role": "user",
                        "parts": [
                            {"text": "hello"},
                            {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
                            {"fileData": {"fileUri": "gs://x"}},
                            {"functionResponse": {"name": "f", "parts": [{"text": "x"}]}},
                        ],
                    }
                ],
                "systemInstruction": {"parts": [{"text": "Be."}]},
                "generationConfig": {
                    "maxOutputTokens": 2000,
                    "candidateCount": 2,
                    "thinkingConfig": {"thinkingBudget": 1500, "includeThoughts": True},
                },
                "tools": [{"functionDeclarations": [{"name": "f"}]}, {"googleSearch": {}}],
                "cachedContent": "c",
            },
            {
                "contents": {"parts": {"text": "hi"}},
                "generation_config": {"max_output_tokens": 50, "thinking_config": {}},
            },
        ),
        (
            _GEMINI_ANSWER,
            {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"trafficType": "X"}},
            {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}},
        ),
        (
            (
                {"candidates": [{"content": {"parts": [{"text": 'H"'}]}, "index": 0}]},
                {
                    "candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}}],
                    "usageMetadata": {"promptTokenCount": 35, "totalTokenCount": 40},
                },
                _GEMINI_ANSWER,
            ),
        ),
        _server_sent,
        _SSE,
        (
            ("generationConfig", "maxOutputTokens"),
            ("generationConfig", "max_output_tokens"),
            ("generation_config", "maxOutputTokens"),
            ("generation_config", "max_output_tokens"),
        ),
        (("generationConfig", "thinkingConfig", "thinkingBudget"),),
    ),
    Seeds(
        DIALECTS["bedrock"],
        (
            "/model/anthropic.claude-sonnet-4-5-v1%3A0/converse",
            "/model/us.amazon.nova-lite-v1:0/converse-stream",
            "",
        ),
        (
            {
                "modelId": "anthropic.claude-sonnet-4-5-v1:0",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"text": "hi"},
                            {"image": {"format": "png", "source": {"bytes": "iVBORw0KGgo="}}},
                            {"document": {"name": "d", "source": {"text": "long"}}},
                            {"cachePoint": {"type": "default", "ttl": "1h"}},
                            {"toolResult": {"toolUseId": "1", "content": [{"json": {"a": 1}}]}},
                            {"reasoningContent": {"reasoningText": {"text": "hm"}}},
                        ],
                    }
                ],
                "system": [{"text": "Be."}],
                "inferenceConfig": {"maxTokens": 5000, "temperature": 0.5},
                "toolConfig": {"tools": [{"toolSpec": {"name": "f"}}, {"systemTool": {}}]},
                "additionalModelRequestFields": {
                    "thinking": {"type": "enabled", "budget_tokens": 4000},
                    "tools": [{"type": "bash_20250124", "name": "bash"}],
                },
                "serviceTier": {"type": "flex"},
                "performanceConfig": {"latency": "optimized"},
            },
            {"modelId": "m", "messages": [{"role": "user", "content": [{"text": "hi"}]}]},
        ),
        (
            {
                "output": {"message": {"content": [{"text": "hi"}]}},
                "stopReason": "end_turn",
                "usage": _CONVERSE_USAGE,
                "trace": {"promptRouter": {"invokedModelId": "m"}},
            },
            {"message": "Too many requests"},
        ),
        (
            (
                {"messageStart": {"role": "assistant"}},
                {"contentBlockStart": {"start": {"toolUse": {"name": "f"}}}},
                {"contentBlockDelta": {"delta": {"text": 'H"\n'}, "contentBlockIndex": 0}},
                {"contentBlockDelta": {"delta": {"reasoningContent": {"text": "hm"}}}},
                {"messageStop": {"stopReason": "end_turn"}},
                {"metadata": {"usage": _CONVERSE_USAGE, "metrics": {"latencyMs": 5}}},
            ),
            (
                {"contentBlockDelta": {"delta": {"text": "hi"}}},
                {"throttlingException": {"message": "later"}},
            ),
        ),
        _converse_event,
        _AWS,
        (("inferenceConfig", "maxTokens"),),
        (
            ("additionalModelRequestFields", "thinking", "budget_tokens"),
            ("additionalModelRequestFields", "reasoning_config", "budget_tokens"),
        ),
    ),
    Seeds(
        DIALECTS["bedrock_invoke"],
        (
            "/model/anthropic.claude-x/invoke-with-response-stream",
            "/model/amazon.nova-lite-v1%3A0/invoke",
            "/model/amazon.titan-text-lite-v1/invoke",
            "/model/meta.llama3-70b/invoke-with-response-stream",
            "/model/mistral.mistral-large/invoke",
            "/model/openai.gpt-oss-20b-1:0/invoke",
            "/model/arn%3Aaws%3Abedrock%3Aus%3A1%3Aapplication-inference-profile%2Fp/invoke",
        ),
        (
            {**_CLAUDE_REQUEST, "anthropic_version": "bedrock-2023-05-31"},
            {
                "schemaVersion": "messages-v1",
                "messages": [{"role": "user", "content": [{"text": "hi"}]}],
                "inferenceConfig": {"maxTokens": 300},
            },
            {"inputText": "hello", "textGenerationConfig": {"maxTokenCount": 300}},
            {"prompt": "hello", "max_gen_len": 300},
            {"prompt": "hello", "max_tokens": 300},
            _CHAT_REQUESTS[1],
        ),
        (
            {"model": "claude-x", "usage": _MESSAGE_USAGE},
            _CHAT_ANSWERS[0],
            {"usage": _CONVERSE_USAGE},
            {"inputTextTokenCount": 5, "results": [{"tokenCount": 4}, {"tokenCount": 3}]},
            {"generation": "x", "prompt_token_count": 5, "generation_token_count": 4},
        ),
        (
            (*_CLAUDE_EVENTS[:-1], {**_CLAUDE_EVENTS[-1], **_METRICS}),
            (
                {"messageStart": {"role": "assistant"}},
                {"contentBlockDelta": {"delta": {"text": "hi"}}},
                {"messageStop": {}},
                {"metadata": {"usage": _CONVERSE_USAGE}},
            ),
            (
                {"outputText": "hel", "inputTextTokenCount": 21},
                {"outputText": "lo", "totalOutputTextTokenCount": 8, "completionReason": "FINISH"},
            ),
            (
                {"generation": "hel", "prompt_token_count": 21, "stop_reason": None},
                {"generation": "lo", "generation_token_count": 8, "stop_reason": "stop"},
            ),
            (_chunk({"content": "hi"}), _chunk({}, usage=_CHAT_USAGE, **_METRICS)),
        ),
        _invoke_event,
        _AWS,
        (
            ("max_tokens",),
            ("max_completion_tokens",),
            ("inferenceConfig", "maxTokens"),
            ("inferenceConfig", "max_new_tokens"),
            ("textGenerationConfig", "maxTokenCount"),
            ("max_gen_len",),
        ),
        (("thinking", "budget_tokens"),),
        {
            "x-amzn-bedrock-input-token-count": "21",
            "x-amzn-bedrock-output-token-count": "9",
            "x-amzn-bedrock-service-tier": "flex",
        },
    ),
    Seeds(
        DIALECTS["cohere"],
        ("/v2/chat",),
        (
            {
                "model": "command-a",
                "max_tokens": 500,
                "stream": True,
                "messages": [
                    {"role": "system", "content": "Be."},
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {"role": "user", "content": [{"type": "image_url", "image_url": _PNG}]},
                ],
                "documents": ["a", {"data": {"text": "b"}}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "thinking": {"type": "enabled", "token_budget": 100},
            },
        ),
        ({"id": "1", "finish_reason": "COMPLETE", "usage": _COHERE_USAGE}, {"message": "no"}),
        (
            (
                {"type": "message-start", "id": "1", "delta": {"message": {"role": "assistant"}}},
                {"type": "content-delta", "delta": {"message": {"content": {"text": 'H"\n'}}}},
                {"type": "tool-call-start", "delta": {"message": {"tool_calls": {"id": "1"}}}},
                {
                    "type": "message-end",
                    "delta": {"finish_reason": "COMPLETE", "usage": _COHERE_USAGE},
                },
                "[DONE]",
            ),
            (
                {"type": "content-delta", "delta": {"message": {"content": {"text": "hi"}}}},
                {"message": "no", "id": "1"},
                {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "sorry"}},
            ),
        ),
        _server_sent,
        _SSE,
        (("max_tokens",),),
        any_case=True,
    ),
    Seeds(
        DIALECTS["ollama"],
        ("/api/chat", "/api/generate"),
        (
            {
                "model": "llama3",
                "messages": [{"role": "user", "content": "hi", "images": ["iVBORw0KGgo="]}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "options": {"num_predict": 200, "temperature": 0},
            },
            {"model": "llama3", "prompt": "hi", "context": [1, 2], "stream": False, "raw": True},
        ),
        (
            {
                "model": "llama3",
                "message": {"role": "assistant", "content": "hi"},
                "done": True,
                "done_reason": "stop",
                "prompt_eval_count": 26,
                "eval_count": 9,
            },
            {"error": "model not found"},
        ),
        (
            (
                {"model": "llama3", "message": {"content": 'H"\n', "thinking": "hm"}},
                {"model": "llama3", "message": {"tool_calls": [{"function": {"name": "f"}}]}},
                {
                    "model": "llama3",
                    "message": {"content": ""},
                    "done": True,
                    "prompt_eval_count": 26,
                    "eval_count": 9,
                },
            ),
            ({"response": "hi", "done": False}, {"error": "sorry"}),
        ),
        _line,
        "application/x-ndjson",
        (("options", "num_predict"),),
        any_case=True,
    ),
    Seeds(
        DIALECTS["custom"],
        ("/chat",),
        ({"question": "hello"},),
        ({"answer": "hi", "usage": _CHAT_USAGE},),
        (("hi", {"usage": _CHAT_USAGE}),),
        _server_sent,
        _SSE,
        (),
    ),
)

_LONG_PROMPT = {**_CLAUDE_REQUEST, "system": "Be brief. " * 500}
_BY_NAME = {seeds.dialect.name: seeds for seeds in _ALL}

SEEDS: Mapping[str, Seeds] = {
    **_BY_NAME,
    "anthropic_messages+cache": _BY_NAME["anthropic_messages"]._replace(
        dialect=dialect_for("anthropic_messages", cache_prompt=True),
        requests=(_LONG_PROMPT, {**_LONG_PROMPT, "system": [{"type": "text", "text": "x" * 9999}]}),
    ),
}
"""By the name of the dialect; one for each there is, and for those that can be set up otherwise."""
