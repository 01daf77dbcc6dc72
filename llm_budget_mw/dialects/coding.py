"""Undoes the compression of an answer while it passes, within bounds.

Only what zlib can undo: gzip and deflate. Other content codings stay unread.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_GZIP, _ZLIB, _BARE = 31, 15, -15
"""zlib's words for the formats."""
_WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
_HEAD = 2
"""Bytes that tell whether `deflate` is zlib's format, as it should be, or bare."""
_METHOD = 8
_PIECE = 64 * 1024
"""Most bytes unfolded at once."""


class Inflater:
    """Undoes one content coding, piece by piece.

    It gives up, for good, where the data are damaged or unfold to more than `limit` bytes: a
    bomb costs no more than that in time, and a piece in memory.
    """

    def __init__(self, window: int, limit: int) -> None:
        self.lost = False
        """True once it has given up."""
        self._window = window
        self._left = limit
        self._head: bytes | None = b"" if window == _ZLIB else None
        """What came before the format was told; None once it is."""
        self._stream = zlib.decompressobj(window)

    @property
    def complete(self) -> bool:
        """True if all that has begun has ended."""
        return self._stream.eof and not self.lost

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next data unfold to, a bounded piece at a time."""
        if self._head is not None:
            data = self._tell(self._head + data)
        more = bool(data)
        while more and not self.lost:
            piece, data = self._unfold(data)
            self._left -= len(piece)
            if self._left < 0:
                self.lost = True
            if piece and not self.lost:
                yield piece
            # A full piece may have left something inside zlib, with no data to go with it.
            more = bool(data) or len(piece) == _PIECE

    def _tell(self, data: bytes) -> bytes:
        """Tell the format from the first bytes; return what is to be unfolded, if it is told."""
        if len(data) < _HEAD:
            self._head = data
            return b""
        self._head = None
        # RFC 1950 section 2.2: the check bits make the two bytes a multiple of 31.
        if data[0] & 0x0F != _METHOD or int.from_bytes(data[:_HEAD]) % 31:
            self._window = _BARE
            self._stream = zlib.decompressobj(_BARE)
        return data

    def _unfold(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the next plain bytes, and the data that are still to be unfolded."""
        if self._stream.eof and data:
            # RFC 1952 section 2.2: one member may follow another.
            self._stream = zlib.decompressobj(self._window)
        try:
            piece = self._stream.decompress(data, _PIECE)
        except zlib.error:
            self.lost = True
            return b"", b""
        return piece, self._stream.unused_data or self._stream.unconsumed_tail


def inflater_of(coding: str, limit: int) -> Inflater | None:
    """Return what undoes a `content-encoding`; None if that cannot be done, or need not."""
    window = _WINDOWS.get(coding.strip().lower())
    return None if window is None else Inflater(window, limit)


def inflated(body: bytes, coding: str, limit: int) -> bytes:
    """Return a whole body without its coding, or as it is if that cannot be undone.

    Nothing is left of one that is damaged, incomplete, or unfolds to more than `limit` bytes.
    """
    inflater = inflater_of(coding, limit)
    if inflater is None:
        return body
    plain = b"".join(inflater.feed(body))
    return plain if inflater.complete else b""
