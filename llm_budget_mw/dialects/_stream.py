"""The one way streams are read: a framing cuts out events, an interpreter understands them.

Because an interpreter sees whole events only, what it makes of a stream cannot depend on
how the bytes were cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Protocol

from pydantic_core import from_json, to_json

from llm_budget_mw._sse import is_foreign
from llm_budget_mw.types import Usage

_LINE_ENDS = (b"\n", b"\r")
MAX_TEXT_BYTES = 1024 * 1024
"""Generated text kept for counting, as JSON has it."""


class Transcript:
    """Generated text, kept undecoded until somebody has to count it."""

    def __init__(self) -> None:
        self.truncated = False
        self.missing = 0
        """How often there was output that is not in the text."""
        self._raw = bytearray()
        self._understood = False
        self._missed = False

    def add_raw(self, piece: bytes) -> None:
        """Add the inside of a JSON string as it stands, escapes included."""
        if len(self._raw) + len(piece) <= MAX_TEXT_BYTES:
            self._raw += piece
        else:
            self.skip()

    def add(self, text: object) -> None:
        """Add decoded text; anything else has none."""
        if isinstance(text, str):
            self.add_raw(to_json(text)[1:-1])

    def skip(self) -> None:
        """Note output that is not text: the text is no longer all there was."""
        self.truncated = True
        self.missing += 1

    def understand(self) -> None:
        """Note an event of the format that was expected."""
        self._understood = True

    def miss(self) -> None:
        """Note one that is not."""
        self._missed = True

    def miss_event(self, event: bytes, data: bytes) -> None:
        """Note a server-sent event whose data could not be read, if it is none that was cut."""
        if event.endswith(_LINE_ENDS) if data else is_foreign(event):
            self.miss()

    @property
    def foreign(self) -> bool:
        """True if nothing of the stream is of the format: who knows what it generated."""
        return self._missed and not self._understood and not self._raw

    @property
    def text(self) -> str:
        """The text so far, without what was skipped."""
        return unescape(bytes(self._raw))

    @property
    def size(self) -> int:
        """Bytes of the text, as JSON has it."""
        return len(self._raw)

    def since(self, size: int) -> bytes:
        """Return what came after so many bytes, as JSON has it."""
        return bytes(self._raw[size:])


def unescape(raw: bytes) -> str:
    """Return text that JSON wrote, or what can be read of it."""
    try:
        return str(from_json(b'"' + raw + b'"'))
    except ValueError:
        loose = raw.decode("utf-8", "replace")
    # Half of a surrogate pair, where a stream ended between the two, is not JSON to all.
    try:
        loose = str(json.loads(f'"{loose}"', strict=False))
    except ValueError:
        return loose
    return loose.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Framing(Protocol):
    """Cuts a stream into events; `_sse.EventSplitter` is one."""

    overflowed: bool

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events this chunk completes, as they came."""
        ...

    def close(self) -> bytes:
        """Return the unfinished rest."""
        ...


class Interpreter(Protocol):
    """Understands the events of one stream in one wire format; never raises."""

    transcript: Transcript
    complete: bool

    def read(self, event: bytes) -> bool:
        """Take in one event; return False if the client is not to get it."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What was reported so far."""
        ...


class Tail(Protocol):
    """Knows how one stream could end early; never raises."""

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        ...

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events; see `StreamReader.stop`."""
        ...


class FramedReader:
    """A `StreamReader` made of a framing, an interpreter, and a tail for who may stop it."""

    opaque = False

    def __init__(
        self,
        framing: Framing,
        interpreter: Interpreter,
        tail: Callable[[], Tail],
        *,
        rewrites: bool = False,
    ) -> None:
        self.rewrites = rewrites
        self._framing = framing
        self._interpreter = interpreter
        self._make_tail = tail
        self._tail: Tail | None = None
        self._looked_at = b""
        self._lost = False

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next piece; return the bytes to pass on now."""
        if self._lost:
            return chunk
        read = self._interpreter.read
        events = self._framing.feed(chunk)
        if len(events) == 1 and events[0] is chunk:
            return chunk if read(chunk) or not self.rewrites else b""
        passed = [event for event in events if read(event)]
        if self._framing.overflowed:
            self._lost = True
            passed.append(self._framing.close())
        return b"".join(passed) if self.rewrites else chunk

    def close(self) -> bytes:
        """Read a last event that has no end, and return it if it was held back."""
        rest = self._framing.close()
        passed = bool(rest) and self._interpreter.read(rest)
        return rest if self.rewrites and passed else b""

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the events the next piece completes."""
        if self._lost:
            return [chunk]
        events = self._framing.feed(chunk)
        if self._framing.overflowed:
            self._lost = True
            events.append(self._framing.close())
        return events

    def rest(self) -> bytes:
        """Return a last event that has no end."""
        return self._framing.close()

    def look(self, event: bytes) -> bytes | None:
        """Take in one event; return its output, None if the client is not to get it."""
        if self._tail is None:
            self._tail = self._make_tail()
        if self._looked_at:
            self._tail.note(self._looked_at)
        self._looked_at = b""
        if self._lost:
            return event
        transcript = self._interpreter.transcript
        size, missing = transcript.size, transcript.missing
        passed = self._interpreter.read(event)
        transcript = self._interpreter.transcript
        output = transcript.since(size)
        unread = transcript.missing > missing or transcript.foreign
        # Where the provider counts as it goes, nobody has to guess.
        if unread and not output and not self._counted:
            output = event
        self._looked_at = event if passed else b""
        return output if passed else None

    def stop(self, usage: Usage) -> bytes:
        """Return what ends the stream in place of the event looked at last."""
        return (self._tail or self._make_tail()).end(usage)

    @property
    def _counted(self) -> bool:
        usage = self.usage
        return usage is not None and usage.output_tokens is not None

    @property
    def usage(self) -> Usage | None:
        """What the provider reported so far; None once an event was too large to read."""
        return None if self._lost else self._interpreter.usage

    @property
    def complete(self) -> bool:
        """True once the terminator was seen."""
        return self._interpreter.complete and not self._lost

    @property
    def text(self) -> str:
        """Generated text so far."""
        return self._interpreter.transcript.text

    @property
    def truncated(self) -> bool:
        """True if `text` is not all that was generated."""
        transcript = self._interpreter.transcript
        return self._lost or transcript.truncated or transcript.foreign


class PassThrough:
    """A `StreamReader` for streams nobody here can read: compressed, or of unknown format."""

    rewrites = False
    opaque = True
    complete = False
    text = ""
    truncated = True

    def feed(self, chunk: bytes) -> bytes:
        """Return the piece as it is."""
        return chunk

    def close(self) -> bytes:
        """Return nothing: nothing was held back."""
        return b""

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the piece: nobody knows where an event ends."""
        return [chunk]

    def rest(self) -> bytes:
        """Return nothing, as `close` does."""
        return b""

    def look(self, event: bytes) -> bytes:
        """Return the piece: any of it may be output."""
        return event

    def stop(self, usage: Usage) -> bytes:
        """Return nothing: nobody knows how it should end."""
        return b""

    @property
    def usage(self) -> Usage | None:
        """Unknown."""
        return None


def is_plain(headers: Mapping[str, str]) -> bool:
    """Return whether the body these headers announce can be read as it is."""
    return headers.get("content-encoding", "identity").strip().lower() in ("", "identity")
