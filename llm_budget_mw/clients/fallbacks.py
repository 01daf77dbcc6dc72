"""Trying one model after another, until one answers well enough.

    chosen = fallback(
        [("gpt-4o-mini", lambda: ask("gpt-4o-mini")), ("gpt-4o", lambda: ask("gpt-4o"))],
        accept=lambda answer: answer.choices[0].finish_reason == "stop",
    )

What is called makes guarded calls, so every attempt is admitted at its own price and charged,
also one whose answer is not accepted. One that is refused costs nothing, and the next that
fits is taken; only if nothing answers is a refusal, or else the last error, raised.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Generic, Literal, NamedTuple, TypeVar

from llm_budget_mw.calls import ATTEMPT
from llm_budget_mw.errors import BudgetExceeded, ConfigurationError

T = TypeVar("T")

Outcome = Literal["accepted", "rejected", "refused", "failed"]
"""Of an attempt: `rejected` by `accept`, `refused` by a budget, `failed` with any other error."""


class Tried(NamedTuple):
    """One attempt that was made."""

    name: str
    outcome: Outcome
    error: Exception | None = None


class Chosen(NamedTuple, Generic[T]):
    """The answer of a chain."""

    answer: T
    name: str
    """The attempt it comes from."""
    accepted: bool
    """False if no answer was accepted: then it is the last one there was."""
    tried: tuple[Tried, ...]
    """Every attempt made, in order."""


def fallback(
    attempts: Sequence[tuple[str, Callable[[], T]]],
    *,
    accept: Callable[[T], bool] = lambda _: True,
) -> Chosen[T]:
    """Call one after the other until an answer is accepted; `attempts` are names and calls.

    Goes on after any error but `ConfigurationError`. What `accept` raises goes to the caller.
    Raises what the attempts did if none of them answered: a `BudgetExceeded` before all else.
    """
    chain = _Chain[T](attempts)
    for name, call in attempts:
        try:
            with chain.attempt():
                answer = call()
        except Exception as error:  # noqa: BLE001 (whatever it is, the next model may do)
            chain.failed(name, error)
            continue
        if chain.answered(name, answer, accepted=accept(answer)):
            break
    return chain.chosen()


async def fallback_async(
    attempts: Sequence[tuple[str, Callable[[], Awaitable[T]]]],
    *,
    accept: Callable[[T], bool | Awaitable[bool]] = lambda _: True,
) -> Chosen[T]:
    """Like `fallback`, in a coroutine; `accept` may be one too, and ask another model."""
    chain = _Chain[T](attempts)
    for name, call in attempts:
        try:
            with chain.attempt():
                answer = await call()
        except Exception as error:  # noqa: BLE001 (whatever it is, the next model may do)
            chain.failed(name, error)
            continue
        verdict = accept(answer)
        accepted = await verdict if inspect.isawaitable(verdict) else verdict
        if chain.answered(name, answer, accepted=accepted):
            break
    return chain.chosen()


class _Chain(Generic[T]):
    """What became of the attempts so far."""

    def __init__(self, attempts: Sequence[object]) -> None:
        if not attempts:
            raise ConfigurationError("attempts: a fallback needs one attempt at least")
        self._tried: list[Tried] = []
        self._answers: list[tuple[str, T]] = []

    @contextmanager
    def attempt(self) -> Generator[None]:
        """Let events of the calls in this block say which attempt they belong to."""
        before = f"/{self._tried[-1].outcome}" if self._tried else ""
        token = ATTEMPT.set(f"{len(self._tried) + 1}{before}")
        try:
            yield
        finally:
            ATTEMPT.reset(token)

    def failed(self, name: str, error: Exception) -> None:
        """Note an attempt that raised; raises what no other model can help against."""
        if isinstance(error, ConfigurationError):
            raise error
        outcome: Outcome = "refused" if isinstance(error, BudgetExceeded) else "failed"
        self._tried.append(Tried(name, outcome, error))

    def answered(self, name: str, answer: T, *, accepted: bool) -> bool:
        """Note an answer; return whether it ends the chain."""
        self._tried.append(Tried(name, "accepted" if accepted else "rejected"))
        self._answers.append((name, answer))
        return accepted

    def chosen(self) -> Chosen[T]:
        """Return the last answer, or raise the error that says most."""
        if not self._answers:
            raise self._worst()
        name, answer = self._answers[-1]
        accepted = self._tried[-1].outcome == "accepted"
        return Chosen(answer, name, accepted, tuple(self._tried))

    def _worst(self) -> Exception:
        errors = [tried.error for tried in self._tried if tried.error is not None]
        error = next(
            (error for error in reversed(errors) if isinstance(error, BudgetExceeded)), errors[-1]
        )
        for tried in self._tried:
            error.add_note(f"fallback: {tried.name} {tried.outcome}: {tried.error}")
        return error
