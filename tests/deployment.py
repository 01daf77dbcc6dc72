"""A small deployment to test with: two models with round prices, one tier, real parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_budget_mw.config import Config, load
from llm_budget_mw.engine import Engine
from llm_budget_mw.errors import StoreError
from llm_budget_mw.events import Event, Origin
from llm_budget_mw.policy import Policy
from llm_budget_mw.pricing import Prices
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.tokens.estimate import Estimator
from llm_budget_mw.types import Admission, Charges, Grant, ModelCall, Plan, Principal, Prompt

PRICES: dict[str, Any] = {
    "catalogue": False,
    "models": {
        "big": {"input": "2.50", "output": "10"},
        "small": {"input": "0.15", "output": "0.60"},
        "claude-x": {"input": "3", "output": "15", "cache_write": "3.75", "cache_write_1h": "6"},
    },
}
"""In nano-dollars a token: big 2,500 and 10,000, small 150 and 600, claude-x 3,000 and 15,000."""

HIDDEN = 16
"""Tokens these models are taken to add to any input."""
ALICE = Principal("alice")
NOON_MS = 1_800_014_400_000
"""A moment at which a second, a minute, an hour and half a day begin."""


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FourBytes:
    """A tokenizer with a token for every four bytes."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    def count(self, text: str, encoding: str) -> int:
        self.counted.append(text)
        return -(-len(text.encode()) // 4)


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the attributes of every event of that name."""
        return [event.attributes for event in self.events if event.name == name]

    @property
    def names(self) -> list[str]:
        """Return the names of all events, in order."""
        return [event.name for event in self.events]


class SwitchStore(MemoryStore):
    """A store in memory that can be switched off, before or after it does its work."""

    def __init__(self) -> None:
        super().__init__(lambda: NOON_MS)
        self.down = False
        self.loses_replies = False
        self.plans: list[Plan] = []
        self.settled: list[tuple[str, Charges, str]] = []
        """Reservation, charges and outcome of every settlement it did."""
        self.closed = False

    def admit(self, plan: Plan) -> Admission:
        self._reach()
        self.plans.append(plan)
        admission = super().admit(plan)
        self._reply()
        return admission

    def settle(self, grant: Grant, charges: Charges) -> str:
        self._reach()
        outcome = super().settle(grant, charges)
        self.settled.append((grant.plan.id, charges, outcome))
        self._reply()
        return outcome

    def renew(self, grant: Grant) -> bool:
        self._reach()
        return super().renew(grant)

    def grow(self, grant: Grant, output: int) -> int:
        self._reach()
        return super().grow(grant, output)

    def close(self) -> None:
        self.closed = True

    def charged(self) -> Charges:
        """Return the sum of all charges that counted: none that was there already."""
        counted = [charges for _, charges, outcome in self.settled if outcome != "2"]
        return Charges(
            sum(charges.requests for charges in counted),
            sum(charges.tokens for charges in counted),
            sum(charges.cost_nano for charges in counted),
        )

    def _reach(self) -> None:
        if self.down:
            raise StoreError("no answer within 100 ms")

    def _reply(self) -> None:
        if self.loses_replies:
            raise StoreError("the connection was lost")


def async_store(store: MemoryStore) -> AsyncMemoryStore:
    """Return the face of a store for an event loop."""
    return AsyncMemoryStore(store)


def configured(tier: Mapping[str, Any] | None = None, **sections: Any) -> Config:
    """Return a configuration with one tier; nothing in it asks the machine for anything."""
    quiet = {"log": False, "metrics": False, "span": False}
    return load(
        {
            "tiers": {"default": dict(tier or {})},
            "prices": PRICES,
            "tokens": {"exact": False},
            "events": quiet,
            **sections,
        }
    )


def engine_of(config: Config, counter: FourBytes | None = None) -> Engine:
    """Return the engine of a configuration, with a tokenizer or without."""
    prices = Prices(config.prices)
    return Engine(
        Policy(config, prices), prices, Estimator(config.tokens, counter), lease_ms=60_000
    )


def call_of(text: str = "", model: str | None = "big", **fields: Any) -> ModelCall:
    """Return a call with this prompt and nothing else, as a dialect would read it."""
    fields.setdefault("max_output", None)
    return ModelCall(model=model, prompt=Prompt((text,)), **fields)


def origin_of(call: ModelCall, principal: Principal = ALICE) -> Origin:
    """Return who makes a call, and where."""
    return Origin(principal, call, route="/chat")
