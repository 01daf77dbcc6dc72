"""Tests of `llm_budget_mw.tokens.image`: headers are written by hand, no decoder is needed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.tokens.image import image_size

PNG = b"\x89PNG\r\n\x1a\n"
GIF_FRAME = b","


def png(width: int, height: int) -> bytes:
    return PNG + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\0\0\0"


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def frame(marker: int, width: int, height: int) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, 3) + bytes(9))


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments)


def gif(screen: tuple[int, int], packed: int, *blocks: bytes) -> bytes:
    colours = bytes(3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0)
    return b"GIF89a" + struct.pack("<HHBBB", *screen, packed, 0, 0) + colours + b"".join(blocks)


def gif_frame(left: int, top: int, width: int, height: int) -> bytes:
    return GIF_FRAME + struct.pack("<HHHHB", left, top, width, height, 0)


def webp(chunk: bytes, payload: bytes) -> bytes:
    body = b"WEBP" + chunk + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", struct.pack("<BI", 0x2F, (width - 1) | (height - 1) << 14))


def lossy(width: int, height: int) -> bytes:
    # The two high bits of each side ask for scaling and are not part of it.
    return webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height))


def extended(width: int, height: int) -> bytes:
    sides = ((side - 1).to_bytes(3, "little") for side in (width, height))
    return webp(b"VP8X", b"\0\0\0\0" + b"".join(sides))


EXIF = segment(0xE1, b"Exif\0\0" + jpeg(frame(0xC0, 160, 120)) + bytes(60_000))

READABLE = [
    pytest.param(png(640, 480), id="png"),
    pytest.param(jpeg(segment(0xE0, b"JFIF\0"), frame(0xC0, 640, 480)), id="jpeg"),
    pytest.param(jpeg(frame(0xC2, 640, 480)), id="jpeg-progressive"),
    pytest.param(jpeg(EXIF, frame(0xC0, 640, 480)), id="jpeg-with-a-thumbnail-in-long-exif"),
    pytest.param(jpeg(segment(0xC4, bytes(20)), frame(0xC1, 640, 480)), id="jpeg-tables-first"),
    pytest.param(jpeg(b"\xff\xff\xff\x01", frame(0xC0, 640, 480)), id="jpeg-fill-bytes"),
    pytest.param(gif((640, 480), 0, gif_frame(0, 0, 640, 480)), id="gif"),
    pytest.param(gif((640, 480), 0x87, gif_frame(0, 0, 1, 1)), id="gif-with-colours"),
    pytest.param(
        gif((1, 1), 0, b"!\xf9\x04abcd\0", b"!\xfe\x02hi\x01x\0", gif_frame(40, 80, 600, 400)),
        id="gif-frame-larger-than-its-screen",
    ),
    pytest.param(lossy(640, 480), id="webp-lossy"),
    pytest.param(lossless(640, 480), id="webp-lossless"),
    pytest.param(extended(640, 480), id="webp-extended"),
]

UNREADABLE = [
    b"",
    b"GIF",
    b"%PDF-1.7",
    PNG + b"\0\0\0\x0dIDAT" + bytes(8),
    png(0, 10),
    png(10, 2**31),
    png(30_001, 1),
    jpeg(b"\x00\x01\x02"),
    jpeg(EXIF),
    jpeg(frame(0xC0, 0, 0)),
    gif((640, 480), 0, b";" + bytes(20)),
    gif((640, 480), 0),
    webp(b"ALPH", bytes(30)),
    webp(b"VP8 ", b"\0\0\0abc\0\x01\0\x01"),
    webp(b"VP8L", b"\x2eabcd"),
    jpeg(segment(0xE1, bytes(60_000)) * 3, frame(0xC0, 640, 480)),
]


@pytest.mark.parametrize("image", READABLE)
def test_the_size_is_read_from_the_header(image: bytes) -> None:
    """Every format providers accept tells its size without being decoded."""
    assert image_size(image + b"rest of the file") == (640, 480)


@pytest.mark.parametrize("image", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_cannot_be_believed_has_no_size(image: bytes) -> None:
    """Damaged, absurd, foreign or endless headers have no size."""
    assert image_size(image) is None


@pytest.mark.parametrize("image", READABLE)
def test_a_header_cut_anywhere_has_the_right_size_or_none(image: bytes) -> None:
    """Half a header never yields another size, and never an exception."""
    sizes = {image_size(image[:end]) for end in range(min(len(image), 200))}

    assert sizes <= {None, (640, 480)}


@given(
    st.sampled_from([PNG, b"\xff\xd8", b"GIF89a", b"RIFF....WEBPVP8 ", b"RIFF....WEBPVP8X"]),
    st.binary(max_size=400),
)
def test_garbage_behind_a_known_magic_never_raises(magic: bytes, garbage: bytes) -> None:
    """Whatever follows, the answer is a plausible size or none."""
    size = image_size(magic + garbage)

    assert size is None or 0 < min(size) <= max(size) <= 30_000


def test_the_search_for_a_frame_is_bounded() -> None:
    """A JPEG of nothing but fill bytes is given up on, however long it is."""
    assert image_size(jpeg(b"\xff" * 2**18, frame(0xC0, 640, 480)[1:])) is None
