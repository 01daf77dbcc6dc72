"""Tests of `llm_budget_mw.alerts`, and of how its values are told."""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw import events
from llm_budget_mw.alerts import Anomaly, Crossing
from llm_budget_mw.events import ALERTS, Event, Identifier
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.subjects import subject_of
from llm_budget_mw.types import Limit, Principal, Subject, Window
from tests.deployment import Recorder, SwitchStore, async_store, configured, engine_of

MONTH = Window("calendar", unit="month", zone="Europe/Berlin", anchor_day=15)
BUDGET = Limit("budget-per-month", "cost", 20_000_000_000, MONTH)
TOKENS = Limit("tokens-per-day", "tokens", 1000, Window("fixed", 86_400_000))
SLOTS = Limit("concurrency", "concurrency", 4, Window("none"))
ALICE = subject_of("acme", "alice")
MID_JANUARY_MS = 1_799_967_600_000


def crossing(
    threshold: float = 0.8, limit: Limit = BUDGET, subject: Subject = ALICE, **fields: Any
) -> Crossing:
    """Return a threshold of a limit that was crossed by a little."""
    numbers = {"used": 16_000_500_000, "amount": limit.amount, "window_start_ms": MID_JANUARY_MS}
    return Crossing(subject, limit, threshold, **{**numbers, **fields})


def test_a_threshold_is_told_with_its_window() -> None:
    """Money in nano-dollars and as text, times in UTC whatever the zone of the window."""
    event = events.threshold_crossed(crossing(), "user/somebody")

    assert event == (
        "budget.threshold",
        "info",
        {
            "subject": "user/somebody",
            "limit": "budget-per-month",
            "resource": "cost",
            "threshold_percent": 80,
            "used": 16_000_500_000,
            "amount": 20_000_000_000,
            "used_usd": "$16.0005",
            "amount_usd": "$20.00",
            "window_start": "2027-01-14T23:00:00Z",
            "resets_at": "2027-02-14T23:00:00Z",
        },
    )


def test_what_is_no_money_has_no_dollars_and_what_never_ends_no_times() -> None:
    """They are there, and empty."""
    tokens = events.threshold_crossed(crossing(limit=TOKENS, used=900), "").attributes
    slots = events.threshold_crossed(crossing(limit=SLOTS, window_start_ms=0), "").attributes

    assert (tokens["used"], tokens["used_usd"], tokens["amount_usd"]) == (900, None, None)
    assert (slots["window_start"], slots["resets_at"]) == (None, None)


@pytest.mark.parametrize(
    ("threshold", "percent", "severity"),
    [
        (0.07, 7, "info"),
        (0.125, 12.5, "info"),
        (0.999, 99.9, "info"),
        (1.0, 100, "warning"),
        (1.001, 100.1, "critical"),
        (1.1, 110, "critical"),
        (10.0, 1000, "critical"),
    ],
)
def test_the_severity_follows_the_threshold(
    threshold: float, percent: float, severity: str
) -> None:
    """Below the whole, the whole, and above it; the percentage as a person would write it."""
    event = events.threshold_crossed(crossing(threshold), "")

    assert event.severity == severity
    assert json.dumps(event.attributes["threshold_percent"]) == json.dumps(percent)


def test_an_anomaly_is_told_in_numbers() -> None:
    """What was spent just now, next to what is usual."""
    event = events.anomaly_found(Anomaly(ALICE, BUDGET, 7_000_000_000, 15, 500_000_000), "user/x")

    assert event == (
        "budget.anomaly",
        "warning",
        {
            "subject": "user/x",
            "limit": "budget-per-month",
            "resource": "cost",
            "minutes": 15,
            "spent": 7_000_000_000,
            "usual_in_a_day": 500_000_000,
            "spent_usd": "$7.00",
            "usual_in_a_day_usd": "$0.50",
        },
    )


@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=16))
def test_a_subject_is_called_as_its_principal_is(principal_id: str) -> None:
    """By its pseudonym, plainly or not at all, whatever is in the id."""
    subject = subject_of("acme", principal_id)
    principal = Principal(principal_id)

    for form in ("pseudonym", "plain"):
        identifier = Identifier(form, b"k" * 16)
        assert identifier.subject(subject) == f"user/{identifier.name(principal)}"
    assert Identifier("none", b"").subject(subject) == "user"


@pytest.mark.parametrize("name", ["tenant/acme", "feature/chat", "model/gpt-4o", "deployment"])
def test_other_subjects_are_no_secret(name: str) -> None:
    """They are called what they are."""
    for form in ("pseudonym", "plain", "none"):
        assert Identifier(form, b"k" * 16).subject(Subject("p", name)) == name


@pytest.mark.parametrize("tenant", ["acme", "by", None])
@pytest.mark.parametrize("form", ["pseudonym", "plain", "none"])
def test_what_belongs_to_a_principal_is_called_after_it(
    form: Literal["pseudonym", "plain", "none"], tenant: str | None
) -> None:
    """Its session, and its share of what others use too, say no more of it than its own name."""
    user = subject_of(tenant, "bob@example.org")
    identifier = Identifier(form, b"k" * 16)
    own = identifier.subject(user)
    session = identifier.subject(Subject(user.partition, f"{user.name}/session/7"))
    by = f"by/{user.partition}/{user.name}"
    limited = identifier.subject(Subject(user.partition, f"{user.name}/session/7/{by}"))

    assert session == limited == f"{own}/session/7"
    for shared in ("model/x", "tenant/by", "deployment"):
        assert identifier.subject(Subject("p", f"{shared}/{by}")) == f"{shared}/by/{own}"
    assert ("bob" in own) is (form == "plain")


def test_an_id_too_long_for_a_key_is_named_after_its_hash() -> None:
    """Its own pseudonym would need the id."""
    subject = subject_of(None, "x" * 500)
    plain, pseudonym = Identifier("plain", b""), Identifier("pseudonym", b"k" * 16)

    assert plain.subject(subject) == subject.name
    assert pseudonym.subject(subject) != subject.name
    assert len(pseudonym.subject(subject)) == len("user/") + 24


def test_a_guard_tells_its_sinks_what_it_is_handed() -> None:
    """With the name of the subject as the configuration wants it."""
    sink = Recorder()
    config = configured(events={"principal": "plain", "log": False})
    guard = Guard(engine_of(config), config, SwitchStore(), [sink])

    guard.crossed([crossing(0.5), crossing(0.8)])
    guard.unusual([Anomaly(ALICE, TOKENS, 9, 5, 1)])

    assert sink.names == ["budget.threshold", "budget.threshold", "budget.anomaly"]
    assert {event.attributes["subject"] for event in sink.events} == {"user/alice"}


def guards(**options: Any) -> list[Guard | AsyncGuard]:
    """Return a guard of each kind, opened as an application does."""
    store, config = SwitchStore(), configured()
    return [
        Guard.open(config, store=store, **options),
        AsyncGuard.open(config, store=async_store(store), **options),
    ]


def test_a_function_is_called_with_alerts_and_nothing_else() -> None:
    """Beside the sinks that are given, of both kinds of guards."""
    seen: list[str] = []
    sink = Recorder()

    for guard in guards(on_alert=lambda event: seen.append(event.name), sinks=[sink]):
        guard.emit(events.denied(401, None, "/chat"))
        guard.crossed([crossing()])
        guard.emit(events.store_down("gone"))

    assert seen == ["budget.threshold", "budget.store_down"] * 2
    assert sink.names == ["budget.denied", "budget.threshold", "budget.store_down"] * 2
    assert set(seen) < ALERTS


def test_a_function_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises goes no further."""

    def fail(event: Event) -> None:
        raise RuntimeError("no pager")

    for guard in guards(on_alert=fail):
        with caplog.at_level(logging.ERROR):
            guard.crossed([crossing()])

    assert [record.getMessage() for record in caplog.records] == [
        "a sink could not take budget.threshold"
    ] * 2
    assert "no pager" in caplog.text
