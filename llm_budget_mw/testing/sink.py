"""A sink that remembers."""

from __future__ import annotations

from typing import Any

from llm_budget_mw import events
from llm_budget_mw.events import Event


class RecordingSink:
    """Keeps every event it is given, in order; safe to share between threads."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        """Take one event."""
        self.events.append(event)

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the attributes of every event of this name, such as `budget.denied`."""
        return [event.attributes for event in self.events if event.name == name]

    @property
    def settled(self) -> list[dict[str, Any]]:
        """What calls were charged, one mapping for each call that ended."""
        return self.named(events.SETTLED)

    @property
    def refused(self) -> list[dict[str, Any]]:
        """What was refused for want of budget, with the limit that refused."""
        return self.named(events.REFUSED)
