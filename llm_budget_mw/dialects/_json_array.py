"""Cuts the elements out of one JSON array that arrives in any pieces.

Nothing is parsed here: brackets are counted outside of strings, and an element is handed
on when its last bracket closes. No byte is looked at more than twice.
"""

from __future__ import annotations

import re

from llm_budget_mw._sse import MAX_EVENT_BYTES

# Everything up to a bracket, or up to a quote whose string does not end here. Possessive,
# and anchored by `match`: there is one way to read the bytes, so the time is linear.
_NEXT = re.compile(
    rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+["{}\[\]]', re.DOTALL
).match
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE = 0x22
_OPENING_BRACKET = 0x5B
_OPENING = b"[{"
_BACKSLASH = b"\\"


class ArraySplitter:
    """The elements of one array, or the one object that came in its place.

    An element keeps what stood before it; the bracket that closes the array comes alone.
    """

    def __init__(self) -> None:
        self.overflowed = False
        """True once an element was larger than `MAX_EVENT_BYTES`: stop feeding, take `close`."""
        self._pending = bytearray()
        self._depth = 0
        self._in_array = False
        self._in_string = False
        self._escaped = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the elements this chunk completes."""
        elements: list[bytes] = []
        start = 0
        at = self._skip_string(chunk, 0) if self._in_string else 0
        while match := _NEXT(chunk, at):
            at = match.end()
            last = chunk[at - 1]
            if last == _QUOTE:
                at = self._skip_string(chunk, at)
            elif last in _OPENING:
                self._in_array = self._in_array or (not self._depth and last == _OPENING_BRACKET)
                self._depth += 1
            elif self._depth - 1 > self._in_array:
                self._depth -= 1
            else:
                # It closes an element, or everything, or nothing at all.
                self._depth = max(0, self._depth - 1)
                if len(self._pending) + at - start > MAX_EVENT_BYTES:
                    break
                elements.append(bytes(self._pending) + chunk[start:at])
                self._pending.clear()
                start = at
        self._pending += chunk[start:]
        if len(self._pending) > MAX_EVENT_BYTES:
            self.overflowed = True
        return elements

    def close(self) -> bytes:
        """Return what is left: an unfinished element, or what came after an overflow."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    def _skip_string(self, chunk: bytes, at: int) -> int:
        """Return where the string goes on to; its end may come with a later chunk."""
        match = _REST_OF_STRING.match(chunk, min(at + self._escaped, len(chunk)))
        end = match.end() if match else at
        # A backslash in the last place escapes the first byte to come.
        self._escaped = chunk[end:] == _BACKSLASH or (self._escaped and not chunk)
        self._in_string = self._escaped or end == len(chunk)
        return len(chunk) if self._in_string else end + 1
