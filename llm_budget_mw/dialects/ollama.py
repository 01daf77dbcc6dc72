"""Ollama's own chat and generate, on a machine of one's own or in its cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_budget_mw.dialects import _fields
from llm_budget_mw.dialects._json import dump, is_array, items, look_at, read_object
from llm_budget_mw.dialects._ndjson import LineSplitter
from llm_budget_mw.dialects._ollama import OllamaInterpreter, read_usage
from llm_budget_mw.dialects._plain_error import plain_error
from llm_budget_mw.dialects._prompt import PromptBuilder
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.ollama import OllamaTail
from llm_budget_mw.types import ModelCall, Prompt, Usage

_OPTIONS = "options"
_BOUND = "num_predict"
_BOUNDLESS = -2
"""Fill the context. -1 never ends, and 0 is taken for it."""

_PRIMING_TOKENS = 8
_MESSAGE_TOKENS = 8
_TOOL_TOKENS = 16
_TOOLS_TOKENS = 128
"""What a template says about tools before it lists them."""

_TEXTS = ("prompt", "suffix", "system", "template")
_SETTINGS = frozenset(
    {
        *_TEXTS, _OPTIONS, "context", "images", "keep_alive", "logprobs", "messages", "model",
        "raw", "shift", "stream", "think", "top_logprobs", "truncate",
    }
)  # fmt: skip
"""Fields no model reads as they stand. The JSON of any other counts as input."""
_PLAIN_MEMBERS = frozenset({"role", "content", "images"})


class Ollama:
    """`POST .../api/chat` and `.../api/generate`; both stream unless told not to."""

    name = "ollama"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        _fields.refuse_capitals(fields)
        options = _fields.read_table(fields, _OPTIONS)
        bound = _fields.read_whole(options, _BOUND, _BOUNDLESS, _fields.MAX_OUTPUT)
        streams = fields.get("stream") is None or _fields.read_flag(fields, "stream")
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=_read_prompt(fields),
            max_output=bound if bound is not None and bound > 0 else None,
            stream=streams,
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write model and bound; nothing else changes."""
        options = {**_fields.read_table(call.body, _OPTIONS), _BOUND: output}
        return Rewritten(dump({**call.body, "model": model, _OPTIONS: options}))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer, or of the last line of one that was streamed."""
        answer = look_at(body) or look_at(body.rstrip().rpartition(b"\n")[2])
        return read_usage(answer)

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it never changes a byte."""
        if not is_plain(headers):
            return PassThrough()
        return FramedReader(LineSplitter(), OllamaInterpreter(), OllamaTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as Ollama does."""
        return ErrorAnswer(plain_error(problem, "error", "request_id"))


def _read_prompt(fields: dict[str, Any]) -> Prompt:
    prompt = PromptBuilder()
    prompt.overhead_tokens = _PRIMING_TOKENS
    for name in _TEXTS:
        _read_text(fields, name, prompt)
    # Earlier turns, already tokenised.
    prompt.overhead_tokens += len(_read_array(fields, "context"))
    _read_images(fields, prompt)
    # There may be none: such a request loads a model.
    for message in _fields.read_objects(fields, "messages"):
        _read_message(message, prompt)
    tools = _read_array(fields, "tools")
    if tools:
        prompt.overhead_tokens += _TOOLS_TOKENS + _TOOL_TOKENS * len(tools)
    for name, value in fields.items():
        if name not in _SETTINGS:
            prompt.add_json(value)
    return prompt.build()


def _read_message(message: dict[str, Any], prompt: PromptBuilder) -> None:
    prompt.overhead_tokens += _MESSAGE_TOKENS
    _read_text(message, "content", prompt)
    _read_images(message, prompt)
    prompt.add_json({key: value for key, value in message.items() if key not in _PLAIN_MEMBERS})


def _read_text(holder: dict[str, Any], name: str, prompt: PromptBuilder) -> None:
    text = holder.get(name)
    if text is not None and not isinstance(text, str):
        raise _fields.wrong(name, "a string", text)
    prompt.add_text(text)


def _read_images(holder: dict[str, Any], prompt: PromptBuilder) -> None:
    for image in _read_array(holder, "images"):
        prompt.add_base64("image", image)


def _read_array(holder: dict[str, Any], name: str) -> list[Any]:
    value = holder.get(name)
    if value is not None and not is_array(value):
        raise _fields.wrong(name, "an array", value)
    return items(value)
