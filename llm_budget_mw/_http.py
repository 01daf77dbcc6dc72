"""Decisions as HTTP: status, headers and body, as plain data for every edge.

A refused client is told the truth in a form its SDK understands: a wait worth waiting for is
a `Retry-After`; a spent budget says `x-should-retry: false`, because SDKs otherwise hammer
or sleep for hours; what can never fit is not a 429 at all.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from llm_budget_mw.config import RefusalsConfig
from llm_budget_mw.dialects.protocol import Dialect, Problem
from llm_budget_mw.errors import AuthenticationError, RequestError
from llm_budget_mw.identity import www_authenticate
from llm_budget_mw.types import Limit, LimitStatus, Refusal, RefusalReason, Subject

Header = tuple[str, str]
_COUNTED = ("requests", "tokens")
_LARGEST = 999_999_999_999_999
"""Of an Integer in a structured field (RFC 9651 section 3.3.1)."""
_SERVER_ERROR = 500
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_CODES = {
    RefusalReason.BUSY: "rate_limited",
    RefusalReason.NEVER: "request_exceeds_budget",
    RefusalReason.STOPPED: "stopped",
    RefusalReason.STORE_DOWN: "budget_unavailable",
}


class Answer(NamedTuple):
    """A whole response."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


def refusal_answer(
    refusal: Refusal,
    statuses: tuple[LimitStatus, ...],
    dialect: Dialect,
    config: RefusalsConfig,
    request_id: str = "",
) -> Answer:
    """Answer a refused call in its dialect."""
    seconds = _seconds(refusal.retry_after_ms)
    long_wait = seconds is None or seconds > config.retryable_s
    problem = Problem(
        _refusal_status(refusal, config),
        _refusal_code(refusal, long_wait=long_wait),
        _refusal_message(refusal, config),
        seconds,
        tuple(_binding_first(refusal)),
        request_id,
    )
    headers = list(limit_headers(statuses, wait_s=seconds))
    if seconds is not None:
        headers.append(("retry-after", str(seconds)))
        if not long_wait:
            headers.append(("retry-after-ms", str(refusal.retry_after_ms)))
    if long_wait:
        headers.append(("x-should-retry", "false"))
    return _answer(problem, dialect, headers, spent=long_wait)


def denial_answer(error: AuthenticationError, dialect: Dialect, request_id: str = "") -> Answer:
    """Answer a request without a valid credential (RFC 6750 section 3)."""
    failed = error.status >= _SERVER_ERROR
    code = error.code or ("unavailable" if failed else "unauthenticated")
    problem = Problem(error.status, code, error.description, request_id=request_id)
    challenge = [] if failed else [("www-authenticate", www_authenticate(error))]
    return _answer(problem, dialect, challenge)


def request_error_answer(error: RequestError, dialect: Dialect, request_id: str = "") -> Answer:
    """Answer a request that cannot be read or bounded."""
    problem = Problem(error.status, error.code, error.message, request_id=request_id)
    return _answer(problem, dialect, [])


def limit_headers(
    statuses: tuple[LimitStatus, ...], *, wait_s: int | None = None
) -> tuple[Header, ...]:
    """Return what a client may know of its limits.

    `RateLimit-Policy` and `RateLimit` as in draft-ietf-httpapi-ratelimit-headers-11, and the
    `x-ratelimit-*` headers that SDKs of OpenAI's format look for. Ends of windows later than
    `wait_s`, the `Retry-After`, are left out: the two must not contradict each other. Limits
    that are shared are left out: what others have used is not this client's to know.
    """
    statuses = tuple([status for status in statuses if is_own(status.subject)])
    if not statuses:
        return ()
    headers = [
        ("ratelimit-policy", ", ".join(map(_policy_item, statuses))),
        ("ratelimit", ", ".join([_limit_item(status, wait_s) for status in statuses])),
    ]
    for resource in _COUNTED:
        counted = [status for status in statuses if status.limit.resource == resource]
        if counted:
            tightest = min(
                counted, key=lambda status: status.remaining / (status.limit.amount or 1)
            )
            headers += [
                (f"x-ratelimit-limit-{resource}", str(tightest.limit.amount)),
                (f"x-ratelimit-remaining-{resource}", str(tightest.remaining)),
                (f"x-ratelimit-reset-{resource}", _duration(tightest.reset_ms or 0)),
            ]
    return tuple(headers)


def is_own(subject: Subject) -> bool:
    """Return whether a subject is the caller's alone."""
    return subject.name.startswith("user/")


def _answer(
    problem: Problem, dialect: Dialect, headers: list[Header], *, spent: bool = False
) -> Answer:
    answer = dialect.error(problem)
    fixed = [
        ("content-type", answer.media_type),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
    ]
    # A request id is the client's word.
    own = [(name, _UNPRINTABLE.sub("?", value)) for name, value in answer.headers]
    status = answer.status if spent and answer.status else problem.status
    return Answer(status, (*fixed, *headers, *own), answer.body)


def _refusal_status(refusal: Refusal, config: RefusalsConfig) -> int:
    if refusal.reason is RefusalReason.STORE_DOWN:
        return config.store_status
    if refusal.reason is RefusalReason.STOPPED:
        return config.stopped_status
    if refusal.reason is RefusalReason.NEVER:
        return config.never_status
    budget = refusal.reason is RefusalReason.EXHAUSTED and _is_budget(refusal)
    return config.budget_status if budget else config.rate_status


def _refusal_code(refusal: Refusal, *, long_wait: bool) -> str:
    if refusal.reason in _CODES:
        return _CODES[refusal.reason]
    return "budget_exceeded" if long_wait or _is_budget(refusal) else "rate_limited"


def _is_budget(refusal: Refusal) -> bool:
    return refusal.binding is not None and refusal.binding.limit.resource == "cost"


def _refusal_message(refusal: Refusal, config: RefusalsConfig) -> str:
    spent = refusal.reason in (RefusalReason.EXHAUSTED, RefusalReason.NEVER)
    # No tier raises what is shared with others.
    own = refusal.binding is not None and is_own(refusal.binding.subject)
    hint = f" {config.upgrade_hint}" if spent and own and config.upgrade_hint else ""
    return refusal.message + hint


def _binding_first(refusal: Refusal) -> list[str]:
    names = [status.limit.name for status in refusal.refusing]
    if refusal.binding is None:
        return names
    binding = refusal.binding.limit.name
    return [binding, *(name for name in names if name != binding)]


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else max(1, -(-milliseconds // 1000))


def _policy_item(status: LimitStatus) -> str:
    limit = status.limit
    window = _window_s(limit)
    unit = _UNITS.get(limit.resource, "")
    length = f";w={window}" if window else ""
    return f'"{limit.name}";q={_shown(limit, limit.amount)}{length}{unit}'


def _limit_item(status: LimitStatus, wait_s: int | None) -> str:
    limit, ends_s = status.limit, _seconds(status.reset_ms)
    shown = ends_s is not None and (wait_s is None or ends_s <= wait_s)
    reset = f";t={ends_s}" if shown else ""
    return f'"{limit.name}";r={_shown(limit, status.remaining)}{reset}'


_UNITS = {
    "concurrency": ';qu="concurrent-requests"',
    "tokens": ';llm-unit="tokens"',
    "cost": ';llm-unit="microdollars"',
}
_UNIT_S = {"hour": 3600, "day": 86_400, "week": 604_800, "month": 2_592_000, "year": 31_536_000}


def _window_s(limit: Limit) -> int:
    """Return a window's length in whole seconds; 0 for concurrency, which has none."""
    if limit.window.unit is not None:
        return _UNIT_S[limit.window.unit]
    return -(-limit.window.length_ms // 1000)


def _shown(limit: Limit, amount: int) -> int:
    """Return an amount in the unit of its header; money in micro-dollars."""
    return min(amount // 1000 if limit.resource == "cost" else amount, _LARGEST)


def _duration(milliseconds: int) -> str:
    """Return a duration as OpenAI writes it: `6ms`, `1m30.5s`, `2h0m0s`."""
    seconds, rest = divmod(milliseconds, 1000)
    if not seconds:
        return f"{rest}ms"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    text = f"{seconds}{fraction}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
