"""A request's body within bounds: read once, decoded if it is compressed."""

from __future__ import annotations

import zlib

from llm_budget_mw.errors import RequestError

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's word for each content coding it can undo."""
_MOST_DIGITS = 32


def too_large(limit: int) -> RequestError:
    """Return the error for a body above the configured bound."""
    return RequestError(
        f"The request body is larger than {limit} bytes.", status=413, code="request_too_large"
    )


def announced(content_length: str | None, limit: int) -> None:
    """Raise `RequestError` if the announced length is above the bound, before reading any of it."""
    if content_length is None or not content_length.isdecimal():
        return
    # Python refuses to read thousands of digits.
    if len(content_length) > _MOST_DIGITS or int(content_length) > limit:
        raise too_large(limit)


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a body without its content coding.

    Raises `RequestError` for a coding that cannot be undone, and for one that unfolds to more
    than `limit` bytes: a bomb is never unfolded further than that.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOWS:
        raise RequestError(
            f"The content encoding {coding[:40]!r} is not supported; use gzip, deflate or none.",
            status=415,
            code="unsupported_encoding",
        )
    stream = zlib.decompressobj(_WINDOWS[coding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError("The compressed request body is damaged.") from error
    if len(plain) > limit:
        raise too_large(limit)
    if not stream.eof:
        raise RequestError("The compressed request body is incomplete.")
    if stream.unused_data:
        raise RequestError("The compressed request body goes on after its end.")
    return plain
