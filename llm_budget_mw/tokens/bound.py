"""The strict upper bound: a token of any byte-level tokenizer is at least one byte."""

from __future__ import annotations

from collections.abc import Iterable

from llm_budget_mw.tokens.families import family_of
from llm_budget_mw.types import Prompt


def utf8_bytes(text: str) -> int:
    """Return the length of `text` in UTF-8; a lone surrogate counts three bytes.

    That is the length of U+FFFD, which is what becomes of it on the way.
    """
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def text_bytes(texts: Iterable[str]) -> int:
    """Return the length of all `texts` in UTF-8."""
    return sum(map(utf8_bytes, texts))


def byte_bound(prompt: Prompt, model: str) -> int:
    """Return an upper bound on the input tokens of `prompt`, at the speed of copying it.

    Text at a token for each byte, the format's overhead, what the provider adds unseen,
    and media by the rules of the model's family.
    """
    return text_bytes(prompt.texts) + fixed_tokens(prompt, model)


def fixed_tokens(prompt: Prompt, model: str) -> int:
    """Return the part of the bound that does not depend on the text."""
    family = family_of(model)
    media = sum(family.media.tokens(part) for part in prompt.media)
    return prompt.overhead_tokens + family.hidden_tokens + media
