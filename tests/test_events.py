"""Tests of `llm_budget_mw.events`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw import decision, events
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.events import Identifier
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import Grant, Plan, Principal, Refusal, Usage
from tests.deployment import ALICE, NOON_MS, call_of, configured, engine_of, origin_of

TIER = {"requests": "1/day", "tokens": "9000/day", "budget": "$1/day", "max_tokens": 100}
ENGINE = engine_of(configured(TIER))
CALL = call_of("x" * 84, stream=True)
ORIGIN = origin_of(CALL, Principal("alice", tenant="acme", tier="gold"))._replace(feature="chat")
ORIGIN_ATTRIBUTES = {
    "principal": "somebody",
    "tenant": "acme",
    "tier": "gold",
    "route": "/chat",
    "feature": "chat",
    "request": None,
    "attempt": None,
    "task": None,
    "shortened": False,
    "requested_model": "big",
    "stream": True,
}


def decided_twice() -> tuple[Grant, Refusal]:
    """Return an admission, and the refusal of the next request."""
    store = MemoryStore(lambda: NOON_MS)
    plans: list[Plan] = [ENGINE.plan(ALICE, CALL) for _ in range(2)]
    first, second = [decision.decide(plan, store.admit(plan)) for plan in plans]
    assert isinstance(first, Grant)
    assert isinstance(second, Refusal)
    return first, second


def test_a_settlement_is_told_in_full() -> None:
    """What was asked, granted, used and charged, in numbers."""
    grant, _ = decided_twice()
    usage = Usage(40, 60, cache_read_tokens=8, reasoning_tokens=9, model="big-2026")
    settlement = ENGINE.settle(grant, Outcome(Ending.COMPLETE, usage), ORIGIN.call)

    event = events.settled(settlement, ORIGIN, "somebody", "prices-1", 1_500)

    assert (event.name, event.severity) == ("budget.settled", "info")
    assert event.attributes == ORIGIN_ATTRIBUTES | {
        "reservation": grant.plan.id,
        "model": "big",
        "response_model": "big-2026",
        "service_tier": None,
        "max_tokens": 100,
        "input_tokens": 40,
        "output_tokens": 60,
        "cache_read_tokens": 8,
        "cache_write_tokens": 0,
        "reasoning_tokens": 9,
        "total_tokens": 100,
        "held_tokens": 200,
        "grown": 0,
        "cost_nano": 700_000,
        "cost_usd": "$0.0007",
        "cache_saved_nano": settlement.cache_saved_nano,
        "held_cost_nano": 1_250_000,
        "price_version": "prices-1",
        "grade": "exact",
        "ending": "complete",
        "overrun": False,
        "would_refuse": [],
        "reserved": True,
        "duration_ms": 1_500,
    }


def test_an_overrun_is_a_warning() -> None:
    """More was used than held: somebody should look at the surcharges."""
    grant, _ = decided_twice()
    settlement = ENGINE.settle(grant, Outcome(Ending.COMPLETE, Usage(4_000, 60)), ORIGIN.call)

    assert events.settled(settlement, ORIGIN, None, "1", 0).severity == "warning"


def test_a_refusal_is_told_with_its_limits() -> None:
    """The binding one, and all that would have refused."""
    _, refusal = decided_twice()
    event = events.refused(refusal, ORIGIN, "somebody")

    assert (event.name, event.severity) == ("budget.refused", "info")
    assert event.attributes == ORIGIN_ATTRIBUTES | {
        "reason": "busy",
        "limit": "requests-per-day",
        "subject": "user",
        "limits": ["requests-per-day"],
        "retry_after_ms": refusal.retry_after_ms,
    }


def test_a_refusal_without_the_store_names_no_limit() -> None:
    """Nobody knows what is left of any."""
    _, refusal = decided_twice()
    away = decision.store_down(refusal.plan, refusal.plan.subjects[0].limits.limits[0])

    assert events.refused(away, ORIGIN, None).attributes["limit"] is None


def test_what_went_unchecked_is_critical() -> None:
    """It is told with the reason."""
    grant, _ = decided_twice()
    event = events.unchecked(grant, ORIGIN, "somebody", "no answer")

    assert (event.name, event.severity) == ("budget.unchecked", "critical")
    assert event.attributes == ORIGIN_ATTRIBUTES | {
        "reservation": grant.plan.id,
        "error": "no answer",
    }


def test_the_rest_says_what_it_has_to() -> None:
    """A denial, and the beginning and the end of an outage."""
    assert events.denied(401, None, "/chat") == (
        "budget.denied", "info", {"status": 401, "code": None, "route": "/chat"}
    )  # fmt: skip
    assert events.store_down("gone") == ("budget.store_down", "critical", {"error": "gone"})
    assert events.store_up(3, 0) == ("budget.store_up", "warning", {"waiting": 3, "lost": 0})
    assert events.store_up(3, 1).severity == "critical"


@given(st.text(st.characters(exclude_categories=()), min_size=1), st.binary(min_size=16))
def test_a_pseudonym_is_24_digits_whatever_the_id(principal_id: str, secret: bytes) -> None:
    """And the same every time."""
    identifier = Identifier("pseudonym", secret)
    name = identifier.name(Principal(principal_id))

    assert name is not None
    assert len(name) == 24
    assert int(name, 16) >= 0
    assert name == identifier.name(Principal(principal_id))
    assert name == Identifier("pseudonym", secret).name(Principal(principal_id))


def test_pseudonyms_are_right_for_any_number_of_principals() -> None:
    """What is kept of them is bounded; the names do not depend on it."""
    identifier = Identifier("pseudonym", b"k" * 16)
    names = [identifier.name(Principal(f"user-{number}")) for number in range(5_000)]

    assert len(set(names)) == 5_000
    assert identifier.name(Principal("user-0")) == names[0]


def test_a_principal_may_be_named_plainly_or_not_at_all() -> None:
    """The secret has no part in it."""
    assert Identifier("plain", b"").name(ALICE) == "alice"
    assert Identifier("none", b"").name(ALICE) is None
