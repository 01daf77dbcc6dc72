"""Alerts given to a function of the application."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.events import ALERTS, Event


class CallbackSink:
    """Calls a function with each alert, on the request's thread or loop: it must be quick.

    What it raises is logged by the guard. Raises `ConfigurationError` for a function that
    would have to be awaited.
    """

    def __init__(self, on_alert: Callable[[Event], object]) -> None:
        if inspect.iscoroutinefunction(on_alert):
            raise ConfigurationError(
                f"on_alert: found the coroutine function {on_alert.__qualname__!r}, which nobody "
                "would await; give a plain function, such as one that starts a task"
            )
        self._on_alert = on_alert

    def emit(self, event: Event) -> None:
        """Hand over an alert; other events are not meant for people."""
        if event.name in ALERTS:
            self._on_alert(event)
