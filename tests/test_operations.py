"""What operators change: applied through a guard, told in events, refused when not understood."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_budget_mw import events
from llm_budget_mw.errors import BudgetExceeded, StoreError
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.operations import (
    Applied,
    Change,
    Operation,
    Target,
    apply,
    apply_async,
    in_force,
    in_force_async,
    of_principal,
    of_shared,
    stopped,
    stopped_async,
)
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.types import Principal, RefusalReason
from tests.deployment import PRICES, Recorder, SwitchStore

ASKED = [{"role": "user", "content": "hi"}]
ALICE = of_principal("alice", "acme")
SETTINGS: dict[str, Any] = {
    "tiers": {
        "default": {"requests": "2/day", "budget": "$1/month", "max_tokens": 10},
        "pro": {"tokens": "1000/day"},
    },
    "limits": [
        {"of": "tenant", "requests": "100/day"},
        {"of": "session", "header": "x-session", "requests": "5/day"},
    ],
    "prices": PRICES,
    "events": {"principal": "plain"},
}


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def guard(sink: Recorder) -> Iterator[Guard]:
    opened = Guard.open(SETTINGS, sinks=[sink])
    yield opened
    opened.close()


def refused(guard: Guard, tenant: str | None = "acme", feature: str | None = None) -> str | None:
    """Make one call; return why it was refused, None if it was not."""
    try:
        with guard.call(
            Principal("alice", tenant), model="small", messages=ASKED, max_tokens=1, feature=feature
        ):
            return None
    except BudgetExceeded as error:
        return error.refusal.reason.value


def test_a_credit_holds_at_once_and_is_told(guard: Guard, sink: Recorder) -> None:
    """The third call of a day fits, the event says who gave it and why."""
    assert [refused(guard) for _ in range(3)] == [None, None, "exhausted"]
    change = Change("credit", ALICE, "requests-per-day", 1, id="o-1", actor="ops", reason="asked")

    assert apply(guard, change) == Applied(changed=True, id="o-1")
    assert [refused(guard) for _ in range(2)] == [None, "exhausted"]
    [told] = sink.named(events.CHANGED)
    assert told == {
        "operation": "credit",
        "subject": "user/alice",
        "limit": "requests-per-day",
        "amount": "1",
        "until": None,
        "id": "o-1",
        "actor": "ops",
        "reason": "asked",
    }


def test_a_change_under_a_known_id_is_made_once(guard: Guard, sink: Recorder) -> None:
    """Twice the same order: one credit, one event."""
    change = Change("credit", ALICE, "budget-per-month", "$20", id="order-17")
    assert [apply(guard, change).changed for _ in range(2)] == [True, False]
    assert len(sink.named(events.CHANGED)) == 1
    [addition] = in_force(guard, ALICE)
    assert (addition.kind, addition.amount, addition.until_ms) == ("credit", 20 * 10**9, 0)


def test_a_raise_ends_and_is_taken_back(guard: Guard) -> None:
    """It says when; without an id one is made, and takes it back."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    made = apply(guard, Change("raise", ALICE, "requests-per-day", "5", until=tomorrow))
    [addition] = in_force(guard, ALICE)
    assert addition.until_ms == int(tomorrow.timestamp() * 1000)
    assert apply(guard, Change("take_back", ALICE, id=made.id)) == Applied(changed=True)
    assert not apply(guard, Change("take_back", ALICE, id=made.id)).changed
    assert in_force(guard, ALICE) == ()


def test_an_amount_is_set_and_use_is_reset(guard: Guard) -> None:
    """Usage is kept unless it is asked for."""
    for _ in range(2):
        refused(guard)
    apply(guard, Change("set", ALICE, "requests-per-day", 3))
    assert [refused(guard) for _ in range(2)] == [None, "exhausted"]
    assert apply(guard, Change("reset", ALICE, "requests-per-day")).changed
    assert [refused(guard) for _ in range(4)] == [None, None, None, "exhausted"]
    apply(guard, Change("reset", ALICE))
    assert refused(guard) is None


@pytest.mark.parametrize(
    "target", [ALICE, of_shared("tenant/acme"), of_shared("feature/chat"), of_shared("deployment")]
)
def test_calls_are_stopped_until_they_are_resumed(guard: Guard, target: Target) -> None:
    """A principal, a tenant, a feature, everything; others go on."""
    apply(guard, Change("stop", target, reason="looks like a loop"))
    assert refused(guard, feature="chat") == RefusalReason.STOPPED
    others = refused(guard, "globex", "code")
    assert others == (RefusalReason.STOPPED if target.kind == "deployment" else None)
    [stop] = stopped(guard)
    assert (stop.until, stop.reason) == (None, "looks like a loop")

    assert apply(guard, Change("resume", target)).changed
    assert not apply(guard, Change("resume", target)).changed
    assert stopped(guard) == ()
    assert refused(guard, feature="chat") is None


def test_a_stopped_model_is_refused(guard: Guard) -> None:
    """The message names what is stopped and not the reason, which is the operator's."""
    apply(guard, Change("stop", of_shared("model/small"), reason="secret plans"))
    with pytest.raises(BudgetExceeded, match=r"stopped by the operator \(model\)") as caught:
        guard.call(Principal("bob"), model="small", messages=ASKED).__enter__()
    assert "secret" not in str(caught.value)


MONTH_AGO = datetime.now(UTC) - timedelta(days=30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("credit", ALICE, "nothing", 5), "has no limit 'nothing': its limits are requests"),
        (Change("credit", ALICE, None, 5), "has no limit None"),
        (Change("credit", of_shared("tenant/acme"), "requests-per-day", 5), "tenant-requests-per-"),
        (Change("credit", of_shared("feature/x"), "requests-per-day", 5), "limits are none"),
        (Change("credit", ALICE, "requests-per-day", "-5"), "'-5' is not an amount of requests"),
        (Change("credit", ALICE, "requests-per-day", "1.5"), "is not an amount"),
        (Change("credit", ALICE, "requests-per-day", "\uff19"), "is not an amount"),
        (Change("credit", ALICE, "requests-per-day", "9" * 5000), "is not an amount"),
        (Change("credit", ALICE, "requests-per-day"), "'None' is not an amount"),
        (Change("credit", ALICE, "budget-per-month", "lots"), "amount of money"),
        (Change("credit", ALICE, "requests-per-day", 5, id="two words"), "without blanks"),
        (Change("credit", ALICE, "requests-per-day", 5, id="x\n"), "without blanks"),
        (Change("credit", ALICE, "requests-per-day", 5, id=""), "without blanks"),
        (Change("credit", ALICE, "requests-per-day", 5, id="x" * 101), "longer than 100"),
        (Change("raise", ALICE, "requests-per-day", 5, until=MONTH_AGO), "is over already"),
        (
            Change("raise", ALICE, "requests-per-day", 5, until=datetime(2100, 1, 1)),  # noqa: DTZ001
            "needs a time zone",
        ),
        (Change("take_back", ALICE), "needs the id"),
        (Change("reset", ALICE, "nothing"), "has no limit"),
        (Change("stop", of_shared("teem/red")), "'teem' is not a kind of subject here"),
        (Change("stop", of_shared("session/1")), "counts for each principal apart"),
        (Change("stop", ALICE, reason="x" * 501), "at most 500"),
    ],
)
def test_what_is_not_understood_changes_nothing(
    guard: Guard, sink: Recorder, change: Change, message: str
) -> None:
    """An error that names the value; nothing is half done and nothing is told."""
    with pytest.raises(ValueError, match=message):
        apply(guard, change)
    assert in_force(guard, ALICE) == ()
    assert stopped(guard) == ()
    assert sink.events == []


@pytest.mark.parametrize("written", ["", "tenant", "tenant/", "/x", "user/alice", "deployment/x"])
def test_a_target_is_a_kind_and_a_name(written: str) -> None:
    """What is written otherwise is an error, not another subject."""
    with pytest.raises(ValueError, match="write deployment, or a kind and a name"):
        of_shared(written)


def test_there_is_room_for_so_many(guard: Guard) -> None:
    """An account holds 64 additions; the next is an error."""
    for _ in range(64):
        apply(guard, Change("raise", ALICE, "requests-per-day", 1))
    with pytest.raises(ValueError, match="at most 64 additions"):
        apply(guard, Change("raise", ALICE, "requests-per-day", 1))


@pytest.mark.parametrize("operation", ["credit", "reset", "stop", "resume"])
def test_a_store_that_is_away_is_an_error(sink: Recorder, operation: Operation) -> None:
    """Nothing is told, and the outage is the caller's to see."""

    class Away(SwitchStore):
        def amend(self, *_: Any, **__: Any) -> Any:
            raise StoreError("no answer")

        def switch(self, *_: Any, **__: Any) -> Any:
            raise StoreError("no answer")

    guard = Guard.open(SETTINGS, store=Away(), sinks=[sink])
    with pytest.raises(StoreError):
        apply(guard, Change(operation, ALICE, "requests-per-day", 5))
    assert sink.events == []


def test_the_same_on_an_event_loop(sink: Recorder) -> None:
    """What one process changes, another sees with its next call."""
    shared = MemoryStore()

    async def change() -> None:
        guard = AsyncGuard.open(SETTINGS, store=AsyncMemoryStore(shared), sinks=[sink])
        assert (await apply_async(guard, Change("credit", ALICE, "requests-per-day", 1))).changed
        assert (await apply_async(guard, Change("stop", of_shared("tenant/acme")))).changed
        assert len(await in_force_async(guard, ALICE)) == len(await stopped_async(guard)) == 1

    asyncio.run(change())
    other = Guard.open(SETTINGS, store=shared, sinks=[sink])
    assert refused(other) == RefusalReason.STOPPED
    apply(other, Change("resume", of_shared("tenant/acme")))
    assert [refused(other) for _ in range(4)] == [None, None, None, "exhausted"]
