"""Sending again: when, after how long, how often, and what is charged for it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw import BudgetExceeded, ConfigurationError
from llm_budget_mw.clients import waits
from llm_budget_mw.clients.library import joined, library_of
from llm_budget_mw.clients.retries import AsyncRetrying, Retries, Retrying
from llm_budget_mw.current import charge
from tests.clients.provider import failing
from tests.clients.world import World
from tests.deployment import ALICE

QUICK = Retries(attempts=3, first_s=0.001, longest_s=0.002, total_s=5)
LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
BODY = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}


class Upstream:
    """Answers one thing after the other, the last for ever."""

    def __init__(self, library: ModuleType, *answers: Any) -> None:
        self.library = library
        self.asked = 0
        self.closed = 0
        self.bodies: list[bytes] = []
        self.reached = asyncio.Event()
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))

    def handle_request(self, request: Any) -> Any:
        self.bodies.append(b"".join(request.stream))
        return self._next()

    async def handle_async_request(self, request: Any) -> Any:
        self.bodies.append(b"".join([chunk async for chunk in request.stream]))
        return self._next()

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Upstream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _next(self) -> Any:
        self.asked += 1
        self.reached.set()
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return self.library.Response(status, headers=headers, content=b"{}")


def client_of(library: ModuleType, upstream: Any, retries: Retries = QUICK) -> Any:
    known = library_of(library.Client)
    assert known is not None
    transport = joined(Retrying, known.transport)(upstream, retries, known)
    return library.Client(transport=transport, base_url="http://provider")


def async_client_of(library: ModuleType, upstream: Any, retries: Retries = QUICK) -> Any:
    known = library_of(library.AsyncClient)
    assert known is not None
    transport = joined(AsyncRetrying, known.async_transport)(upstream, retries, known)
    return library.AsyncClient(transport=transport, base_url="http://provider")


@LIBRARIES
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_an_error_that_may_pass_is_sent_again(library: ModuleType, status: int) -> None:
    """With the same body, until it passes."""
    upstream = Upstream(library, status, status, 200)
    with client_of(library, upstream) as client:
        assert client.post("/", json=BODY).status_code == 200
    assert upstream.asked == 3
    assert len(set(upstream.bodies)) == 1
    assert upstream.closed == 1


@LIBRARIES
async def test_an_error_that_may_pass_is_sent_again_on_a_loop(library: ModuleType) -> None:
    """The same in a coroutine, errors of the connection included."""
    upstream = Upstream(library, 500, library.ConnectError("no"), 200)
    async with async_client_of(library, upstream) as client:
        answer = await client.post("/", json=BODY)
    assert (answer.status_code, upstream.asked, upstream.closed) == (200, 3, 1)


@LIBRARIES
@pytest.mark.parametrize("status", [200, 400, 401, 402, 404, 413, 422])
def test_every_other_answer_is_final(library: ModuleType, status: int) -> None:
    """Sending again would not change it."""
    upstream = Upstream(library, status, 200)
    assert client_of(library, upstream).get("/").status_code == status
    assert upstream.asked == 1


@LIBRARIES
@pytest.mark.parametrize("error", ["ConnectError", "ReadTimeout", "RemoteProtocolError"])
def test_a_lost_connection_is_tried_again(library: ModuleType, error: str) -> None:
    """And raised as it is once the attempts are used up."""
    kind = getattr(library, error)
    upstream = Upstream(library, kind("lost"))
    with pytest.raises(kind, match="lost"):
        client_of(library, upstream).get("/")
    assert upstream.asked == 3


@LIBRARIES
def test_an_error_of_the_program_is_not_tried_again(library: ModuleType) -> None:
    """A wrong address stays wrong."""
    upstream = Upstream(library, library.UnsupportedProtocol("what?"))
    with pytest.raises(library.UnsupportedProtocol):
        client_of(library, upstream).get("/")
    assert upstream.asked == 1


@LIBRARIES
def test_a_provider_that_always_refuses_gets_so_many_attempts_and_no_more(
    library: ModuleType,
) -> None:
    """Its last answer is the caller's."""
    upstream = Upstream(library, 429)
    assert client_of(library, upstream).get("/").status_code == 429
    assert upstream.asked == 3


@LIBRARIES
def test_a_provider_says_itself_whether_to_come_back(library: ModuleType) -> None:
    """`x-should-retry` counts for more than the status, of errors only."""
    never = Upstream(library, (500, {"x-should-retry": "false"}))
    client_of(library, never).get("/")
    again = Upstream(library, (400, {"X-Should-Retry": "TRUE"}), 200)
    client_of(library, again).get("/")
    good = Upstream(library, (200, {"x-should-retry": "true"}))
    client_of(library, good).get("/")
    assert (never.asked, again.asked, good.asked) == (1, 2, 1)


@LIBRARIES
@pytest.mark.parametrize("header", ["retry-after-ms", "retry-after", "both"])
def test_the_wait_a_provider_asks_for_is_kept(library: ModuleType, header: str) -> None:
    """Milliseconds before seconds; never less than it says."""
    headers = {
        "retry-after-ms": {"retry-after-ms": "120"},
        "retry-after": {"retry-after": "0.12"},
        "both": {"retry-after-ms": "120", "retry-after": "4"},
    }[header]
    upstream = Upstream(library, (429, headers), 200)
    began = time.monotonic()
    client_of(library, upstream).get("/")
    assert upstream.asked == 2
    assert 0.12 <= time.monotonic() - began < 4


@LIBRARIES
async def test_a_wait_longer_than_the_bound_is_not_begun(library: ModuleType) -> None:
    """The answer goes to the caller at once, who can decide."""
    upstream = Upstream(library, (429, {"retry-after": "3600"}))
    async with asyncio.timeout(3):
        answer = await async_client_of(library, upstream).get("/")
    assert (answer.status_code, upstream.asked) == (429, 1)


@LIBRARIES
def test_a_body_that_streams_is_sent_once(library: ModuleType) -> None:
    """It is gone with the first attempt, and half of it must not be sent as all."""

    def body() -> Iterator[bytes]:
        yield b"one"

    upstream = Upstream(library, 500, 200)
    assert client_of(library, upstream).post("/", content=body()).status_code == 500
    assert upstream.bodies == [b"one"]


@LIBRARIES
async def test_a_body_that_streams_is_sent_once_on_a_loop(library: ModuleType) -> None:
    """The same in a coroutine."""

    async def body() -> Any:
        yield b"one"

    upstream = Upstream(library, 500, 200)
    async with async_client_of(library, upstream) as client:
        assert (await client.post("/", content=body())).status_code == 500
    assert upstream.bodies == [b"one"]


async def test_a_cancellation_ends_the_wait() -> None:
    """Nothing is sent after it."""
    upstream = Upstream(httpx2, (429, {"retry-after": "4"}))
    task = asyncio.create_task(async_client_of(httpx2, upstream).get("/"))
    await upstream.reached.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert upstream.asked == 1


def retrying(world: World, client_class: Any) -> Any:
    """Return a guarded client that retries around its guard."""
    client = world.guarded(client_class, base_url=world.url)
    known = library_of(client_class)
    assert known is not None
    kind = AsyncRetrying if issubclass(client_class, known.async_client) else Retrying
    client._transport = kind(client._transport, QUICK, known)
    return client


@LIBRARIES
def test_every_attempt_is_admitted_and_settled_by_itself(world: World, library: ModuleType) -> None:
    """What failed is given back, what succeeded is charged, and nothing stays reserved."""
    world.stage.faults.extend([failing(500), failing(429, **{"retry-after-ms": "1"})])
    with charge(world.guard, ALICE):
        answer = retrying(world, library.Client).post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 200
    assert [event["grade"] for event in world.sink.settled] == ["released", "released", "exact"]
    assert world.open_reservations == 0


@LIBRARIES
async def test_every_attempt_is_admitted_and_settled_by_itself_on_a_loop(
    world: World, library: ModuleType
) -> None:
    """The same in a coroutine."""
    world.stage.faults.append(failing(503))
    with charge(world.waiting, ALICE):
        answer = await retrying(world, library.AsyncClient).post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 200
    assert [event["grade"] for event in world.sink.settled] == ["released", "exact"]
    assert world.open_reservations == 0


class Recorder:
    """Keeps the answers that pass."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.answers: list[Any] = []

    def handle_request(self, request: Any) -> Any:
        self.answers.append(self.inner.handle_request(request))
        return self.answers[-1]


@LIBRARIES
def test_an_answer_that_is_not_wanted_is_closed(world: World, library: ModuleType) -> None:
    """Its connection is free before the next attempt."""
    world.stage.faults.extend([failing(500), failing(500)])
    recorder = Recorder(library.HTTPTransport())
    client = client_of(library, recorder)
    with client.stream("GET", f"{world.url}/v1/models"):
        assert [answer.is_closed for answer in recorder.answers] == [True, True, False]
    recorder.inner.close()


@pytest.mark.parametrize("headers", [{}, {"x-stainless-lang": "python"}], ids=["bare", "sdk"])
def test_a_refusal_is_never_tried_again(world: World, headers: dict[str, str]) -> None:
    """Also where it is dressed as an answer, for an SDK to raise."""
    poor = world.limited(requests="1/day")
    client = retrying(poor, httpx2.Client)
    with charge(poor.guard, ALICE):
        client.post("/v1/chat/completions", json=BODY)
        with pytest.raises(BudgetExceeded):
            assert client.post("/v1/chat/completions", json=BODY, headers=headers).is_success
    assert len(poor.sink.refused) == 1


@pytest.mark.parametrize("option", ["attempts", "first_s", "longest_s", "total_s"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_numbers_that_make_no_sense_are_a_clear_error(option: str, value: float) -> None:
    """It names the option."""
    with pytest.raises(ConfigurationError, match=option):
        Retries(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7),
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 5000}, None),
        ({"retry-after": "100000"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({"retry-after": "Thu, 99 Jan 9999 00:00:00 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"}, None),
        ({"retry-after": "٣"}, None),
    ],
    ids=itertools.count(),
)
def test_a_wait_is_read_or_not_said(headers: dict[str, str], seconds: float | None) -> None:
    """Whatever a provider writes there."""
    assert waits.retry_after_s(headers) == seconds


def test_a_date_to_come_back_at_is_read() -> None:
    """As in RFC 9110."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert waits.retry_after_s({"retry-after": soon}) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("6ms", 0.006),
        ("0s", 0),
        ("1m30.5s", 90.5),
        ("2h0m0s", 7200),
        ("17.399999999s", 17.399999999),
        ("500", 500),
        ("25h", None),
        ("-1", None),
        ("1s-", None),
        ("9" * 100 + "s", None),
        ("", None),
        ("2000-01-01T00:00:00Z", None),
        ("2000-01-01T00:00:00", None),
        ("0001-01-01T00:00:00+14:00", None),
    ],
)
def test_a_reset_is_read_or_not_said(value: str, seconds: float | None) -> None:
    """Go's durations, plain seconds, and dates."""
    assert waits.reset_s(value) == (seconds if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=80))
def test_no_header_is_more_than_a_wait_of_a_day(value: str) -> None:
    """Nothing in it raises, and nothing is negative."""
    readers: tuple[Callable[[], float | None], ...] = (
        lambda: waits.reset_s(value),
        lambda: waits.retry_after_s({"retry-after": value}),
        lambda: waits.retry_after_s({"retry-after-ms": value}),
    )
    for read in readers:
        seconds = read()
        assert seconds is None or 0 <= seconds <= 86_400
