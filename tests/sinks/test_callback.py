"""Tests of `llm_budget_mw.sinks.callback`."""

from __future__ import annotations

import pytest

from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.events import Event
from llm_budget_mw.sinks.callback import CallbackSink


def test_a_coroutine_function_is_refused_at_the_start() -> None:
    """It would be called and never run."""

    async def page(event: Event) -> None: ...

    with pytest.raises(ConfigurationError, match="on_alert: found the coroutine function"):
        CallbackSink(page)
