"""What Anthropic's Messages report while and after they answer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from llm_budget_mw._sse import read_data
from llm_budget_mw.dialects._json import MAX_LABEL, count, first_count, items, label, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

# Quotes inside JSON strings are escaped, so this cannot match inside of one.
_TEXT = re.compile(
    rb'"delta":\{"type":"(?:text_delta","text|thinking_delta","thinking'
    rb'|input_json_delta","partial_json)":"([^"\\]*+(?:\\.[^"\\]*+)*+)"\}'
).match
_DELTA = b'"delta"'

_KINDS = (
    "content_block_delta",
    "content_block_start",
    "content_block_stop",
    "message_delta",
    "message_start",
    "message_stop",
)
_OF_ANY_FORMAT = ("error", "ping")
_GENERATED = ("text", "thinking", "partial_json", "content")
_SEALED_BLOCK = "redacted_thinking"
_SEAL = "signature_delta"

_ADVISOR = "advisor_message"
_BESIDE = ("compaction", _ADVISOR)
"""Iterations that are billed but not part of the counts at the top."""

_ANYWHERE = (None, "global", "not_available")
"""Places of inference that cost nothing extra."""

_REPORTED = frozenset(
    {
        "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
        "cache_creation", "output_tokens_details", "server_tool_use", "iterations",
        "inference_geo", "service_tier", "speed",
    }
)  # fmt: skip


def read_usage(report: dict[str, Any], model: str | None) -> Usage | None:
    """Read one `usage` object; None if it counts nothing.

    Anthropic's `input_tokens` leave out what was read from or written to the cache;
    ours do not.
    """
    usage = _read_counts(report, model)
    beside = tuple(
        [
            _read_counts({**_carried(report, entry), **entry}, label(entry.get("model")) or model)
            for entry in map(table, items(report.get("iterations")))
            if entry.get("type") in _BESIDE
        ]
    )
    if usage.input_tokens is None and usage.output_tokens is None and not beside:
        return None
    return replace(usage, extra=beside)


def read_tier(holder: dict[str, Any]) -> str | None:
    """Return the service tier of a request or a usage: its speed and its region are a part of it."""
    tier = "fast" if holder.get("speed") == "fast" else label(holder.get("service_tier"))
    if tier == "priority":
        # Here that is capacity paid for in advance, not the dearer tier others call so.
        tier = "reserved"
    if label(holder.get("inference_geo")) in _ANYWHERE:
        return tier
    return f"regional_{tier or 'standard'}"[:MAX_LABEL]


def _carried(report: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the price of an iteration and stands at the top only."""
    # An advisor is another model, and not made faster by the request.
    names = ("inference_geo",) if entry.get("type") == _ADVISOR else ("inference_geo", "speed")
    return {name: report.get(name) for name in names}


def _read_counts(report: dict[str, Any], model: str | None) -> Usage:
    plain = count(report.get("input_tokens"))
    read = count(report.get("cache_read_input_tokens")) or 0
    split = table(report.get("cache_creation"))
    hour = count(split.get("ephemeral_1h_input_tokens")) or 0
    minutes = count(split.get("ephemeral_5m_input_tokens")) or 0
    write = max(count(report.get("cache_creation_input_tokens")) or 0, hour + minutes)
    return Usage(
        input_tokens=None if plain is None else plain + read + write,
        output_tokens=count(report.get("output_tokens")),
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        reasoning_tokens=first_count(table(report.get("output_tokens_details")), "thinking_tokens")
        or 0,
        web_searches=first_count(table(report.get("server_tool_use")), "web_search_requests") or 0,
        model=model,
        service_tier=read_tier(report),
    )


class MessageInterpreter:
    """Understands the events of one message.

    Counts are cumulative, and a later event repeats only some of them: the last value of
    each field stands. The few output tokens `message_start` counts say nothing about the
    answer and are left out.
    """

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.complete = False
        self._model: str | None = None
        self._report: dict[str, Any] = {}

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        match = _TEXT(event, event.find(_DELTA))
        if match:
            self.transcript.add_raw(match[1])
        else:
            data = read_data(event)
            known = look_at(data)
            if known:
                self._read_whole(known)
            else:
                self.transcript.miss_event(event, data)
        return True

    @property
    def usage(self) -> Usage | None:
        """The counts so far; output is unknown until the first `message_delta`."""
        return read_usage(self._report, self._model)

    def _read_whole(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind in _KINDS:
            self.transcript.understand()
        elif kind not in _OF_ANY_FORMAT:
            self.transcript.miss()
        if kind == "content_block_delta":
            self._read_delta(table(event.get("delta")))
        elif kind == "content_block_start":
            self._read_block(table(event.get("content_block")))
        elif kind == "message_start":
            self._read_start(table(event.get("message")))
        elif kind == "message_delta":
            self._merge(table(event.get("usage")))
        elif kind == "message_stop":
            self.complete = True

    def _read_start(self, message: dict[str, Any]) -> None:
        self._model = label(message.get("model"))
        self._merge({**table(message.get("usage")), "output_tokens": None})

    def _merge(self, report: dict[str, Any]) -> None:
        for name in _REPORTED & report.keys():
            if report[name] is not None:
                self._report[name] = report[name]

    def _read_delta(self, delta: dict[str, Any]) -> None:
        if delta.get("type") == _SEAL:
            # Ends a block of thinking, of which the client gets a summary or nothing.
            self.transcript.skip()
        for name in _GENERATED:
            self.transcript.add(delta.get(name))

    def _read_block(self, block: dict[str, Any]) -> None:
        if block.get("type") == _SEALED_BLOCK:
            self.transcript.skip()
        self.transcript.add(block.get("name"))
        self.transcript.add(block.get("text"))
        self.transcript.add(block.get("thinking"))
