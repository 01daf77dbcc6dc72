"""OpenAI's Embeddings, and Voyage, Mistral and others that speak them: input and no output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llm_budget_mw.dialects import _fields
from llm_budget_mw.dialects._json import dump, first_count, label, look_at, read_object, table
from llm_budget_mw.dialects._openai import read_usage as read_chat_usage
from llm_budget_mw.dialects._prompt import PromptBuilder
from llm_budget_mw.dialects._stream import PassThrough
from llm_budget_mw.dialects._texts import read_texts
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

_TEXT_TOKENS = 2
"""Begin and end, where a tokenizer puts them around each text."""
_INSTRUCTION_TOKENS = 16
"""What `input_type` makes Voyage put before each text."""

_SETTINGS = frozenset(
    {
        "dimensions", "encoding_format", "input", "input_type", "model", "output_dimension",
        "output_dtype", "truncation", "user",
    }
)  # fmt: skip
"""Fields no model reads. The JSON of any other counts as input."""


class OpenAIEmbeddings:
    """`POST .../embeddings`."""

    name = "openai_embeddings"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        if fields.get("input") is None:
            raise RequestError("input is required: the text to embed.")
        prompt = PromptBuilder()
        texts = read_texts("input", fields["input"], prompt)
        instructed = fields.get("input_type") is not None
        prompt.overhead_tokens += texts * (
            _TEXT_TOKENS + (_INSTRUCTION_TOKENS if instructed else 0)
        )
        for name, value in fields.items():
            if name not in _SETTINGS:
                prompt.add_json(value)
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=prompt.build(),
            max_output=0,
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write the model; there is no output to bound."""
        return Rewritten(dump({**call.body, "model": model}))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer: all there is of it is input."""
        answer = look_at(body)
        report = table(answer.get("usage"))
        if first_count(report, "completion_tokens"):
            return read_chat_usage(answer)
        # Voyage reports the total alone.
        counts = (first_count(report, "prompt_tokens"), first_count(report, "total_tokens"))
        known = [number for number in counts if number is not None]
        usage = Usage(output_tokens=0, model=label(answer.get("model")))
        return replace(usage, input_tokens=max(known)) if known else None

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader that only passes on: embeddings are not streamed."""
        return PassThrough()

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as OpenAI does."""
        return OpenAIChat().error(problem)
