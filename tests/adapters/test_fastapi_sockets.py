"""Guarded endpoints of FastAPI on a real server: streams, clients that leave, many at once."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

from llm_budget_mw import AsyncGuard
from llm_budget_mw.events import Event
from llm_budget_mw.testing import Issuer, RecordingSink
from llm_budget_mw_fastapi import BudgetMiddleware, CurrentBudget, guard
from tests.deployment import SwitchStore, async_store, configured
from tests.serving import serving

ISSUER = Issuer()
CALL: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
DELTA = b'data: {"choices": [{"index": 0, "delta": {"content": "abcd"}}]}\n\n'
LAST = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}\n\n'
PATIENCE_S = 10.0


class Settled(RecordingSink):
    """A sink that another thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.any = threading.Event()

    def emit(self, event: Event) -> None:
        super().emit(event)
        self.any.set()


class Service:
    """An application with a stream, whose pace the test sets, and an ordinary endpoint."""

    def __init__(self, **tier: Any) -> None:
        self.store, self.sink = SwitchStore(), Settled()
        self.go_on = threading.Event()
        config = configured({"max_tokens": 50, **tier}, jwt=ISSUER.config())
        opened = AsyncGuard.open(config, store=async_store(self.store), sinks=[self.sink])
        self.app = FastAPI()
        self.app.add_middleware(BudgetMiddleware, guard=opened)
        chat = [Depends(guard(dialect="openai_chat"))]
        self.app.post("/async", dependencies=chat)(self.stream)
        self.app.post("/threads", dependencies=chat)(self.stream_in_threads)
        own = [Depends(guard(model="small", input_tokens=100))]
        self.app.post("/call", dependencies=own)(self.call)
        self.app.post("/call-in-a-thread", dependencies=own)(self.call_in_a_thread)

    async def stream(self, request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield DELTA
            await asyncio.to_thread(self.go_on.wait, PATIENCE_S)
            yield LAST
            yield b"data: [DONE]\n\n"

        assert (await request.json())["max_tokens"] == 50
        return StreamingResponse(pieces(), media_type="text/event-stream")

    def stream_in_threads(self) -> StreamingResponse:
        def pieces() -> Iterator[bytes]:
            yield DELTA
            while not self.go_on.wait(0.005):
                yield b": still here\n\n"
            yield LAST
            yield b"data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def call(self, budget: CurrentBudget) -> None:
        async with budget.call(**CALL) as call:
            await asyncio.sleep(0)
            call.record({"prompt_tokens": 7, "completion_tokens": 5})

    def call_in_a_thread(self, budget: CurrentBudget) -> None:
        with budget.call(**CALL) as call:
            call.record({"prompt_tokens": 7, "completion_tokens": 5})


def headers(sub: str = "alice") -> dict[str, str]:
    return {"authorization": f"Bearer {ISSUER.token(sub)}"}


ASKED = {**CALL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 90}


@pytest.mark.parametrize("path", ["/async", "/threads"])
def test_a_stream_arrives_as_it_is_made(path: str) -> None:
    """The first event is with the client before there is a second; then usage is exact."""
    service = Service(tokens="9000/day")
    with (
        serving(service.app) as url,
        httpx2.stream("POST", url + path, json=ASKED, headers=headers()) as answer,
    ):
        pieces = answer.iter_raw()
        first = next(pieces)
        settled_early = service.sink.settled[:]
        service.go_on.set()
        rest = b"".join(pieces)

    assert first == DELTA
    assert settled_early == []
    assert rest.endswith(LAST + b"data: [DONE]\n\n")
    [settled] = service.sink.settled
    assert (settled["total_tokens"], settled["ending"], settled["route"]) == (12, "complete", path)


@pytest.mark.parametrize("path", ["/async", "/threads"])
def test_a_client_that_hangs_up_is_charged_what_it_got(path: str) -> None:
    """Once, as a stream that was cut, without the provider's own count."""
    service = Service(tokens="9000/day", concurrency=1)
    with serving(service.app) as url:
        with httpx2.stream("POST", url + path, json=ASKED, headers=headers()) as answer:
            next(answer.iter_raw())
        assert service.sink.any.wait(PATIENCE_S)
        service.go_on.set()

    [settled] = service.sink.settled
    assert (settled["ending"], settled["grade"]) == ("cut", "counted")
    assert 0 < service.store.charged().tokens < 60


def test_a_client_that_leaves_before_it_has_asked_is_charged_nothing() -> None:
    """The gate waits for the body, and the store is not asked."""
    service = Service(tokens="9000/day")
    with serving(service.app) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            head = f"POST /async HTTP/1.1\r\nHost: x\r\nAuthorization: {headers()['authorization']}"
            client.sendall(f"{head}\r\nContent-Length: 100\r\n\r\n{{".encode())
        service.go_on.set()
        answer = httpx2.post(url + "/async", json=ASKED, headers=headers())

    assert answer.status_code == 200
    assert len(service.store.plans) == 1


@pytest.mark.parametrize("path", ["/call", "/call-in-a-thread"])
def test_many_at_once_never_exceed_a_limit(path: str) -> None:
    """Of 64 requests exactly 17 pass, each making one call that is charged to it."""
    service = Service(requests="17/day")

    async def ask_all(url: str) -> list[int]:
        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
            asked = [client.post(path, headers=headers()) for _ in range(64)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    with serving(service.app) as url:
        statuses = asyncio.run(ask_all(url))

    assert sorted(statuses) == [200] * 17 + [429] * 47
    assert service.store.charged().requests == 17
    assert service.store.charged().tokens == 17 * 12
    assert len(service.sink.settled) == 17
