"""The end of one of Bedrock's messages, and of Nova's, which are alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_budget_mw.dialects._eventstream import read_message, write_message
from llm_budget_mw.dialects._json import dump, look_at
from llm_budget_mw.types import Usage

JSON = "application/json"
_DELTA = "contentBlockDelta"
_INDEX = "contentBlockIndex"


def write(kind: str, payload: dict[str, Any]) -> bytes:
    """Return one event."""
    headers = {":event-type": kind, ":content-type": JSON, ":message-type": "event"}
    return write_message(headers, dump(payload))


class BlockTail:
    """The stops of the open block and of the message, and the counts."""

    def __init__(self) -> None:
        self._started = False
        self._open: object = None
        """Number of the block that is open."""
        self._stopped = False
        self._done = False

    def take(self, kind: str, event: dict[str, Any]) -> None:
        """Take in an event the client got."""
        if kind == "messageStart":
            self._started = True
        elif kind in ("contentBlockStart", _DELTA):
            # Only blocks of tools have a start.
            self._open = event.get(_INDEX, 0)
        elif kind == "contentBlockStop":
            self._open = None
        elif kind == "messageStop":
            self._stopped = True
        elif kind == "metadata":
            self._done = True

    def events(self, usage: Usage) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield kind and content of the events that end the message."""
        if self._done:
            return
        if not self._started:
            yield "messageStart", {"role": "assistant"}
        if self._open is not None:
            yield "contentBlockStop", {_INDEX: self._open}
        if not self._stopped:
            yield "messageStop", {"stopReason": "max_tokens"}
        sent, got = usage.input_tokens or 0, usage.output_tokens or 0
        counts = {"inputTokens": sent, "outputTokens": got, "totalTokens": sent + got}
        yield "metadata", {"usage": counts, "metrics": {"latencyMs": 0}}


class ConverseTail(BlockTail):
    """Those events as ConverseStream frames them."""

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        message = read_message(event)
        if message is not None:
            self.take(message.headers.get(":event-type", ""), look_at(message.payload))

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        return b"".join(write(kind, payload) for kind, payload in self.events(usage))
