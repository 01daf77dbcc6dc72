"""Tests of `llm_budget_mw.sinks.log`."""

from __future__ import annotations

from structlog.testing import capture_logs

from llm_budget_mw import events
from llm_budget_mw.sinks.log import LogSink


def test_an_event_is_a_line_of_its_own_name_and_severity() -> None:
    """Its attributes are the key-values."""
    sink = LogSink()
    with capture_logs() as lines:
        sink.emit(events.store_down("gone"))
        sink.emit(events.store_up(3, 0))
        sink.emit(events.denied(401, "invalid_token", "/chat"))

    assert lines == [
        {"event": "budget.store_down", "log_level": "critical", "error": "gone"},
        {"event": "budget.store_up", "log_level": "warning", "waiting": 3, "lost": 0},
        {
            "event": "budget.denied",
            "log_level": "info",
            "status": 401,
            "code": "invalid_token",
            "route": "/chat",
        },
    ]


def test_a_sink_follows_the_configuration_the_application_makes_later() -> None:
    """Made before logging was set up, it logs as set up."""
    sink = LogSink()
    with capture_logs() as first:
        sink.emit(events.store_down("gone"))
    with capture_logs() as second:
        sink.emit(events.store_down("gone"))

    assert first == second != []
