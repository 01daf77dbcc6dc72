"""Requests that never come to a call: bad input, no credential, no budget."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any

import pytest

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.types import Principal
from tests.edge.driver import (
    ANSWER,
    CHAT,
    ISSUER,
    MESSAGES,
    OWN,
    QUESTION,
    Bench,
    Exchange,
    answering,
)

FINE = answering(json.dumps(ANSWER).encode())
DEEP = b'{"model":"big","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
BAD: list[tuple[str, Any, int]] = [
    ("not JSON", b"{", 400),
    ("empty", b"", 400),
    ("not an object", b"[1]", 400),
    ("not text", b"\xff\xfe", 400),
    ("messages of a wrong type", {**QUESTION, "messages": "hi"}, 400),
    ("no messages", {"model": "big"}, 400),
    ("a model of a wrong type", {**QUESTION, "model": 7}, 400),
    ("an unknown model", {**QUESTION, "model": "nobody-knows"}, 400),
    ("negative max_tokens", {**QUESTION, "max_tokens": -1}, 400),
    ("max_tokens in words", {**QUESTION, "max_tokens": "many"}, 400),
    ("max_tokens true", {**QUESTION, "max_tokens": True}, 400),
    ("max_tokens with a fraction", {**QUESTION, "max_tokens": 1.5}, 400),
    ("huge max_tokens", {**QUESTION, "max_tokens": 10**30}, 400),
    ("deep nesting", DEEP, 400),
    ("too large", b" " * 200_001, 413),
]
CASES = [
    pytest.param(path, body, status, id=f"{path} {name}")
    for path in (CHAT, MESSAGES)
    for name, body, status in BAD
]


def nothing_happened(bench: Bench) -> bool:
    """Return whether no call was admitted, and nothing is held."""
    return not bench.store.plans and not bench.sink.named("budget.settled")


@pytest.mark.parametrize(("path", "body", "status"), CASES)
async def test_bad_input_is_a_clear_4xx(
    path: str, body: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered in the envelope of its dialect, holds nothing and logs no exception."""
    bench = Bench(FINE, max_body_bytes=200_000)

    with caplog.at_level(logging.WARNING):
        exchange = await bench.post(body, path, parts=3)

    assert exchange.status == status
    assert exchange.error["message"]
    assert nothing_happened(bench)
    assert not caplog.records


async def test_a_billion_answers_are_refused() -> None:
    """The number of samplings multiplies the bound, so it has one of its own."""
    exchange = await Bench(FINE).post({**QUESTION, "n": 10**9})

    assert exchange.status == 400
    assert "n must be" in exchange.error["message"]


async def test_an_announced_large_body_is_not_read() -> None:
    """The length is enough to say no."""
    exchange = await Bench(FINE, max_body_bytes=100).post(headers=(("content-length", "101"),))

    assert exchange.status == 413
    assert exchange.received == 0


async def test_a_large_body_is_read_no_further_than_its_bound() -> None:
    """A body that announces nothing is given up at the piece that passes the bound."""
    exchange = await Bench(FINE, max_body_bytes=100).post(b"x" * 1000, parts=100)

    assert exchange.status == 413
    assert exchange.received == 11


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (gzip.compress(b" " * 10**7), "gzip", 413),
        (b"not gzip", "gzip", 400),
        (b"{}", "br", 415),
    ],
    ids=["bomb", "damaged", "unknown"],
)
async def test_a_compressed_body_is_decoded_within_the_bound(
    body: bytes, coding: str, status: int
) -> None:
    """A bomb, a damaged body and an unknown coding are each refused."""
    bench = Bench(FINE, max_body_bytes=200_000)

    exchange = await bench.post(body, headers=(("content-encoding", coding),))

    assert exchange.status == status
    assert nothing_happened(bench)


async def test_a_client_that_leaves_while_it_asks_is_not_answered() -> None:
    """Half a request is none."""
    bench, exchange = Bench(FINE), Exchange(gone=True)

    await exchange.run(bench.middleware)

    assert not exchange.sent
    assert nothing_happened(bench)


NOBODY: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("no credential", {"token": None}, 401, None),
    ("garbage", {"token": "a.b.c"}, 401, "invalid_token"),
    ("another key", {"token": ISSUER.token("alice")[:-6] + "AAAAAA"}, 401, "invalid_token"),
    ("expired", {"token": ISSUER.token("alice", expires_in=-120)}, 401, "invalid_token"),
    ("1 MB", {"token": "a" * 2**20}, 400, "invalid_request"),
    ("twice", {"headers": (("authorization", "Bearer x"),)}, 400, "invalid_request"),
    ("another scheme", {"token": None, "headers": (("authorization", "Basic eA=="),)}, 401, None),
]


@pytest.mark.parametrize(
    ("options", "status", "code"), [case[1:] for case in NOBODY], ids=[case[0] for case in NOBODY]
)
async def test_nobody_gets_in_and_nothing_is_looked_up(
    options: dict[str, Any], status: int, code: str | None
) -> None:
    """The answer is that of RFC 6750; the body is not read and the store not asked."""
    bench = Bench(FINE)

    exchange = await bench.post(**options)

    assert exchange.status == status
    challenge = exchange.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="api"')
    assert (f'error="{code}"' in challenge) if code else ("error" not in challenge)
    assert exchange.received == 0
    assert nothing_happened(bench)


async def test_a_scope_that_is_missing_is_a_403() -> None:
    """Who is known but not allowed is told which scope is missing."""
    bench = Bench(FINE, jwt={**ISSUER.config(), "scope": "llm:chat"})

    exchange = await bench.post(token=ISSUER.token("alice", scope="llm:chatx"))

    assert exchange.status == 403
    assert 'error="insufficient_scope"' in exchange.headers["www-authenticate"]
    assert 'scope="llm:chat"' in exchange.headers["www-authenticate"]
    assert nothing_happened(bench)


async def test_nothing_but_the_credential_says_who_pays() -> None:
    """Headers and fields of the request that name somebody else change nothing."""
    bench = Bench(FINE)
    headers = (("x-user", "bob"), ("x-tenant", "acme"), ("x-forwarded-user", "bob"))

    await bench.post({**QUESTION, "user": "bob", "metadata": {"user_id": "bob"}}, headers=headers)

    (plan,) = bench.store.plans
    assert [entry.subject.name for entry in plan.subjects] == ["user/alice"]


class Desk:
    """An application's own login."""

    def authenticate(self, headers: Any) -> Principal:
        """Let in whoever says friend."""
        if ("x-word", "friend") not in headers:
            raise AuthenticationError("say the word", code=None)
        return Principal("a friend")


class LateDesk(Desk):
    """One that has to wait."""

    async def authenticate(self, headers: Any) -> Principal:  # type: ignore[override]
        """Let in the same people."""
        return super().authenticate(headers)


@pytest.mark.parametrize("desk", [Desk(), LateDesk()], ids=["sync", "async"])
async def test_an_application_may_have_its_own_login(desk: Any) -> None:
    """An authenticator of its own replaces the verification of JWTs."""
    bench = Bench(FINE, authenticator=desk)

    stranger = await bench.post(token=None)
    friend = await bench.post(token=None, headers=(("x-word", "friend"),))

    assert (stranger.status, friend.status) == (401, 200)
    assert [p.subjects[0].subject.name for p in bench.store.plans] == ["user/a%20friend"]


async def test_a_spent_budget_is_said_in_the_dialects_own_words() -> None:
    """The limit that binds is named; the client is told not to try again soon."""
    bench = Bench(FINE, {"budget": "$0.0006/month", "min_tokens": 30})

    first, second = await bench.post(), await bench.post()

    assert (first.status, second.status) == (200, 429)
    assert second.error["code"] == "budget_exceeded"
    assert "budget-per-month" in second.error["message"]
    assert second.headers["x-should-retry"] == "false"
    assert int(second.headers["retry-after"]) > 60
    assert bench.sink.names == ["budget.settled", "budget.refused"]


async def test_what_can_never_fit_is_no_429() -> None:
    """Waiting cannot help a request that is larger than the whole limit."""
    exchange = await Bench(FINE, {"tokens": "50/minute", "min_tokens": 40}).post()

    assert exchange.status == 413
    assert exchange.error["code"] == "request_exceeds_budget"
    assert "retry-after" not in exchange.headers


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OWN])
async def test_a_closed_limit_refuses_while_the_store_is_away(path: str) -> None:
    """Who must not be let in unchecked is asked to come back."""
    closed = {"requests": "closed", "tokens": "closed", "budget": "closed", "concurrency": "closed"}
    bench = Bench(FINE, {"on_outage": closed})
    bench.store.down = True

    exchange = await bench.post(path=path)

    assert exchange.status == 503
    assert exchange.headers["retry-after"] == "1"


async def test_an_open_limit_lets_calls_through_and_says_so() -> None:
    """The call is admitted, a critical event is emitted, and the charge is delivered later."""
    bench = Bench(FINE, {"on_outage": {"budget": "open"}})
    bench.store.down = True

    exchange = await bench.post()

    assert exchange.status == 200
    assert "budget.unchecked" in bench.sink.names
    bench.store.down = False
    await bench.guard.close()
    assert bench.store.charged().tokens == 42
