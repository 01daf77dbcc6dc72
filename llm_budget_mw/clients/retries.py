"""Transports that send a request again where its provider could not answer for the moment.

They belong outside the guarded transport, so that every attempt is admitted at its own price,
and a refusal, which no waiting of theirs can change, ends them. SDKs retry by themselves: give
them `max_retries=0`, or each of their attempts is retried here.
"""

from __future__ import annotations

import importlib
import math
import random
from dataclasses import dataclass
from typing import Any

from llm_budget_mw.clients.library import Library
from llm_budget_mw.clients.waits import retry_after_s
from llm_budget_mw.clients.wrapping import AsyncWrapping, Wrapping
from llm_budget_mw.errors import ConfigurationError, MissingDependencyError

try:
    import tenacity
except ImportError as error:
    raise MissingDependencyError(
        "retries need the package tenacity: install llm-budget-mw[clients]"
    ) from error

_RETRIED = frozenset({408, 409, 429})
_ERROR = 400
_SERVER_ERROR = 500
_LOST = ("NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError")


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and for how long in all, a request is sent again.

    Without a word of the provider's the waits double from `first_s` to `longest_s`, each cut
    by chance to no less than half. A provider that asks for a wait gets it, and up to a tenth
    more; one that asks for more than is left of `total_s` gets no further attempt, and its
    answer goes to the caller.
    """

    attempts: int = 3
    """Sendings of one request, the first included."""
    first_s: float = 0.5
    longest_s: float = 8.0
    total_s: float = 60.0
    """From the first sending to the last."""

    def __post_init__(self) -> None:
        """Raise `ConfigurationError` for numbers that no retries can be made by."""
        if not self.attempts >= 1:  # neither is a number that is none
            raise ConfigurationError(
                f"retries: attempts is {self.attempts!r}; it has to be 1 or more, the first included"
            )
        for option in ("first_s", "longest_s", "total_s"):
            seconds: float = getattr(self, option)
            if not 0 < seconds < math.inf:
                raise ConfigurationError(
                    f"retries: {option} is {seconds!r}; it has to be a number of seconds above 0"
                )


class _Policy:
    """When to send again, and after how long; nothing here waits."""

    def __init__(self, retries: Retries, library: Library) -> None:
        module = importlib.import_module(library.name)
        self._lost: tuple[type[Exception], ...] = tuple([getattr(module, name) for name in _LOST])
        self._backoff = tenacity.wait_exponential(multiplier=retries.first_s, max=retries.longest_s)
        self.options: dict[str, Any] = {
            "retry": self._again,
            "wait": self._wait_s,
            "stop": tenacity.stop_after_attempt(retries.attempts)
            | tenacity.stop_before_delay(retries.total_s),
            "retry_error_callback": _outcome,
        }

    def _again(self, state: tenacity.RetryCallState) -> bool:
        outcome = state.outcome
        if outcome is None:
            return False
        error = outcome.exception()
        return isinstance(error, self._lost) if error else _passing(outcome.result())

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        outcome = state.outcome
        if outcome is not None and not outcome.failed:
            asked_s = retry_after_s(outcome.result().headers)
            if asked_s is not None:
                return asked_s * random.uniform(1.0, 1.1)  # noqa: S311 (only keeps callers apart)
        return self._backoff(state) * random.uniform(0.5, 1.0)  # noqa: S311


class Retrying(Wrapping):
    """A transport of a synchronous client."""

    def __init__(self, inner: Any, retries: Retries, library: Library) -> None:
        super().__init__(inner)
        self._options = _Policy(retries, library).options

    def handle_request(self, request: Any) -> Any:
        """Send a request, again if need be and if its body is still there."""
        if not _repeatable(request):
            return self._inner.handle_request(request)
        attempts = tenacity.Retrying(before_sleep=_close, **self._options)
        return attempts(self._inner.handle_request, request)


class AsyncRetrying(AsyncWrapping):
    """A transport of an asynchronous client."""

    def __init__(self, inner: Any, retries: Retries, library: Library) -> None:
        super().__init__(inner)
        self._options = _Policy(retries, library).options

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, again if need be and if its body is still there."""
        if not _repeatable(request):
            return await self._inner.handle_async_request(request)
        attempts = tenacity.AsyncRetrying(before_sleep=_aclose, **self._options)
        return await attempts(self._inner.handle_async_request, request)


def _passing(response: Any) -> bool:
    """Return whether an answer is of an error that may pass."""
    status: int = response.status_code
    if status < _ERROR or isinstance(getattr(response, "refusal", None), Exception):
        return False  # a refusal of our own looks like a 429, for SDKs to raise it
    told: str = response.headers.get("x-should-retry", "").strip().lower()
    if told in ("true", "false"):
        return told == "true"
    return status in _RETRIED or status >= _SERVER_ERROR


def _repeatable(request: Any) -> bool:
    """Return whether the body of a request is in memory; one that streams is gone once sent."""
    try:
        request.content  # noqa: B018 (raises, in both libraries, where it was not read)
    except RuntimeError:
        return False
    return True


def _outcome(state: tenacity.RetryCallState) -> Any:
    """Return what the last attempt returned, or raise what it raised."""
    return None if state.outcome is None else state.outcome.result()


def _close(state: tenacity.RetryCallState) -> None:
    if state.outcome is not None and not state.outcome.failed:
        state.outcome.result().close()


async def _aclose(state: tenacity.RetryCallState) -> None:
    if state.outcome is not None and not state.outcome.failed:
        await state.outcome.result().aclose()
