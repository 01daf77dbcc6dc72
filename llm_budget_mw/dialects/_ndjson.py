"""Cuts lines of JSON out of bytes that arrive in any pieces (https://github.com/ndjson/ndjson-spec)."""

from __future__ import annotations

from llm_budget_mw._sse import MAX_EVENT_BYTES


class LineSplitter:
    """The lines of one stream; holds no more than one unfinished line."""

    def __init__(self) -> None:
        self.overflowed = False
        """True once a line was larger than `MAX_EVENT_BYTES`: stop feeding, take `close`."""
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines this chunk completes, each with its line end."""
        # Only the chunk is searched: nothing before it holds a line end.
        lines = chunk.splitlines(keepends=True) if b"\r" not in chunk else _split(chunk)
        return lines

    def close(self) -> bytes:
        """Return what is left: an unfinished line, or what came after an overflow."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest
