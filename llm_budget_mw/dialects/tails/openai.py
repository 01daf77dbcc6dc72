"""The end of a chat completion, and of the legacy kind."""

from __future__ import annotations

from typing import Any

from llm_budget_mw._sse import read_data, write_event
from llm_budget_mw.dialects._json import dump, items, look_at, table
from llm_budget_mw.types import Usage

_MOST_CHOICES = 128
_DELTA, _FINISHED = b'"delta"', b'"finish_reason":"'
_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider")


class ChatTail:
    """A last chunk for each choice that has not finished, and the marker."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {
            "id": "", "object": "chat.completion.chunk", "created": 0, "model": "",
        }  # fmt: skip
        self._open: dict[int, bool] = {}
        """Choices by their number; True until they finish."""
        self._before = b""
        """What stood before the delta of the last chunk that was looked into."""
        self._done = False

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        before = event[: max(0, event.find(_DELTA))]
        if before and before == self._before and _FINISHED not in event:
            return  # another piece of the same choice, as nearly all are
        self._before = before
        data = read_data(event)
        self._done = self._done or data.startswith(b"[DONE]")
        self.take(look_at(data))

    def take(self, chunk: dict[str, Any]) -> None:
        """Take in a chunk the client got."""
        self._head |= {name: chunk[name] for name in _HEAD if name in chunk}
        for choice in map(table, items(chunk.get("choices"))):
            index = choice.get("index", 0)
            if type(index) is int and 0 <= index < _MOST_CHOICES:
                self._open[index] = choice.get("finish_reason") is None

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        if self._done:
            return b""
        last = self.last()
        marker = write_event(b"[DONE]")
        return write_event(dump(last)) + marker if last else marker

    def last(self) -> dict[str, Any]:
        """Return the last chunk; an empty one if every choice has finished."""
        unfinished = [index for index, is_open in (self._open or {0: True}).items() if is_open]
        if not unfinished:
            return {}
        return {**self._head, "choices": [self._finish(index) for index in unfinished]}

    def _finish(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}


class CompletionTail(ChatTail):
    """The same where a choice has its text itself."""

    def __init__(self) -> None:
        super().__init__()
        self._head["object"] = "text_completion"

    def _finish(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
