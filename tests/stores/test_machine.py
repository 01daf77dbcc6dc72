"""Both kinds of store against the model, driven by the same arbitrary calls."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from llm_budget_mw.types import Charges, Grant, LimitSet, Offer, Plan
from tests.servers import ValkeyServer
from tests.stores.conftest import make_bench
from tests.stores.kit import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    MONTH,
    NOTHING,
    SLIDING,
    SLOT,
    START_MS,
    UNFIT,
    ManualClock,
    limit,
    limits,
    plan,
    someone,
)
from tests.stores.model import Model

# Set it to some thousands for a long run.
EXAMPLES = int(os.environ.get("LLM_BUDGET_TEST_EXAMPLES", "250"))

REQUESTS, TOKENS = limit(4, "requests"), limit(900, window=SLIDING)
COST, SLOTS = limit(2500, "cost", MONTH), limit(3, "concurrency", SLOT)
# The month is in all of them: a store may forget subjects that have only short windows.
SETS = [
    limits(REQUESTS, TOKENS, COST, SLOTS),
    limits(SLOTS, COST, TOKENS, REQUESTS),
    limits(COST, TOKENS),
    limits(limit(9, "requests"), limit(400, window=SLIDING), limit(5000, "cost", MONTH)),
    limits(COST, limit(1200, name="tokens"), limit(6, "requests", SLIDING, name="sliding"), SLOTS),
]
KINDS = ["memory", "valkey"]
NAMES = ["alice", "bob", "acme"]

entries = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(SETS)),
    min_size=1,
    max_size=2,
    unique_by=lambda entry: entry[0],
)
output = st.integers(0, 60)


def build_offer(most: int, least: int, ceiling: float, fixed: int, per: int, nano: int) -> Offer:
    return Offer("model", most, min(most, least), ceiling, fixed, per, nano, per * 2)


offers = st.lists(
    st.builds(
        build_offer,
        output,
        output,
        st.sampled_from([1.0, 0.75, 0.5]),
        st.sampled_from([0, 1, 100, 350, 901]),
        st.sampled_from([0, 1, 3]),
        st.sampled_from([0, 250, 1000]),
    ),
    min_size=1,
    max_size=3,
)
charges = st.one_of(
    st.just(NOTHING),
    st.builds(Charges, st.just(1), st.integers(0, 1500), st.integers(0, 3000)),
)
steps = st.sampled_from(
    [1, 700, 5_000, 29_000, MINUTE_MS, 90_000, HOUR_MS, DAY_MS, -1, -5_000, -MINUTE_MS, -HOUR_MS]
)


class Machine(RuleBasedStateMachine):
    """Every reply and every counter is the same everywhere."""

    plans = Bundle[Plan]("plans")
    grants = Bundle[Grant]("grants")
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model = Model()
        self.stores = [make_bench(kind, self.url, self.clock).store for kind in KINDS]
        self.last: dict[str, LimitSet] = {}

    def teardown(self) -> None:
        for name in NAMES:
            for each in SETS:
                self.compare(name, each)
        for store in self.stores:
            store.close()

    @initialize(start=st.sampled_from([START_MS, START_MS - 3 * HOUR_MS, START_MS + 31_000]))
    def set_clock(self, start: int) -> None:
        self.clock.now_ms = start

    @rule(
        target=plans,
        who=entries,
        offers=offers,
        lease=st.sampled_from([1_000, 30_000, 150_000]),
        charge=st.booleans(),
    )
    def ask(
        self, who: list[tuple[str, LimitSet]], offers: list[Offer], lease: int, charge: bool
    ) -> Plan:
        subjects = [someone(*entry) for entry in who]
        return plan(*subjects, offers=offers, lease_ms=lease, charge_on_expiry=charge)

    @rule(target=grants, asked=plans)
    def admit(self, asked: Plan) -> MultipleResults[Grant]:
        expected = self.model.admit(asked, self.clock())
        for store in self.stores:
            assert store.admit(asked) == expected
        self.look(asked)
        if not expected.offer:
            return multiple()
        offer = asked.offers[expected.offer - 1]
        return multiple(Grant(asked, offer, expected.output, expected))

    @rule(grant=grants, charges=charges)
    def settle(self, grant: Grant, charges: Charges) -> None:
        expected = self.model.settle(grant, charges, self.clock())
        for store in self.stores:
            assert store.settle(grant, charges) == expected
        self.look(grant.plan)

    @rule(asked=plans, charges=charges)
    def settle_unheard(self, asked: Plan, charges: Charges) -> None:
        """Settle what the outage rule admitted; the store may know it or not."""
        self.settle(Grant(asked, asked.offers[0], 0, None), charges)

    @rule(grant=grants)
    def renew(self, grant: Grant) -> None:
        expected = self.model.renew(grant, self.clock())
        for store in self.stores:
            assert store.renew(grant) is expected

    @rule(ms=steps)
    def wait(self, ms: int) -> None:
        # A store may forget after a month without an admission: end well before.
        if self.clock() + ms < START_MS + 20 * DAY_MS:
            self.clock.advance(ms)

    def look(self, asked: Plan) -> None:
        for subject, each, *_ in asked.subjects:
            self.compare(subject.name, each)

    def compare(self, name: str, each: LimitSet) -> None:
        question = plan(someone(name, each), offers=[UNFIT])
        expected = self.model.admit(question, self.clock())
        for store in self.stores:
            assert store.admit(question) == expected


def test_stores_do_what_the_model_does(valkey: ValkeyServer) -> None:
    """Memory and Valkey answer every sequence of calls as the model does, to the last unit."""
    Machine.url = valkey.url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
