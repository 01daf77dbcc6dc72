"""What an edge sees of an answer passing through, without delaying or changing it.

A stream is read in step with its chunks; a whole body is kept, bounded, and read after its
last byte has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from llm_budget_mw.dialects.coding import Inflater, inflated, inflater_of
from llm_budget_mw.dialects.protocol import Dialect, StreamReader
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.types import ModelCall, Usage

_MAX_KEPT = 16 * 1024 * 1024
"""Bytes of a whole answer kept to read its usage, and of any that was compressed; beyond, it is
unknown."""
_STREAMED = ("text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream")
_JSON = "application/json"
_CODING = "content-encoding"
_NOTHING = Usage()
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
        self._inflater: Inflater | None = None
        self._declared = False
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
        self._declared = kind in _STREAMED
        if status < FIRST_ERROR and (self._declared or self._was_asked_for(kind)):
            self._inflater = inflater_of(headers.get(_CODING, ""), _MAX_KEPT)
            if self._inflater is not None:
                headers = {name: value for name, value in headers.items() if name != _CODING}
            self._reader = self._dialect.open_stream(self._call, headers)
            # What is compressed cannot be changed in passing.
            self.rewrites = self._reader.rewrites and self._inflater is None

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next piece of the body; return what the client is to get."""
        self.size += len(chunk)
        if self._reader is None:
            self._keep(chunk)
        elif self._inflater is None:
            return self._reader.feed(chunk)
        else:
            for piece in self._inflater.feed(chunk):
                self._reader.feed(piece)
        return chunk

    @property
    def opaque(self) -> bool:
        """True if no events can be told apart in what passes."""
        return self._reader is None or self._reader.opaque

    @property
    def unfolds(self) -> bool:
        """True if events are cut out of what was compressed: they pass on as they are."""
        return self._inflater is not None and not self.opaque

    @property
    def reported(self) -> Usage:
        """What the provider has reported in a stream so far."""
        usage = self._reader.usage if self._reader is not None else None
        return usage or _NOTHING

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the events the next piece completes; see `StreamReader`."""
        self.size += len(chunk)
        reader = cast("StreamReader", self._reader)
        if self._inflater is None:
            return reader.cut(chunk)
        return [event for piece in self._inflater.feed(chunk) for event in reader.cut(piece)]

    def rest(self) -> bytes:
        """Note the end of the body; return a last event that has no end."""
        self._ended = True
        return self._reader.rest() if self._reader is not None else b""

    def look(self, event: bytes) -> bytes | None:
        """Take in one event; return its output, None if the client is not to get it."""
        return cast("StreamReader", self._reader).look(event)

    def stop(self, usage: Usage) -> bytes:
        """Return what ends the stream in place of the event looked at last."""
        return self._reader.stop(usage) if self._reader is not None else b""

    def end(self) -> bytes:
        """Note the end of the body; return what was still held back of it."""
        self._ended = True
        rest = self._reader.close() if self._reader is not None else b""
        return b"" if self._inflater is not None else rest

    def outcome(self, count: Callable[[str], int]) -> Outcome:
        """Say how the call ended; `count` counts the tokens of generated text."""
        # Nothing at all, of no stream's type, is not a stream that has said nothing yet.
        if self._reader is not None and (self._declared or self.size):
            return self._of_stream(self._reader, count)
        usage = None
        if self._ended and self.size <= _MAX_KEPT:
            body = inflated(b"".join(self._kept), self._headers.get(_CODING, ""), _MAX_KEPT)
            usage = self._dialect.read_usage(body, self._headers)
        if self.status >= FIRST_ERROR:
            return Outcome(Ending.REFUSED_UPSTREAM, usage)
        return Outcome(Ending.COMPLETE if self._ended else Ending.CUT, usage)

    def _was_asked_for(self, kind: str) -> bool:
        """Return whether an answer of another type than a stream's is one all the same."""
        # A handler may forget the type, and a provider answer in one piece after all.
        return self._call.stream and (kind != _JSON or self._dialect.streams_json)

    def _keep(self, chunk: bytes) -> None:
        if self.size <= _MAX_KEPT:
            self._kept.append(chunk)
        else:
            self._kept.clear()

    def _of_stream(self, reader: StreamReader, count: Callable[[str], int]) -> Outcome:
        # Complete is what the protocol says: a server may end the body of a cut stream neatly.
        ending = Ending.COMPLETE if reader.complete else Ending.CUT
        if ending is Ending.CUT and self._inflater is not None and self._inflater.lost:
            return Outcome(ending)
        usage = reader.usage
        counted = None
        if (usage is None or usage.output_tokens is None) and not reader.truncated:
            counted = count(reader.text)
        return Outcome(ending, usage, counted_output=counted)
