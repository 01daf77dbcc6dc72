"""One model after another: which answer is taken, what it costs, and what is raised."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx2
import pytest

from llm_budget_mw import BudgetExceeded, ConfigurationError
from llm_budget_mw.calls import ATTEMPT
from llm_budget_mw.clients import Chosen, Tried, fallback, fallback_async
from llm_budget_mw.current import charge
from tests.clients.provider import failing
from tests.clients.world import World
from tests.deployment import ALICE

Attempts = Sequence[tuple[str, Callable[[], Any]]]
Run = Callable[..., Awaitable[Chosen[Any]]]


async def _in_a_thread(attempts: Attempts, **options: Any) -> Chosen[Any]:
    return fallback(attempts, **options)


async def _on_a_loop(attempts: Attempts, **options: Any) -> Chosen[Any]:
    def waiting(call: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
        async def wait() -> Any:
            return call()

        return wait

    return await fallback_async([(name, waiting(call)) for name, call in attempts], **options)


each = pytest.mark.parametrize("run", [_in_a_thread, _on_a_loop], ids=["sync", "async"])


def failed(error: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


@each
async def test_the_first_good_answer_is_taken(run: Run) -> None:
    """Nothing after it is called."""
    chosen = await run([("a", lambda: 1), ("b", failed(AssertionError()))])
    assert chosen == (1, "a", True, (Tried("a", "accepted"),))


@each
async def test_errors_and_poor_answers_go_on_to_the_next(run: Run) -> None:
    """And what became of each attempt is told."""
    error = ValueError("no")
    chosen = await run(
        [("a", failed(error)), ("b", lambda: 1), ("c", lambda: 2)], accept=lambda x: x > 1
    )
    assert (chosen.answer, chosen.name, chosen.accepted) == (2, "c", True)
    assert chosen.tried == (
        Tried("a", "failed", error),
        Tried("b", "rejected"),
        Tried("c", "accepted"),
    )


@each
async def test_the_last_answer_is_better_than_none(run: Run) -> None:
    """It was paid for, and says that it was not accepted."""
    chosen = await run(
        [("a", lambda: 1), ("b", lambda: 2), ("c", failed(ValueError()))], accept=lambda _: False
    )
    assert (chosen.answer, chosen.name, chosen.accepted) == (2, "b", False)


@each
async def test_the_last_error_is_raised_where_nothing_answered(run: Run) -> None:
    """With a note of all attempts."""
    with pytest.raises(KeyError) as caught:
        await run([("a", failed(ValueError("x"))), ("b", failed(KeyError("y")))])
    assert caught.value.__notes__ == ["fallback: a failed: x", "fallback: b failed: 'y'"]


@each
async def test_a_wrong_configuration_is_raised_at_once(run: Run) -> None:
    """No other model helps against it; an empty chain is one."""
    with pytest.raises(ConfigurationError, match="wrong"):
        await run([("a", failed(ConfigurationError("wrong"))), ("b", lambda: 1)])
    with pytest.raises(ConfigurationError, match="attempts"):
        await run([])


@each
async def test_what_the_predicate_raises_is_not_hidden(run: Run) -> None:
    """It is the application's own mistake, not a model's."""
    with pytest.raises(ZeroDivisionError):
        await run([("a", lambda: 1), ("b", lambda: 2)], accept=lambda _: 1 / 0)


@each
async def test_calls_know_which_attempt_they_belong_to(run: Run) -> None:
    """And nothing does after the chain."""
    seen: list[str | None] = []

    def call() -> int:
        seen.append(ATTEMPT.get())
        return 1

    await run([("a", failed(ValueError())), ("b", call), ("c", call)], accept=lambda _: False)
    assert seen == ["2/failed", "3/rejected"]
    assert ATTEMPT.get() is None


async def test_a_predicate_may_ask_another_model() -> None:
    """It is waited for."""

    async def one() -> int:
        return 1

    async def judge(answer: int) -> bool:
        return answer > 1

    chosen = await fallback_async([("a", one)], accept=judge)
    assert not chosen.accepted


def asking(world: World, client: Any, model: str) -> Callable[[], Any]:
    def ask() -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
        answer = client.post(f"{world.url}/v1/chat/completions", json=body)
        answer.raise_for_status()
        return answer.json()["model"]

    return ask


def test_every_attempt_is_admitted_at_its_own_price(world: World) -> None:
    """One that failed is given back; one whose answer is not accepted is charged."""
    client = world.guarded(httpx2.Client)
    world.stage.faults.append(failing(500))
    attempts = [(name, asking(world, client, "big")) for name in ("first", "second", "third")]
    seen: list[object] = []

    def second_time(answer: object) -> bool:
        seen.append(answer)
        return len(seen) > 1

    with charge(world.guard, ALICE):
        chosen = fallback(attempts, accept=second_time)

    assert chosen.name == "third"
    assert [event["grade"] for event in world.sink.settled] == ["released", "exact", "exact"]
    attempts_told = [event["attempt"] for event in world.sink.settled]
    assert attempts_told == ["1", "2/failed", "3/rejected"]
    assert world.open_reservations == 0


def test_a_model_too_dear_for_what_is_left_gives_way_to_a_cheaper_one(world: World) -> None:
    """The refused one is not sent; where none is cheap enough the refusal is raised."""
    poor = world.limited(budget="$0.0004/day", min_tokens=50)
    client = poor.guarded(httpx2.Client)
    big, small = asking(poor, client, "big"), asking(poor, client, "small")
    with charge(poor.guard, ALICE):
        chosen = fallback([("big", big), ("small", small)])
        assert chosen.name == "small"
        assert [tried.outcome for tried in chosen.tried] == ["refused", "accepted"]
        assert len(poor.stage.seen) == 1
        assert [event["attempt"] for event in poor.sink.refused] == ["1"]
        assert [event["attempt"] for event in poor.sink.settled] == ["2/refused"]
        with pytest.raises(BudgetExceeded):
            fallback([("big", big), ("broken", failed(ValueError()))])
