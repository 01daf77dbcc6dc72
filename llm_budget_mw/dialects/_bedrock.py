"""What Bedrock's Converse reports while and after it answers, and Nova, which speaks like it."""

from __future__ import annotations

import re
from typing import Any

from llm_budget_mw.dialects._eventstream import read_message
from llm_budget_mw.dialects._json import count, first_count, items, label, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

FAILURES = ("exception", "error")
"""Types of messages that say why a stream ends."""
_DELTA = "contentBlockDelta"
_TEXT = re.compile(
    rb'\{"delta":\{"text":"([ !#-\[\]-~]*)"\},"contentBlockIndex":(?:0|[1-9][0-9]?)'
    rb'(?:,"p":"[A-Za-z0-9]*")?\}'
).fullmatch
"""All of a delta whose text JSON writes as it is, and the padding that hides its length."""
_SILENT = ("initial-response", "messageStart", "contentBlockStop")
_NOT_GENERATED = frozenset({"citation", "citations", "toolResult"})


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Read the usage of an answer or of a `metadata` event; None if it reports none."""
    router = table(table(answer.get("trace")).get("promptRouter"))
    return read_counts(
        table(answer.get("usage")), label(router.get("invokedModelId")), read_tier(answer)
    )


def read_tier(holder: dict[str, Any]) -> str | None:
    """Return the service tier of a request or an answer; faster hardware is one of its own."""
    latency = table(holder.get("performanceConfig")).get("latency")
    return tier_of(latency, table(holder.get("serviceTier")).get("type"))


def tier_of(latency: object, tier: object) -> str | None:
    """Return what decides the price, of the two that may."""
    return "optimized" if latency == "optimized" else label(tier)


def read_counts(
    report: dict[str, Any], model: str | None = None, tier: str | None = None
) -> Usage | None:
    """Read counts under their names in Converse, or in the metrics of a stream.

    Bedrock's input leaves out what was read from or written to the cache, and its total
    does not. Cache counts may stand there under both names: one number, never a sum.
    """
    plain = first_count(report, "inputTokens", "inputTokenCount")
    read = _largest(report, "cacheReadInputTokens", "cacheReadInputTokenCount")
    details = [table(detail) for detail in items(report.get("cacheDetails"))]
    hour = sum(count(entry.get("inputTokens")) or 0 for entry in details if _is_hour(entry))
    split = sum(count(entry.get("inputTokens")) or 0 for entry in details)
    write = max(_largest(report, "cacheWriteInputTokens", "cacheWriteInputTokenCount"), split)
    tokens_in = None if plain is None else plain + read + write
    tokens_out = first_count(report, "outputTokens", "outputTokenCount")
    if tokens_out is None:
        tokens_out = _rest(count(report.get("totalTokens")), tokens_in)
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        model=model,
        service_tier=tier,
    )


def _largest(report: dict[str, Any], *names: str) -> int:
    return max(count(report.get(name)) or 0 for name in names)


def _is_hour(detail: dict[str, Any]) -> bool:
    return detail.get("ttl") == "1h"


def _rest(total: int | None, tokens_in: int | None) -> int | None:
    """Return the output a total implies; a total of the input alone implies nothing."""
    if total is None or tokens_in is None or total <= tokens_in:
        return None
    return total - tokens_in


class Message:
    """The events of one message, whatever they were wrapped in."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.usage: Usage | None = None
        self.stopped = False
        """True once the model was done; the usage follows."""

    def read(self, kind: str, event: dict[str, Any]) -> None:
        """Take in one event."""
        if kind == _DELTA:
            self._read_delta(table(event.get("delta")))
        elif kind == "contentBlockStart":
            self._read_start(table(event.get("start")))
        elif kind == "messageStop":
            self.stopped = True
        elif kind == "metadata":
            self.usage = read_usage(event) or self.usage
        elif kind not in _SILENT:
            # Who knows what it generated.
            self.transcript.skip()

    def _read_start(self, start: dict[str, Any]) -> None:
        self.transcript.add(table(start.get("toolUse")).get("name"))
        if "image" in start:
            self.transcript.skip()

    def _read_delta(self, delta: dict[str, Any]) -> None:
        if not delta:
            self.transcript.skip()
        for name, value in delta.items():
            if name == "text":
                self.transcript.add(value)
            elif name == "toolUse":
                self.transcript.add(table(value).get("input"))
            elif name == "reasoningContent":
                self._read_reasoning(table(value))
            elif name not in _NOT_GENERATED:
                self.transcript.skip()

    def _read_reasoning(self, reasoning: dict[str, Any]) -> None:
        self.transcript.add(reasoning.get("text"))
        if not reasoning.keys() <= {"text"}:
            # Encrypted, or the seal of a block of which the client gets a summary.
            self.transcript.skip()


class ConverseInterpreter:
    """Understands the messages of one ConverseStream."""

    def __init__(self) -> None:
        self._message = Message()
        self.transcript = self._message.transcript
        self.complete = False
        """True once the model was done and `metadata`, which is the last event, came."""
        self._failed = False

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        message = read_message(event)
        if message is None:
            return True
        kind = message.headers.get(":event-type", "")
        text = _TEXT(message.payload) if kind == _DELTA else None
        if message.headers.get(":message-type") in FAILURES:
            self._failed = True
        elif text:
            self.transcript.add_raw(text[1])
        else:
            self._message.read(kind, look_at(message.payload))
        ended = self._message.stopped and kind == "metadata"
        self.complete = (self.complete or ended) and not self._failed
        return True

    @property
    def usage(self) -> Usage | None:
        """The last counts; None if there are none."""
        return self._message.usage
