"""The end of one of Anthropic's messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_budget_mw._sse import read_data, write_event
from llm_budget_mw.dialects._json import dump, look_at, table
from llm_budget_mw.types import Usage

_NOTHING: dict[str, Any] = {
    "id": "", "type": "message", "role": "assistant", "model": "", "content": [],
    "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0},
}  # fmt: skip
"""The beginning of a message, where not even that was passed on."""
_DELTA = b"content_block_delta"


class MessageTail:
    """The stops of the open block and of the message, with why it stops in between."""

    def __init__(self) -> None:
        self._started = False
        self._open: object = None
        """Number of the block that is open."""
        self._reason_given = False
        self._done = False

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        # Nearly all events of a stream, which neither open nor close anything.
        if _DELTA not in event[: len(_DELTA) + len("event: ")]:
            self.take(look_at(read_data(event)))

    def take(self, event: dict[str, Any]) -> None:
        """Take in an event the client got, in JSON."""
        kind = event.get("type")
        if kind == "message_start":
            self._started = True
        elif kind == "content_block_start":
            self._open = event.get("index", 0)
        elif kind == "content_block_stop":
            self._open = None
        elif kind == "message_delta":
            self._reason_given = bool(table(event.get("delta")).get("stop_reason"))
        elif kind == "message_stop":
            self._done = True

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        return b"".join(write_event(dump(event), event["type"]) for event in self.events(usage))

    def events(self, usage: Usage) -> Iterator[dict[str, Any]]:
        """Yield what ends the message."""
        if self._done:
            return
        if not self._started:
            yield {"type": "message_start", "message": _NOTHING}
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._open}
        if not self._reason_given:
            yield {
                "type": "message_delta",
                "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
                "usage": {"output_tokens": usage.output_tokens or 0},
            }
        yield {"type": "message_stop"}
