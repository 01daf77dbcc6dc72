"""Guards that read the body: the handler gets the granted one, however it asks for it."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel

from llm_budget_mw import AsyncGuard
from llm_budget_mw.testing import Issuer, RecordingSink
from llm_budget_mw_fastapi import BudgetMiddleware, CurrentBudget, guard
from tests.deployment import SwitchStore, async_store, configured

ISSUER = Issuer()
ASKED: dict[str, Any] = {
    "model": "small",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 9000,
    "temperature": 0.5,
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5}


class Asked(BaseModel):
    model: str
    max_tokens: int


class Service:
    """A client of an application with a guard on all of it, and what its store has seen."""

    def __init__(self, dialect: str = "openai_chat") -> None:
        self.store, self.sink = SwitchStore(), RecordingSink()
        config = configured(
            {"tokens": "9000/day", "max_tokens": 50}, jwt=ISSUER.config(), max_body_bytes=4096
        )
        opened = AsyncGuard.open(config, store=async_store(self.store), sinks=[self.sink])
        model = "small" if dialect == "custom" else None
        self.app = FastAPI(dependencies=[Depends(guard(dialect=dialect, model=model))])
        self.app.add_middleware(BudgetMiddleware, guard=opened)
        token = ISSUER.token("alice")
        self.client = TestClient(self.app, headers={"authorization": f"Bearer {token}"})


async def exchange(service: Service, pieces: Iterator[bytes]) -> tuple[list[int], int]:
    """Send a body piece by piece, then leave; return the statuses and how much was taken."""
    statuses: list[int] = []
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        piece = next(pieces, None)
        if piece is None:
            return {"type": "http.disconnect"}
        taken += 1
        # Without a limit this one would go on for ever.
        return {"type": "http.request", "body": piece, "more_body": taken < 100}

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    head = {"method": "POST", "path": "/ask", "query_string": b"", "http_version": "1.1"}
    token = f"Bearer {ISSUER.token('alice')}".encode()
    headers = [(b"authorization", token), (b"content-type", b"application/json")]
    await service.app({"type": "http", "headers": headers, **head}, receive, send)
    return statuses, taken


async def read_as_json(request: Request) -> Any:
    return await request.json()


async def read_as_bytes(request: Request) -> Any:
    return json.loads(await request.body())


async def read_as_a_stream(request: Request) -> Any:
    return json.loads(b"".join([piece async for piece in request.stream()]))


async def read_as_a_model(asked: Asked) -> Any:
    return asked.model_dump()


async def read_as_a_mapping(asked: dict[str, Any]) -> Any:
    return asked


async def read_in_two_ways(asked: Asked, request: Request) -> Any:
    assert (await request.json())["max_tokens"] == asked.max_tokens
    return json.loads(await request.body())


def read_in_a_thread(asked: Asked) -> Any:
    return asked.model_dump()


READERS = [
    read_as_json,
    read_as_bytes,
    read_as_a_stream,
    read_as_a_model,
    read_as_a_mapping,
    read_in_two_ways,
    read_in_a_thread,
]


@pytest.mark.parametrize("read", READERS)
def test_a_handler_reads_what_was_granted(read: Callable[..., Any]) -> None:
    """In whatever way it reads, parameters that FastAPI makes of the body included."""
    service = Service()
    service.app.post("/ask")(read)

    answer = service.client.post("/ask", json=ASKED)

    assert (answer.json()["model"], answer.json()["max_tokens"]) == ("small", 50)
    assert answer.headers["ratelimit"]
    assert service.store.plans[0].offers[0].max_output == 50


@pytest.mark.parametrize("first", [True, False], ids=["parsed before", "not parsed before"])
def test_the_rest_of_the_body_stays_as_it_was(*, first: bool) -> None:
    """Nothing is lost, nothing but the grant is added; the headers fit the new body."""
    service = Service()

    @service.app.post("/raw")
    async def raw(request: Request) -> Any:
        body = await request.body()
        return [json.loads(body), len(body) == int(request.headers["content-length"])]

    @service.app.post("/parsed")
    async def parsed(asked: dict[str, Any], request: Request) -> Any:
        return await raw(request)

    answer = service.client.post("/parsed" if first else "/raw", json=ASKED)

    assert answer.json() == [{**ASKED, "max_tokens": 50}, True]


def test_a_second_bound_does_not_stay() -> None:
    """Whichever a provider obeys, it is the granted one."""
    service = Service()

    @service.app.post("/ask")
    async def ask(asked: dict[str, Any], request: Request) -> Any:
        return [asked, await request.json(), json.loads(await request.body())]

    answer = service.client.post("/ask", json={**ASKED, "max_completion_tokens": 8000})

    granted = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    assert answer.json() == [{**granted, "max_completion_tokens": 50}] * 3


def test_a_compressed_body_is_given_plain() -> None:
    """And its headers do not say any more that it is compressed."""
    service = Service()

    @service.app.post("/ask")
    async def ask(request: Request) -> Any:
        return [await request.json(), request.headers.get("content-encoding")]

    answer = service.client.post(
        "/ask",
        content=gzip.compress(json.dumps(ASKED).encode()),
        headers={"content-encoding": "gzip"},
    )

    assert answer.json() == [{**ASKED, "max_tokens": 50}, None]


@pytest.mark.parametrize("read", [read_as_json, read_as_a_mapping])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b'{"messages": []', 400, id="broken"),
        pytest.param(b"[]", 400, id="no object"),
        pytest.param(b'{"model": "small"}', 400, id="no prompt"),
        pytest.param(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", 400, id="deep"),
        pytest.param(json.dumps({**ASKED, "pad": "x" * 5000}).encode(), 413, id="too large"),
    ],
)
def test_a_body_that_cannot_be_bounded_is_refused(
    read: Callable[..., Any], content: bytes, status: int
) -> None:
    """Whether FastAPI has read it before or not; the store is not asked."""
    service = Service()
    service.app.post("/ask")(read)

    answer = service.client.post(
        "/ask", content=content, headers={"content-type": "application/json"}
    )

    unreadable = read is read_as_a_mapping and content.startswith(b'{"messages"')
    assert answer.status_code == (422 if unreadable else status)
    if not unreadable:  # FastAPI's own answer comes first
        assert answer.json()["error"]["code"]
        assert service.sink.named("budget.denied")[0]["status"] == status
    assert service.store.plans == []


async def test_a_body_without_a_length_is_read_up_to_the_bound() -> None:
    """More of it is not taken from the client."""
    service = Service()
    service.app.post("/ask")(read_as_json)

    statuses, taken = await exchange(service, itertools.repeat(b" " * 1024))

    assert (statuses, taken) == ([413], 5)
    assert service.store.plans == []


def test_a_body_of_the_applications_own_is_not_touched() -> None:
    """It reaches the handler as it comes, piece by piece if that wants it so."""
    service = Service("custom")
    body = b"\x00\xff" * 1000

    @service.app.post("/raw")
    async def raw(request: Request, budget: CurrentBudget) -> Any:
        budget.record(USAGE)
        pieces = [piece async for piece in request.stream()]
        return [b"".join(pieces) == body, request.headers["content-length"]]

    @service.app.post("/model")
    async def model(asked: Asked, budget: CurrentBudget) -> Any:
        budget.record(USAGE)
        return asked

    assert service.client.post("/raw", content=body).json() == [True, "2000"]
    assert service.client.post("/model", json=ASKED).json() == {
        "model": "small",
        "max_tokens": 9000,
    }
    assert service.store.charged().tokens == 24


def test_a_provider_s_answer_is_read_for_its_usage() -> None:
    """A handler that passes it on has nothing to report."""
    service = Service()

    @service.app.post("/ask")
    async def ask(asked: Asked) -> Any:
        return {"choices": [], "usage": USAGE, "model": asked.model}

    service.client.post("/ask", json=ASKED)

    [settled] = service.sink.settled
    assert (settled["total_tokens"], settled["grade"]) == (12, "exact")


@pytest.mark.parametrize("read", [read_as_json, read_as_a_mapping])
async def test_a_client_that_leaves_while_it_asks_is_no_error(read: Callable[..., Any]) -> None:
    """Nothing is raised to the server, and the store is not asked."""
    service = Service()
    service.app.post("/ask")(read)

    statuses, _ = await exchange(service, iter([b"{"]))

    assert statuses == [400]  # what FastAPI says to such a client
    assert service.store.plans == []
