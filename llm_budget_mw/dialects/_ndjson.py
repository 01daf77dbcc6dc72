"""Cuts lines of JSON out of bytes that arrive in any pieces."""

from __future__ import annotations

from llm_budget_mw._sse import MAX_EVENT_BYTES

_LF = b"\n"


class LineSplitter:
    """The lines of one stream; holds no more than one unfinished line.

    Only LF ends a line: a CR before it is white space to JSON.
    """

    def __init__(self) -> None:
        self.overflowed = False
        """True once a line was larger than `MAX_EVENT_BYTES`: stop feeding, take `close`."""
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines this chunk completes, each with its line end."""
        lines: list[bytes] = []
        start = 0
        while end := chunk.find(_LF, start) + 1:
            if len(self._pending) + end - start > MAX_EVENT_BYTES:
                break
            lines.append(bytes(self._pending) + chunk[start:end])
            self._pending.clear()
            start = end
        self._pending += chunk[start:]
        self.overflowed = len(self._pending) > MAX_EVENT_BYTES
        return lines

    def close(self) -> bytes:
        """Return what is left: an unfinished line, or what came after an overflow."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest
