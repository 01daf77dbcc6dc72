"""Tests of `llm_budget_mw.tokens.families` and the media rules in its table."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.tokens.families import FAMILIES, family_of
from llm_budget_mw.types import Media


def image(width: int, height: int, detail: str = "") -> Media:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return Media("image", head, len(head), detail)


def tokens(model: str, media: Media) -> int:
    return family_of(model).media.tokens(media)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-4o", "gpt-4o"),
        ("GPT-4o-2024-08-06", "gpt-4o"),
        ("ft:gpt-4o-mini:acme::x", "gpt-4o-mini"),
        ("openai/gpt-4.1", "gpt-4o"),
        ("gpt-4.1-mini", "gpt-4.1-mini"),
        ("gpt-4.1-nano", "gpt-4.1-nano"),
        ("gpt-4", "gpt-4"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-4-turbo", "gpt-4"),
        ("gpt-3.5-turbo", "gpt-4"),
        ("gpt-35-turbo", "gpt-4"),
        ("text-embedding-3-small", "gpt-4"),
        ("o1", "o1, o3"),
        ("o3-pro", "o1, o3"),
        ("o4-mini", "o4-mini"),
        ("gpt-5", "gpt-5"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("gpt-5-mini", "gpt-5-mini"),
        ("gpt-5-nano", "gpt-5-nano"),
        ("gpt-5.4-nano", "gpt-5-mini"),
        ("gpt-5.5", "gpt-5.x"),
        ("gpt-6", "later gpt"),
        ("o9", "later gpt"),
        ("gpt-oss-120b", "gpt-oss"),
        ("computer-use-preview", "computer-use"),
        ("claude-2.1", "claude up to 4.6"),
        ("claude-3-5-haiku-latest", "claude up to 4.6"),
        ("claude-opus-4-20250514", "claude up to 4.6"),
        ("claude-opus-4-6", "claude up to 4.6"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude up to 4.6"),
        ("claude-opus-4-7", "later claude"),
        ("claude-opus-4-7-20260401", "later claude"),
        ("claude-opus-4-10", "later claude"),
        ("claude-opus-5", "later claude"),
        ("claude-sonnet-41", "later claude"),
        ("anthropic/claude-something-new", "later claude"),
        ("gemini-1.5-pro", "gemini up to 2"),
        ("models/gemini-2.5-flash", "gemini up to 2"),
        ("gemini-live-2.5-flash", "gemini up to 2"),
        ("gemini-3-pro-preview", "later gemini"),
        ("text-embedding-004", "any"),
        ("llama-3.3-70b-versatile", "any"),
        ("mistral-large-latest", "any"),
        ("", "any"),
        ("gpt-4o" + "x" * 260, "any"),
    ],
)
def test_models_are_put_into_their_family_by_name(model: str, family: str) -> None:
    """Names of all spellings find their row, and new models the dearest of their maker."""
    assert family_of(model).name == family


@given(st.text(max_size=300))
def test_every_name_has_a_family(name: str) -> None:
    """Names come from callers: none is refused and none raises."""
    assert family_of(name) in FAMILIES


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_only_openai_counts_are_exact(family: object) -> None:
    """Whoever has another tokenizer is given a factor above 1."""
    for row in FAMILIES:
        openai = row.name.startswith(("gpt", "o1", "o4", "later gpt", "computer"))
        assert row.exact is openai


@pytest.mark.parametrize(
    ("model", "media", "expected"),
    [
        ("gpt-4o", image(1024, 1024), 765),
        ("gpt-4o", image(2048, 4096), 1_105),
        ("gpt-4o", image(4096, 2048, "high"), 1_105),
        ("gpt-4o", image(512, 512), 255),
        ("gpt-4o", image(4000, 4000, "LOW"), 85),
        ("gpt-4o-mini", image(1024, 1024), 2_833 + 4 * 5_667),
        ("o3", image(1024, 1024), 75 + 4 * 150),
        ("gpt-5", image(1, 1), 70 + 140),
        ("gpt-4.1-mini", image(1024, 1024), 1_659),
        ("gpt-4.1-mini", image(9000, 9000), 2_489),
        ("gpt-5.5", image(4000, 4000, "high"), 3_000),
        ("gpt-5.5", image(4000, 4000, "original"), 12_000),
        ("gpt-6", image(4032, 3024), 14_364),
        ("claude-sonnet-4-5", image(1, 1), 1),
        ("claude-sonnet-4-5", image(840, 840), 941),
        ("claude-sonnet-4-5", image(8000, 8000), 1_600),
        ("claude-sonnet-4-5", image(8000, 10), 56),
        ("claude-opus-5", image(8000, 8000), 4_784),
        ("gemini-2.5-pro", image(384, 384), 258),
        ("gemini-2.5-pro", image(768, 769), 516),
        ("gemini-3-pro", image(5000, 5000), 1_120),
        ("gemini-3-pro", image(10, 10, "MEDIA_RESOLUTION_ULTRA_HIGH"), 2_240),
        ("llama-4", image(10, 10), 12_000),
    ],
)
def test_images_cost_what_their_provider_says(model: str, media: Media, expected: int) -> None:
    """The documented examples come out, and recorded images are not under-counted."""
    assert tokens(model, media) == expected


@pytest.mark.parametrize(
    ("model", "worst"),
    [
        ("gpt-4o", 85 + 8 * 170),
        ("gpt-4.1-nano", 3_779),
        ("gpt-6", 15_000),
        ("claude-3-haiku", 1_600),
        ("claude-opus-5", 4_784),
        ("gemini-2.0-flash", 16 * 258),
    ],
)
@pytest.mark.parametrize("head", [b"", b"not an image at all"])
def test_an_unknown_size_costs_the_worst_case(model: str, worst: int, head: bytes) -> None:
    """A remote or unreadable image is reserved at the most one image is known to cost."""
    assert tokens(model, Media("image", head)) == worst


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.sampled_from(["gpt-4o", "gpt-5.5"]))
def test_shrunk_images_never_cost_more_than_the_worst_case(
    width: int, height: int, model: str
) -> None:
    """Rules that shrink an image have a most, and reach it for images of unknown size."""
    assert tokens(model, image(width, height)) <= tokens(model, Media("image"))


def test_sound_costs_at_the_least_plausible_bit_rate() -> None:
    """A file is taken to be as long as its bytes allow; a remote one an hour."""
    assert tokens("gpt-4o", Media("audio", size=10_001)) == 11 * 10
    assert tokens("gemini-2.5-pro", Media("audio", size=1)) == 32
    assert tokens("gpt-4o", Media("audio")) == 36_000


def test_files_cost_a_token_for_each_byte_and_at_least_a_page() -> None:
    """A small file is a page, a large one no more than any model reads, a remote one 100 pages."""
    assert tokens("claude-3-haiku", Media("file", size=10)) == 4_600
    assert tokens("claude-3-haiku", Media("file", size=50_000)) == 50_000
    assert tokens("claude-3-haiku", Media("file", size=2**40)) == 1_000_000
    assert tokens("gemini-2.5-pro", Media("file")) == 25_800
