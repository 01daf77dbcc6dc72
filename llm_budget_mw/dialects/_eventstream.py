"""Cuts and reads the messages of `application/vnd.amazon.eventstream`.

A message is its length, the length of its headers, a checksum of the two (each 4 bytes, big
endian), the headers, the payload, and a checksum of everything before.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from llm_budget_mw._sse import MAX_EVENT_BYTES

_PRELUDE = struct.Struct("!III")
_CHECKSUM = struct.Struct("!I")
_CHECKED = 8
"""Bytes of the prelude that its checksum is of."""
_LEAST = _PRELUDE.size + _CHECKSUM.size

_NEVER = sys.maxsize
"""Length of what will not become a message."""

_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type, where they are always the same: booleans, integers."""
_BYTES, _STRING = 6, 7

_MAX_REMEMBERED = 256
"""Bytes of the headers that are remembered: most messages of a stream have the same."""


class Message(NamedTuple):
    """One message."""

    headers: Mapping[str, str]
    """Those whose value is a string, such as `:event-type`."""
    payload: bytes


class MessageSplitter:
    """The messages of one stream; holds no more than one unfinished message.

    With `verify` a message whose checksums are wrong ends the reading: no client of AWS
    reads on behind one.
    """

    def __init__(self, *, verify: bool = True) -> None:
        self.overflowed = False
        """True once what came is no message, or larger than `MAX_EVENT_BYTES`."""
        self._verify = verify
        self._pending = bytearray()
        self._needed = _PRELUDE.size

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the messages this chunk completes."""
        if self._pending:
            self._pending += chunk
            if len(self._pending) < self._needed:
                return []
            data, self._pending = bytes(self._pending), bytearray()
        else:
            data = chunk
        messages: list[bytes] = []
        start = 0
        while len(data) - start >= self._needed:
            self._needed = self._length(data, start)
            message = data[start : start + self._needed]
            if len(message) < self._needed or not self._is_intact(message):
                break
            messages.append(message)
            start += self._needed
            self._needed = _PRELUDE.size
        self._pending += data[start:]
        return messages

    def close(self) -> bytes:
        """Return what is left: an unfinished message, or what came after an overflow."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    def _length(self, data: bytes, start: int) -> int:
        """Return the length of the message that starts there, as its prelude has it."""
        length, headers, checksum = _PRELUDE.unpack_from(data, start)
        known = not self._verify or crc32(data[start : start + _CHECKED]) == checksum
        if known and _LEAST + headers <= length <= MAX_EVENT_BYTES:
            return int(length)
        self.overflowed = True
        return _NEVER

    def _is_intact(self, message: bytes) -> bool:
        end = len(message) - _CHECKSUM.size
        if self._verify and crc32(message[:end]) != _CHECKSUM.unpack_from(message, end)[0]:
            self.overflowed = True
            self._needed = _NEVER
        return not self.overflowed


def read_message(data: bytes) -> Message | None:
    """Read one message; None if this is not a whole one, or its headers are none."""
    if len(data) < _LEAST:
        return None
    length, size, _ = _PRELUDE.unpack_from(data)
    if length != len(data) or size > length - _LEAST:
        return None
    end = _PRELUDE.size + size
    block = data[_PRELUDE.size : end]
    headers = _remembered(block) if size <= _MAX_REMEMBERED else _read_headers(block)
    return None if headers is None else Message(headers, data[end : -_CHECKSUM.size])


def write_message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one message with these headers, all of them strings."""
    block = b"".join(_header(name.encode(), value.encode()) for name, value in headers.items())
    length = _LEAST + len(block) + len(payload)
    prelude = struct.pack("!II", length, len(block))
    message = prelude + _CHECKSUM.pack(crc32(prelude)) + block + payload
    return message + _CHECKSUM.pack(crc32(message))


def _header(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack("!BH", _STRING, len(value)) + value


def _read_headers(block: bytes) -> Mapping[str, str] | None:
    """Return the headers that are strings; None if these bytes are no headers."""
    try:
        return dict(_strings(block))
    except (IndexError, UnicodeDecodeError):
        return None


_remembered = lru_cache(maxsize=64)(_read_headers)


def _strings(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the headers that are strings.

    Raises `IndexError` or `UnicodeDecodeError` where the bytes are no headers.
    """
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        kind = data[name_end]
        start = name_end + 1
        if kind in (_BYTES, _STRING):
            start += 2
            size = data[start - 2] << 8 | data[start - 1]
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise IndexError(kind)
        if start + size > len(data):
            raise IndexError(size)
        if kind == _STRING:
            yield data[at + 1 : name_end].decode(), data[start : start + size].decode()
        at = start + size
