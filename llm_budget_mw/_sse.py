"""Cuts server-sent events out of bytes that arrive in any pieces, and keeps them as they came.

Only whole events are looked at, so nothing depends on where a chunk, a character or a
line end was cut. What is cut out, joined with the rest, is what was put in.
"""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A larger event is not an event of a language model that anybody has to understand."""

_BOM = b"\xef\xbb\xbf"
_CR = 0x0D
_NAMES = (b":", b"data", b"event", b"id", b"retry")
"""How the lines of an event begin."""
_REACH = 3
"""Bytes of a blank line that may have arrived before its last one."""

# Possessive, or CRLF would be given back and read as two line ends.
_BLANK_LINE = re.compile(rb"(?:\n|\r\n?+)(?:\n|\r\n?+)")


class EventSplitter:
    """The events of one stream; holds no more than one unfinished event."""

    def __init__(self) -> None:
        self.overflowed = False
        """True once an event was larger than `MAX_EVENT_BYTES`: stop feeding, take `close`."""
        self._pending = bytearray()
        self._only_lf = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events this chunk completes, each with its blank line."""
        if self._only_lf and chunk.find(b"\r") >= 0:
            self._only_lf = False
        if self._only_lf and not self._pending and _is_one_line(chunk):
            return [chunk]
        if self._pending:
            resume = max(0, len(self._pending) - _REACH)
            self._pending += chunk
            events, used = self._cut(self._pending, resume)
            del self._pending[:used]
        else:
            events, used = self._cut(chunk, 0)
            if used < len(chunk):
                self._pending += chunk[used:]
        if len(self._pending) > MAX_EVENT_BYTES:
            self.overflowed = True
        return events

    def close(self) -> bytes:
        """Return what is left: an unfinished event, or what came after an overflow."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    def _cut(self, data: bytes | bytearray, resume: int) -> tuple[list[bytes], int]:
        events: list[bytes] = []
        start = 0
        while True:
            # Nearly every stream has LF alone, and `find` is many times faster.
            end = data.find(b"\n\n", resume) + 2 if self._only_lf else _event_end(data, resume)
            if end <= 1:
                return events, start
            if end - start > MAX_EVENT_BYTES:
                self.overflowed = True
                return events, start
            events.append(bytes(data[start:end]))
            start = resume = end


def _is_one_line(chunk: bytes) -> bool:
    """Return whether this is one whole event of one line, as most chunks are."""
    end = chunk.find(b"\n") + 2
    return end == len(chunk) <= MAX_EVENT_BYTES and chunk.endswith(b"\n\n")


def _event_end(data: bytes | bytearray, resume: int) -> int:
    """Return where the first event ends, 0 if it does not yet."""
    match = _BLANK_LINE.search(data, resume)
    if match is None:
        return 0
    end = match.end()
    # A CR in the last place may be half of a CRLF whose LF belongs to the same event.
    return 0 if end == len(data) and data[-1] == _CR else end


def is_foreign(event: bytes) -> bool:
    """Return whether this is no part of any event stream: a line has no name that is known there.

    The last line may be unfinished.
    """
    *lines, last = event.removeprefix(_BOM).splitlines() or [b""]
    known = all(not line or line.startswith(_NAMES) for line in lines)
    begun = last.startswith(_NAMES) or any(name.startswith(last) for name in _NAMES)
    return not (known and begun)


def write_event(data: bytes, name: str = "") -> bytes:
    """Return one event; `data` is one line."""
    head = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (head, data)


def read_data(event: bytes) -> bytes:
    """Return the `data` of one event, its lines joined by LF; empty if it has none.

    A byte order mark is allowed before any event, not only before the first.
    """
    lines = event.removeprefix(_BOM).splitlines()
    return b"\n".join([line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")])
