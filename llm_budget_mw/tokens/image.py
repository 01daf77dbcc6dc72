"""The size of an image from its first bytes, without decoding it.

The bytes are hostile: whatever cannot be read, or says something absurd, has no size, and
the caller takes the worst case.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

_MAX_SIDE = 30_000
"""No provider accepts a longer side; a header that claims one is not believed."""

_MAX_HEAD = 2**17
"""Bounds the search for a frame in a JPEG or GIF made to be searched for ever."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# Start-of-frame markers, baseline (C0) to arithmetic (CF); C4, C8 and CC mean other things.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_FILL = 0xFF
_LOSSLESS_SIGNATURE = 0x2F


class Size(NamedTuple):
    """Width and height in pixels, both at least 1."""

    width: int
    height: int


def image_size(head: bytes) -> Size | None:
    """Return the size of a PNG, JPEG, GIF or WebP that begins with `head`, else None."""
    for magic, read in _READERS.items():
        if head.startswith(magic):
            return _read(read, head[:_MAX_HEAD])
    return None


def _read(read: Callable[[bytes], tuple[int, int]], head: bytes) -> Size | None:
    try:
        size = Size(*read(head))
    except (IndexError, ValueError, struct.error):
        return None
    return size if 0 < min(size) <= max(size) <= _MAX_SIDE else None


def _png(head: bytes) -> tuple[int, int]:
    kind, width, height = struct.unpack_from(">4sII", head, 12)
    if kind != b"IHDR":
        raise ValueError(kind)
    return width, height


def _jpeg(head: bytes) -> tuple[int, int]:
    at = len(_JPEG)
    while True:
        if head[at] != _JPEG_FILL:
            raise ValueError(at)
        marker = head[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        if marker == _JPEG_FILL:
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        else:
            # EXIF and colour profiles, up to 64 KB each, thumbnails inside them included.
            at += 2 + _jpeg_segment(head, at + 2)


def _jpeg_segment(head: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">H", head, at)
    return max(2, int(length))


def _gif(head: bytes) -> tuple[int, int]:
    screen_width, screen_height, packed = struct.unpack_from("<HHB", head, 6)
    at = 13 + _gif_colours(packed)
    while head[at : at + 1] == b"!":
        at += 2
        while head[at]:
            at += 1 + head[at]
        at += 1
    # A frame may be larger than the screen, and decoders enlarge the screen for it.
    separator, left, top, width, height = struct.unpack_from("<cHHHH", head, at)
    if separator != b",":
        raise ValueError(separator)
    return max(screen_width, left + width), max(screen_height, top + height)


def _gif_colours(packed: int) -> int:
    return 3 << (packed & 0b111) + 1 if packed & 0b1000_0000 else 0


def _webp(head: bytes) -> tuple[int, int]:
    return _WEBP_CHUNKS.get(head[8:16], _not_webp)(head)


def _webp_lossy(head: bytes) -> tuple[int, int]:
    start_code, width, height = struct.unpack_from("<3sHH", head, 23)
    if start_code != b"\x9d\x01\x2a":
        raise ValueError(start_code)
    return width & 0x3FFF, height & 0x3FFF


def _webp_lossless(head: bytes) -> tuple[int, int]:
    signature, bits = struct.unpack_from("<BI", head, 20)
    if signature != _LOSSLESS_SIGNATURE:
        raise ValueError(signature)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _webp_extended(head: bytes) -> tuple[int, int]:
    width, height = head[24:27], head[27:30]
    if not height[2:]:
        raise ValueError(height)
    return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1


def _not_webp(head: bytes) -> tuple[int, int]:
    raise ValueError(head[8:16])


_WEBP_CHUNKS: Mapping[bytes, Callable[[bytes], tuple[int, int]]] = {
    b"WEBPVP8 ": _webp_lossy,
    b"WEBPVP8L": _webp_lossless,
    b"WEBPVP8X": _webp_extended,
}
_READERS: Mapping[bytes, Callable[[bytes], tuple[int, int]]] = {
    _PNG: _png,
    _JPEG: _jpeg,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
    b"RIFF": _webp,
}
