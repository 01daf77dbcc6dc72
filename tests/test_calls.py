"""Tests of `llm_budget_mw.calls`: a model called from code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic.types
import httpx
import httpx2
import openai
import openai.types
import openai.types.chat
import pytest

from llm_budget_mw import events
from llm_budget_mw.calls import AsyncCall, Call, read_report, read_request
from llm_budget_mw.dialects import DIALECTS
from llm_budget_mw.errors import BudgetExceeded, RequestError
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.stores.memory import AsyncMemoryStore
from llm_budget_mw.types import Admission, Charges, Grade, Grant, Plan, RefusalReason, Usage
from tests.deployment import ALICE, Recorder, SwitchStore, configured, engine_of

TIER = {"requests": "3/day", "tokens": "100000/day", "budget": "$1/day", "max_tokens": 100}
MESSAGES = [{"role": "user", "content": "hi"}]
ASK = {"model": "big", "messages": MESSAGES}
OPENAI_ANSWER = openai.types.chat.ChatCompletion.model_validate(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
)
ANTHROPIC_ANSWER = anthropic.types.Message.model_validate(
    {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "usage": {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 5},
    }
)


@dataclasses.dataclass
class World:
    """Both guards on one store."""

    guard: Guard
    waiting: AsyncGuard
    store: SwitchStore
    sink: Recorder


@pytest.fixture
def world() -> World:
    config, store, sink = configured(TIER), SwitchStore(), Recorder()
    engine = engine_of(config)
    waiting = AsyncGuard(engine, config, AsyncMemoryStore(store), [sink])
    return World(Guard(engine, config, store, [sink]), waiting, store, sink)


def call(world: World, **request: Any) -> Call:
    return world.guard.call(ALICE, model="big", messages=MESSAGES, **request)


def test_a_call_is_admitted_recorded_and_settled(world: World) -> None:
    """The grant is there while it runs, the settlement afterwards."""
    with call(world) as made:
        assert (made.principal, made.model, made.max_tokens) == (ALICE, "big", 100)
        assert made.settlement is None
        made.record(Usage(9, 3))

    assert made.settlement is not None
    assert made.settlement.grade is Grade.EXACT
    assert made.settlement.charges == Charges(1, 12, 9 * 2_500 + 3 * 10_000)
    assert made.grant.plan.id == world.store.settled[0][0]


async def test_a_call_on_an_event_loop_is_the_same(world: World) -> None:
    """Admitted, recorded and settled, with one event."""
    async with world.waiting.call(ALICE, feature="chat", model="big", messages=MESSAGES) as made:
        made.record(OPENAI_ANSWER)

    assert made.settlement is not None
    assert made.settlement.charges == Charges(1, 12, 9 * 150 + 3 * 600)
    [event] = world.sink.named(events.SETTLED)
    assert (event["feature"], event["response_model"]) == ("chat", "small")


def test_the_request_has_the_grant_written_into_it(world: World) -> None:
    """Model and bound are the granted ones; everything else is what was given."""
    with call(world, max_tokens=5_000, temperature=0.5) as made:
        made.cancel()

    assert made.request == {
        "model": "big",
        "messages": MESSAGES,
        "max_tokens": 100,
        "temperature": 0.5,
    }


def test_a_dialect_writes_its_own_request(world: World) -> None:
    """A call to Anthropic is made in its words."""
    request: dict[str, Any] = {"model": "claude-x", "messages": MESSAGES, "max_tokens": 5_000}
    with world.guard.call(ALICE, dialect="anthropic_messages", **request) as made:
        made.record(ANTHROPIC_ANSWER)

    assert made.request == {**request, "max_tokens": 100}
    assert made.settlement is not None
    assert made.settlement.usage == Usage(14, 3, cache_read_tokens=5, model="claude-x")


def test_nothing_is_granted_before_the_call_is_entered(world: World) -> None:
    """Making a call asks nobody."""
    made = call(world)

    with pytest.raises(RuntimeError, match="enter it with `with`"):
        _ = made.max_tokens
    assert world.store.plans == []


async def test_a_refused_call_raises_with_its_reasons(world: World) -> None:
    """The body of the `with` never runs, and nothing is left to settle."""
    for _ in range(3):
        with call(world) as made:
            made.record(Usage(1, 1))

    with pytest.raises(BudgetExceeded, match="requests-per-day is used up") as caught, call(world):
        pytest.fail("admitted")
    with pytest.raises(BudgetExceeded):
        async with world.waiting.call(ALICE, model="big", messages=MESSAGES):
            pytest.fail("admitted")

    assert caught.value.refusal.reason is RefusalReason.EXHAUSTED
    assert world.sink.names.count(events.REFUSED) == 2
    assert len(world.store.settled) == 3


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "big"},
        {"model": 7, "messages": MESSAGES},
        {"model": "big", "messages": [object()]},
    ],
    ids=["no messages", "no model name", "no JSON"],
)
def test_a_request_that_cannot_be_read_is_refused_at_once(
    world: World, request_: dict[str, Any]
) -> None:
    """Before anything is asked of the store."""
    with pytest.raises(RequestError):
        world.guard.call(ALICE, **request_)


def test_messages_may_be_an_sdks_own_objects(world: World) -> None:
    """What came back from a provider can be sent again."""
    message = openai.types.chat.ChatCompletionMessage(role="assistant", content="hello")
    made = world.guard.call(ALICE, model="big", messages=[message])

    with made:
        made.cancel()
    assert made.request["messages"][0]["content"] == "hello"


@pytest.mark.parametrize("enter_again", [True, False])
def test_a_call_is_entered_once(world: World, enter_again: bool) -> None:
    """A second time it would be settled by the first one's usage."""
    made = call(world)
    with made:
        made.record(Usage(1, 1))
        if not enter_again:
            return

    with pytest.raises(RuntimeError, match="entered once"), made:
        pytest.fail("entered twice")
    assert len(world.store.plans) == 1


async def test_an_async_call_is_entered_once(world: World) -> None:
    """The same rule."""
    made = world.waiting.call(ALICE, model="big", messages=MESSAGES)
    async with made:
        made.record(Usage(1, 1))

    with pytest.raises(RuntimeError, match="entered once"):
        async with made:
            pytest.fail("entered twice")


# --- endings


REQUEST = httpx2.Request("POST", "http://test")


def openai_error(status: int) -> openai.APIStatusError:
    response = httpx2.Response(status, request=REQUEST)
    return openai.APIStatusError("no", response=response, body=None)


def ended(world: World, error: BaseException | None, *, usage: Usage | None = None) -> Call:
    """Return a call that ended in this error, or without one."""
    made = call(world)
    with contextlib.suppress(BaseException), made:
        if usage is not None:
            made.record(usage)
        if error is not None:
            raise error
    return made


def graded(made: Call | AsyncCall) -> tuple[Grade, str, Charges]:
    assert made.settlement is not None
    return made.settlement.grade, made.settlement.ending, made.settlement.charges


HELD = Charges(1, 125, 25 * 2_500 + 100 * 10_000)
NOTHING = Charges(0, 0, 0)


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_a_call_the_provider_refused_is_released(world: World, status: int) -> None:
    """An SDK's error has the status of the answer."""
    made = ended(world, openai_error(status))

    assert graded(made) == (Grade.RELEASED, "refused_upstream", NOTHING)


def test_an_http_clients_error_tells_the_status_too(world: World) -> None:
    """`raise_for_status` keeps it on the response."""
    request = httpx.Request("POST", "http://test")
    error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(429))

    assert graded(ended(world, error))[0] is Grade.RELEASED


@pytest.mark.parametrize(
    "error",
    [
        openai.APITimeoutError(REQUEST),
        ConnectionResetError(),
        KeyboardInterrupt(),
        openai_error(302),
    ],
)
def test_any_other_error_may_have_been_billed(world: World, error: BaseException) -> None:
    """A time-out does not stop a provider from generating."""
    assert graded(ended(world, error)) == (Grade.ESTIMATED, "unreported", HELD)


def test_a_call_nobody_reported_on_is_estimated_and_flagged(world: World) -> None:
    """Unknown is never zero, and the event says that nothing was reported."""
    assert graded(ended(world, None)) == (Grade.ESTIMATED, "unreported", HELD)
    assert world.sink.named(events.SETTLED)[0]["ending"] == "unreported"


def test_usage_reported_before_an_error_counts(world: World) -> None:
    """What was reported is charged, whatever went wrong afterwards."""
    made = ended(world, ValueError("after the answer"), usage=Usage(9, 3))

    assert graded(made) == (Grade.COUNTED, "cut", Charges(1, 12, 52_500))


def test_a_cancelled_call_is_given_back(world: World) -> None:
    """An answer from a cache needs no provider."""
    with call(world) as made:
        made.cancel()

    assert graded(made) == (Grade.RELEASED, "not_called", NOTHING)


async def test_a_call_whose_task_is_cancelled_is_settled(world: World) -> None:
    """In a task of its own, which nothing of the call can stop."""
    entered = asyncio.Event()

    async def ask() -> None:
        async with world.waiting.call(ALICE, model="big", messages=MESSAGES):
            entered.set()
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    await entered.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert world.store.charged() == HELD


class Slow(AsyncMemoryStore):
    """A store whose settlements wait to be let through."""

    def __init__(self, store: SwitchStore) -> None:
        super().__init__(store)
        self.reached, self.answers = asyncio.Event(), asyncio.Event()

    async def settle(self, grant: Grant, charges: Charges) -> str:
        self.reached.set()
        await self.answers.wait()
        return await super().settle(grant, charges)


async def test_a_settlement_outlives_the_call_that_waits_for_it(world: World) -> None:
    """Whoever leaves while it runs does not stop it."""
    store = Slow(world.store)
    guard = AsyncGuard(world.waiting.engine, world.waiting.config, store, [world.sink])

    async def ask() -> None:
        async with guard.call(ALICE, model="big", messages=MESSAGES) as made:
            made.record(Usage(9, 3))

    asking = asyncio.create_task(ask())
    await store.reached.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    store.answers.set()
    await guard.close()

    assert [outcome for _, _, outcome in world.store.settled] == ["1"]
    assert world.sink.names == [events.SETTLED]


# --- an event loop that stops


class _Loop:
    """An event loop in a thread, which a test may stop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def close(self) -> None:
        """End what still runs there, as `asyncio.run` does."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_thread_does_not_wait_for_a_loop_that_has_stopped(world: World, closed: bool) -> None:
    """It is told at once that nobody will admit its call."""
    stopped = _Loop()
    stopped.stop()
    if closed:
        stopped.close()
    made = AsyncCall(
        world.waiting, Origin(ALICE, read_request("openai_chat", ASK)), "custom", loop=stopped.loop
    )

    with pytest.raises(RuntimeError, match="does not run any more"), made:
        raise AssertionError("nobody admitted it")
    if not closed:
        stopped.close()

    assert world.store.plans == []


def test_a_loop_that_stops_during_an_admission_leaves_nobody_waiting(world: World) -> None:
    """The thread goes on, and what the store may hold is given back."""
    running, asked = _Loop(), threading.Event()

    class Silent(AsyncMemoryStore):
        async def admit(self, plan: Plan) -> Admission:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError("never")

    guard = AsyncGuard(world.waiting.engine, world.waiting.config, Silent(world.store))
    made = AsyncCall(
        guard, Origin(ALICE, read_request("openai_chat", ASK)), "custom", loop=running.loop
    )
    with ThreadPoolExecutor() as pool:
        entering = pool.submit(made.__enter__)
        assert asked.wait(10)
        running.stop()
        with pytest.raises(RuntimeError, match="does not run any more"):
            entering.result(10)
    running.close()


def test_a_call_whose_loop_stops_before_its_end_is_left_to_its_lease(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer of the provider is not lost with the settlement, which the log tells of."""
    running = _Loop()
    made = AsyncCall(
        world.waiting, Origin(ALICE, read_request("openai_chat", ASK)), "custom", loop=running.loop
    )
    with made:
        running.stop()
    running.close()

    assert (made.settlement, world.store.settled) == (None, [])
    assert "its lease will end it" in caplog.text


# --- reports


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        pytest.param(Usage(9, None), Usage(9, None), id="usage as it is"),
        pytest.param(OPENAI_ANSWER, Usage(9, 3, model="small"), id="answer"),
        pytest.param(OPENAI_ANSWER.usage, Usage(9, 3), id="its usage"),
        pytest.param(OPENAI_ANSWER.model_dump(), Usage(9, 3, model="small"), id="answer as a dict"),
        pytest.param({"prompt_tokens": 9, "completion_tokens": 3}, Usage(9, 3), id="usage as one"),
    ],
)
def test_a_report_takes_any_form_an_sdk_gives_it(report: object, usage: Usage) -> None:
    """The answer or its usage, as an object or as JSON."""
    assert read_report(report, "openai_chat") == usage


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        (OPENAI_ANSWER, Usage(9, 3, model="small")),
        (ANTHROPIC_ANSWER, Usage(14, 3, cache_read_tokens=5, model="claude-x")),
        (ANTHROPIC_ANSWER.usage.model_dump(), Usage(14, 3, cache_read_tokens=5)),
    ],
)
def test_a_custom_route_reports_in_any_providers_words(report: object, usage: Usage) -> None:
    """Its own format is nobody's: the names of the fields decide."""
    assert read_report(report, "custom") == usage


def test_an_answer_an_sdk_did_not_expect_is_read_without_a_warning() -> None:
    """Other servers answer in the format of OpenAI, nearly."""
    odd: Any = openai.types.chat.ChatCompletion.model_construct
    usage: Any = openai.types.CompletionUsage.model_construct
    answer = odd(usage=usage(prompt_tokens=9, completion_tokens=2.5), service_tier="new")

    assert read_report(answer, "openai_chat") == Usage(9, 3, service_tier="new")


GEMINI = {"promptTokenCount": 9, "candidatesTokenCount": 2, "thoughtsTokenCount": 1}
OLLAMA = {"model": "llama", "done": True, "prompt_eval_count": 9, "eval_count": 3}
CONVERSE = {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12}
TITAN = {"inputTextTokenCount": 9, "results": [{"tokenCount": 3, "outputText": "hi"}]}
LLAMA = {"generation": "hi", "prompt_token_count": 9, "generation_token_count": 3}
COHERE: dict[str, Any] = {"usage": {"billed_units": {"input_tokens": 9.0, "output_tokens": 3.0}}}
RESPONSE: dict[str, Any] = {
    "object": "response",
    "usage": {
        "input_tokens": 9,
        "output_tokens": 3,
        "input_tokens_details": {"cached_tokens": 5},
    },
}
REPORTS: list[tuple[str, dict[str, Any], Usage]] = [
    ("gemini", {"usageMetadata": GEMINI}, Usage(9, 3, reasoning_tokens=1)),
    ("gemini", GEMINI, Usage(9, 3, reasoning_tokens=1)),
    ("gemini", {"prompt_token_count": 9, "candidates_token_count": 3}, Usage(9, 3)),
    ("gemini", {"usage_metadata": {"prompt_token_count": 9, "total_token_count": 12}}, Usage(9, 3)),
    ("ollama", OLLAMA, Usage(9, 3, model="llama")),
    ("bedrock", {"usage": CONVERSE, "metrics": {}}, Usage(9, 3)),
    ("bedrock", CONVERSE, Usage(9, 3)),
    ("bedrock_invoke", TITAN, Usage(9, 3)),
    ("bedrock_invoke", LLAMA, Usage(9, 3)),
    ("cohere", COHERE, Usage(9, 3)),
    ("cohere", COHERE["usage"], Usage(9, 3)),
    ("openai_responses", RESPONSE, Usage(9, 3, cache_read_tokens=5)),
    ("openai_responses", RESPONSE["usage"], Usage(9, 3, cache_read_tokens=5)),
    ("openai_embeddings", {"object": "list", "usage": {"prompt_tokens": 9}}, Usage(9, 0)),
]


@pytest.mark.parametrize(("dialect", "report", "usage"), REPORTS)
def test_a_report_is_read_by_the_dialect(
    dialect: str, report: dict[str, Any], usage: Usage
) -> None:
    """Wherever its format has the counts; a custom route knows them all by their names."""
    assert read_report(report, dialect) == usage
    assert read_report(report, "custom") == usage


def test_a_report_of_bedrock_may_be_in_its_headers() -> None:
    """The body stays for the handler, which alone can read it."""
    headers = {
        "x-amzn-bedrock-input-token-count": "9",
        "x-amzn-bedrock-output-token-count": "3",
        "odd": 7,
    }
    body = io.BytesIO(b"{}")
    report = {"body": body, "ResponseMetadata": {"HTTPHeaders": headers}}

    assert read_report(report, "bedrock_invoke") == Usage(9, 3)
    assert body.read() == b"{}"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("report", [{}, {"usage": {}}, {"usageMetadata": None}, {"results": []}])
def test_no_dialect_makes_a_report_of_nothing(dialect: str, report: object) -> None:
    """Unknown is an error in all of them."""
    with pytest.raises(ValueError, match="holds no usage"):
        read_report(report, dialect)


@pytest.mark.parametrize("report", ["12 tokens", 12, None, [1], object(), iter([])])
def test_what_is_no_report_is_a_type_error(report: object) -> None:
    """A stream, a number, a text: none of them tells input from output."""
    with pytest.raises(TypeError, match="usage is reported as"):
        read_report(report, "openai_chat")


@pytest.mark.parametrize(
    "report", [{}, {"usage": None}, {"usage": {"prompt_tokens": -1}}, {"input": 1, "output": 2}]
)
def test_a_report_without_usage_is_an_error(report: object) -> None:
    """Unknown must not be taken for nothing."""
    with pytest.raises(ValueError, match="holds no usage"):
        read_report(report, "openai_chat")


@pytest.mark.parametrize("usage", [Usage(-1, 1), Usage(1, 1, extra=(Usage(1, -1),))])
def test_a_report_cannot_give_budget_back(usage: Usage) -> None:
    """Fewer than no tokens are a mistake."""
    with pytest.raises(ValueError, match="below zero"):
        read_report(usage, "openai_chat")


def test_a_refusal_survives_the_way_between_processes() -> None:
    """A pool of processes and a job queue pickle what a call raised."""
    config = configured({"tokens": "1/day"})
    guard = Guard(engine_of(config), config, SwitchStore())
    with pytest.raises(BudgetExceeded) as caught, guard.call(ALICE, model="big", messages=MESSAGES):
        pass

    arrived = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own)

    assert str(arrived) == str(caught.value)
    assert arrived.refusal.reason is RefusalReason.NEVER
