"""Bedrock's InvokeModel and InvokeModelWithResponseStream: each family of models its own format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from llm_budget_mw.dialects import _fields
from llm_budget_mw.dialects._aws import Place, Target, aws_error, read_target, refuse_bounds
from llm_budget_mw.dialects._converse import Reading
from llm_budget_mw.dialects._eventstream import MessageSplitter
from llm_budget_mw.dialects._invoke import InvokeInterpreter, read_answer, read_tier
from llm_budget_mw.dialects._json import dump, items, read_object
from llm_budget_mw.dialects._prompt import PromptBuilder
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects._thinking import fit_thinking
from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.openai_completions import OpenAICompletions
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.invoke import InvokeTail
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

_METHODS = ("invoke", "invoke-with-response-stream")
_TEXT_TOKENS = 16
"""What a template may put around a bare prompt."""
_TEXT_SETTINGS = ("images", "max_gen_len", "temperature", "textGenerationConfig", "top_p")
"""Fields of Titan and Llama whose JSON no model reads."""

_NOVA_CONFIG = "inferenceConfig"

_VENDORS = re.compile(
    r"(?:^|[./])(?:(?P<claude>anthropic\.)|(?P<nova>amazon\.nova-(?!.*(?:canvas|reel|sonic|embed)))"
    r"|(?P<titan>amazon\.titan-t(?!.*embed))|(?P<llama>meta\.)|(?P<gpt>openai\.)"
    r"|(?P<other>(?:amazon|cohere|luma|stability|twelvelabs)\.))"
)
"""Vendors in a model's id that do not speak, or not always, like OpenAI's chat or completions."""

_CLAUDE = AnthropicMessages()
_CHAT = OpenAIChat()
_COMPLETIONS = OpenAICompletions()


class _Family(NamedTuple):
    """How one family of models takes a request."""

    read: Callable[[RequestHead, bytes, dict[str, Any]], ModelCall]
    bounds: tuple[Place, ...]
    """Where the output bound may stand; where the caller sets none it is written at the first."""
    multiples: frozenset[Place] = frozenset()
    """Fields that `read` takes as samplings."""


def _read_claude(head: RequestHead, body: bytes, fields: dict[str, Any]) -> ModelCall:
    return _CLAUDE.read_request(head, body)


def _read_chat(head: RequestHead, body: bytes, fields: dict[str, Any]) -> ModelCall:
    return _CHAT.read_request(head, body)


def _read_completions(head: RequestHead, body: bytes, fields: dict[str, Any]) -> ModelCall:
    return _COMPLETIONS.read_request(head, body)


def _read_nova(head: RequestHead, body: bytes, fields: dict[str, Any]) -> ModelCall:
    reading = Reading(fields)
    return ModelCall(None, reading.prompt.build(), None, surcharges=frozenset(reading.features))


def _read_titan(head: RequestHead, body: bytes, fields: dict[str, Any]) -> ModelCall:
    return _read_text(fields, "inputText")


def _read_llama(head: RequestHead, body: bytes, fields: dict[str, Any]) -> ModelCall:
    return _read_text(fields, "prompt")


def _read_text(fields: dict[str, Any], text: str) -> ModelCall:
    if not isinstance(fields.get(text), str):
        raise _fields.wrong(text, "a string", fields.get(text))
    prompt = PromptBuilder()
    prompt.overhead_tokens = _TEXT_TOKENS
    prompt.add_text(fields[text])
    for image in items(fields.get("images")):
        prompt.add_base64("image", image)
    for name, value in fields.items():
        if name != text and name not in _TEXT_SETTINGS:
            prompt.add_json(value)
    return ModelCall(None, prompt.build(), None)


_SAMPLINGS = frozenset[Place]({("n",), ("best_of",)})
_MAX_TOKENS = ("max_tokens",)
_MAX_COMPLETION = ("max_completion_tokens",)
_NOVA_BOUNDS = ((_NOVA_CONFIG, "maxTokens"), (_NOVA_CONFIG, "max_new_tokens"))

_FAMILIES = {
    "claude": _Family(_read_claude, (_MAX_TOKENS,)),
    "nova": _Family(_read_nova, _NOVA_BOUNDS),
    "titan": _Family(_read_titan, (("textGenerationConfig", "maxTokenCount"),)),
    "llama": _Family(_read_llama, (("max_gen_len",),)),
    "gpt": _Family(_read_chat, (_MAX_COMPLETION, _MAX_TOKENS), _SAMPLINGS),
    "chat": _Family(_read_chat, (_MAX_TOKENS, _MAX_COMPLETION), _SAMPLINGS),
    "completions": _Family(_read_completions, (_MAX_TOKENS, _MAX_COMPLETION), _SAMPLINGS),
}


class BedrockInvoke:
    """`POST .../model/{modelId}/invoke` and `/invoke-with-response-stream`.

    Guarded are Claude, Nova, Titan's and Llama's text models, and all that speak like
    OpenAI's chat or completions. An id tells the family, an ARN may leave it to the request.
    """

    name = "bedrock_invoke"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        target = read_target(head, *_METHODS)
        fields = read_object(body)
        family = _family(target, fields)
        refuse_bounds("", fields, frozenset(family.bounds) | family.multiples)
        bound = _read_bound(fields, family)
        call = family.read(head, body, fields)
        return replace(
            call,
            model=target.model,
            max_output=bound,
            stream=target.method == _METHODS[1],
            service_tier=read_tier(head.headers) or call.service_tier,
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write the bound where this family takes it, and another model into the path.

        The body stays in the format it has: a model of another family refuses it.
        """
        target = read_target(head, *_METHODS)
        body = dict(call.body)
        _write_bound(body, _family(target, body), output)
        path = target.to(model)
        if path is not None:
            # Not every model can, and one that cannot refuses the wish.
            body.pop("thinking", None)
        elif call.max_output is None or output < call.max_output:
            fit_thinking(body, output)
        if body.get("model") is not None:
            body["model"] = model
        return Rewritten(dump(body), path, target.raw(model) if path else None)

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer, from its body and its headers."""
        return read_answer(body, headers)

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it never changes a byte."""
        if not is_plain(headers):
            return PassThrough()
        return FramedReader(MessageSplitter(), InvokeInterpreter(read_tier(headers)), InvokeTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as AWS does."""
        return aws_error(problem)


def _family(target: Target, fields: dict[str, Any]) -> _Family:
    """Return the family of the model, told from its id before it is told from the request.

    Raises `RequestError` if it is none of those known.
    """
    match = _VENDORS.search(target.model)
    if match:
        name = match.lastgroup
    elif "." in target.model.rpartition("/")[2]:
        name = "chat" if "messages" in fields else "completions"
    else:
        # An ARN without a vendor: a profile, or a model of one's own.
        name = _told_from(fields)
    if name not in _FAMILIES:
        raise RequestError(
            f"{target.model} is not guarded by InvokeModel here: "
            "use Converse, or a text model of Claude, Nova, Titan, Llama or OpenAI's format."
        )
    return _FAMILIES[name]


def _told_from(fields: dict[str, Any]) -> str:
    if "anthropic_version" in fields:
        return "claude"
    if "inputText" in fields:
        return "titan"
    if "messages" in fields:
        return "nova" if _NOVA_CONFIG in fields or "schemaVersion" in fields else "chat"
    if "prompt" in fields:
        return "llama" if "max_gen_len" in fields else "completions"
    return ""


def _read_bound(fields: dict[str, Any], family: _Family) -> int | None:
    found = [_read_at(fields, place) for place in family.bounds]
    return max([bound for bound in found if bound is not None], default=None)


def _read_at(fields: dict[str, Any], place: Place) -> int | None:
    holder = fields
    for name in place[:-1]:
        holder = _fields.read_table(holder, name)
    # Claude takes zero: it only fills the cache.
    return _fields.read_whole(holder, place[-1], 0, _fields.MAX_OUTPUT)


def _write_bound(body: dict[str, Any], family: _Family, output: int) -> None:
    """Write the bound where the caller has it, and nowhere else."""
    used = [place for place in family.bounds if _read_at(body, place) is not None]
    chosen = (used or family.bounds)[0]
    for place in family.bounds:
        holder = body
        for name in place[:-1]:
            inner = dict(_fields.read_table(holder, name))
            holder[name] = inner
            holder = inner
        holder.pop(place[-1], None)
        if place == chosen:
            holder[place[-1]] = output
