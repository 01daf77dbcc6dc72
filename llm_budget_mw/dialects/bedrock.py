"""Bedrock's Converse and ConverseStream: one format for all of its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from llm_budget_mw.dialects import _fields
from llm_budget_mw.dialects._aws import Target, aws_error, read_target, refuse_bounds
from llm_budget_mw.dialects._bedrock import ConverseInterpreter, read_tier, read_usage
from llm_budget_mw.dialects._converse import Reading
from llm_budget_mw.dialects._eventstream import MessageSplitter
from llm_budget_mw.dialects._json import dump, look_at, read_object
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects._thinking import fit_thinking
from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.bedrock import ConverseTail
from llm_budget_mw.types import ModelCall, Usage

_METHODS = ("converse", "converse-stream")
_CONFIG = "inferenceConfig"
_BOUND = "maxTokens"
_EXTRA = "additionalModelRequestFields"
_OUTPUT = "outputConfig"
_OF_THE_MODEL = (_EXTRA, "performanceConfig")
"""Fields that one model takes and another one refuses."""

_THINKING = ("thinking", "reasoning_config")
"""Names, among the additional fields, of Claude's thinking."""
_MODEL_ID = "modelId"
"""Where AWS's SDKs take the model, which they put into the path."""

_CLAUDE = AnthropicMessages()
_RUN_BY_CLAUDE = ("tools", "mcp_servers", "container", "context_management")
"""Additional fields that may let the provider work by itself, in the words of Claude."""


class Bedrock:
    """`POST .../model/{modelId}/converse` and `/converse-stream`.

    The model stands in the path, as an id or an ARN, percent-encoded or not.
    """

    name = "bedrock"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        fields = read_object(body)
        target = _target(head, fields)
        config = _fields.read_table(fields, _CONFIG)
        extra = _fields.read_table(fields, _EXTRA)
        refuse_bounds(_CONFIG, config, frozenset({(_BOUND,)}))
        refuse_bounds(_EXTRA, extra, frozenset())
        for name in ("performanceConfig", "serviceTier", _OUTPUT):
            _fields.read_table(fields, name)
        _fields.read_label(_fields.read_table(fields, "serviceTier"), "type")
        reading = Reading(fields)
        return ModelCall(
            model=target.model,
            prompt=reading.prompt.build(),
            max_output=_fields.read_whole(config, _BOUND, 1, _fields.MAX_OUTPUT),
            stream=target.method == "converse-stream",
            surcharges=frozenset(reading.features) | _read_extra(head, extra),
            service_tier=read_tier(fields),
            body=fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write the bound, thinking that still fits, and another model into the path."""
        body = {**call.body, _CONFIG: {**_fields.read_table(call.body, _CONFIG), _BOUND: output}}
        target = _target(head, body)
        path = target.to(model)
        if not head.path:
            body[_MODEL_ID] = model
        if path is not None:
            _forget_model(body)
        elif body.get(_EXTRA) and (call.max_output is None or output < call.max_output):
            body[_EXTRA] = dict(body[_EXTRA])
            for name in _THINKING:
                fit_thinking(body[_EXTRA], output, name)
        return Rewritten(dump(body), path, target.raw(model) if path else None)

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer."""
        return read_usage(look_at(body))

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader; it never changes a byte."""
        if not is_plain(headers):
            return PassThrough()
        return FramedReader(MessageSplitter(), ConverseInterpreter(), ConverseTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as AWS does."""
        return aws_error(problem)


def _target(head: RequestHead, fields: dict[str, Any]) -> Target:
    """Read the model from the path, or from the arguments of an SDK where there is no path."""
    model = None if head.path else _fields.read_label(fields, _MODEL_ID)
    if model is not None:
        head = head._replace(path=f"/model/{quote(model, safe='')}/{_METHODS[0]}")
    return read_target(head, *_METHODS)


def _read_extra(head: RequestHead, extra: dict[str, Any]) -> frozenset[str]:
    """Return the features that fields in Claude's own format ask for."""
    sent = {name: extra[name] for name in _RUN_BY_CLAUDE if extra.get(name) is not None}
    if not sent:
        return frozenset()
    request: dict[str, Any] = {**sent, "max_tokens": 1, "messages": [{}]}
    return _CLAUDE.read_request(head, dump(request)).surcharges


def _forget_model(body: dict[str, Any]) -> None:
    """Take out what was meant for the model asked for: another one may refuse it."""
    for name in _OF_THE_MODEL:
        body.pop(name, None)
    output = dict(_fields.read_table(body, _OUTPUT))
    if output.pop("effort", None) is not None:
        body[_OUTPUT] = output
