"""Cohere's v2 chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_budget_mw._sse import EventSplitter
from llm_budget_mw.dialects import _fields, _surcharges
from llm_budget_mw.dialects._cohere import CohereInterpreter, read_usage
from llm_budget_mw.dialects._envelope import SPENT
from llm_budget_mw.dialects._json import dump, is_array, is_object, look_at, read_object, table
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
from llm_budget_mw.dialects.tails.cohere import CohereTail
from llm_budget_mw.types import ModelCall, Prompt, Usage

_BOUND = "max_tokens"
_PAYMENT_REQUIRED = 402
_TOO_MANY = 429
_PRIMING_TOKENS = 8
_MESSAGE_TOKENS = 4
_PART_TOKENS = 2
_TOOL_TOKENS = 16
_DOCUMENT_TOKENS = 16

_SETTINGS = frozenset(
    {
        _BOUND, "citation_options", "frequency_penalty", "k", "logprobs", "messages", "model",
        "p", "presence_penalty", "priority", "safety_mode", "seed", "stop_sequences", "stream",
        "strict_tools", "temperature", "thinking", "tool_choice",
    }
)  # fmt: skip
"""Fields no model reads. The JSON of any other counts as input: tools and documents."""
_PLAIN_MEMBERS = frozenset({"role", "content"})


class Cohere:
    """`POST .../v2/chat`. The bound covers thinking, which has a budget of its own inside it."""

    name = "cohere"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        _fields.refuse_capitals(fields)
        _fields.refuse(fields, "num_generations", "v2 generates one answer")
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=_read_prompt(fields),
            max_output=_fields.read_whole(fields, _BOUND, 1, _fields.MAX_OUTPUT),
            stream=_fields.read_flag(fields, "stream"),
            # Of v1: searches whose results the model reads.
            surcharges=frozenset({_surcharges.WEB_SEARCH} if fields.get("connectors") else ()),
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write model and bound; nothing else changes."""
        return Rewritten(dump({**call.body, "model": model, _BOUND: output}))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer."""
        return read_usage(look_at(body))

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it never changes a byte."""
        if not is_plain(headers):
            return PassThrough()
        return FramedReader(EventSplitter(), CohereInterpreter(), CohereTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as Cohere does: its SDK takes the exception from the status."""
        spent = problem.code == SPENT and problem.status == _TOO_MANY
        # The SDK tries 429 again; 402 is what Cohere answers where a billing limit is reached.
        status = _PAYMENT_REQUIRED if spent else None
        return ErrorAnswer(plain_error(problem, "message", "id"), status=status)


def _read_prompt(fields: dict[str, Any]) -> Prompt:
    prompt = PromptBuilder()
    prompt.overhead_tokens = _PRIMING_TOKENS
    for position, message in enumerate(_fields.read_messages(fields)):
        _read_message(message, prompt, position)
    prompt.overhead_tokens += _TOOL_TOKENS * len(_fields.read_objects(fields, "tools"))
    documents = fields.get("documents")
    if documents is not None and not is_array(documents):
        raise _fields.wrong("documents", "an array", documents)
    prompt.overhead_tokens += _DOCUMENT_TOKENS * len(documents or ())
    for name, value in fields.items():
        if name not in _SETTINGS:
            prompt.add_json(value)
    return prompt.build()


def _read_message(message: dict[str, Any], prompt: PromptBuilder, position: int) -> None:
    prompt.overhead_tokens += _MESSAGE_TOKENS
    content = message.get("content")
    if is_array(content):
        for part in content:
            _read_part(table(part), prompt)
    elif is_object(content):
        _read_part(content, prompt)
    elif content is None or isinstance(content, str):
        prompt.add_text(content)
    else:
        raise _fields.wrong(f"messages[{position}].content", "a string or an array", content)
    prompt.add_json({key: value for key, value in message.items() if key not in _PLAIN_MEMBERS})


def _read_part(part: dict[str, Any], prompt: PromptBuilder) -> None:
    prompt.overhead_tokens += _PART_TOKENS
    kind = part.get("type")
    if kind == "image_url":
        image = table(part.get("image_url")) or {"url": part.get("image_url")}
        prompt.add_media("image", image.get("url"), image.get("detail"))
    elif kind in ("text", "thinking"):
        prompt.add_text(part.get(kind))
    else:
        prompt.add_part(part)
