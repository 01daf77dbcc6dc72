"""OpenAI Responses, in the background or not, and the compaction beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_budget_mw._sse import EventSplitter
from llm_budget_mw.dialects import _fields, _surcharges
from llm_budget_mw.dialects._json import dump, is_array, items, look_at, read_object, table
from llm_budget_mw.dialects._prompt import MAX_DEPTH, PromptBuilder
from llm_budget_mw.dialects._responses import ResponseInterpreter, read_usage
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.responses import ResponseTail
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

_BOUND = "max_output_tokens"
_BOUNDS = (_BOUND, "max_completion_tokens", "max_tokens")
"""The bound, and names under which a server of this format may also take one."""

_PRIMING_TOKENS = 3
_ITEM_TOKENS = 4
_PART_TOKENS = 2
_TOOL_TOKENS = 12
_SCHEMA_TOKENS = 64
_BUILT_IN_TOOL_TOKENS = 800
"""A tool the provider defines: its schema is not in the request."""

_SETTINGS = frozenset(
    {
        *_BOUNDS, "access_programs", "background", "context_management", "conversation", "image",
        "include", "input", "instructions", "max_tool_calls", "metadata", "model", "moderation",
        "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier",
        "service_tier", "store", "stream", "stream_options", "temperature", "top_logprobs",
        "top_p", "truncation", "user",
    }
)  # fmt: skip
"""Fields no model reads as they stand. The JSON of any other counts as input."""

_FEATURES = {
    "previous_response_id": _surcharges.CONVERSATION,
    "conversation": _surcharges.CONVERSATION,
    "prompt": _surcharges.PROMPT_TEMPLATE,
    "context_management": _surcharges.COMPACTION,
    "plugins": _surcharges.WEB_SEARCH,
    "search_parameters": _surcharges.WEB_SEARCH,
}
"""Fields that add input the request does not show."""

_SCHEMA_TOOLS = ("function", "custom", "namespace")
_CLIENT_TOOLS = ("computer", "apply_patch", "local_shell")
"""Beginnings of the types of tools whose schema the provider knows and the caller runs."""
_TOOL_TYPES = {
    "shell": _surcharges.CODE_EXECUTION,
    "programmatic_tool_calling": _surcharges.CODE_EXECUTION,
    "tool_search": _surcharges.SERVER_TOOL,
}

_PLAIN_MEMBERS = frozenset({"content", "output", "type", "id", "status"})
_ROLES = ("user", "assistant", "system", "developer")
_ITEM_FEATURES = {
    "item_reference": _surcharges.CONVERSATION,
    "compaction_trigger": _surcharges.COMPACTION,
}
_LONG_LIVED = "12h"


_LEAST_OUTPUT = 16
"""The provider refuses a smaller bound."""


class OpenAIResponses:
    """`POST .../responses`, `.../responses/compact` and `.../responses/input_tokens`.

    A response in the background has no usage yet when the request that creates it is
    answered: what it reserved stays charged. Asking for it again is no model call.
    """

    name = "openai_responses"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        _fields.refuse(fields, "models", "name one model, a list of fallbacks is not guarded")
        _fields.read_flag(fields, "background")
        _fields.read_whole(fields, "max_tool_calls", 0, _fields.MAX_OUTPUT)
        reading = _Reading(fields)
        if _resource(head) == "compact":
            # Takes no bound on its output.
            reading.features.add(_surcharges.COMPACTION)
        counts = _resource(head) == "input_tokens"
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=reading.prompt.build(),
            max_output=0 if counts else _read_bound(fields),
            min_output=_LEAST_OUTPUT if _resource(head) == "responses" else 1,
            stream=_fields.read_flag(fields, "stream"),
            surcharges=frozenset() if counts else frozenset(reading.features),
            service_tier=_fields.read_label(fields, "service_tier"),
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write the model, and the bound in place of all its names; nothing else changes."""
        if _resource(head) != "responses":
            return Rewritten(dump({**call.body, "model": model}))
        body = {
            name: value
            for name, value in call.body.items()
            if name == _BOUND or name not in _BOUNDS
        }
        return Rewritten(dump({**body, "model": model, _BOUND: output}))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer; None while it is queued or running."""
        return read_usage(look_at(body))

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it never changes a byte."""
        if not is_plain(headers):
            return PassThrough()
        return FramedReader(EventSplitter(), ResponseInterpreter(), ResponseTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as OpenAI does."""
        return OpenAIChat().error(problem)


def _resource(head: RequestHead) -> str:
    """Return `compact` or `input_tokens` for those; any other path makes a response."""
    last = head.path.rstrip("/").rpartition("/")[2]
    return last if last in ("compact", "input_tokens") else "responses"


def _read_bound(fields: dict[str, Any]) -> int | None:
    bounds = [_fields.read_whole(fields, name, 1, _fields.MAX_OUTPUT) for name in _BOUNDS]
    return max([bound for bound in bounds if bound is not None], default=None)


class _Reading:
    """One request, on the way from fields to prompt and features."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.prompt = PromptBuilder()
        self.prompt.overhead_tokens = _PRIMING_TOKENS
        self.features = {
            feature for name, feature in _FEATURES.items() if fields.get(name) not in (None, [])
        }
        self._read_text(fields, "instructions")
        self._read_input(fields.get("input"))
        self.prompt.add_part(fields.get("prompt"))
        self._read_tools(_fields.read_objects(fields, "tools"), MAX_DEPTH)
        if table(fields.get("prompt_cache_options")).get("ttl") == _LONG_LIVED:
            self.features.add(_surcharges.CACHE_WRITE_1H)
        if fields.get("text") is not None:
            self.prompt.overhead_tokens += _SCHEMA_TOKENS
        for name, value in fields.items():
            if name not in _SETTINGS:
                self.prompt.add_json(value)

    def _read_text(self, fields: dict[str, Any], name: str) -> None:
        value = fields.get(name)
        if value is not None and not isinstance(value, str):
            raise _fields.wrong(name, "a string", value)
        self.prompt.add_text(value)

    def _read_input(self, value: Any) -> None:
        if is_array(value):
            for position, item in enumerate(_fields.read_objects({"input": value}, "input")):
                self._read_item(item, f"input[{position}]")
        elif value is None or isinstance(value, str):
            self.prompt.overhead_tokens += _ITEM_TOKENS
            self.prompt.add_text(value)
        else:
            raise _fields.wrong("input", "a string or an array of items", value)

    def _read_item(self, item: dict[str, Any], place: str) -> None:
        self.prompt.overhead_tokens += _ITEM_TOKENS
        kind = item.get("type")
        if kind is None and "role" not in item:
            kind = "item_reference"
        if isinstance(kind, str) and kind in _ITEM_FEATURES:
            self.features.add(_ITEM_FEATURES[kind])
        if kind == "image_generation_call":
            self.prompt.add_base64("image", item.get("result"))
            return
        # Tools found or added later stand in the input.
        self._read_tools(list(map(table, items(item.get("tools")))), MAX_DEPTH)
        rest = {key: value for key, value in item.items() if key not in _PLAIN_MEMBERS}
        if rest.get("role") in _ROLES:
            del rest["role"]
        self.prompt.add_part(rest)
        self._read_content(item.get("content"), f"{place}.content")
        self._read_content(item.get("output"), f"{place}.output")

    def _read_content(self, content: Any, place: str) -> None:
        if is_array(content):
            for part in content:
                self._read_part(part)
        elif content is None or isinstance(content, str):
            self.prompt.add_text(content)
        elif isinstance(content, dict):
            self._read_part(content)
        else:
            raise _fields.wrong(place, "a string or an array of parts", content)

    def _read_part(self, part: Any) -> None:
        self.prompt.overhead_tokens += _PART_TOKENS
        part = {"type": "input_text", "text": part} if isinstance(part, str) else table(part)
        if table(part.get("prompt_cache_breakpoint")).get("ttl") == _LONG_LIVED:
            self.features.add(_surcharges.CACHE_WRITE_1H)
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text"):
            self.prompt.add_text(part.get("text"))
        elif kind in ("input_image", "computer_screenshot"):
            self.prompt.add_media("image", part.get("image_url"), part.get("detail"))
        elif kind == "input_file":
            self.prompt.add_text(part.get("filename"))
            self.prompt.add_base64("file", part.get("file_data"))
        elif kind == "input_audio":
            self.prompt.add_base64("audio", table(part.get("input_audio")).get("data"))
        else:
            self.prompt.add_part(part)

    def _read_tools(self, tools: list[dict[str, Any]], depth: int) -> None:
        if not depth:
            raise RequestError(f"tools are nested deeper than {MAX_DEPTH}.")
        if tools:
            self.prompt.overhead_tokens += _SCHEMA_TOKENS + _TOOL_TOKENS * len(tools)
        for tool in tools:
            self._read_tool(tool)
            self._read_tools(list(map(table, items(tool.get("tools")))), depth - 1)

    def _read_tool(self, tool: dict[str, Any]) -> None:
        kind = str(tool.get("type"))
        if kind in _SCHEMA_TOOLS:
            return
        self.prompt.overhead_tokens += _BUILT_IN_TOOL_TOKENS
        if not _is_run_by_caller(kind, tool):
            self.features.add(_TOOL_TYPES.get(kind) or _surcharges.of_tool(kind))


def _is_run_by_caller(kind: str, tool: dict[str, Any]) -> bool:
    if kind == "shell":
        return table(tool.get("environment")).get("type") == "local"
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return kind.startswith(_CLIENT_TOOLS)
