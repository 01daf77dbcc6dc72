"""Tests of `llm_budget_mw.sinks.telemetry`, with the OpenTelemetry SDK behind the API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, Tracer, TracerProvider

from llm_budget_mw import events
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.events import Event
from llm_budget_mw.sinks.telemetry import MetricsSink, SpanSink
from llm_budget_mw.types import Grant, Usage
from tests.deployment import ALICE, call_of, configured, engine_of, origin_of

ENGINE = engine_of(configured({"tokens": "9000/day", "max_tokens": 100}))
READER = InMemoryMetricReader()

Point = tuple[float, Mapping[str, Any]]


def settled(usage: Usage, *, model: str = "big", checked: bool = True) -> Event:
    origin = origin_of(call_of("x" * 84, model=model))._replace(feature="chat")
    plan = ENGINE.plan(ALICE, origin.call)
    grant = Grant(plan, plan.offers[0], 100, None)
    done = ENGINE.settle(grant, Outcome(Ending.COMPLETE, usage), origin.call)
    event = events.settled(done, origin, "somebody", "1", 1_500)
    return event._replace(attributes={**event.attributes, "reserved": checked})


def unchecked() -> Event:
    origin = origin_of(call_of())
    plan = ENGINE.plan(ALICE, origin.call)
    return events.unchecked(Grant(plan, plan.offers[0], 1, None), origin, "somebody", "gone")


REFUSED = Event(events.REFUSED, "info", {"limit": "requests-per-day", "reason": "busy"})


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    # A process has one provider of metrics, once and for all.
    metrics.set_meter_provider(MeterProvider([READER]))


@pytest.fixture
def sink() -> Iterator[MetricsSink]:
    READER.get_metrics_data()
    yield MetricsSink()
    READER.get_metrics_data()


def points(before: Mapping[str, list[Point]] | None = None) -> dict[str, list[Point]]:
    """Return what every metric counted, less what it had counted before."""
    data = READER.get_metrics_data()
    found: dict[str, list[Point]] = {}
    for resource in data.resource_metrics if data else ():
        for metric in [one for scope in resource.scope_metrics for one in scope.metrics]:
            for point in metric.data.data_points:
                assert isinstance(point, NumberDataPoint | HistogramDataPoint)
                value = point.sum if isinstance(point, HistogramDataPoint) else point.value
                labels = dict(point.attributes or {})
                old = [n for n, known in (before or {}).get(metric.name, []) if known == labels]
                if value - sum(old):
                    found.setdefault(metric.name, []).append((value - sum(old), labels))
    return found


def counted(sink: MetricsSink, *told: Event) -> dict[str, list[Point]]:
    before = points()
    for event in told:
        sink.emit(event)
    return points(before)


def test_a_settlement_is_counted(sink: MetricsSink) -> None:
    """Calls, tokens of each kind, money and time; by model and feature."""
    labels = {"gen_ai.request.model": "big", "llm_budget.feature": "chat"}
    found = counted(sink, settled(Usage(40, 60)))

    assert found == {
        "llm_budget.calls": [(1, {**labels, "llm_budget.usage_source": "exact"})],
        "llm_budget.tokens": [
            (40, {**labels, "gen_ai.token.type": "input"}),
            (60, {**labels, "gen_ai.token.type": "output"}),
        ],
        "llm_budget.cost.usd": [(pytest.approx(0.0007), labels)],
        "llm_budget.call.duration": [(pytest.approx(1.5), labels)],
    }


def test_an_overrun_is_counted(sink: MetricsSink) -> None:
    """Besides everything else."""
    found = counted(sink, settled(Usage(4_000, 60)))

    assert [value for value, _ in found["llm_budget.overruns"]] == [1]


def test_refusals_and_unchecked_calls_are_counted(sink: MetricsSink) -> None:
    """Refusals by limit and reason."""
    found = counted(sink, REFUSED, unchecked(), events.store_down("gone"))

    labels = {"llm_budget.limit": "requests-per-day", "llm_budget.reason": "busy"}
    assert found == {"llm_budget.refusals": [(1, labels)], "llm_budget.unchecked": [(1, {})]}


def test_a_refusal_without_a_limit_is_counted(sink: MetricsSink) -> None:
    """The store was away."""
    told = Event(events.REFUSED, "info", {"limit": None, "reason": "store_down"})

    [(_, labels)] = counted(sink, told)["llm_budget.refusals"]
    assert labels["llm_budget.limit"] == ""


def test_no_metric_carries_a_user(sink: MetricsSink) -> None:
    """Nor a tenant or a reservation: their number has no bound."""
    found = counted(sink, settled(Usage(40, 60)), REFUSED, unchecked())
    labels = {name for all_points in found.values() for _, known in all_points for name in known}

    assert labels == {
        "gen_ai.request.model",
        "gen_ai.token.type",
        "llm_budget.feature",
        "llm_budget.limit",
        "llm_budget.reason",
        "llm_budget.usage_source",
    }


def test_models_that_callers_make_up_do_not_fill_the_metrics(sink: MetricsSink) -> None:
    """Beyond 200 they are one."""
    told = [settled(Usage(1, 1), model=f"made-up-{number}") for number in range(230)]
    found = counted(sink, *told)["llm_budget.calls"]

    by_model = {labels["gen_ai.request.model"]: value for value, labels in found}
    assert len(by_model) == 201
    assert by_model["other"] == 30


def spanned(*told: Event) -> Mapping[str, Any]:
    """Return the attributes of a span in which these events were told."""
    tracer = TracerProvider().get_tracer("test")
    assert isinstance(tracer, Tracer)
    with tracer.start_as_current_span("POST /chat") as span:
        for event in told:
            SpanSink().emit(event)
    assert isinstance(span, ReadableSpan)
    return dict(span.attributes or {})


def test_the_current_span_gets_the_numbers_of_the_call() -> None:
    """Under the names of the GenAI conventions where there are any; nothing that is unknown."""
    event = settled(Usage(40, 60))

    assert spanned(event) == {
        "llm_budget.decision": "admitted",
        "gen_ai.request.model": "big",
        "gen_ai.request.max_tokens": 100,
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 60,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.cache_write.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "llm_budget.reserved_tokens": 200,
        "llm_budget.usage_source": "exact",
        "llm_budget.ending": "complete",
        "llm_budget.feature": "chat",
        "llm_budget.reservation": event.attributes["reservation"],
        "llm_budget.cost.usd": 0.0007,
        "enduser.pseudo.id": "somebody",
    }


@pytest.mark.parametrize(
    ("event", "decision"),
    [
        (REFUSED, "refused"),
        (unchecked(), "unchecked"),
        (events.denied(401, None, "/chat"), "denied"),
    ],
)
def test_the_span_says_what_was_decided(event: Event, decision: str) -> None:
    """Refused, denied, or let through unchecked."""
    assert spanned(event)["llm_budget.decision"] == decision


def test_what_went_unchecked_stays_so_when_it_is_settled() -> None:
    """A trace of an outage can be told from any other."""
    told = spanned(unchecked(), settled(Usage(40, 60), checked=False))

    assert told["llm_budget.decision"] == "unchecked"
    assert told["gen_ai.usage.input_tokens"] == 40


def test_an_outage_is_not_the_business_of_a_span() -> None:
    """It is of no one request."""
    assert spanned(events.store_down("gone"), events.store_up(1, 0)) == {}


def test_without_a_span_nothing_happens() -> None:
    """Nobody has to use traces."""
    assert not trace.get_current_span().is_recording()
    SpanSink().emit(REFUSED)
