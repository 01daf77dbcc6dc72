"""Tests of `llm_budget_mw._http`: what every kind of refusal looks like on the wire."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw._http import (
    Answer,
    denial_answer,
    limit_headers,
    refusal_answer,
    request_error_answer,
)
from llm_budget_mw.config import RefusalsConfig
from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.errors import AuthenticationError, RequestError, ScopeError
from llm_budget_mw.types import (
    MAX_AMOUNT,
    Limit,
    LimitStatus,
    Plan,
    Refusal,
    RefusalReason,
    Resource,
    Subject,
    Window,
)

MINUTE = Window("sliding", length_ms=60_000)
MONTH = Window("calendar", unit="month")
REQUESTS = Limit("requests-per-minute", "requests", 20, MINUTE)
TOKENS = Limit("tokens-per-month", "tokens", 90_000, MONTH)
MONEY = Limit("budget-per-month", "cost", 2_000_000_000, MONTH)
SLOTS = Limit("concurrency", "concurrency", 4, Window("none"))
ALICE = Subject("acme", "user/alice")
OPENAI = dialect_for("openai_chat")


def status_of(limit: Limit, remaining: int = 0, reset_ms: int | None = 40_000) -> LimitStatus:
    return LimitStatus(ALICE, limit, remaining, 123_456_789, reset_ms)


def refusal_of(
    reason: RefusalReason,
    retry_after_ms: int | None = None,
    *limits: Limit,
    message: str = "The limit is used up.",
) -> Refusal:
    statuses = tuple(status_of(limit) for limit in limits)
    binding = statuses[0] if statuses else None
    return Refusal(
        Plan("0" * 24, (), (), 1), reason, binding, statuses, retry_after_ms, None, message
    )


def answer_to(refusal: Refusal, dialect: str = "openai_chat", **options: Any) -> Answer:
    config = RefusalsConfig.model_validate(options)
    return refusal_answer(refusal, refusal.refusing, dialect_for(dialect), config)


def headers_of(answer: Answer) -> dict[str, str]:
    found = dict(answer.headers)
    assert len(found) == len(answer.headers), "a header is there twice"
    return found


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer.body)["error"]
    return error


# --- status, code and retry headers, reason by reason (RFC 6585, RFC 9110 section 10.2.3)

EXHAUSTED, BUSY = RefusalReason.EXHAUSTED, RefusalReason.BUSY
NEVER, STORE_DOWN = RefusalReason.NEVER, RefusalReason.STORE_DOWN


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retry", "should_retry"),
    [
        pytest.param(
            refusal_of(EXHAUSTED, 20_200, REQUESTS), 429, "rate_limited", "21", None, id="a minute"
        ),
        pytest.param(
            refusal_of(EXHAUSTED, 3_600_000, TOKENS),
            429, "budget_exceeded", "3600", "false", id="an hour",
        ),
        pytest.param(
            refusal_of(EXHAUSTED, 5_000, MONEY), 429, "budget_exceeded", "5", None, id="money soon"
        ),
        pytest.param(
            refusal_of(EXHAUSTED, None, MONEY), 429, "budget_exceeded", None, "false", id="no end"
        ),
        pytest.param(refusal_of(BUSY, 1_000, SLOTS), 429, "rate_limited", "1", None, id="busy"),
        pytest.param(
            refusal_of(BUSY, 1_000, MONEY), 429, "rate_limited", "1", None, id="money is held"
        ),
        pytest.param(
            refusal_of(NEVER, None, TOKENS),
            413, "request_exceeds_budget", None, "false", id="too large",
        ),
        pytest.param(
            refusal_of(STORE_DOWN, 1_000), 503, "budget_unavailable", "1", None, id="store down"
        ),
    ],
)  # fmt: skip
def test_every_reason_has_its_own_answer(
    refusal: Refusal, status: int, code: str, retry: str | None, should_retry: str | None
) -> None:
    """What waiting helps says for how long, what it does not says not to retry."""
    answer = answer_to(refusal)
    headers = headers_of(answer)

    assert (answer.status, error_of(answer)["code"]) == (status, code)
    assert headers.get("retry-after") == retry
    assert headers.get("x-should-retry") == should_retry
    assert ("retry-after-ms" in headers) is (retry is not None and should_retry is None)


@pytest.mark.parametrize(
    ("option", "refusal", "values"),
    [
        ("budget_status", refusal_of(EXHAUSTED, 9, MONEY), (402, 403, 422, 429)),
        ("rate_status", refusal_of(EXHAUSTED, 9, TOKENS), (402, 403, 422, 429)),
        ("rate_status", refusal_of(BUSY, 9, MONEY), (402, 403, 422, 429)),
        ("never_status", refusal_of(NEVER, None, MONEY), (400, 413, 422)),
        ("store_status", refusal_of(STORE_DOWN, 9), (429, 500, 502, 503)),
    ],
)
def test_every_status_can_be_chosen(option: str, refusal: Refusal, values: tuple[int, ...]) -> None:
    """The four options are the statuses of four kinds of refusal."""
    for value in values:
        options: dict[str, Any] = {option: value}
        assert answer_to(refusal, **options).status == value


@pytest.mark.parametrize(
    ("wait_ms", "seconds"), [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (60_000, 60)]
)
def test_a_wait_is_rounded_up_to_a_second(wait_ms: int, seconds: int) -> None:
    """Never 0, never too early; SDKs that read milliseconds get them exactly."""
    headers = headers_of(answer_to(refusal_of(EXHAUSTED, wait_ms, REQUESTS)))

    assert headers["retry-after"] == str(seconds)
    assert headers["retry-after-ms"] == str(wait_ms)


@pytest.mark.parametrize(
    ("wait_ms", "retryable_s", "tells_not_to"),
    [(60_000, 60, False), (60_001, 60, True), (1, 0, True), (7_000_000, 7_000, False)],
)
def test_a_longer_wait_than_configured_is_not_to_be_retried(
    wait_ms: int, retryable_s: int, tells_not_to: bool
) -> None:
    """SDKs sleep for whatever `Retry-After` says, or ignore it: a long one stops them."""
    answer = answer_to(refusal_of(EXHAUSTED, wait_ms, REQUESTS), retryable_s=retryable_s)
    headers = headers_of(answer)

    assert ("x-should-retry" in headers) is tells_not_to
    assert "retry-after" in headers


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_every_dialect_gets_the_same_facts(dialect: str) -> None:
    """The length is that of the body, nothing is cached, the limits that refused are named."""
    answer = answer_to(refusal_of(EXHAUSTED, 9, TOKENS, REQUESTS), dialect)
    headers = headers_of(answer)

    assert headers["content-length"] == str(len(answer.body))
    assert headers["cache-control"] == "no-store"
    assert headers["content-type"].startswith("application/")
    assert b'["tokens-per-month","requests-per-minute"]' in answer.body


def test_the_binding_limit_is_named_first_and_once() -> None:
    """Whatever order the limits refused in."""
    refusal = refusal_of(EXHAUSTED, 9, REQUESTS, TOKENS)
    refusal = refusal._replace(binding=refusal.refusing[1])

    named = error_of(answer_to(refusal))["details"]["violated_policies"]

    assert named == ["tokens-per-month", "requests-per-minute"]


@pytest.mark.parametrize(
    ("reason", "told"), [(EXHAUSTED, True), (NEVER, True), (BUSY, False), (STORE_DOWN, False)]
)
def test_a_hint_is_given_where_a_larger_tier_would_help(reason: RefusalReason, told: bool) -> None:
    """Nobody has to upgrade because others are faster or the store is away."""
    answer = answer_to(refusal_of(reason, 9, MONEY), upgrade_hint="See /plans.")

    assert ("See /plans." in error_of(answer)["message"]) is told


def texts_of(value: Any) -> list[str]:
    """Return every text in a body."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("reason", [EXHAUSTED, NEVER])
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_a_hint_arrives_in_every_dialect(dialect: str, reason: RefusalReason) -> None:
    """At the end of the message, whatever is in it."""
    hint = 'Größere Pläne: "pro" unter https://example.org/plans?from=429&x={}.'
    answer = answer_to(refusal_of(reason, 9_000_000, MONEY), dialect, upgrade_hint=hint)

    assert f"The limit is used up. {hint}" in texts_of(json.loads(answer.body))


def test_nobody_is_sent_to_a_larger_tier_for_what_others_use_too() -> None:
    """A tier raises the limits of its principals, not those of everybody."""
    refusal = refusal_of(EXHAUSTED, 9, MONEY)
    shared = status_of(MONEY)._replace(subject=Subject("deployment", "deployment"))
    answer = answer_to(refusal._replace(binding=shared), upgrade_hint="See /plans.")

    assert "See /plans." not in error_of(answer)["message"]


def test_nothing_is_told_of_what_is_used_or_by_whom() -> None:
    """Amounts in use and names of subjects stay inside: they may be those of a whole tenant."""
    answer = answer_to(refusal_of(EXHAUSTED, 9, MONEY, TOKENS))
    told = answer.body.decode() + str(answer.headers)

    assert not re.search(r"123456789|123456|acme|alice", told)


def test_the_request_id_is_passed_to_the_dialect() -> None:
    """Both the body and the SDK's own header have it."""
    refusal = refusal_of(EXHAUSTED, 9, MONEY)
    answer = refusal_answer(refusal, (), OPENAI, RefusalsConfig(), "req-1")

    assert headers_of(answer)["x-request-id"] == "req-1"
    assert json.loads(answer.body)["request_id"] == "req-1"


# --- RateLimit headers (draft-ietf-httpapi-ratelimit-headers-11, RFC 9651)

_ITEM = re.compile(
    r'"(?P<name>[\x20\x21\x23-\x5b\x5d-\x7e]*)"'
    r'(?P<parameters>(?:; *[a-z*][a-z0-9_.*-]*=(?:"[\x20\x21\x23-\x5b\x5d-\x7e]*"|-?[0-9]{1,15}))*)'
)


def parse_list(value: str) -> dict[str, dict[str, str | int]]:
    """Parse a List of Strings with parameters, strictly as RFC 9651 section 4.2 does."""
    found: dict[str, dict[str, str | int]] = {}
    rest = value
    while True:
        item = _ITEM.match(rest)
        assert item, f"no item at {rest!r}"
        assert item["name"] not in found
        pairs = [pair.strip().split("=", 1) for pair in item["parameters"].split(";")[1:]]
        found[item["name"]] = {
            key: text.strip('"') if text.startswith('"') else int(text) for key, text in pairs
        }
        rest = rest[item.end() :]
        if not rest:
            return found
        assert re.match(r"[ \t]*,[ \t]*\S", rest), f"no comma at {rest!r}"
        rest = rest.lstrip(" \t,")


def test_limits_are_told_in_the_standards_form() -> None:
    """Quota, window and unit of each policy; what remains of it and until when."""
    statuses = (
        status_of(REQUESTS, 19, 39_515),
        status_of(TOKENS, 89_175, 848_080_000),
        status_of(MONEY, 1_991_937_500, 848_080_000),
        status_of(SLOTS, 3, None),
    )
    headers = dict(limit_headers(statuses))

    assert parse_list(headers["ratelimit-policy"]) == {
        "requests-per-minute": {"q": 20, "w": 60},
        "tokens-per-month": {"q": 90_000, "w": 2_592_000, "llm-unit": "tokens"},
        "budget-per-month": {"q": 2_000_000, "w": 2_592_000, "llm-unit": "microdollars"},
        "concurrency": {"q": 4, "qu": "concurrent-requests"},
    }
    assert parse_list(headers["ratelimit"]) == {
        "requests-per-minute": {"r": 19, "t": 40},
        "tokens-per-month": {"r": 89_175, "t": 848_080},
        "budget-per-month": {"r": 1_991_937, "t": 848_080},
        "concurrency": {"r": 3},
    }


@given(
    st.sampled_from(["requests", "tokens", "cost", "concurrency"]),
    st.integers(0, MAX_AMOUNT),
    st.integers(0, MAX_AMOUNT),
    st.one_of(st.none(), st.integers(1, 40_000_000_000)),
    st.integers(1, 40_000_000_000),
)
def test_any_limit_is_a_structured_field(
    resource: Resource, amount: int, remaining: int, reset_ms: int | None, length_ms: int
) -> None:
    """However large: an Integer has at most 15 digits, a window at least a second."""
    limit = Limit("a-1_b", resource, amount, Window("fixed", length_ms=length_ms))
    headers = dict(limit_headers((status_of(limit, remaining, reset_ms),)))

    policy = parse_list(headers["ratelimit-policy"])["a-1_b"]
    assert isinstance(policy["w"], int)
    assert policy["w"] >= 1
    assert parse_list(headers["ratelimit"])["a-1_b"].keys() <= {"r", "t"}


def test_retry_after_never_contradicts_the_end_of_a_window() -> None:
    """`Retry-After` must not lie before a `t`: later ends are left out."""
    statuses = (status_of(REQUESTS, 0, 40_000), status_of(TOKENS, 5, 848_080_000))

    def ends(wait_s: int | None) -> list[str]:
        limits = parse_list(dict(limit_headers(statuses, wait_s=wait_s))["ratelimit"])
        return [name for name, parameters in limits.items() if "t" in parameters]

    assert ends(None) == ["requests-per-minute", "tokens-per-month"]
    assert ends(40) == ["requests-per-minute"]
    assert ends(39) == []


def test_a_refusal_tells_its_limits() -> None:
    """The same headers as an admission, with what is left."""
    headers = headers_of(answer_to(refusal_of(EXHAUSTED, 40_000, REQUESTS)))

    assert parse_list(headers["ratelimit"]) == {"requests-per-minute": {"r": 0, "t": 40}}
    assert headers["x-ratelimit-remaining-requests"] == "0"


def test_openais_headers_tell_of_the_tightest_limit() -> None:
    """Of several limits of a resource the one with the smallest part left."""
    per_day = Limit("requests-per-day", "requests", 1_000, Window("calendar", unit="day"))
    statuses = (status_of(REQUESTS, 19), status_of(per_day, 500, 90_061_500), status_of(MONEY))
    headers = dict(limit_headers(statuses))

    assert headers["x-ratelimit-limit-requests"] == "1000"
    assert headers["x-ratelimit-remaining-requests"] == "500"
    assert headers["x-ratelimit-reset-requests"] == "25h1m1.5s"
    assert not any(name.endswith("-tokens") for name in headers)


@pytest.mark.parametrize(
    ("reset_ms", "written"),
    [(0, "0ms"), (6, "6ms"), (1_000, "1s"), (90_500, "1m30.5s"), (7_200_000, "2h0m0s")],
)
def test_durations_are_written_as_openai_does(reset_ms: int, written: str) -> None:
    """Hours, minutes, seconds with a fraction; below a second, milliseconds."""
    headers = dict(limit_headers((status_of(REQUESTS, 1, reset_ms),)))

    assert headers["x-ratelimit-reset-requests"] == written


def test_who_has_no_limits_gets_no_headers() -> None:
    """Nothing to tell, or nobody to ask."""
    assert limit_headers(()) == ()


def test_a_limit_of_zero_is_a_limit() -> None:
    """Nothing divides by an amount."""
    none_at_all = Limit("tokens-per-day", "tokens", 0, MINUTE)

    assert dict(limit_headers((status_of(none_at_all),)))["x-ratelimit-limit-tokens"] == "0"


# --- requests that never came to an admission


@pytest.mark.parametrize(
    ("error", "status", "code", "challenge"),
    [
        (AuthenticationError("none", code=None), 401, "unauthenticated", 'Bearer realm="api"'),
        (AuthenticationError("expired"), 401, "invalid_token", 'error="invalid_token"'),
        (
            AuthenticationError("two", code="invalid_request", status=400),
            400, "invalid_request", 'error="invalid_request"',
        ),
        (ScopeError("no", scope="llm"), 403, "insufficient_scope", 'scope="llm"'),
        (AuthenticationError("keys away", code=None, status=503), 503, "unavailable", None),
    ],
)  # fmt: skip
def test_a_denial_challenges_as_rfc_6750_says(
    error: AuthenticationError, status: int, code: str, challenge: str | None
) -> None:
    """A caller whom we could not check gets no challenge: its credential may be good."""
    answer = denial_answer(error, OPENAI)
    header = headers_of(answer).get("www-authenticate")

    assert (answer.status, error_of(answer)["code"]) == (status, code)
    assert (header is None) if challenge is None else (challenge in (header or ""))


def test_a_request_error_is_answered_with_its_own_status() -> None:
    """And with nothing but the fixed headers."""
    answer = request_error_answer(RequestError("Too big.", status=413, code="big"), OPENAI)

    assert (answer.status, error_of(answer)["code"]) == (413, "big")
    assert headers_of(answer).keys() == {"content-type", "content-length", "cache-control"}


@given(st.text(max_size=40), st.sampled_from(sorted(DIALECTS)))
def test_no_text_from_outside_can_break_out_of_a_header(text: str, name: str) -> None:
    """Line ends, quotes and other alphabets stay in the body, escaped."""
    dialect = dialect_for(name)
    refusal = refusal_of(EXHAUSTED, 9, MONEY, message=text)
    answers = [
        denial_answer(ScopeError(text, scope=text), dialect, text),
        denial_answer(AuthenticationError(text, code=text), dialect),
        request_error_answer(RequestError(text, code=text), dialect, text),
        refusal_answer(refusal, refusal.refusing, dialect, RefusalsConfig(), text),
    ]

    for answer in answers:
        json.loads(answer.body)
        for header, value in answer.headers:
            assert re.fullmatch(r"[a-z0-9-]+", header)
            assert re.fullmatch(r"[\x20-\x7e]*", value)


# --- formats whose SDKs try every 429 again


@pytest.mark.parametrize(("dialect", "status"), [("bedrock", 400), ("cohere", 402)])
def test_a_spent_budget_is_not_tried_again_by_any_sdk(dialect: str, status: int) -> None:
    """Not answered with 429 where nothing in the headers stops a retry."""
    month = refusal_of(EXHAUSTED, 86_400_000, MONEY)

    assert answer_to(month, dialect).status == status
    assert answer_to(refusal_of(EXHAUSTED, 86_400_000, TOKENS), dialect).status == status


@pytest.mark.parametrize("dialect", ["bedrock", "cohere"])
def test_a_short_wait_is_still_a_429_in_every_format(dialect: str) -> None:
    """There a retry is what is wanted, also of a limit in money."""
    assert answer_to(refusal_of(EXHAUSTED, 5_000, REQUESTS), dialect).status == 429
    assert answer_to(refusal_of(EXHAUSTED, 5_000, MONEY), dialect).status == 429
    assert answer_to(refusal_of(BUSY, 1_000, SLOTS), dialect).status == 429


@pytest.mark.parametrize("dialect", ["bedrock", "cohere"])
def test_a_configured_status_stands_in_every_format(dialect: str) -> None:
    """What is not 429 is tried again by nobody."""
    spent = refusal_of(EXHAUSTED, 86_400_000, MONEY)

    assert answer_to(spent, dialect, budget_status=403).status == 403
