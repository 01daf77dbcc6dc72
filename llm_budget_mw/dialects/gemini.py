"""Gemini's generateContent and streamGenerateContent, also where Vertex AI serves them.

The model stands in the path. Google takes every field under two names, `maxOutputTokens`
and `max_output_tokens`, and one object where an array is meant; so do we.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llm_budget_mw._sse import EventSplitter, read_data
from llm_budget_mw.dialects import _fields, _surcharges
from llm_budget_mw.dialects._gemini import GeminiInterpreter, camel, element_data, read_usage
from llm_budget_mw.dialects._google_error import google_error
from llm_budget_mw.dialects._json import dump, is_object, label, read_object, table
from llm_budget_mw.dialects._json_array import ArraySplitter
from llm_budget_mw.dialects._prompt import MediaKind, PromptBuilder
from llm_budget_mw.dialects._stream import FramedReader, PassThrough, is_plain
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.dialects.tails.gemini import ArrayTail, EventTail
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

_PATH = re.compile(
    r"(?P<base>.*/)(?P<collection>models|tunedModels)/(?P<model>[A-Za-z0-9_.@-]{1,200})"
    r":(?P<method>generateContent|streamGenerateContent)"
)
_CONTENT_TOKENS = 4
_SCHEMA_TOKENS = 64
_TOOL_TOKENS = 16
_BUILT_IN_TOOL_TOKENS = 800
"""A tool whose schema the provider knows and the caller runs."""

_LEAST_THINKING = 512
"""The largest of the models' smallest thinking budgets: 128 for Pro, 512 for Flash-Lite."""

_SETTINGS = frozenset(
    {
        "cachedContent", "contents", "generationConfig", "labels", "model", "safetySettings",
        "serviceTier", "store", "systemInstruction", "toolConfig", "tools",
    }
)  # fmt: skip
_GENERATION_SETTINGS = frozenset(
    {
        "audioTimestamp", "candidateCount", "enableAffectiveDialog", "enableEnhancedCivicAnswers",
        "frequencyPenalty", "imageConfig", "logprobs", "maxOutputTokens", "mediaResolution",
        "presencePenalty", "responseLogprobs", "responseMimeType", "responseModalities",
        "routingConfig", "seed", "speechConfig", "stopSequences", "temperature", "thinkingConfig",
        "topK", "topP",
    }
)  # fmt: skip
"""Fields no model reads as they stand. The JSON of any other counts as input."""

_TOOLS = {
    "googleSearch": _surcharges.WEB_SEARCH,
    "googleSearchRetrieval": _surcharges.WEB_SEARCH,
    "enterpriseWebSearch": _surcharges.WEB_SEARCH,
    "urlContext": _surcharges.WEB_FETCH,
    "fileSearch": _surcharges.FILE_SEARCH,
    "retrieval": _surcharges.FILE_SEARCH,
    "codeExecution": _surcharges.CODE_EXECUTION,
    "mcpServers": _surcharges.MCP,
}
_MEDIA: Mapping[str, MediaKind] = {"image": "image", "audio": "audio"}
_URL_SAFE = str.maketrans("-_", "+/")


class Gemini:
    """`POST .../models/{model}:generateContent` and `:streamGenerateContent`.

    With `alt=sse` a stream is server-sent events, without it one JSON array.
    """

    name = "gemini"
    streams_json = True

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; raises `RequestError` naming the field that is wrong."""
        target = _target(head)
        body_fields = read_object(body)
        fields = _named("The request", body_fields)
        config = _config(fields)
        reading = _Reading(fields, config)
        tuned = target["collection"] == "tunedModels"
        return ModelCall(
            # A tuned model may have the name, but not the price, of one of Google's.
            model=f"tunedModels/{target['model']}" if tuned else target["model"],
            prompt=reading.prompt.build(),
            max_output=_fields.read_whole(config, "maxOutputTokens", 1, _fields.MAX_OUTPUT),
            samplings=_fields.read_whole(config, "candidateCount", 1, _fields.MAX_SAMPLINGS) or 1,
            stream=target["method"] == "streamGenerateContent",
            surcharges=frozenset(reading.features),
            service_tier=_fields.read_label(fields, "serviceTier"),
            body=body_fields,
        )

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Write the bound, thinking that still fits, and another model into the path."""
        fields = _named("The request", call.body)
        config = {**_config(fields), "maxOutputTokens": output}
        target = _target(head)
        collection, _, name = model.rpartition("/")
        collection = "tunedModels" if collection.endswith("tunedModels") else "models"
        same = (collection, name) == (target["collection"], target["model"])
        if not same:
            # Which budgets and levels are valid, and whether any is, depends on the model.
            config.pop("thinkingConfig", None)
        elif call.max_output is None or output < call.max_output:
            _fit_thinking(config, output)
        # The path decides; a model in the body could only contradict it.
        kept = {key: value for key, value in call.body.items() if camel(key) not in _REWRITTEN}
        path = f"{target['base']}{collection}/{name}:{target['method']}"
        return Rewritten(dump({**kept, "generationConfig": config}), None if same else path)

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer, or of a whole array that was streamed."""
        return read_usage(body)

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader for events, or for an array if the answer is JSON; it changes nothing."""
        if not is_plain(headers):
            return PassThrough()
        if "json" in headers.get("content-type", "").lower():
            return FramedReader(ArraySplitter(), GeminiInterpreter(element_data), ArrayTail)
        return FramedReader(EventSplitter(), GeminiInterpreter(read_data), EventTail)

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as Google does."""
        return google_error(problem)


_REWRITTEN = frozenset({"generationConfig", "model"})


def _target(head: RequestHead) -> re.Match[str]:
    target = _PATH.fullmatch(head.path)
    if target is None:
        raise RequestError(
            "The path must end in /models/{model}:generateContent or :streamGenerateContent.",
            status=404,
            code="unknown_route",
        )
    return target


def _named(place: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields by their `camelCase` names; raises `RequestError` if one comes twice."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if camel(name) in found:
            raise RequestError(f"{place} has {camel(name)} twice, under two of its names.")
        found[camel(name)] = value
    return found


def _named_object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not is_object(value):
        raise _fields.wrong(name, "an object", value)
    return _named(name, value)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return _named_object(fields, "generationConfig")


def _many(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Read an array of objects, or the one object that stands for it."""
    value = fields.get(name)
    found = [value] if is_object(value) else _fields.read_objects(fields, name)
    return [_named(name, item) for item in found]


def _fit_thinking(config: dict[str, Any], output: int) -> None:
    """Lower a thinking budget below a lowered bound, or leave it to the model."""
    thinking = _named_object(config, "thinkingConfig")
    budget = thinking.get("thinkingBudget")
    if not isinstance(budget, int) or budget < output:
        return
    if output > _LEAST_THINKING:
        thinking["thinkingBudget"] = output - 1
    else:
        del thinking["thinkingBudget"]
    config["thinkingConfig"] = thinking


class _Reading:
    """One request, on the way from fields to prompt and features."""

    def __init__(self, fields: dict[str, Any], config: dict[str, Any]) -> None:
        self.prompt = PromptBuilder()
        self.features: set[str] = set()
        self._resolution = label(config.get("mediaResolution"))
        contents = _many(fields, "contents")
        if not contents:
            raise RequestError("contents must be an array with at least one content.")
        for content in [*contents, *_many(fields, "systemInstruction")]:
            self.prompt.overhead_tokens += _CONTENT_TOKENS
            for part in _many(content, "parts"):
                self._read_part(part)
        self._read_tools(fields)
        if fields.get("cachedContent") is not None:
            self.features.add(_surcharges.CACHED_CONTENT)
        _named_object(config, "thinkingConfig")
        for holder, known in ((fields, _SETTINGS), (config, _GENERATION_SETTINGS)):
            for name, value in holder.items():
                if name not in known:
                    self.prompt.add_json(value)

    def _read_part(self, part: dict[str, Any]) -> None:
        self.prompt.add_text(part.pop("text", None))
        self.prompt.add_sealed(part.pop("thoughtSignature", None))
        level = part.pop("mediaResolution", None)
        detail = label(table(level).get("level")) or label(level) or self._resolution or ""
        for field in ("inlineData", "fileData"):
            blob = _named_object(part, field)
            if blob:
                self._read_blob(blob, detail)
            part.pop(field, None)
        response = _named_object(part, "functionResponse")
        for media in _many(response, "parts"):
            self._read_part(media)
        if response:
            part["functionResponse"] = {k: v for k, v in response.items() if k != "parts"}
        self.prompt.add_part(part)

    def _read_blob(self, blob: dict[str, Any], detail: str) -> None:
        mime = blob.get("mimeType")
        family = mime.partition("/")[0].lower() if isinstance(mime, str) else ""
        remote = blob.get("fileUri") is not None
        # A link without a type may well lead to a film.
        if family == "video" or (remote and not family):
            self.features.add(_surcharges.VIDEO)
        data = blob.get("data")
        if isinstance(data, str) and ("-" in data or "_" in data):
            data = data.translate(_URL_SAFE)
        self.prompt.add_base64(_MEDIA.get(family, "file"), data)
        self.prompt.media[-1] = replace(self.prompt.media[-1], detail=detail)

    def _read_tools(self, fields: dict[str, Any]) -> None:
        tools = _many(fields, "tools")
        if tools:
            self.prompt.overhead_tokens += _SCHEMA_TOKENS
            self.prompt.add_json(tools)
        for tool in tools:
            for name in [name for name, value in tool.items() if value is not None]:
                self._read_tool(name, tool)

    def _read_tool(self, name: str, tool: dict[str, Any]) -> None:
        if name == "functionDeclarations":
            self.prompt.overhead_tokens += _TOOL_TOKENS * len(_many(tool, name))
        elif name == "computerUse":
            self.prompt.overhead_tokens += _BUILT_IN_TOOL_TOKENS
        else:
            self.features.add(_TOOLS.get(name, _surcharges.SERVER_TOOL))
