"""Tokens of images, sound and files: what providers say they charge, as rules with numbers.

A remote or unreadable image costs the most its model can charge for one image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from llm_budget_mw.tokens.image import Size, image_size
from llm_budget_mw.types import Media

ImageRule = Callable[[Size | None, str], int]
"""Size, if known, and `detail` to tokens."""

_TILE = 512
_TILE_LONG_SIDE = 2048
_TILE_SHORT_SIDE = 768
_PATCH = 32
_HIGH_DETAIL_PATCHES = 2_500
_CLAUDE_PATCH = 28
_CLAUDE_PIXELS_PER_TOKEN = 750
_GEMINI_TILE = 768
_GEMINI_SMALL = 384
_GEMINI_TILE_TOKENS = 258
_GEMINI_MOST_TILES = 16
_GEMINI_HIGH = 1_120
_GEMINI_ULTRA_HIGH = 2_240

_LEAST_AUDIO_BYTES_PER_S = 1_000
"""8 kbit/s, the lowest bit rate of MP3: no shorter file holds a second of sound."""
_REMOTE_AUDIO_S = 3_600
_REMOTE_FILE_PAGES = 100
_LARGEST_CONTEXT = 1_000_000


class MediaRules(NamedTuple):
    """How one family of models charges for what is not text."""

    image: ImageRule
    audio_tokens_per_s: int
    page_tokens: int
    """One page of a document: its text, and its image where the model sees pages."""

    def tokens(self, media: Media) -> int:
        """Return the most tokens `media` is expected to cost.

        A file counts a token for each byte and at least one page; no header tells how many
        pages compressed text unfolds to, so a document made for it can exceed that.
        """
        if media.kind == "image":
            return self.image(image_size(media.head), media.detail.lower())
        if media.kind == "audio":
            seconds = _ceil(media.size, _LEAST_AUDIO_BYTES_PER_S) or _REMOTE_AUDIO_S
            return seconds * self.audio_tokens_per_s
        remote = self.page_tokens * _REMOTE_FILE_PAGES
        return min(_LARGEST_CONTEXT, max(media.size, self.page_tokens) if media.size else remote)


def tiles(base: int, tile: int) -> ImageRule:
    """Return OpenAI's older rule: so many tokens for each tile of 512 pixels, after shrinking."""
    return partial(_tile_tokens, base, tile)


def patches(cap: int, percent: int, remote: int | None = None) -> ImageRule:
    """Return OpenAI's newer rule: patches of 32 pixels, at most `cap`, times `percent`.

    An image of unknown size counts as `remote` patches, by default as `cap`.
    """
    return partial(_patch_tokens, cap, percent, cap if remote is None else remote)


def claude(long_side: int, cap: int) -> ImageRule:
    """Return Anthropic's rule: patches of 28 pixels after shrinking, at most `cap`."""
    return partial(_claude_tokens, long_side, cap)


def flat(tokens: int) -> ImageRule:
    """Return a rule that charges every image the same."""
    return lambda _size, _detail: tokens


def gemini_tiles(size: Size | None, _detail: str) -> int:
    """Apply the rule of Gemini up to 2.x: tiles of 768 pixels; 16 of them where the size is not known."""
    if size is None:
        return _GEMINI_TILE_TOKENS * _GEMINI_MOST_TILES
    if max(size) <= _GEMINI_SMALL:
        return _GEMINI_TILE_TOKENS
    return _GEMINI_TILE_TOKENS * _area(size, _GEMINI_TILE)


def gemini_resolution(_size: Size | None, detail: str) -> int:
    """Apply the rule of Gemini 3: a number for each media resolution, by default the high one."""
    return _GEMINI_ULTRA_HIGH if "ultra" in detail else _GEMINI_HIGH


def _tile_tokens(base: int, tile: int, size: Size | None, detail: str) -> int:
    if detail == "low":
        return base
    size = size or Size(_TILE_LONG_SIDE, _TILE_SHORT_SIDE)
    size = _shrink(size, max(size), _TILE_LONG_SIDE)
    size = _shrink(size, min(size), _TILE_SHORT_SIDE)
    return base + tile * _area(size, _TILE)


def _patch_tokens(cap: int, percent: int, remote: int, size: Size | None, detail: str) -> int:
    if detail in {"low", "high"}:
        cap = min(cap, _HIGH_DETAIL_PATCHES)
    return _ceil(min(cap, _area(size, _PATCH) if size else remote) * percent, 100)


def _claude_tokens(long_side: int, cap: int, size: Size | None, _detail: str) -> int:
    if size is None:
        return cap
    size = _shrink(size, max(size), long_side)
    by_area = _ceil(size.width * size.height, _CLAUDE_PIXELS_PER_TOKEN)
    return min(cap, max(_area(size, _CLAUDE_PATCH), by_area))


def _shrink(size: Size, side: int, limit: int) -> Size:
    """Scale so that `side` becomes `limit`, if it is longer; round up."""
    return Size(*(_ceil(length * limit, side) for length in size)) if side > limit else size


def _area(size: Size, square: int) -> int:
    return _ceil(size.width, square) * _ceil(size.height, square)


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
