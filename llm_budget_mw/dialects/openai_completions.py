"""OpenAI's legacy Completions, which vLLM, llama.cpp and others speak too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_budget_mw._sse import EventSplitter
from llm_budget_mw.dialects import _fields
from llm_budget_mw.dialects._json import read_object, table
from llm_budget_mw.dialects._openai import ChatInterpreter
from llm_budget_mw.dialects._prompt import PromptBuilder
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects._texts import read_texts
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.protocol import RequestHead, StreamReader
from llm_budget_mw.dialects.tails.openai import CompletionTail
from llm_budget_mw.types import ModelCall

_BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
_DEFAULT_OUTPUT = 16
"""Where a request says nothing, generation stops after so many tokens."""

_TEXT_TOKENS = 2
"""Begin and end, where a tokenizer puts them around each prompt."""

_SETTINGS = frozenset(
    {
        *_BOUNDS, "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "model", "n",
        "presence_penalty", "prompt", "seed", "stop", "stream", "stream_options", "temperature",
        "top_p", "user",
    }
)  # fmt: skip
"""Fields no model reads. The JSON of any other, such as `suffix`, counts as input."""


class OpenAICompletions(OpenAIChat):
    """`POST .../completions`: as chat, but for the prompt and where a chunk has its text.

    The bound applies to each prompt of a list, and to each of `n` or `best_of` answers.
    """

    def __init__(self) -> None:
        super().__init__(name="openai_completions", bound_field="max_tokens")

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        _fields.refuse(fields, "models", "name one model, a list of fallbacks is not guarded")
        options = fields.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise _fields.wrong("stream_options", "an object", options)
        _fields.read_flag(fields, "echo")
        prompt = PromptBuilder()
        prompts = _read_prompts(fields, prompt)
        return ModelCall(
            model=_fields.read_label(fields, "model"),
            prompt=prompt.build(),
            max_output=_read_bound(fields),
            samplings=prompts * _read_answers(fields),
            stream=_fields.read_flag(fields, "stream"),
            service_tier=_fields.read_label(fields, "service_tier"),
            body=fields,
        )

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it takes out the usage chunk if only `write_grant` asked for it."""
        if not is_plain(headers):
            return PassThrough()
        asked = table(call.body.get("stream_options")).get("include_usage") is True
        interpreter = ChatInterpreter(withhold_usage=not asked)
        if call.body.get("echo"):
            # The prompt comes back as text that nobody generated.
            interpreter.transcript.skip()
        return FramedReader(EventSplitter(), interpreter, CompletionTail, rewrites=not asked)


def _read_prompts(fields: dict[str, Any], prompt: PromptBuilder) -> int:
    value = fields.get("prompt")
    # Without a prompt the model begins a new document.
    prompts = 1 if value is None else read_texts("prompt", value, prompt)
    prompt.overhead_tokens += _TEXT_TOKENS * prompts
    for name, setting in fields.items():
        if name not in _SETTINGS:
            prompt.add_json(setting)
    return prompts


def _read_bound(fields: dict[str, Any]) -> int:
    # Zero is valid: with `echo` it only rates the prompt.
    bounds = [_fields.read_whole(fields, name, 0, _fields.MAX_OUTPUT) for name in _BOUNDS]
    return max([bound for bound in bounds if bound is not None], default=_DEFAULT_OUTPUT)


def _read_answers(fields: dict[str, Any]) -> int:
    counts = [
        _fields.read_whole(fields, name, 1, _fields.MAX_SAMPLINGS) for name in ("n", "best_of")
    ]
    return max([number for number in counts if number is not None], default=1)
