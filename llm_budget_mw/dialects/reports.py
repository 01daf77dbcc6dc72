"""Usage out of an answer that somebody else received: whole, or its usage alone, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_budget_mw.dialects import DIALECTS
from llm_budget_mw.dialects._json import dump, table
from llm_budget_mw.types import Usage

_CUSTOM = "custom"
_RESPONSES = "openai_responses"
_EMBEDDINGS = "openai_embeddings"
_FORMATS = ("openai_chat", "gemini", "ollama", "cohere", "anthropic_messages", "bedrock_invoke")
"""One of each format whose counts have names of their own; the last knows all of Bedrock's."""
_HOLDERS = ("usage", "usageMetadata")
"""Fields of an answer that hold nothing but usage."""


def read_answer(answer: dict[str, Any], dialect: str) -> Usage | None:
    """Read the usage of an answer in a dialect; None if it holds none.

    On a route whose format is not a provider's, the names of the fields tell which it is.
    """
    names = _told_by(answer) if dialect == _CUSTOM else (dialect,)
    headers = _headers(answer)
    found: list[Usage] = []
    for name in names:
        for form in _forms(answer):
            usage = DIALECTS[name].read_usage(dump(form), headers)
            if usage is not None:
                found.append(usage)
    # Some names are in two formats, but never all of them.
    whole = [usage for usage in found if None not in (usage.input_tokens, usage.output_tokens)]
    return next(iter(whole or found), None)


def _told_by(answer: dict[str, Any]) -> tuple[str, ...]:
    if "input_tokens_details" in (table(answer.get("usage")) or answer):
        return (_RESPONSES,)
    return (_EMBEDDINGS,) if answer.get("object") == "list" else _FORMATS


def _forms(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answer, and what it would be if this were its usage alone."""
    yield answer
    if not any(name in answer for name in _HOLDERS):
        yield from ({name: answer} for name in _HOLDERS)


def _headers(answer: dict[str, Any]) -> dict[str, str]:
    """Return the headers of an answer of botocore's, where Bedrock counts as well."""
    headers = table(table(answer.get("ResponseMetadata")).get("HTTPHeaders"))
    return {name: value for name, value in headers.items() if isinstance(value, str)}
