"""Tests of `llm_budget_mw.guard`: both guards, with the store there and away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from llm_budget_mw import events
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.errors import RequestError, StoreError
from llm_budget_mw.events import Event, Origin, Sink
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.shell import Held
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.types import (
    Admission,
    Charges,
    Decision,
    Grade,
    Grant,
    ModelCall,
    Plan,
    Principal,
    Prompt,
    Refusal,
    RefusalReason,
    Settlement,
    Usage,
)
from tests.deployment import (
    ALICE,
    FourBytes,
    ManualClock,
    Recorder,
    SwitchStore,
    call_of,
    configured,
    engine_of,
    origin_of,
)

T = TypeVar("T")
TIER = {"requests": "100/day", "tokens": "100000/day", "budget": "$1/day", "max_tokens": 100}
OUTAGE = {"failures": 2, "open_s": 10.0, "max_open_s": 10.0, "drain_s": 0.2}
ORIGIN = origin_of(call_of("x" * 84))
"""Holds 200 tokens: 100 of input, 100 of output."""
DONE = Outcome(Ending.COMPLETE, Usage(40, 60))


class Deployment:
    """A guard with everything around it, driven alike whether it waits or not."""

    def __init__(
        self,
        tier: dict[str, Any] | None = None,
        *,
        waits: bool = False,
        counter: FourBytes | None = None,
        sinks: tuple[Sink, ...] = (),
        **sections: Any,
    ) -> None:
        self.store = SwitchStore()
        self.sink = Recorder()
        self.clock = ManualClock()
        sections.setdefault("outage", OUTAGE)
        sections.setdefault("tokens", {"exact": counter is not None})
        config = configured({**TIER, **(tier or {})}, **sections)
        engine = engine_of(config, counter)
        sinks = (*sinks, self.sink)
        self.guard: Guard | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        if waits:
            store = AsyncMemoryStore(self.store)
            self.waiting = AsyncGuard(engine, config, store, sinks, self.clock)
            self.loop = asyncio.new_event_loop()
        else:
            self.guard = Guard(engine, config, self.store, sinks, self.clock)

    @property
    def shell(self) -> Guard | AsyncGuard:
        return self.guard or self.waiting

    def decide(self, origin: Origin = ORIGIN) -> Decision:
        if self.guard:
            return self.guard.decide(origin)
        return self._run(self.waiting.decide(origin))

    def hold(self, origin: Origin = ORIGIN) -> Held:
        held = self.shell.hold(self.decide(origin), origin)
        assert held is not None
        return held

    def settle(self, held: Held, outcome: Outcome = DONE) -> Settlement:
        if self.guard:
            return self.guard.settle(held, outcome)
        return self._run(self.waiting.settle(held, outcome))

    def renew(self, grant: Grant) -> bool:
        return self.guard.renew(grant) if self.guard else self._run(self.waiting.renew(grant))

    def limits(self, principal: Principal = ALICE) -> list[tuple[str, int, int]]:
        statuses = (
            self.guard.limits(principal)
            if self.guard
            else self._run(self.waiting.limits(principal))
        )
        return [(status.limit.name, status.used, status.remaining) for status in statuses]

    def close(self) -> None:
        if self.guard:
            self.guard.close()
        else:
            self._run(self.waiting.close())

    def end(self) -> None:
        if self.loop:
            self.loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def and_what_it_started() -> T:
            result = await work
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.gather(*others)
            return result

        assert self.loop is not None
        return self.loop.run_until_complete(and_what_it_started())


Deploy = Callable[..., Deployment]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def deploy(request: pytest.FixtureRequest) -> Any:
    made: list[Deployment] = []

    def build(tier: dict[str, Any] | None = None, **options: Any) -> Deployment:
        made.append(Deployment(tier, waits=request.param, **options))
        return made[-1]

    yield build
    for deployment in made:
        deployment.end()


def refused(decided: Decision) -> Refusal:
    assert isinstance(decided, Refusal)
    return decided


def cut_off(deployment: Deployment) -> None:
    """Let the store be away for long enough that the breaker opens."""
    deployment.store.down = True
    for _ in range(OUTAGE_FAILURES):
        deployment.decide()


OUTAGE_FAILURES = int(OUTAGE["failures"])


def test_a_call_is_admitted_and_settled(deploy: Deploy) -> None:
    """One hold, one settlement, one event; what is charged is what was used."""
    deployment = deploy()
    held = deployment.hold()
    deployment.clock.now += 1.5
    done = deployment.settle(held)

    assert (held.grant.offer.model, held.grant.output) == ("big", 100)
    assert done.grade is Grade.EXACT
    assert deployment.store.charged() == Charges(1, 100, 40 * 2_500 + 60 * 10_000)
    [event] = deployment.sink.named(events.SETTLED)
    assert (event["duration_ms"], event["route"]) == (1_500, "/chat")


def test_a_refusal_is_told_once_and_writes_nothing(deploy: Deploy) -> None:
    """The second request of one a day is refused, and the store has but one hold."""
    deployment = deploy({"requests": "1/day"})
    deployment.hold()
    decided = deployment.decide()

    assert refused(decided).reason is RefusalReason.BUSY
    assert deployment.shell.hold(decided, ORIGIN) is None
    assert [event["reason"] for event in deployment.sink.named(events.REFUSED)] == ["busy"]
    assert len(deployment.store.plans) == 2


def test_a_call_that_cannot_be_bounded_is_not_asked_about(deploy: Deploy) -> None:
    """The error of the engine passes through; the store hears nothing."""
    deployment = deploy()

    with pytest.raises(RequestError, match="no known price"):
        deployment.decide(origin_of(call_of(model="nobody-knows")))
    assert deployment.store.plans == []


def test_who_has_no_limits_needs_no_store(deploy: Deploy) -> None:
    """Admitted in full, settled into the event, also while the store is away."""
    deployment = deploy({"requests": [], "tokens": [], "budget": []})
    deployment.store.down = True
    held = deployment.hold()

    assert held.grant.output == 100
    assert not deployment.renew(held.grant)
    assert deployment.settle(held).charges.tokens == 100
    assert deployment.sink.names == [events.SETTLED]


def test_a_lease_is_renewed_while_it_is_held(deploy: Deploy) -> None:
    """True while the store holds the reservation, False after its settlement."""
    deployment = deploy()
    held = deployment.hold()

    assert deployment.renew(held.grant)
    deployment.settle(held)
    assert not deployment.renew(held.grant)


def test_a_dearer_service_tier_is_settled_at_its_price(deploy: Deploy) -> None:
    """The tier the caller asked for reaches the settlement."""
    deployment = deploy(prices={"catalogue": True})
    origin = origin_of(call_of(model="gpt-4o", service_tier="priority"))
    cost = deployment.settle(deployment.hold(origin), DONE).charges.cost_nano

    assert cost > deployment.settle(deployment.hold(origin_of(call_of(model="gpt-4o"))), DONE)[4][2]


# --- counting


def test_short_input_is_never_counted(deploy: Deploy) -> None:
    """Where input is a small part of the charge, its bound will do."""
    counter = FourBytes()
    deploy(counter=counter).decide(origin_of(call_of("x" * 10)))

    assert counter.counted == []


def test_input_that_is_most_of_the_charge_is_counted_before_the_call(deploy: Deploy) -> None:
    """One admission, of an exact plan."""
    counter = FourBytes()
    deployment = deploy(counter=counter)
    held = deployment.hold(origin_of(call_of("x" * 4_000)))

    assert counter.counted == ["x" * 4_000]
    assert len(deployment.store.plans) == 1
    assert held.grant.offer.fixed_tokens == 1_350 + 16


def small_input_that_does_not_fit() -> tuple[dict[str, Any], Origin]:
    # 220 bytes weigh little beside 5,000 tokens of output, and do not fit 240 tokens.
    tier = {"tokens": "240/day", "budget": [], "max_tokens": 5_000, "min_tokens": 10}
    return tier, origin_of(call_of("x" * 220))


def test_a_call_refused_for_its_bytes_is_asked_about_again(deploy: Deploy) -> None:
    """Counted exactly it fits: two round trips, one hold."""
    tier, origin = small_input_that_does_not_fit()
    counter = FourBytes()
    deployment = deploy(tier, counter=counter)
    held = deployment.hold(origin)

    assert len(deployment.store.plans) == 2
    assert held.grant.offer.fixed_tokens == 75 + 16
    assert deployment.sink.events == []


def test_a_call_is_asked_about_again_only_once(deploy: Deploy) -> None:
    """One that is too large even when counted is refused after the second look."""
    deployment = deploy({"tokens": "100/day", "min_tokens": 50}, counter=FourBytes())
    decided = deployment.decide(origin_of(call_of("x" * 200)))

    assert refused(decided).reason is RefusalReason.NEVER
    assert len(deployment.store.plans) <= 2


def test_what_counting_cannot_change_is_asked_about_once(deploy: Deploy) -> None:
    """A limit of requests does not care for tokens."""
    counter = FourBytes()
    deployment = deploy({"requests": "1/day"}, counter=counter)
    deployment.hold()

    refused(deployment.decide(origin_of(call_of("x" * 10))))
    assert len(deployment.store.plans) == 2
    assert counter.counted == []


@pytest.mark.parametrize(("size", "in_thread"), [(16_000, False), (17_000, True)])
async def test_long_prompts_are_counted_off_the_loop(size: int, in_thread: bool) -> None:
    """The event loop is not held up by a tokenizer."""
    seen: list[threading.Thread] = []

    class Watching(FourBytes):
        def count(self, text: str, encoding: str) -> int:
            seen.append(threading.current_thread())
            return super().count(text, encoding)

    config = configured(TIER, tokens={"exact": True})
    guard = AsyncGuard(engine_of(config, Watching()), config, AsyncMemoryStore())
    await guard.decide(origin_of(call_of("x" * size)))

    assert [thread is not threading.main_thread() for thread in seen] == [in_thread]


async def test_the_long_prompt_of_a_cut_call_is_counted_off_the_loop() -> None:
    """Nor is it held up when a client leaves and only its input is to be charged."""
    seen: list[bool] = []

    class Watching(FourBytes):
        def count(self, text: str, encoding: str) -> int:
            seen.append(threading.current_thread() is threading.main_thread())
            return super().count(text, encoding)

    config = configured(tokens={"exact": True})
    guard = AsyncGuard(engine_of(config, Watching()), config, AsyncMemoryStore())
    origin = origin_of(call_of("x" * 17_000))
    held = guard.hold(await guard.admit(guard.plan(origin), origin), origin)
    assert held is not None

    await guard.settle(held, Outcome(Ending.CUT, counted_output=0))

    assert seen == [False]


# --- the store is away


def test_a_closed_limit_refuses_without_the_store(deploy: Deploy) -> None:
    """503, and what the store may yet do with the request is undone when it is back."""
    deployment = deploy({"on_outage": {"tokens": "closed"}})
    deployment.store.down = True
    decided = refused(deployment.decide())

    assert decided.reason is RefusalReason.STORE_DOWN
    assert "tokens-per-day" in decided.message
    deployment.store.down = False
    deployment.hold()
    assert [charges for _, charges, _ in deployment.store.settled] == [Charges(0, 0, 0)]
    assert deployment.store.settled[0][0] == decided.plan.id


def test_an_open_limit_admits_without_the_store(deploy: Deploy) -> None:
    """Every such call is told, critically, and its usage is charged later."""
    deployment = deploy({"budget": []})
    deployment.store.down = True
    held = deployment.hold()
    deployment.settle(held)

    assert (held.grant.admission, held.grant.output) == (None, 100)
    [unchecked] = [event for event in deployment.sink.events if event.name == events.UNCHECKED]
    assert unchecked.severity == "critical"
    assert unchecked.attributes["error"] == "no answer within 100 ms"
    assert deployment.sink.named(events.SETTLED)[0]["reserved"] is False


def test_a_local_limit_admits_from_its_own_share(deploy: Deploy) -> None:
    """A process may spend its share of a money limit by itself, and no more."""
    # 4,000,000 nano-dollars; a call holds 1,250,000.
    deployment = deploy({"local_share": 0.004})
    deployment.store.down = True
    admitted = [deployment.decide() for _ in range(3)]

    assert all(decided.admitted for decided in admitted)
    assert refused(deployment.decide()).reason is RefusalReason.STORE_DOWN


def test_what_was_admitted_locally_is_settled_locally(deploy: Deploy) -> None:
    """A call that used little leaves room in the share for the next."""
    deployment = deploy({"local_share": 0.00125})
    deployment.store.down = True
    for _ in range(5):
        deployment.settle(deployment.hold(), Outcome(Ending.NOT_CALLED))

    assert len(deployment.sink.named(events.UNCHECKED)) == 5


def test_the_store_is_not_asked_while_the_breaker_is_open(deploy: Deploy) -> None:
    """Nobody waits for a store that is known to be away; it is asked again after a while."""
    deployment = deploy()
    cut_off(deployment)
    deployment.store.down = False

    held = deployment.hold()
    assert deployment.store.plans == []
    assert deployment.sink.named(events.UNCHECKED)[-1]["error"] == "breaker open"
    assert deployment.renew(held.grant)
    deployment.clock.now += 11
    deployment.hold()
    assert len(deployment.store.plans) == 1


def test_an_outage_is_told_once_and_its_end_once(deploy: Deploy) -> None:
    """However many calls fail in it."""
    deployment = deploy()
    cut_off(deployment)
    for _ in range(3):
        deployment.clock.now += 11
        deployment.decide()
    deployment.store.down = False
    deployment.clock.now += 11
    for _ in range(3):
        deployment.hold()

    told = [name for name in deployment.sink.names if name != events.UNCHECKED]
    assert told == [events.STORE_DOWN, events.STORE_UP]


def test_settlements_wait_and_are_delivered_exactly_once(deploy: Deploy) -> None:
    """What was used in an outage is charged when the store is back, each id once."""
    deployment = deploy()
    before = deployment.hold()
    cut_off(deployment)
    during = deployment.hold()
    deployment.settle(before)
    deployment.settle(during)
    assert deployment.store.settled == []

    deployment.store.down = False
    deployment.clock.now += 11
    deployment.settle(deployment.hold())

    assert deployment.store.charged().requests == 3
    ids = [key for key, charges, _ in deployment.store.settled if charges.requests]
    assert len(ids) == len(set(ids)) == 3
    assert deployment.shell.outage.waiting == 0


def test_a_settlement_whose_reply_was_lost_is_charged_once(deploy: Deploy) -> None:
    """It is repeated under the same id, and the store knows that it has it."""
    deployment = deploy()
    held = deployment.hold()
    deployment.store.loses_replies = True
    deployment.settle(held)
    deployment.store.loses_replies = False
    deployment.settle(deployment.hold())

    outcomes = [
        outcome for key, _, outcome in deployment.store.settled if key == held.grant.plan.id
    ]
    assert outcomes == ["1", "2"]
    assert deployment.store.charged() == Charges(2, 200, 1_400_000)


def test_an_admission_whose_reply_was_lost_is_no_second_call(deploy: Deploy) -> None:
    """Admitted by the outage rule, settled on the hold the store made all the same."""
    deployment = deploy()
    deployment.store.loses_replies = True
    held = deployment.hold()
    deployment.store.loses_replies = False
    deployment.settle(held)

    assert held.grant.admission is None
    assert deployment.store.settled[-1][2] == "1"
    assert deployment.store.charged() == Charges(1, 100, 700_000)


@pytest.mark.parametrize("operation", ["settle", "renew"])
def test_every_failure_counts_towards_the_breaker(deploy: Deploy, operation: str) -> None:
    """Not admissions alone: two renewals or settlements that fail open it."""
    deployment = deploy()
    held = [deployment.hold(), deployment.hold()]
    deployment.store.down = True
    for one in held:
        if operation == "settle":
            deployment.settle(one)
        else:
            assert not deployment.renew(one.grant)

    assert events.STORE_DOWN in deployment.sink.names


def test_a_renewal_tells_that_the_store_is_back(deploy: Deploy) -> None:
    """It closes the breaker, and what waits is delivered."""
    deployment = deploy()
    running, done = deployment.hold(), deployment.hold()
    cut_off(deployment)
    deployment.settle(done)
    deployment.store.down = False
    deployment.clock.now += 11

    assert deployment.renew(running.grant)
    assert deployment.sink.names[-1] == events.STORE_UP
    assert deployment.store.charged().requests == 1


def test_a_settlement_tells_that_the_store_is_back(deploy: Deploy) -> None:
    """It need not wait for the next admission."""
    deployment = deploy()
    first, second = deployment.hold(), deployment.hold()
    cut_off(deployment)
    deployment.settle(first)
    deployment.store.down = False
    deployment.clock.now += 11
    deployment.settle(second)

    assert deployment.sink.names.count(events.STORE_UP) == 1
    assert deployment.store.charged().requests == 2


def test_a_delivery_that_fails_waits_again(deploy: Deploy) -> None:
    """The store went away once more in between: nothing is lost."""
    deployment = deploy()
    held = [deployment.hold() for _ in range(3)]
    cut_off(deployment)
    for one in held:
        deployment.settle(one)
    waiting = deployment.shell.outage.waiting
    deployment.close()

    assert deployment.shell.outage.waiting == waiting >= 3


def test_closing_delivers_what_waits(deploy: Deploy) -> None:
    """All of it, also while the breaker is open; then the store is let go."""
    deployment = deploy()
    held = [deployment.hold() for _ in range(40)]
    cut_off(deployment)
    for one in held:
        deployment.settle(one)
    deployment.store.down = False
    deployment.close()

    assert deployment.store.charged().requests == 40
    assert deployment.store.closed or deployment.loop


def test_what_cannot_be_delivered_at_the_end_is_logged(
    deploy: Deploy, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost in silence: neither what waits nor what the queue had no room for."""
    deployment = deploy(outage={**OUTAGE, "queue": 1})
    held = [deployment.hold() for _ in range(3)]
    deployment.store.down = True
    for one in held:
        deployment.settle(one)
    deployment.close()

    assert caplog.messages == ["settlements not delivered: 1 waiting, 2 lost before"]
    assert caplog.records[0].levelname == "CRITICAL"


def test_a_clean_end_says_nothing(deploy: Deploy, caplog: pytest.LogCaptureFixture) -> None:
    """No settlement waits, no word."""
    deployment = deploy()
    deployment.settle(deployment.hold())
    deployment.close()

    assert caplog.messages == []


# --- events


class Broken:
    def emit(self, event: Event) -> None:
        raise ZeroDivisionError("a sink of the application")


def test_a_sink_that_raises_does_not_matter(
    deploy: Deploy, caplog: pytest.LogCaptureFixture
) -> None:
    """The other sinks get the event, the caller gets the settlement, the log the error."""
    deployment = deploy(sinks=(Broken(),))
    done = deployment.settle(deployment.hold())

    assert done.grade is Grade.EXACT
    assert deployment.sink.names == [events.SETTLED]
    assert caplog.messages == ["a sink could not take budget.settled"]


def test_no_event_has_a_word_of_the_prompt(deploy: Deploy) -> None:
    """Nor the principal's id: all of them, in an outage and out of it."""
    alice = Principal("alice@example.com", claims={"email": "alice@example.com"})
    prompt = Prompt(("my secret prompt",))
    origin = Origin(alice, ModelCall("big", prompt, None, body={"secret": 1}), "/chat")
    deployment = deploy({"requests": "2/day"})
    deployment.settle(deployment.hold(origin))
    deployment.hold(origin)
    deployment.shell.hold(deployment.decide(origin), origin)
    cut_off(deployment)
    deployment.settle(deployment.hold(origin))

    told = repr(deployment.sink.events)
    assert len(set(deployment.sink.names)) == 4
    assert "secret" not in told
    assert "alice@example.com" not in told


def principal_named(config: dict[str, Any], principal: Principal = ALICE) -> str | None:
    deployment = Deployment(events={"log": False, "metrics": False, "span": False, **config})
    deployment.settle(deployment.hold(origin_of(call_of(), principal)))
    name: str | None = deployment.sink.named(events.SETTLED)[0]["principal"]
    return name


def test_a_pseudonym_is_stable_with_a_secret_and_random_without() -> None:
    """Two processes agree on it only if they share the secret."""
    secret = {"id_secret": "s" * 16}

    assert principal_named(secret) == principal_named(secret) != principal_named({})
    assert principal_named(secret) != principal_named({"id_secret": "t" * 16})
    assert principal_named(secret) != principal_named(secret, Principal("bob"))
    assert principal_named({}) != principal_named({})


def test_principals_may_be_named_plainly_or_not_at_all() -> None:
    """As configured."""
    assert principal_named({"principal": "plain"}) == "alice"
    assert principal_named({"principal": "none"}) is None


# --- cancellation, threads, start


class Slow(AsyncMemoryStore):
    """A store that does its work, then waits before it answers."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.reached = asyncio.Event()
        self.answers = asyncio.Event()
        self.settling = 0
        self.settling_at_close = 0

    async def admit(self, plan: Plan) -> Admission:
        admission = await super().admit(plan)
        self.reached.set()
        await self.answers.wait()
        return admission

    async def settle(self, grant: Grant, charges: Charges) -> str:
        self.settling += 1
        outcome = await super().settle(grant, charges)
        self.reached.set()
        await self.answers.wait()
        for _ in range(9):  # turns of the loop, as a real answer would take some
            await asyncio.sleep(0)
        self.settling -= 1
        return outcome

    async def close(self) -> None:
        self.settling_at_close = self.settling


def slow_guard() -> tuple[AsyncGuard, Slow, SwitchStore]:
    memory = SwitchStore()
    config = configured(TIER)
    store = Slow(memory)
    return AsyncGuard(engine_of(config), config, store), store, memory


async def held_by(guard: AsyncGuard) -> Held:
    held = guard.hold(await guard.decide(ORIGIN), ORIGIN)
    assert held is not None
    return held


async def test_an_admission_that_is_cancelled_gives_its_hold_back() -> None:
    """The client left while the store was deciding: nobody will use what it held."""
    guard, store, memory = slow_guard()
    deciding = asyncio.create_task(guard.decide(ORIGIN))
    await store.reached.wait()
    store.answers.set()
    deciding.cancel()

    with pytest.raises(asyncio.CancelledError):
        await deciding
    await guard.close()

    assert [(charges, outcome) for _, charges, outcome in memory.settled] == [
        (Charges(0, 0, 0), "1")
    ]


@pytest.mark.parametrize("delivering", [False, True])
async def test_a_settlement_that_is_cancelled_is_repeated(delivering: bool) -> None:
    """Whatever stops the task, the charge is delivered at the end, once."""
    guard, store, memory = slow_guard()
    store.answers.set()
    held = await held_by(guard)
    store.answers.clear()
    store.reached.clear()
    if delivering:
        guard.outage.keep(held.grant, Charges(1, 2, 3))
        settling: asyncio.Task[Any] = asyncio.create_task(guard.close())
    else:
        settling = asyncio.create_task(guard.settle(held, DONE))
    await store.reached.wait()
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    store.answers.set()
    await guard.close()

    assert [outcome for _, _, outcome in memory.settled] == ["1", "2"]


async def test_closing_waits_for_what_settling_starts() -> None:
    """A settlement that ends while the guard closes may start a delivery; both are waited for."""
    guard, store, memory = slow_guard()
    store.answers.set()
    first, second = await held_by(guard), await held_by(guard)
    guard.outage.keep(first.grant, Charges(1, 2, 3))
    store.answers.clear()
    store.reached.clear()
    settling = guard.start(guard.settle(second, DONE))
    closing = asyncio.create_task(guard.close())
    await store.reached.wait()
    store.answers.set()
    await closing

    assert settling.done()
    assert store.settling_at_close == 0
    assert memory.charged().requests == 2
    assert guard.outage.waiting == 0


async def test_one_delivery_runs_at_a_time() -> None:
    """Settlements that end while it runs start no second one."""
    guard, store, memory = slow_guard()
    store.answers.set()
    held = [await held_by(guard) for _ in range(4)]
    for one in held[:2]:
        guard.outage.keep(one.grant, Charges(1, 2, 3))
    for one in held[2:]:
        await guard.settle(one, DONE)
    await guard.close()

    assert [outcome for _, _, outcome in memory.settled] == ["1"] * 4


def test_threads_share_one_guard() -> None:
    """Exactly what fits is admitted, everything is settled, the outage is told once."""
    deployment = Deployment({"requests": "20/day"})

    def use(_: int) -> bool:
        decided = deployment.decide()
        held = deployment.shell.hold(decided, ORIGIN)
        if held:
            deployment.settle(held)
        return decided.admitted

    with ThreadPoolExecutor(16) as pool:
        admitted = sum(pool.map(use, range(200)))
        deployment.store.down = True
        list(pool.map(use, range(50)))
        deployment.store.down = False
        deployment.clock.now += 11
        list(pool.map(use, range(50)))
    deployment.close()

    assert admitted == 20
    assert deployment.sink.names.count(events.STORE_DOWN) == 1
    assert deployment.sink.names.count(events.STORE_UP) == 1
    unchecked = len(deployment.sink.named(events.UNCHECKED))
    assert deployment.store.charged().requests == 20 + unchecked


def test_a_guard_opens_on_a_mapping() -> None:
    """A configuration is all it takes."""
    config = {"tiers": {"default": TIER}, "tokens": {"exact": False}}
    guard = Guard.open(config)

    assert guard.decide(origin_of(call_of(model="gpt-4o"))).admitted
    guard.close()


async def test_an_async_guard_opens_on_a_mapping() -> None:
    """So does the other one."""
    config = {"tiers": {"default": TIER}, "tokens": {"exact": False}}
    guard = AsyncGuard.open(config)

    assert (await guard.decide(origin_of(call_of(model="gpt-4o")))).admitted
    await guard.close()


async def test_store_and_sinks_can_be_given() -> None:
    """They replace what the configuration names."""
    config, sink, store = configured(TIER), Recorder(), SwitchStore()
    guard = Guard.open(config, store=store, sinks=[sink])
    waiting = AsyncGuard.open(config, store=AsyncMemoryStore(store), sinks=[sink])
    held = guard.hold(guard.decide(ORIGIN), ORIGIN)
    assert held

    await waiting.settle(held, DONE)

    assert len(store.plans) == len(store.settled) == 1
    assert sink.names == [events.SETTLED]


def test_the_limits_of_a_principal_can_be_looked_at(deploy: Deploy) -> None:
    """As they stand, calls in flight included; looking reserves nothing and leaves no key."""
    deployment = deploy({"budget": [], "concurrency": 2})
    fresh = [("requests-per-day", 0, 100), ("tokens-per-day", 0, 100_000), ("concurrency", 0, 2)]

    assert deployment.limits() == deployment.limits() == fresh
    assert not deployment.store._accounts
    held = deployment.hold()
    assert deployment.limits() == [
        ("requests-per-day", 1, 99),
        ("tokens-per-day", 200, 99_800),
        ("concurrency", 1, 1),
    ]
    deployment.settle(held)
    assert deployment.limits()[1:] == [("tokens-per-day", 100, 99_900), ("concurrency", 0, 2)]
    assert deployment.limits(Principal("bob")) == fresh


def test_a_principal_without_limits_has_none_to_look_at(deploy: Deploy) -> None:
    """The store is not asked."""
    deployment = deploy({"requests": [], "tokens": [], "budget": []})

    assert deployment.limits() == []
    assert deployment.store.plans == []


def test_limits_cannot_be_looked_at_while_the_store_is_away(deploy: Deploy) -> None:
    """To show something else would be a guess."""
    deployment = deploy()
    deployment.store.down = True

    with pytest.raises(StoreError):
        deployment.limits()
