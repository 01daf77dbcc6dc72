"""What a guarded transport tells the queue inside it about one request, and hears back.

It travels in the extensions of the HTTP request, so that the two transports need not know
each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXTENSION = "llm_budget_errand"
"""Where an errand is among the extensions of a request."""


@dataclass(slots=True)
class Errand:
    """One attempt at one call of a model."""

    principal: str
    """Who takes turns with whom: the id of who is charged."""
    model: str
    tokens: int
    """What the attempt may consume at most, input and output."""
    used_tokens: int | None = None
    """What it did consume; to be set before the body of the answer is closed, where known."""
    queued: bool = False
    """True from joining a queue until it lets the attempt go: nothing was sent so far."""


def errand_of(extensions: Mapping[str, Any]) -> Errand | None:
    """Return the errand of a request with these extensions; None if it calls no model."""
    errand = extensions.get(EXTENSION)
    return errand if isinstance(errand, Errand) else None
