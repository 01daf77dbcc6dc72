"""Claude's thinking, which shares the output bound and has one of its own below it."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects._json import table

_LEAST = 1024
"""Smallest thinking budget the API takes; it must also be below `max_tokens`."""


def fit_thinking(body: dict[str, Any], output: int, field: str = "thinking") -> None:
    """Lower a thinking budget below a lowered bound, or take thinking out."""
    budget = table(body.get(field)).get("budget_tokens")
    if not isinstance(budget, int) or budget < output:
        return
    if output <= _LEAST:
        del body[field]
    else:
        body[field] = {**body[field], "budget_tokens": output - 1}
