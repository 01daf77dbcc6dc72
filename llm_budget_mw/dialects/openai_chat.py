"""OpenAI Chat Completions, and the many servers that speak it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llm_budget_mw._sse import EventSplitter
from llm_budget_mw.dialects import _fields, _surcharges
from llm_budget_mw.dialects._envelope import SPENT, envelope
from llm_budget_mw.dialects._json import dump, is_array, items, look_at, read_object, table
from llm_budget_mw.dialects._openai import ChatInterpreter, read_usage
from llm_budget_mw.dialects._prompt import PromptBuilder
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.openai import ChatTail
from llm_budget_mw.types import ModelCall, Prompt, Usage

BoundField = Literal["max_completion_tokens", "max_tokens"]

_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "maxOutputTokens")
"""Every name under which some server of this format may take an output bound."""

_PRIMING_TOKENS = 3
_MESSAGE_TOKENS = 4
_NAME_TOKENS = 1
_PART_TOKENS = 2
_TOOL_TOKENS = 12
_SCHEMA_TOKENS = 64
"""Largest shortfall recorded of the JSON of tools and response format, 62, over 138 requests."""

_PLAIN_MEMBERS = frozenset({"role", "content", "name"})
_ROLES = ("user", "assistant", "tool", "system", "developer", "function")
"""Roles that are a single token."""

_SETTINGS = frozenset(
    {
        *_BOUNDS, "audio", "best_of", "frequency_penalty", "logit_bias", "logprobs", "messages",
        "metadata", "modalities", "model", "n", "parallel_tool_calls", "presence_penalty",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
        "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options",
        "temperature", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Fields no model reads. The JSON of any other counts as input: some server may render it."""

_SEARCHES = ("web_search_options", "search_parameters", "plugins")
_CLIENT_TOOLS = ("function", "custom")

_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error"}
_TOO_MANY = 429
_SERVER_ERROR = 500


class OpenAIChat:
    """`POST .../chat/completions`.

    `bound_field` is what this upstream understands. OpenAI takes `max_completion_tokens`,
    and `max_tokens` where the caller used it; servers that ignore the former need
    `max_tokens` whatever the caller used.
    """

    streams_json = False

    def __init__(
        self, *, name: str = "openai_chat", bound_field: BoundField = "max_completion_tokens"
    ) -> None:
        self.name = name
        self._bound_field = bound_field

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        _fields.refuse(fields, "models", "name one model, a list of fallbacks is not guarded")
        stream = _fields.read_flag(fields, "stream")
        options = fields.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise _fields.wrong("stream_options", "an object", options)
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=_read_prompt(fields),
            max_output=_read_bound(fields),
            samplings=_read_samplings(fields),
            stream=stream,
            surcharges=_read_surcharges(fields),
            service_tier=_fields.read_label(fields, "service_tier"),
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write model and bound, and ask for usage in a stream; nothing else changes."""
        sent = {name for name in _BOUNDS if call.body.get(name) is not None}
        bound = "max_tokens" if sent == {"max_tokens"} else self._bound_field
        # OpenAI refuses two bounds; one that stays could be the one a server obeys.
        body = {
            name: value for name, value in call.body.items() if name == bound or name not in _BOUNDS
        }
        body["model"] = model
        body[bound] = output
        if call.stream:
            body["stream_options"] = {**table(body.get("stream_options")), "include_usage": True}
        return Rewritten(dump(body))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer."""
        return read_usage(look_at(body))

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it takes out the usage chunk if only `write_grant` asked for it."""
        if not is_plain(headers):
            return PassThrough()
        asked = table(call.body.get("stream_options")).get("include_usage") is True
        interpreter = ChatInterpreter(withhold_usage=not asked)
        return FramedReader(EventSplitter(), interpreter, ChatTail, rewrites=not asked)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as OpenAI does; `code` is the problem's."""
        return envelope(problem, _error_type(problem), "x-request-id")


def _read_bound(fields: dict[str, Any]) -> int | None:
    bounds = [_fields.read_whole(fields, name, 1, _fields.MAX_OUTPUT) for name in _BOUNDS]
    return max([bound for bound in bounds if bound is not None], default=None)


def _read_samplings(fields: dict[str, Any]) -> int:
    # Some servers sample `best_of` answers to return `n` of them.
    counts = [
        _fields.read_whole(fields, name, 1, _fields.MAX_SAMPLINGS) for name in ("n", "best_of")
    ]
    return max([number for number in counts if number is not None], default=1)


def _read_prompt(fields: dict[str, Any]) -> Prompt:
    prompt = PromptBuilder()
    prompt.overhead_tokens = _PRIMING_TOKENS
    for position, message in enumerate(_fields.read_messages(fields)):
        _read_message(message, prompt, position)
    tools = _fields.read_objects(fields, "tools") + _fields.read_objects(fields, "functions")
    if tools or fields.get("response_format") is not None:
        prompt.overhead_tokens += _SCHEMA_TOKENS + _TOOL_TOKENS * len(tools)
    for name, value in fields.items():
        if name not in _SETTINGS:
            prompt.add_json(value)
    return prompt.build()


def _read_message(message: dict[str, Any], prompt: PromptBuilder, position: int) -> None:
    prompt.overhead_tokens += _MESSAGE_TOKENS
    if message.get("role") not in _ROLES:
        prompt.add_text(message.get("role"))
    if message.get("name") is not None:
        prompt.overhead_tokens += _NAME_TOKENS
        prompt.add_text(message["name"])
    content = message.get("content")
    if is_array(content):
        for part in content:
            _read_part(part, prompt)
    elif content is None or isinstance(content, str):
        prompt.add_text(content)
    else:
        raise _fields.wrong(f"messages[{position}].content", "a string or an array", content)
    prompt.add_json({key: value for key, value in message.items() if key not in _PLAIN_MEMBERS})


def _read_part(part: Any, prompt: PromptBuilder) -> None:
    prompt.overhead_tokens += _PART_TOKENS
    part = {"type": "text", "text": part} if isinstance(part, str) else table(part)
    kind = part.get("type")
    inner = part.get(kind) if isinstance(kind, str) else None
    if kind in ("text", "refusal"):
        prompt.add_text(inner)
    elif kind == "image_url":
        image = table(inner) or {"url": inner}
        prompt.add_media("image", image.get("url"), image.get("detail"))
    elif kind == "input_audio":
        prompt.add_base64("audio", table(inner).get("data"))
    elif kind == "file":
        prompt.add_text(table(inner).get("filename"))
        prompt.add_base64("file", table(inner).get("file_data"))
    else:
        prompt.add_part(part)


def _read_surcharges(fields: dict[str, Any]) -> frozenset[str]:
    found = {_surcharges.WEB_SEARCH for name in _SEARCHES if fields.get(name) not in (None, [])}
    for tool in items(fields.get("tools")):
        kind = tool.get("type")
        if isinstance(kind, str) and kind not in _CLIENT_TOOLS:
            found.add(_surcharges.of_tool(kind))
    return frozenset(found)


def _error_type(problem: Problem) -> str:
    if problem.code == SPENT:
        return "insufficient_quota"
    if problem.status == _TOO_MANY:
        return "rate_limit_exceeded"
    if problem.status >= _SERVER_ERROR:
        return "server_error"
    return _TYPES.get(problem.status, "invalid_request_error")
