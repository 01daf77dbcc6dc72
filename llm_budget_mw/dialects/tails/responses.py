"""The end of one of OpenAI's responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_budget_mw._sse import read_data, write_event
from llm_budget_mw.dialects._json import dump, look_at, table
from llm_budget_mw.types import Usage

_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
_NOTHING: dict[str, Any] = {
    "id": "", "object": "response", "created_at": 0, "model": "", "output": [],
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
}  # fmt: skip
"""A response, where not even its beginning was passed on."""
_TEXT = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "text",
}
"""Deltas of a part of an item, and the field of the part they add to."""
_WHOLE = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}
"""Deltas of an item itself."""


class _Item:
    """One item of the output, as far as the client has it."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.is_open = True
        self._item = item
        self._parts: dict[object, dict[str, Any]] = {}
        self._texts: dict[tuple[object, str], list[str]] = {}
        """Pieces of text by the number of their part, None for the item, and their field."""

    def open_part(self, number: object, part: dict[str, Any]) -> None:
        self._parts[number] = part

    def add(self, number: object, field: str, piece: object) -> None:
        if isinstance(piece, str):
            self._texts.setdefault((number, field), []).append(piece)

    def done(self, item: dict[str, Any]) -> None:
        self._item, self.is_open = item, False

    def so_far(self) -> dict[str, Any]:
        """Return the item as it is."""
        if not self.is_open:
            return self._item
        item = {**self._item, "status": "incomplete"}
        parts = {number: dict(part) for number, part in self._parts.items()}
        for (number, field), pieces in self._texts.items():
            holder = item if number is None else parts.get(number, {})
            holder[field] = "".join(pieces)
        return {**item, "content": list(parts.values())} if parts else item


class ResponseTail:
    """The ends of the open items, and the response as incomplete."""

    def __init__(self) -> None:
        self._response = _NOTHING
        self._items: dict[object, _Item] = {}
        """By their number in the output."""
        self._number = -1
        self._done = False

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        fields = look_at(read_data(event))
        number = fields.get("sequence_number")
        self._number = number if isinstance(number, int) else self._number
        kind = str(fields.get("type"))
        self._done = self._done or kind in _LAST
        if "response" in fields:
            self._response = {**_NOTHING, **table(fields["response"])}
        elif kind == "response.output_item.added":
            self._items[_key(fields)] = _Item(table(fields.get("item")))
        elif _key(fields) in self._items:
            self._note_item(self._items[_key(fields)], kind, fields)

    def _note_item(self, item: _Item, kind: str, fields: dict[str, Any]) -> None:
        part = fields.get("content_index")
        if kind == "response.output_item.done":
            item.done(table(fields.get("item")))
        elif kind == "response.content_part.added":
            item.open_part(part, table(fields.get("part")))
        elif kind in _TEXT:
            item.add(part, _TEXT[kind], fields.get("delta"))
        elif kind in _WHOLE:
            item.add(None, _WHOLE[kind], fields.get("delta"))

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        if self._done:
            return b""
        numbered = enumerate(self._events(), self._number + 1)
        events = [(event["type"], {**event, "sequence_number": at}) for at, event in numbered]
        return b"".join(write_event(dump(event), kind) for kind, event in events)

    def _events(self) -> Iterator[dict[str, Any]]:
        for key, item in self._items.items():
            if item.is_open:
                done = {"type": "response.output_item.done", "output_index": key}
                yield {**done, "item": item.so_far()}
        response = {
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [item.so_far() for item in self._items.values()],
        }
        yield {"type": "response.incomplete", "response": response}


def _key(fields: dict[str, Any]) -> object:
    """Return the number of an event's item; events that name none are those of the first."""
    index = fields.get("output_index", 0)
    return index if isinstance(index, int) else 0
