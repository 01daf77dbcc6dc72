"""Tests of `llm_budget_mw._body`."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw._body import announced, decoded
from llm_budget_mw.errors import RequestError

PLAIN = b'{"model":"big"}' * 20
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}


def refused(body: bytes, encoding: str, limit: int = 1_000_000) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        decoded(body, encoding, limit)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("length", ["1001", "9" * 30, "9" * 5_000])
def test_an_announced_length_above_the_bound_is_refused(length: str) -> None:
    """However long the number is, nothing of the body is read."""
    with pytest.raises(RequestError, match="larger than 1000 bytes") as caught:
        announced(length, 1_000)

    assert (caught.value.status, caught.value.code) == (413, "request_too_large")


@pytest.mark.parametrize("length", [None, "", "0", "1000", "-1", "+2000", "2e9", "abc"])
def test_any_other_length_is_left_to_the_reading(length: str | None) -> None:
    """A header that is absent or garbage proves nothing; the bytes are counted anyway."""
    announced(length, 1_000)


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_plain_body_is_returned_as_it_is(encoding: str) -> None:
    """Nothing is undone where nothing was done."""
    assert decoded(PLAIN, encoding, 10) is PLAIN


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", " GZIP "])
def test_a_compressed_body_is_unfolded(encoding: str) -> None:
    """The codings that clients send come back as they went in, up to the bound exactly."""
    packed = PACKED[encoding.strip().lower()](PLAIN)

    assert decoded(packed, encoding, len(PLAIN)) == PLAIN
    assert refused(packed, encoding, len(PLAIN) - 1) == (413, "request_too_large")


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x" * 1_000])
def test_an_unknown_coding_is_refused(encoding: str) -> None:
    """What cannot be read cannot be bounded."""
    assert refused(PLAIN, encoding) == (415, "unsupported_encoding")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_never_unfolded_further_than_the_bound(encoding: str) -> None:
    """A hundred megabytes of zeros cost no more memory than the bound allows."""
    bomb = PACKED[encoding](bytes(100_000_000))
    tracemalloc.start()
    try:
        assert refused(bomb, encoding, 100_000) == (413, "request_too_large")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_damaged_body_is_refused(encoding: str) -> None:
    """Cut, corrupted, empty, or with something behind its end."""
    packed = PACKED[encoding](PLAIN)
    corrupted = packed[:-3] + bytes(byte ^ 255 for byte in packed[-3:])

    for body in (packed[:-1], corrupted, b"", PLAIN, packed + packed):
        assert refused(body, encoding) == (400, "invalid_request")


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_garbage_is_an_answer_never_an_accident(body: bytes, encoding: str) -> None:
    """Any bytes are decoded or refused."""
    try:
        plain = decoded(body, encoding, 100)
    except RequestError:
        return
    assert len(plain) <= 100
