"""What OpenAI's Responses report while and after they answer.

Usage is final: it stands in the last event, and is null while a response is queued or runs
in the background.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from llm_budget_mw._sse import read_data
from llm_budget_mw.dialects import _openai
from llm_budget_mw.dialects._json import first_count, items, label, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

# An event whose type comes first and whose delta is text and nothing else. Quotes and line
# ends inside JSON strings are escaped, so neither pattern can match inside of one.
_TEXT_EVENT = re.compile(
    rb'(?:event: [a-z_.]+\n)?data: \{"type":"response\.(?:output_text|refusal'
    rb'|function_call_arguments|reasoning_text|reasoning_summary_text)\.delta",'
).match
_TEXT = re.compile(rb'"delta":"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"').match
_DELTA = b'"delta"'

_NAMES = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "input_tokens_details": "prompt_tokens_details",
    "output_tokens_details": "completion_tokens_details",
}
"""What Chat Completions call the same numbers."""

_EXCLUSIVE = frozenset({"cache_read_input_tokens", "cache_creation_input_tokens"})
"""Fields of Anthropic, whose counts have these names too and mean something else."""

_PENDING = ("queued", "in_progress")
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
_PLAIN_ITEMS = ("message", "function_call", "custom_tool_call", "function_call_output")
"""Items whose generated text is all in the stream; of others some of it is hidden."""
_NOTHING_GENERATED = frozenset({"error", "ping", "keepalive"})

_IMAGE_MODEL = "gpt-image-2.6-sunburst"
"""The default of the tool, as of November 2026."""


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Read the usage of a response or a compaction; None if it reports none yet.

    Tools bill beside it: images at the price of their own model.
    """
    if answer.get("object") == "response.input_tokens":
        # Counting tokens is free.
        return Usage(0, 0)
    report = table(answer.get("usage"))
    if answer.get("status") in _PENDING or not _EXCLUSIVE.isdisjoint(report):
        return None
    renamed = {_NAMES[name]: value for name, value in report.items() if name in _NAMES}
    usage = _openai.read_usage({**answer, "usage": {**report, **renamed}})
    if usage is None:
        return None
    details = table(report.get("input_tokens_details"))
    long_lived = first_count(table(details.get("cache_write_tokens_details")), "ttl_12h_tokens")
    return replace(
        usage,
        cache_write_tokens=max(usage.cache_write_tokens, long_lived or 0),
        cache_write_1h_tokens=long_lived or 0,
        web_searches=_searches(answer),
        extra=(*_images(answer), *_drawings(answer)),
    )


def _searches(answer: dict[str, Any]) -> int:
    billed = first_count(table(table(answer.get("tool_usage")).get("web_search")), "num_requests")
    if billed is not None:
        return billed
    calls = [table(item) for item in items(answer.get("output"))]
    # Opening a page or looking through it costs nothing apart.
    return sum(
        call.get("type") == "web_search_call"
        and table(call.get("action")).get("type") in (None, "search")
        for call in calls
    )


def _images(answer: dict[str, Any]) -> list[Usage]:
    report = table(table(answer.get("tool_usage")).get("image_gen"))
    tools = [table(tool) for tool in items(answer.get("tools"))]
    models = [label(tool.get("model")) for tool in tools if tool.get("type") == "image_generation"]
    usage = Usage(
        first_count(report, "input_tokens"),
        first_count(report, "output_tokens"),
        cache_read_tokens=first_count(report, "cached_tokens") or 0,
        model=next(filter(None, models), _IMAGE_MODEL),
    )
    idle = (usage.input_tokens, usage.output_tokens) == (0, 0)
    return [] if idle or not report else [usage]


def _drawings(answer: dict[str, Any]) -> list[Usage]:
    """Return what the authors of vector images used, each at its own model's price."""
    reports = [table(table(item).get("svg_usage")) for item in items(answer.get("output"))]
    return [
        Usage(
            first_count(report, "input_tokens"),
            first_count(report, "output_tokens"),
            reasoning_tokens=first_count(report, "reasoning_tokens") or 0,
            model=label(report.get("model")),
        )
        for report in reports
        if report
    ]


class ResponseInterpreter:
    """Understands the events of one response."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.complete = False
        self.usage: Usage | None = None

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        at = event.find(_DELTA) if _TEXT_EVENT(event) else -1
        match = _TEXT(event, at) if at >= 0 else None
        if match and event.find(_DELTA, match.end()) < 0:
            self.transcript.add_raw(match[1])
            return True
        data = read_data(event)
        known = look_at(data)
        if known:
            self._read_whole(known)
        elif not data.startswith(b"[DONE]"):
            self.transcript.miss_event(event, data)
        return True

    def _read_whole(self, event: dict[str, Any]) -> None:
        kind = label(event.get("type")) or ""
        if kind.startswith("response."):
            self.transcript.understand()
        if kind in _LAST:
            self.complete = True
            self.usage = read_usage(table(event.get("response"))) or self.usage
        elif kind == "response.output_item.added":
            self._read_item(table(event.get("item")))
        elif kind.startswith("response."):
            if kind.endswith(".delta"):
                self._read_delta(kind, event.get("delta"))
        elif event and kind not in _NOTHING_GENERATED:
            # Not of this format: who knows what it generated.
            self.transcript.skip()

    def _read_delta(self, kind: str, delta: object) -> None:
        if kind == "response.audio.delta" or not isinstance(delta, str):
            self.transcript.skip()
        else:
            self.transcript.add(delta)

    def _read_item(self, item: dict[str, Any]) -> None:
        self.transcript.add(item.get("name"))
        if item.get("type") not in _PLAIN_ITEMS:
            self.transcript.skip()
