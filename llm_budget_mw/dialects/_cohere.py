"""What Cohere's v2 chat reports while and after it answers."""

from __future__ import annotations

from typing import Any

from llm_budget_mw._sse import read_data
from llm_budget_mw.dialects._json import count, is_array, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

_DONE = b"[DONE]"
_LINE_ENDS = (b"\n", b"\r")
_FAILURES = ("ERROR", "TIMEOUT")
_KINDS = ("message-", "content-", "tool-", "citation-")
_OF_ANY_FORMAT = ("debug", "error", "ping")
_WITH_TEXT = ("content-start", "content-delta", "tool-plan-delta")
_WITH_CALLS = ("tool-call-start", "tool-call-delta")


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Read the usage of an answer or of a `message-end`; None if it reports none.

    `billed_units` are what is charged; `tokens` are what the model saw, with a preamble
    nobody pays for, and count only where nothing is said to be billed. `cached_tokens` are
    a part of `tokens`, and cost no less.
    """
    report = table(answer.get("usage"))
    tokens_in, tokens_out = _read_side(report, "input_tokens"), _read_side(report, "output_tokens")
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out)


def _read_side(report: dict[str, Any], name: str) -> int | None:
    billed = count(table(report.get("billed_units")).get(name))
    return count(table(report.get("tokens")).get(name)) if billed is None else billed


class CohereInterpreter:
    """Understands the events of one chat."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.complete = False
        self.usage: Usage | None = None
        self._failed = False

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        data = read_data(event)
        if data == _DONE:
            self.complete = not self._failed
            return True
        known = look_at(data)
        if known:
            self._read_event(known)
        elif data and event.endswith(_LINE_ENDS):
            # Whole, and of another format: who knows what it generated.
            self.transcript.skip()
        elif not data:
            self.transcript.miss_event(event, data)
        return True

    def _read_event(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        delta = table(event.get("delta"))
        message = table(delta.get("message"))
        if isinstance(kind, str):
            self._note_kind(kind)
        if kind in _WITH_TEXT:
            self._read_content(message)
        elif kind in _WITH_CALLS:
            self._read_calls(message.get("tool_calls"))
        elif kind == "message-end":
            self._failed = bool(delta.get("error")) or delta.get("finish_reason") in _FAILURES
            self.complete = not self._failed
            self.usage = read_usage(delta) or self.usage
        elif "message" in event and kind is None:
            # The body of an error, where an event was due.
            self._failed = True
            self.complete = False
        elif kind is None:
            self.transcript.skip()

    def _note_kind(self, kind: str) -> None:
        if kind.startswith(_KINDS):
            self.transcript.understand()
        elif kind not in _OF_ANY_FORMAT:
            self.transcript.miss()

    def _read_content(self, message: dict[str, Any]) -> None:
        self.transcript.add(message.get("tool_plan"))
        content = table(message.get("content"))
        self.transcript.add(content.get("text"))
        self.transcript.add(content.get("thinking"))

    def _read_calls(self, calls: Any) -> None:
        for call in calls if is_array(calls) else [calls]:
            function = table(table(call).get("function"))
            self.transcript.add(function.get("name"))
            self.transcript.add(function.get("arguments"))
