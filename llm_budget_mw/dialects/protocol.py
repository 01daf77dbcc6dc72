"""What a dialect is: one file that knows one wire format and nothing else.

A dialect is stateless and shared by all requests; what belongs to one stream lives in the
`StreamReader` it opens. Input is hostile and provider answers may be garbage: only
`read_request` raises, and only `errors.RequestError`; everything that reads an answer
says "unknown" instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from llm_budget_mw.types import ModelCall, Usage


class RequestHead(NamedTuple):
    """The parts of an HTTP request outside its body."""

    method: str
    path: str
    """Decoded."""
    query: str = ""
    headers: Mapping[str, str] = {}
    """Names in lower case."""


class Rewritten(NamedTuple):
    """A request with the grant written into it."""

    body: bytes
    path: str | None = None
    """A new path, decoded, where the wire format carries the model in it; None leaves it alone."""
    raw_path: str | None = None
    """The same percent-encoded, where a segment of it holds a slash; None: nothing in it says
    more than `path` does."""


class Problem(NamedTuple):
    """A refusal or an error, as far as a wire format can express it."""

    status: int
    code: str
    """Stable and machine-readable: `budget_exceeded`, `rate_limited`, `invalid_request`, ..."""
    message: str
    """One sentence for a person; never amounts that belong to another subject."""
    retry_after_s: int | None = None
    policies: tuple[str, ...] = ()
    """Names of the limits that refused, the binding one first."""
    request_id: str = ""


class ErrorAnswer(NamedTuple):
    """The body of an error in a dialect's own envelope, and headers only that dialect needs."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = "application/json"
    status: int | None = None
    """Of a spent budget, where the format's SDKs try the problem's own status again whatever
    the headers say; not used where a retry is welcome."""


class StreamReader(Protocol):
    """Reads one streamed answer in whatever pieces it arrives, down to single bytes.

    `feed` takes the next piece and returns what the client is to get. A reader whose
    `rewrites` is False always returns its argument, so the edge may forward first.
    Time and memory for one piece are bounded, whatever it holds.

    Who may have to end a stream early uses `cut`, `look`, `rest` and `stop` instead of `feed`
    and `close`, and passes on whole events only.
    """

    rewrites: bool
    opaque: bool
    """True if it cannot tell events apart."""

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next piece; return the bytes to pass on now."""
        ...

    def close(self) -> bytes:
        """End of input: return what was still held back, and read a last unfinished event."""
        ...

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the events the next piece completes, none of them looked at yet."""
        ...

    def rest(self) -> bytes:
        """End of input: return a last event that has no end, not looked at yet."""
        ...

    def look(self, event: bytes) -> bytes | None:
        """Take in one event; return its output, None if the client is not to get the event.

        Output is generated text as JSON has it, of which no byte is more than a token; the
        event itself where it holds output that is no text.
        """
        ...

    def stop(self, usage: Usage) -> bytes:
        """Return what ends the stream in place of the event looked at last, and of all to come.

        To an SDK that is an answer cut short by its output bound. `usage` is what was passed
        on, where the format has to tell it.
        """
        ...

    @property
    def usage(self) -> Usage | None:
        """What the provider reported so far; None if nothing."""
        ...

    @property
    def complete(self) -> bool:
        """True once the protocol's own terminator was seen."""
        ...

    @property
    def text(self) -> str:
        """Generated text seen so far, for counting; bounded, see `truncated`."""
        ...

    @property
    def truncated(self) -> bool:
        """True if there was more than `text` holds, or output that is not text."""
        ...


class Dialect(Protocol):
    """One wire format."""

    name: str
    streams_json: bool
    """True if a stream of this format may come as `application/json`, and `open_stream` can read
    any answer of that type."""

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request, bounded in time and memory.

        Raises `RequestError` for a body that is not of this format or cannot be bounded.
        """
        ...

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Return the request with this model and output bound, as the provider accepts it."""
        ...

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Read the usage of a whole answer; None if it reports none."""
        ...

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Return a reader for a streamed answer with these response headers."""
        ...

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal so that the provider's SDK raises its own exception."""
        ...
