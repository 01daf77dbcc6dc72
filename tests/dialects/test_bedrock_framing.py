"""Messages of AWS's event streams: cut out, verified, read, and refused."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects import _eventstream
from llm_budget_mw.dialects._eventstream import MessageSplitter, read_message
from tests.dialects.streaming import event, frame, sealed

ONE = frame(b'{"a":1}', event_type="metadata", message_type="event")
TWO = frame(b"", event_type="x")
STREAM = ONE + TWO + ONE


def split(pieces: list[bytes], *, verify: bool = True) -> tuple[list[bytes], bytes, bool]:
    splitter = MessageSplitter(verify=verify)
    found: list[bytes] = []
    for piece in pieces:
        if not splitter.overflowed:
            found += splitter.feed(piece)
    return found, splitter.close(), splitter.overflowed


def test_messages_are_cut_out_however_they_arrive() -> None:
    """In one piece, in two cut anywhere, or byte by byte."""
    assert split([STREAM]) == ([ONE, TWO, ONE], b"", False)
    assert split([STREAM[at : at + 1] for at in range(len(STREAM))]) == split([STREAM])
    for at in range(len(STREAM)):
        assert split([STREAM[:at], STREAM[at:]]) == split([STREAM])


def test_an_unfinished_message_is_left() -> None:
    """What has no end yet comes when the stream is closed."""
    assert split([ONE + TWO[:-1]]) == ([ONE], TWO[:-1], False)
    assert split([b""]) == ([], b"", False)


@pytest.mark.parametrize("at", range(len(TWO)))
def test_a_byte_that_changed_ends_the_reading(at: int) -> None:
    """Two checksums cover every byte; what came before stands, and the rest is handed out."""
    broken = TWO[:at] + bytes([TWO[at] ^ 1]) + TWO[at + 1 :]

    assert split([ONE + broken + ONE]) == ([ONE], broken + ONE, True)


def test_checksums_need_not_be_right() -> None:
    """Unverified, only the lengths decide."""
    forged = ONE[:8] + b"\0\0\0\0" + ONE[12:-4] + b"\0\0\0\0"

    assert split([forged + ONE], verify=False) == ([forged, ONE], b"", False)


@pytest.mark.parametrize(
    ("length", "headers"), [(15, 0), (0, 0), (20, 5), (2**32 - 1, 0), (16, 2**32 - 1)]
)
@pytest.mark.parametrize("verify", [True, False])
def test_impossible_lengths_end_the_reading(length: int, headers: int, verify: bool) -> None:
    """Shorter than a message can be, headers longer than the whole, or more than is held."""
    prelude = struct.pack("!II", length, headers)
    start = prelude + struct.pack("!I", crc32(prelude))

    assert split([start + b"x" * 50], verify=verify) == ([], start + b"x" * 50, True)


def test_a_message_too_large_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prelude says so: nothing of it has to be held."""
    monkeypatch.setattr(_eventstream, "MAX_EVENT_BYTES", len(ONE))
    larger = frame(b'{"a":12}', event_type="metadata", message_type="event")

    assert split([ONE]) == ([ONE], b"", False)
    assert split([larger[:12]]) == ([], larger[:12], True)


def test_strings_are_read_and_other_headers_passed_over() -> None:
    """Each type has a length of its own."""
    values = {
        0: b"", 1: b"", 2: b"a", 3: b"ab", 4: b"abcd", 5: b"abcdefgh", 6: b"\0\2xy",
        8: b"abcdefgh", 9: b"abcdefghabcdefgh",
    }  # fmt: skip
    block = b"".join(bytes([1, 110, kind]) + value for kind, value in values.items())
    message = read_message(sealed(block + b"\2:k\7\0\3v\xc3\xa9", b"payload"))

    assert message == ({":k": "vé"}, b"payload")


@pytest.mark.parametrize("size", [1, 200, 300, 60_000])
def test_headers_of_any_size_are_read_again_and_again(size: int) -> None:
    """Those of a message are its own, also where the one before had nearly the same."""
    values = ["a" * size, "b" * size, "a" * size]
    messages = [read_message(frame(b"{}", event_type=value)) for value in values]

    assert [message and message.headers for message in messages] == [
        {":event-type": value} for value in values
    ]


@pytest.mark.parametrize(
    "block",
    [
        b"\5", b"\1n", b"\1n\7", b"\1n\7\0", b"\1n\7\0\5abc", b"\1n\x0a", b"\1n\xff", b"\1n\4abc",
        b"\1\xff\7\0\1a", b"\1n\7\0\1\xff", b"\xffn",
    ],
)  # fmt: skip
def test_headers_that_are_none_make_no_message(block: bytes) -> None:
    """Cut short, of an unknown type, or not UTF-8."""
    assert read_message(sealed(block, b"{}")) is None


@pytest.mark.parametrize(
    "data", [b"", b"x", ONE[:-1], ONE + b"x", b"data: {}\n\n", b"\0\0\0\x10\0\0\0\1" + b"\0" * 8]
)
def test_what_is_not_one_whole_message_is_none(data: bytes) -> None:
    """Such as the rest of a stream that was cut."""
    assert read_message(data) is None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([ONE, TWO]), max_size=4), st.booleans())
def test_any_bytes_are_split_without_loss_and_alike(parts: list[bytes], verify: bool) -> None:
    """Nothing raises, nothing is lost, and the cuts make no difference."""
    stream = b"".join(parts)
    found, rest, overflowed = split([stream], verify=verify)
    bytewise = split([stream[at : at + 1] for at in range(len(stream))], verify=verify)

    assert b"".join(found) + rest == stream
    assert (bytewise[0], bytewise[2]) == (found, overflowed)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_message_is_read_without_an_error(block: bytes, payload: bytes) -> None:
    """Whatever its headers are."""
    message = read_message(sealed(block, payload))

    assert message is None or message.payload == payload


def test_a_long_stream_of_single_bytes_is_read_in_time() -> None:
    """No byte is looked at again for each one that follows."""
    stream = event("x", {"a": "b" * 300_000})
    splitter = MessageSplitter()

    assert [splitter.feed(stream[at : at + 1]) for at in range(len(stream))][-1] == [stream]
