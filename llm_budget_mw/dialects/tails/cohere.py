"""The end of one of Cohere's chats."""

from __future__ import annotations

from typing import Any

from llm_budget_mw._sse import read_data, write_event
from llm_budget_mw.dialects._json import dump, look_at
from llm_budget_mw.types import Usage

_START: dict[str, Any] = {
    "type": "message-start",
    "delta": {"message": {"role": "assistant", "content": []}},
}
_ENDS = {"content-start": "content-end", "tool-call-start": "tool-call-end"}


class CohereTail:
    """The ends of what is open, of the message, and the marker."""

    def __init__(self) -> None:
        self._started = False
        self._open: dict[str, object] = {}
        """What ends each part that is open, and its number."""
        self._ended = False
        self._done = False

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        data = read_data(event)
        self._done = self._done or data == b"[DONE]"
        fields = look_at(data)
        kind = fields.get("type")
        if kind == "message-start":
            self._started = True
        elif kind == "message-end":
            self._ended = True
        elif isinstance(kind, str) and kind in _ENDS:
            self._open[_ENDS[kind]] = fields.get("index", 0)
        elif isinstance(kind, str):
            self._open.pop(kind, None)

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        if self._done:
            return b""
        events: list[dict[str, Any]] = []
        if not self._ended:
            if not self._started:
                events.append(dict(_START))
            events += [{"type": kind, "index": index} for kind, index in self._open.items()]
            events.append({"type": "message-end", "delta": {"finish_reason": "MAX_TOKENS"}})
        written = [write_event(dump(event), event["type"]) for event in events]
        return b"".join([*written, write_event(b"[DONE]")])
