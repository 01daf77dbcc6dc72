"""The four ways in which OpenAI's older endpoints take text: one or many, plain or tokenised."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects import _fields
from llm_budget_mw.dialects._json import is_array
from llm_budget_mw.dialects._prompt import PromptBuilder

MAX_TEXTS = 2048
"""Most texts in one request, as OpenAI allows for embeddings."""


def read_texts(field: str, value: Any, prompt: PromptBuilder) -> int:
    """Add a text, tokens, or an array of one of them; return how many texts there are.

    An array of integers is one text, already tokenised. Raises `RequestError` for anything
    else, also for a mixture.
    """
    if isinstance(value, str):
        prompt.add_text(value)
        return 1
    entries: list[Any] = value if is_array(value) else []
    if _are_tokens(entries):
        prompt.overhead_tokens += len(entries)
        return 1
    if not 0 < len(entries) <= MAX_TEXTS:
        raise _fields.wrong(field, f"a string or an array of 1 to {MAX_TEXTS} of them", value)
    if all(isinstance(entry, str) for entry in entries):
        prompt.texts += entries
    elif all(map(_are_tokens, entries)):
        prompt.overhead_tokens += sum(map(len, entries))
    else:
        raise _fields.wrong(field, "all strings, all tokens, or all arrays of tokens", value)
    return len(entries)


def _are_tokens(value: Any) -> bool:
    """Return whether this is one tokenised text, which is never empty."""
    return is_array(value) and bool(value) and all(type(token) is int for token in value)
