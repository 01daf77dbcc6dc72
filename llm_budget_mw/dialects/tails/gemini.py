"""The end of one of Gemini's answers, as events or as one array."""

from __future__ import annotations

from typing import Any

from llm_budget_mw._sse import read_data
from llm_budget_mw.dialects._gemini import element_data, named
from llm_budget_mw.dialects._json import dump, items, look_at
from llm_budget_mw.types import Usage

_MOST_CANDIDATES = 128
_HEAD = ("modelVersion", "responseId", "createTime")


class _Tail:
    """A last chunk in which every candidate that has not finished does so."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._open: dict[int, bool] = {}
        """Candidates by their number; True until they finish."""

    def take(self, data: bytes) -> None:
        """Take in a chunk the client got."""
        chunk = named(look_at(data))
        self._head |= {name: chunk[name] for name in _HEAD if name in chunk}
        for candidate in map(named, items(chunk.get("candidates"))):
            index = candidate.get("index", 0)
            if type(index) is int and 0 <= index < _MOST_CANDIDATES:
                self._open[index] = not candidate.get("finishReason")

    def last(self) -> bytes:
        """Return the last chunk; nothing if every candidate has finished."""
        unfinished = [index for index, is_open in (self._open or {0: True}).items() if is_open]
        candidates = [
            {
                "content": {"parts": [{"text": ""}], "role": "model"},
                "finishReason": "MAX_TOKENS",
                "index": index,
            }
            for index in unfinished
        ]
        return dump({"candidates": candidates, **self._head}) if candidates else b""


class EventTail(_Tail):
    """That chunk as an event; there is no marker behind it."""

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        self.take(read_data(event))

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        last = self.last()
        return b"data: %b\r\n\r\n" % last if last else b""


class ArrayTail(_Tail):
    """That chunk as an element, and the bracket that closes the array."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._is_array = False
        self._closed = False

    def note(self, event: bytes) -> None:
        """Take in an element the client got, with what stood before it."""
        data = element_data(event)
        self._is_array = self._is_array or event.lstrip().startswith(b"[")
        self._begun = self._begun or bool(data)
        self._closed = data == b"]"
        self.take(data)

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those elements."""
        if self._closed or (self._begun and not self._is_array):
            return b""
        last = self.last()
        before = (b",\r\n" if last else b"\r\n") if self._begun else b"["
        return b"%b%b]" % (before, last)
