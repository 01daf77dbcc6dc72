"""Events are cut out of a stream whole, whatever the line ends and the pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw import _sse
from llm_budget_mw._sse import EventSplitter, read_data

STREAMS = [
    b"data: a\n\ndata: b\n\n",
    b"data: a\r\n\r\ndata: b\r\n\r\n",
    b"data: a\r\rdata: b\r\rx",
    b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n",
    b": comment\n\nevent: x\ndata: 1\ndata: 2\n\n",
    b"\xef\xbb\xbfdata: a\n\n\n\n\ndata: b\n\ndata: unfinished",
]

line_soup = st.lists(st.sampled_from([b"\r", b"\n", b"data: x", b"a", b":"]), max_size=30).map(
    b"".join
)


def split(stream: bytes, size: int) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.close()


def expected(stream: bytes) -> list[bytes]:
    found = re.findall(rb"(?s).*?(?>\r\n|\r|\n){2}", stream)
    return [bytes(event) for event in found]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_nothing_is_lost_and_events_do_not_depend_on_the_pieces(stream: bytes, size: int) -> None:
    """Events and rest are the bytes put in, cut at the same places for every chunk size."""
    events, rest = split(stream, size)

    assert b"".join(events) + rest == stream
    assert events == split(stream, len(stream))[0]


@given(line_soup, st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_any_mix_of_line_ends_is_cut_as_the_standard_says(stream: bytes, size: int) -> None:
    """Two line ends in a row end an event, except that a last CR waits for its LF."""
    events, rest = split(stream, size)

    whole = expected(stream)
    if stream.endswith(b"\r") and whole[-1:] == [rest]:
        whole.pop()
    assert events == whole
    assert b"".join(events) + rest == stream


def test_a_chunk_that_is_one_event_is_not_copied() -> None:
    """The event is the very object that was fed."""
    chunk = b'data: {"a":1}\n\n'

    assert EventSplitter().feed(chunk)[0] is chunk


def test_a_crlf_cut_in_half_ends_its_event_once() -> None:
    """The LF that follows a CR in the next chunk belongs to the same event."""
    splitter = EventSplitter()

    assert splitter.feed(b"data: a\r\n\r") == []
    assert splitter.feed(b"\ndata: b") == [b"data: a\r\n\r\n"]
    assert splitter.close() == b"data: b"


def test_close_gives_the_rest_once() -> None:
    """A second close has nothing left to give."""
    splitter = EventSplitter()
    splitter.feed(b"data: a")

    assert splitter.close() == b"data: a"
    assert splitter.close() == b""


@pytest.mark.parametrize("size", [7, 64, 10_000])
def test_an_event_that_is_too_large_ends_the_reading(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events before it are read, it and what follows are not, for every chunk size."""
    monkeypatch.setattr(_sse, "MAX_EVENT_BYTES", 100)
    stream = b"data: a\n\n" + b"data: " + b"x" * 200 + b"\n\ndata: c\n\n"
    splitter = EventSplitter()
    events: list[bytes] = []

    for at in range(0, len(stream), size):
        if not splitter.overflowed:
            events += splitter.feed(stream[at : at + size])

    assert splitter.overflowed
    assert events == [b"data: a\n\n"]


def test_a_large_event_in_small_pieces_takes_linear_time() -> None:
    """A megabyte in pieces of 16 bytes is searched once, not once for each piece."""
    splitter = EventSplitter()
    for _ in range(65_536):
        splitter.feed(b"x" * 16)

    assert len(splitter.feed(b"\n\n")[0]) == 1_048_578


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a \n\n", b" a "),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data\n\n", b""),
        (b"event: x\nid: 1\nretry: 2\ndata: a\nother: b\n\n", b"a"),
        (b": data: a\n\n", b""),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b"data: a", b"a"),
        (b"data: \xe2\x80\xa8\x0b\x0c\x85\n\n", b"\xe2\x80\xa8\x0b\x0c\x85"),
        (b"", b""),
    ],
)
def test_data_is_read_as_the_standard_says(event: bytes, data: bytes) -> None:
    """One space goes, lines are joined by LF, comments and other fields are left out."""
    assert read_data(event) == data
