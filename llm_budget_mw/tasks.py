"""What a call is for, as far as a tier has offers of its own for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llm_budget_mw.config import TasksConfig
from llm_budget_mw.types import ModelCall, Principal

Classify = Callable[[Principal, ModelCall, Mapping[str, str]], str | None]
"""Names the task of a call, or None; the headers are those of its request, in lower case."""


def classifier(config: TasksConfig) -> Classify:
    """Return what reads the task from the configured claim, else from the configured header."""

    def classify(principal: Principal, call: ModelCall, headers: Mapping[str, str]) -> str | None:
        if config.claim is not None:
            claimed = principal.claims.get(config.claim)
            if isinstance(claimed, str):
                return claimed
        return headers.get(config.header) if config.header is not None else None

    return classify
