"""Anthropic Messages, also where Bedrock and Vertex serve them in the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_budget_mw._sse import EventSplitter
from llm_budget_mw.dialects import _fields, _surcharges
from llm_budget_mw.dialects._anthropic import MessageInterpreter, read_tier, read_usage
from llm_budget_mw.dialects._cache_marks import mark_prefix
from llm_budget_mw.dialects._envelope import envelope
from llm_budget_mw.dialects._json import dump, is_array, items, label, look_at, read_object, table
from llm_budget_mw.dialects._prompt import PromptBuilder
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects._thinking import fit_thinking
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.anthropic import MessageTail
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

_PRIMING_TOKENS = 13
_MESSAGE_TOKENS = 8
_TOOLS_TOKENS = 700
"""The system prompt any tool brings with it."""
_TOOL_TOKENS = 16
_BUILT_IN_TOOL_TOKENS = 800
"""A tool the provider defines: its schema is not in the request."""

_SETTINGS = frozenset(
    {
        "anthropic_version", "cache_control", "container", "fallbacks", "inference_geo",
        "max_tokens", "mcp_servers", "messages", "metadata", "model", "service_tier", "speed",
        "stop_sequences", "stream", "system", "temperature", "thinking", "top_k", "top_p",
    }
)  # fmt: skip
"""Fields no model reads as they stand. The JSON of any other counts as input."""

_CLIENT_TOOLS = ("custom", "bash", "text_editor", "computer", "memory", "browser")
"""Beginnings of the types of tools that the caller runs."""

_MEDIA_KINDS: Mapping[str, Any] = {"image": "image", "document": "file"}

_CACHE_WRITES = frozenset({_surcharges.CACHE_WRITE, _surcharges.CACHE_WRITE_1H})

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_SERVER_ERROR = 500


class AnthropicMessages:
    """`POST .../v1/messages`; `cache_prompt` marks long prompts that have no mark yet."""

    name = "anthropic_messages"
    streams_json = False

    def __init__(self, *, cache_prompt: bool = False) -> None:
        self._cache_prompt = cache_prompt

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        _fields.refuse(fields, "fallbacks", "name one model, a list of fallbacks is not guarded")
        # Zero is valid: it only fills the cache.
        max_output = _fields.read_whole(fields, "max_tokens", 0, _fields.MAX_OUTPUT)
        if max_output is None:
            raise RequestError("max_tokens is required: the most output tokens to generate.")
        for name in ("service_tier", "inference_geo"):
            _fields.read_label(fields, name)
        reading = _Reading(fields)
        if self._cache_prompt and _CACHE_WRITES.isdisjoint(reading.features):
            marked = mark_prefix(fields)
            if marked is not None:
                reading.features.add(_surcharges.CACHE_WRITE)
                fields = marked
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=reading.prompt.build(),
            max_output=max_output,
            stream=_fields.read_flag(fields, "stream"),
            surcharges=frozenset(reading.features),
            service_tier=read_tier(fields),
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write model, bound, and a thinking budget that fits below a lowered bound."""
        body = {**call.body, "model": model, "max_tokens": output}
        if call.max_output is None or output < call.max_output:
            fit_thinking(body, output)
        return Rewritten(dump(body))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer."""
        answer = look_at(body)
        return read_usage(table(answer.get("usage")), label(answer.get("model")))

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it never changes a byte."""
        if not is_plain(headers):
            return PassThrough()
        return FramedReader(EventSplitter(), MessageInterpreter(), MessageTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as Anthropic does; `details.error_code` is the problem's code."""
        default = "api_error" if problem.status >= _SERVER_ERROR else "invalid_request_error"
        return envelope(problem, _TYPES.get(problem.status, default), "request-id")


class _Reading:
    """One request, on the way from fields to prompt and features."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.prompt = PromptBuilder()
        self.features: set[str] = set()
        self.prompt.overhead_tokens = _PRIMING_TOKENS
        self._note_cache(fields)
        self._read_content(fields.get("system"), "system")
        for position, message in enumerate(_fields.read_messages(fields)):
            self.prompt.overhead_tokens += _MESSAGE_TOKENS
            self._read_content(message.get("content"), f"messages[{position}].content")
        self._read_tools(fields)
        for name, value in fields.items():
            if name not in _SETTINGS:
                self.prompt.add_json(value)

    def _read_content(self, content: Any, field: str) -> None:
        if is_array(content):
            for block in content:
                self._read_block(table(block))
        elif content is None or isinstance(content, str):
            self.prompt.add_text(content)
        else:
            raise _fields.wrong(field, "a string or an array of blocks", content)

    def _read_block(self, block: dict[str, Any]) -> None:
        self._note_cache(block)
        kind = block.get("type")
        if kind == "text":
            self.prompt.add_text(block.get("text"))
        elif kind in ("image", "document"):
            self._read_source(_MEDIA_KINDS[kind], block)
        elif kind == "tool_result":
            self.prompt.add_text(block.get("tool_use_id"))
            self._read_content(block.get("content"), "content of a tool_result")
        elif kind in ("tool_use", "server_tool_use"):
            self.prompt.add_json(block)
        elif kind == "redacted_thinking":
            self.prompt.add_sealed(block.get("data"))
        else:
            self.prompt.add_part(block)

    def _read_source(self, kind: Any, block: dict[str, Any]) -> None:
        self.prompt.add_text(block.get("title"))
        self.prompt.add_text(block.get("context"))
        source = table(block.get("source"))
        form = source.get("type")
        if form == "text":
            self.prompt.add_text(source.get("data"))
        elif form == "content":
            self._read_content(source.get("content"), "content of a document")
        elif form == "base64":
            self.prompt.add_base64(kind, source.get("data"))
        else:
            self.prompt.add_media(kind, None)

    def _read_tools(self, fields: dict[str, Any]) -> None:
        tools = _fields.read_objects(fields, "tools")
        if tools:
            self.prompt.overhead_tokens += _TOOLS_TOKENS
        for tool in tools:
            self._note_cache(tool)
            self._read_tool(tool.get("type"))
        if fields.get("mcp_servers"):
            self.features.add(_surcharges.MCP)
        if fields.get("container") is not None:
            self.features.add(_surcharges.CODE_EXECUTION)
        for edit in items(table(fields.get("context_management")).get("edits")):
            if str(table(edit).get("type")).startswith("compact"):
                self.features.add(_surcharges.COMPACTION)

    def _read_tool(self, kind: Any) -> None:
        if kind in (None, "custom"):
            self.prompt.overhead_tokens += _TOOL_TOKENS
            return
        self.prompt.overhead_tokens += _BUILT_IN_TOOL_TOKENS
        if not str(kind).startswith(_CLIENT_TOOLS):
            self.features.add(_surcharges.of_tool(str(kind)))

    def _note_cache(self, holder: dict[str, Any]) -> None:
        control = holder.get("cache_control")
        if control is not None:
            hour = table(control).get("ttl") == "1h"
            self.features.add(_surcharges.CACHE_WRITE_1H if hour else _surcharges.CACHE_WRITE)
