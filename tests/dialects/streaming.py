"""Streams for tests: how AWS frames one, and what a reader makes of one however it is cut."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

from llm_budget_mw.dialects.protocol import StreamReader
from llm_budget_mw.types import Usage


def frame(payload: bytes, **headers: str) -> bytes:
    """Return one message of an event stream; `event_type` becomes the header `:event-type`."""
    block = b""
    for name, value in headers.items():
        key, text = f":{name.replace('_', '-')}".encode(), value.encode()
        block += struct.pack("!B", len(key)) + key + struct.pack("!BH", 7, len(text)) + text
    return sealed(block, payload)


def sealed(block: bytes, payload: bytes) -> bytes:
    """Return a message with these bytes for its headers."""
    prelude = struct.pack("!II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack("!I", crc32(prelude)) + block + payload
    return message + struct.pack("!I", crc32(message))


def event(kind: str, payload: Any) -> bytes:
    """Return one event, as ConverseStream sends it."""
    data = json.dumps(payload, separators=(",", ":")).encode()
    return frame(data, event_type=kind, content_type="application/json", message_type="event")


def failure(kind: str) -> bytes:
    """Return an exception, as any stream may send it at any point."""
    data = json.dumps({"message": "later"}).encode()
    return frame(data, exception_type=kind, message_type="exception")


def chunk(inner: Any) -> bytes:
    """Return one chunk, as InvokeModelWithResponseStream sends it."""
    raw = inner if isinstance(inner, bytes) else json.dumps(inner, separators=(",", ":")).encode()
    return event("chunk", {"bytes": base64.b64encode(raw).decode(), "p": "abcde"})


class Seen(NamedTuple):
    """What a reader made of a stream."""

    passed: bytes
    usage: Usage | None
    text: str
    complete: bool
    truncated: bool


def run(reader: StreamReader, pieces: list[bytes]) -> Seen:
    """Feed a reader and close it."""
    passed = [reader.feed(piece) for piece in pieces]
    passed.append(reader.close())
    return Seen(b"".join(passed), reader.usage, reader.text, reader.complete, reader.truncated)


def assert_cut_anyhow(opened: Callable[[], StreamReader], stream: bytes) -> Seen:
    """Return what is read, the same whole, cut in two anywhere, and byte by byte."""
    whole = run(opened(), [stream])
    assert whole.passed == stream
    assert run(opened(), [stream[at : at + 1] for at in range(len(stream))]) == whole
    for at in range(0, len(stream), 1 + len(stream) // 400):
        assert run(opened(), [stream[:at], stream[at:]]) == whole
    return whole


def assert_ends_anywhere(opened: Callable[[], StreamReader], stream: bytes) -> None:
    """Cut short at every byte, a stream is complete only once, and never an error."""
    complete = [run(opened(), [stream[:at]]).complete for at in range(len(stream) + 1)]
    assert complete == sorted(complete)
