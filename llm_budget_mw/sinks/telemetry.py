"""Events as OpenTelemetry metrics, and as attributes of the request's span.

The span is the server's own: a new one for the call would count its tokens twice next to an
instrumented SDK.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import metrics, trace

from llm_budget_mw import events
from llm_budget_mw.events import Event
from llm_budget_mw.sinks import names

_SPAN_ATTRIBUTES = {
    "model": names.MODEL,
    "response_model": names.RESPONSE_MODEL,
    "max_tokens": names.MAX_TOKENS,
    "input_tokens": names.INPUT_TOKENS,
    "output_tokens": names.OUTPUT_TOKENS,
    "cache_read_tokens": names.CACHE_READ_TOKENS,
    "cache_write_tokens": names.CACHE_WRITE_TOKENS,
    "reasoning_tokens": names.REASONING_TOKENS,
    "held_tokens": names.RESERVED_TOKENS,
    "grade": names.GRADE,
    "ending": names.ENDING,
    "feature": names.FEATURE,
    "reservation": names.RESERVATION,
    "principal": names.PRINCIPAL,
    "reason": names.REASON,
    "limit": names.LIMIT,
}
_MODELS = 200
"""Models told apart; where any may be asked for, their number has no bound."""
_OTHER = "other"
_DECISIONS = {
    events.SETTLED: "admitted",
    events.REFUSED: "refused",
    events.UNCHECKED: "unchecked",
    events.DENIED: "denied",
}


class MetricsSink:
    """Counts calls, refusals, tokens and money, by model and feature, never by user."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        meter = metrics.get_meter(names.METER)
        self._calls = meter.create_counter(names.CALLS, description="settled calls")
        self._refusals = meter.create_counter(names.REFUSALS, description="refused calls")
        self._unchecked = meter.create_counter(
            names.UNCHECKED, description="calls admitted while the store was away"
        )
        self._tokens = meter.create_counter(names.TOKENS, description="settled tokens")
        self._cost = meter.create_counter(names.COST_USD, description="settled cost in US dollars")
        self._overruns = meter.create_counter(
            names.OVERRUNS, description="calls that used more than they held"
        )
        self._duration = meter.create_histogram(names.DURATION, "s", "duration of settled calls")

    def emit(self, event: Event) -> None:
        """Count one event."""
        attributes = event.attributes
        if event.name == events.SETTLED:
            self._settled(attributes)
        elif event.name == events.REFUSED:
            self._refusals.add(
                1, {names.LIMIT: attributes["limit"] or "", names.REASON: attributes["reason"]}
            )
        elif event.name == events.UNCHECKED:
            self._unchecked.add(1)

    def _settled(self, attributes: dict[str, Any]) -> None:
        model = attributes["model"]
        if len(self._models) < _MODELS:
            self._models.add(model)
        labels = {
            names.MODEL: model if model in self._models else _OTHER,
            names.FEATURE: attributes["feature"] or "",
        }
        self._calls.add(1, {**labels, names.GRADE: attributes["grade"]})
        self._tokens.add(attributes["input_tokens"], {**labels, names.SIDE: "input"})
        self._tokens.add(attributes["output_tokens"], {**labels, names.SIDE: "output"})
        self._cost.add(attributes["cost_nano"] / 1e9, labels)
        self._duration.record(attributes["duration_ms"] / 1000, labels)
        if attributes["overrun"]:
            self._overruns.add(1, labels)


class SpanSink:
    """Writes what happened onto the span that is current."""

    def emit(self, event: Event) -> None:
        """Set the attributes of one event, if a span is recording."""
        span = trace.get_current_span()
        decision = _DECISIONS.get(event.name)
        if decision is None or not span.is_recording():
            return
        # What went unchecked stays so when it is settled.
        if event.attributes.get("reserved", True):
            span.set_attribute(names.DECISION, decision)
        for key, value in event.attributes.items():
            if value is not None and key in _SPAN_ATTRIBUTES:
                span.set_attribute(_SPAN_ATTRIBUTES[key], value)
        if "cost_nano" in event.attributes:
            span.set_attribute(names.SPAN_COST_USD, event.attributes["cost_nano"] / 1e9)
