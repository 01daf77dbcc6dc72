"""Events as structlog lines, in whatever configuration the application has made."""

from __future__ import annotations

from typing import Any

import structlog

from llm_budget_mw.events import Event


class LogSink:
    """Logs each event under its own name, with its attributes as key-values."""

    def __init__(self) -> None:
        # A lazy proxy: binding now would freeze a configuration the application may change.
        self._logger: Any = structlog.get_logger("llm_budget_mw")

    def emit(self, event: Event) -> None:
        """Log one event at the level of its severity."""
        getattr(self._logger, event.severity)(event.name, **event.attributes)
