"""What applications need to test their budgets: no Redis, no provider, no waiting, no mocks.

    issuer, sink, clock = Issuer(), RecordingSink(), ManualClock()
    provider = FakeProvider(output_tokens=20, prices={"gpt-4o": ("2.50", "10")})
    guard = AsyncGuard.open(
        {"jwt": issuer.config(), "tiers": {...}, "routes": [...]},
        store=AsyncMemoryStore(MemoryStore(clock)),
        sinks=[sink],
    )
    app.add_middleware(BudgetMiddleware, guard=guard)
    client.headers["authorization"] = f"Bearer {issuer.token('alice', tier='pro')}"
    ...
    clock.advance(60_000)
    assert sink.settled[0]["cost_nano"] == provider.cost_nano

Nothing here needs a package that the middleware itself does not.
"""

from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.testing.clock import ManualClock
from llm_budget_mw.testing.issuer import Issuer
from llm_budget_mw.testing.provider import Bill, FakeProvider, ProviderCall
from llm_budget_mw.testing.sink import RecordingSink

__all__ = [
    "AsyncMemoryStore",
    "Bill",
    "FakeProvider",
    "Issuer",
    "ManualClock",
    "MemoryStore",
    "ProviderCall",
    "RecordingSink",
]
