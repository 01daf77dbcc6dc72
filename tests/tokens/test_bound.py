"""Tests of `llm_budget_mw.tokens.bound`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.tokens.bound import byte_bound, fixed_tokens, text_bytes, utf8_bytes
from llm_budget_mw.types import Media, Prompt


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("abc", 3), ("é", 2), ("中", 3), ("👍", 4), ("\ud800", 3)]
)
def test_text_is_measured_in_utf8(text: str, size: int) -> None:
    """Each character counts its bytes, half a surrogate pair those of its replacement."""
    assert utf8_bytes(text) == size


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_many_texts_measure_as_one(texts: list[str]) -> None:
    """Where a text is cut into pieces does not matter."""
    assert text_bytes(texts) == len("".join(texts).encode())


def test_the_bound_adds_text_overhead_hidden_tokens_and_media() -> None:
    """Everything that costs tokens is in the bound, at its model's price."""
    prompt = Prompt(("abc", "中"), 7, (Media("image"), Media("image")))

    assert fixed_tokens(prompt, "gpt-4o") == 7 + 16 + 2 * 1_445
    assert byte_bound(prompt, "gpt-4o") == 6 + 7 + 16 + 2 * 1_445
    assert byte_bound(prompt, "gpt-oss-120b") == 6 + 7 + 96 + 2 * 12_000
