"""What an edge sees of an answer passing through, without delaying or changing it.

A stream is read in step with its chunks; a whole body is kept, bounded, and read after its
last byte has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llm_budget_mw.dialects.protocol import Dialect, StreamReader
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.types import ModelCall

_MAX_KEPT = 16 * 1024 * 1024
"""Bytes of a whole answer kept to read its usage; beyond, it is unknown."""
_STREAMED = ("text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream")
FIRST_ERROR = 400
"""The first status that says a request was not served."""


class Tap:
    """Watches one answer."""

    def __init__(self, dialect: Dialect, call: ModelCall) -> None:
        self.rewrites = False
        """True if `feed` may return other bytes than it was given."""
        self._dialect = dialect
        self._call = call
        self.status = 0
        """Of the answer; 0 before it started."""
        self.size = 0
        """Bytes that have passed."""
        self._headers: Mapping[str, str] = {}
        self._reader: StreamReader | None = None
        self._kept: list[bytes] = []
        self._ended = False

    @property
    def started(self) -> bool:
        """True once the status of the answer is known."""
        return self.status > 0

    @property
    def ended(self) -> bool:
        """True once its last byte has passed."""
        return self._ended

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the status and the headers, names in lower case."""
        self.status = status
        self._headers = headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in _STREAMED and status < FIRST_ERROR:
            self._reader = self._dialect.open_stream(self._call, headers)
            self.rewrites = self._reader.rewrites

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next piece of the body; return what the client is to get."""
        self.size += len(chunk)
        if self._reader is not None:
            return self._reader.feed(chunk)
        if self.size <= _MAX_KEPT:
            self._kept.append(chunk)
        else:
            self._kept.clear()
        return chunk

    def end(self) -> bytes:
        """Note the end of the body; return what was still held back of it."""
        self._ended = True
        return self._reader.close() if self._reader is not None else b""

    def outcome(self, count: Callable[[str], int]) -> Outcome:
        """Say how the call ended; `count` counts the tokens of generated text."""
        if self._reader is not None:
            return self._of_stream(self._reader, count)
        usage = None
        if self._ended and self.size <= _MAX_KEPT:
            usage = self._dialect.read_usage(b"".join(self._kept), self._headers)
        if self.status >= FIRST_ERROR:
            return Outcome(Ending.REFUSED_UPSTREAM, usage)
        return Outcome(Ending.COMPLETE if self._ended else Ending.CUT, usage)

    def _of_stream(self, reader: StreamReader, count: Callable[[str], int]) -> Outcome:
        # Complete is what the protocol says: a server may end the body of a cut stream neatly.
        ending = Ending.COMPLETE if reader.complete else Ending.CUT
        usage = reader.usage
        counted = None
        if (usage is None or usage.output_tokens is None) and not reader.truncated:
            counted = count(reader.text)
        return Outcome(ending, usage, counted_output=counted)
