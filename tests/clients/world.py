"""What a test of guarded clients lives in."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any

from llm_budget_mw import AsyncGuard, Guard
from llm_budget_mw.clients import guarded
from llm_budget_mw.stores.memory import AsyncMemoryStore
from llm_budget_mw.testing import RecordingSink
from llm_budget_mw.types import Admission, Plan
from tests.clients.provider import Stage
from tests.deployment import PRICES, SwitchStore, configured, engine_of

MODELS = {**PRICES["models"], "gemini-x": {"input": "1", "output": "4"}}
_PATIENCE_S = 10.0
TIER: dict[str, Any] = {"requests": "1000/day", "budget": "$10/day", "max_tokens": 100}


class CountingStore(SwitchStore):
    """A store that knows what it has admitted."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted: set[str] = set()

    def admit(self, plan: Plan) -> Admission:
        admission = super().admit(plan)
        if admission.offer:
            self.admitted.add(plan.id)
        return admission


@dataclasses.dataclass
class World:
    """Both guards on one store, and the providers."""

    url: str
    stage: Stage
    guard: Guard
    waiting: AsyncGuard
    store: CountingStore
    sink: RecordingSink
    clients: list[Any] = dataclasses.field(default_factory=list[Any])
    """Every HTTP client that was made, to be closed."""

    def guarded(self, client_class: Any, **options: Any) -> Any:
        """Make a guarded HTTP client."""
        self.clients.append(guarded(client_class, **options))
        return self.clients[-1]

    def plain(self, client_class: Any, **options: Any) -> Any:
        """Make one that is not guarded."""
        self.clients.append(client_class(**options))
        return self.clients[-1]

    async def close(self) -> None:
        """Close every client."""
        for client in self.clients:
            closed = client.aclose() if hasattr(client, "aclose") else client.close()
            if inspect.isawaitable(closed):
                await closed
        await self.waiting.close()
        self.guard.close()

    def limited(self, **tier: Any) -> World:
        """Return this world under other limits."""
        return dataclasses.replace(world_of(self.url, self.stage, **tier), clients=self.clients)

    @property
    def open_reservations(self) -> int:
        """Admissions that nobody has settled."""
        return len(self.store.admitted - {plan_id for plan_id, _, _ in self.store.settled})


def world_of(url: str, stage: Stage, **tier: Any) -> World:
    """Return a world with the providers there."""
    limits = {name: value for name, value in {**TIER, **tier}.items() if value is not None}
    config = configured(limits, prices={"catalogue": False, "models": MODELS})
    store, sink = CountingStore(), RecordingSink()
    engine = engine_of(config)
    waiting = AsyncGuard(engine, config, AsyncMemoryStore(store), [sink])
    return World(url, stage, Guard(engine, config, store, [sink]), waiting, store, sink)


def until(met: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + _PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.001)
