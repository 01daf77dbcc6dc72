"""What is known about the tokens of each family of models: one table.

The numbers are snapshots of vendors' documents and of recorded traffic, chosen so that
recorded requests were not under-counted. A name the table does not know gets the last row,
and a new model of a known maker the dearest row of that maker.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from llm_budget_mw.tokens.media import (
    MediaRules,
    claude,
    flat,
    gemini_resolution,
    gemini_tiles,
    patches,
    tiles,
)

EncodingName = Literal["o200k_base", "cl100k_base"]

_MAX_NAME_LENGTH = 256
_OWN_ENCODING = 100


class Family(NamedTuple):
    """Models that count tokens alike."""

    name: str
    pattern: re.Pattern[str]
    """Found in the lower-case name of every member."""
    media: MediaRules
    percent: int = _OWN_ENCODING
    """Tokens of this family for 100 tokens of `encoding`, at most; 100 is its own encoding."""
    encoding: EncodingName = "o200k_base"
    hidden_tokens: int = 16
    """What the provider adds to every request besides its documented overhead."""

    @property
    def exact(self) -> bool:
        """Whether `encoding` is the family's own."""
        return self.percent == _OWN_ENCODING


_OPENAI_AUDIO = 10
_GEMINI_AUDIO = 32
_PAGE_TEXT = 3_000
_HIGH_DETAIL = 2_500
_NO_CAP = 1_000_000

_START = r"(?:^|[/.:])"


def _openai(
    name: str,
    pattern: str,
    image: MediaRules,
    encoding: EncodingName = "o200k_base",
) -> Family:
    return Family(name, re.compile(_START + pattern), image, encoding=encoding)


def _tiles(base: int, tile: int) -> MediaRules:
    return MediaRules(tiles(base, tile), _OPENAI_AUDIO, _PAGE_TEXT + base + 8 * tile)


def _patches(cap: int, percent: int, remote: int | None = None) -> MediaRules:
    page = _PAGE_TEXT + _HIGH_DETAIL * percent // 100
    return MediaRules(patches(cap, percent, remote), _OPENAI_AUDIO, page)


def _claude(name: str, pattern: str, percent: int, long_side: int, cap: int) -> Family:
    rules = MediaRules(claude(long_side, cap), _GEMINI_AUDIO, _PAGE_TEXT + cap)
    return Family(name, re.compile(pattern), rules, percent)


# Dearest that is known for one image, except for gpt-4o-mini.
_ANY = MediaRules(flat(12_000), _GEMINI_AUDIO, _PAGE_TEXT + 4_784)

FAMILIES: tuple[Family, ...] = (
    # The "harmony" format adds 60 to 70 tokens of its own.
    Family("gpt-oss", re.compile("gpt-oss"), _ANY, hidden_tokens=96),
    _openai("gpt-4o-mini", "gpt-4o-mini", _tiles(2_833, 5_667)),
    _openai("computer-use", "computer-use", _tiles(65, 129)),
    _openai("gpt-4.1-mini", r"gpt-4\.1-mini", _patches(1_536, 162)),
    _openai("gpt-4.1-nano", r"gpt-4\.1-nano", _patches(1_536, 246)),
    _openai("o4-mini", "o4-mini", _patches(1_536, 172)),
    _openai("gpt-5-nano", "gpt-5-nano", _patches(1_536, 150)),
    _openai("gpt-5-mini", r"gpt-5(?:\.4)?-(?:mini|nano)", _patches(1_536, 120)),
    _openai("gpt-5", r"gpt-5(?![.\d])", _tiles(70, 140)),
    _openai("o1, o3", r"o[13](?![\w.])", _tiles(75, 150)),
    _openai("gpt-4o", r"(?:chatgpt-4o|gpt-4(?:o|\.1|\.5))", _tiles(85, 170)),
    _openai(
        "gpt-4",
        r"(?:gpt-4(?![.\w])|gpt-3\.?5|text-embedding-(?:3|ada)|(?:davinci|babbage)-002)",
        _tiles(85, 170),
        "cl100k_base",
    ),
    _openai("gpt-5.x", r"gpt-5\.", _patches(10_000, 120)),
    # No cap was seen: a photograph of 12 megapixels cost 14,364 tokens.
    _openai("later gpt", r"(?:gpt-|chatgpt|codex|o\d)", _patches(_NO_CAP, 120, 12_500)),
    # Tokenizer before Opus 4.7: 1.0 to 1.26 times o200k_base on recorded text.
    _claude(
        "claude up to 4.6",
        r"claude-(?:instant|v?[123](?!\d)|(?:opus|sonnet|haiku)-4(?!\d)(?![-.](?:[7-9]|\d\d)(?!\d)))",
        135,
        1_568,
        1_600,
    ),
    # The newer one: 1.42 to 1.72 times.
    _claude("later claude", "claude", 180, 2_576, 4_784),
    Family(
        "gemini up to 2",
        re.compile(r"gemini-(?:[12](?!\d)|(?:live|pro|flash)-2)"),
        MediaRules(gemini_tiles, _GEMINI_AUDIO, 258),
        135,
    ),
    Family(
        "later gemini",
        re.compile("gemini"),
        MediaRules(gemini_resolution, _GEMINI_AUDIO, 560),
        135,
    ),
    Family("any", re.compile(""), _ANY, 135),
)


def family_of(model: str) -> Family:
    """Return the family of a model by its name, which may be anything at all."""
    return _find(model.lower()) if len(model) <= _MAX_NAME_LENGTH else FAMILIES[-1]


@lru_cache(maxsize=4096)
def _find(name: str) -> Family:
    return next(family for family in FAMILIES if family.pattern.search(name))
