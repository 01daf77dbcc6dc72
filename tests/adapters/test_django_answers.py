"""How the answers of guarded views pass through Django, and how each ending is settled."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.asgi import get_asgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.utils.decorators import sync_and_async_middleware
from starlette.types import Message

from llm_budget_mw import Principal, RequestError, current_budget
from tests.adapters.django_bench import MIXED, WORLDS, Bench
from tests.deployment import ALICE
from tests.edge.driver import ANSWER, DONE, OWN, QUESTION, USAGE_EVENT, Exchange, delta

EVENTS = "text/event-stream"
STREAM = [delta("abcd"), delta("efgh"), USAGE_EVENT, DONE]
ASKED = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
both_worlds = pytest.mark.parametrize("world", WORLDS)
all_worlds = pytest.mark.parametrize("world", [*WORLDS, MIXED])
both_kinds = pytest.mark.parametrize("kind", WORLDS)


def view_of(kind: str, answer: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Return a view that answers so: a function, or a coroutine function."""
    if kind == "sync":
        return lambda request: answer(request)

    async def view(request: HttpRequest) -> Any:
        await asyncio.sleep(0)
        return answer(request)

    return view


def streamed(kind: str, *pieces: bytes, fails: BaseException | None = None) -> Any:
    """Return an iterator over pieces, of the one world or the other."""

    def give() -> Iterator[bytes]:
        yield from pieces
        if fails is not None:
            raise fails

    async def give_on_a_loop() -> AsyncIterator[bytes]:
        for piece in give():
            yield piece

    return give() if kind == "sync" else give_on_a_loop()


@all_worlds
@both_kinds
async def test_an_answer_is_settled_by_its_usage(world: str, kind: str) -> None:
    """It arrives as the view gave it, with the limits in its headers."""
    answer = view_of(kind, lambda request: JsonResponse(ANSWER, headers={"X-Own": "1"}))

    async with Bench(world, answer) as bench:
        got = await bench.post()

    assert json.loads(got.body) == ANSWER
    assert got.headers["x-own"] == "1"
    assert got.headers["x-ratelimit-remaining-tokens"].isdecimal()
    assert (bench.settled["ending"], bench.settled["grade"]) == ("complete", "exact")
    assert bench.settled["total_tokens"] == 42


@all_worlds
@both_kinds
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
async def test_a_stream_is_settled_by_its_usage(world: str, kind: str) -> None:
    """Every iterator in every chain: what is sent is what the view gave."""
    answer = view_of(
        kind, lambda request: StreamingHttpResponse(streamed(kind, *STREAM), content_type=EVENTS)
    )

    async with Bench(world, answer) as bench:
        got = await bench.post(ASKED)

    assert got.body == b"".join(STREAM)
    assert (bench.settled["ending"], bench.settled["total_tokens"]) == ("complete", 42)
    assert bench.settled["stream"] is True


@all_worlds
@both_kinds
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
async def test_usage_that_only_we_asked_for_is_taken_out(world: str, kind: str) -> None:
    """The client gets the stream it asked for."""
    answer = view_of(
        kind, lambda request: StreamingHttpResponse(streamed(kind, *STREAM), content_type=EVENTS)
    )

    async with Bench(world, answer) as bench:
        got = await bench.post({**QUESTION, "stream": True})

    assert got.body == b"".join([*STREAM[:2], DONE])
    assert bench.settled["total_tokens"] == 42


@both_worlds
async def test_a_stream_in_one_piece_is_read_as_well(world: str) -> None:
    """A view may have collected the events of its provider."""
    answer = view_of(world, lambda request: HttpResponse(b"".join(STREAM), content_type=EVENTS))

    async with Bench(world, answer) as bench:
        got = await bench.post({**QUESTION, "stream": True})

    assert got.body == b"".join([*STREAM[:2], DONE])
    assert bench.settled["total_tokens"] == 42


@both_worlds
async def test_the_budget_can_be_found_from_view_and_stream(world: str) -> None:
    """On the request, and by `current_budget`; outside of both there is none."""
    found: list[Any] = []

    def pieces() -> Iterator[bytes]:
        found.append(current_budget())
        yield b"fine"

    async def pieces_on_a_loop() -> AsyncIterator[bytes]:
        found.append(current_budget())
        yield b"fine"

    def answer(request: HttpRequest) -> StreamingHttpResponse:
        found.append(request.llm_budget)  # type: ignore[attr-defined]
        found.append(current_budget())
        return StreamingHttpResponse(pieces() if world == "sync" else pieces_on_a_loop())

    async with Bench(world, view_of(world, answer)) as bench:
        await bench.post()
        with pytest.raises(LookupError):
            current_budget()

    assert len(found) == 3
    assert len(set(map(id, found))) == 1


@all_worlds
@both_kinds
@pytest.mark.parametrize(
    ("error", "tokens"), [(ValueError("a bug"), 0), (httpx.ReadTimeout("in vain"), 75)]
)
async def test_a_view_that_fails_is_settled_by_why(
    world: str, kind: str, error: Exception, tokens: int
) -> None:
    """A bug costs nothing; a provider that was waited for may bill what nobody received."""

    def answer(request: HttpRequest) -> HttpResponse:
        raise error

    async with Bench(world, view_of(kind, answer)) as bench:
        bench.raises(yes=False)
        got = await bench.post()

    assert got.status == 500
    assert bench.store.charged().tokens == tokens


@both_worlds
@both_kinds
async def test_a_refusal_in_a_view_is_answered_in_its_dialect(world: str, kind: str) -> None:
    """As at the gate; what the request held is given back."""
    more = {"model": "big", "messages": QUESTION["messages"], "max_tokens": 5000}

    def call(request: HttpRequest) -> HttpResponse:
        with current_budget().call(**more):
            return HttpResponse("unreachable")

    async def call_on_a_loop(request: HttpRequest) -> HttpResponse:
        async with current_budget().call(**more):
            return HttpResponse("unreachable")

    view = call if kind == world or kind == "sync" else call_on_a_loop
    async with Bench(world, view, tier={"tokens": "200/minute", "min_tokens": 1000}) as bench:
        got = await bench.post({**QUESTION, "max_tokens": 40})

    assert (got.status, got.error["type"]) == (413, "invalid_request_error")
    assert got.headers["ratelimit"]


@all_worlds
@both_kinds
async def test_a_request_error_in_a_view_is_answered(world: str, kind: str) -> None:
    """What a view cannot read is told in the words of its route."""

    def answer(request: HttpRequest) -> HttpResponse:
        raise RequestError("This cannot be read.", code="own")

    async with Bench(world, view_of(kind, answer)) as bench:
        got = await bench.post()

    assert (got.status, got.error["code"]) == (400, "own")
    assert bench.settled["ending"] == "not_called"
    assert bench.store.charged().tokens == 0


@both_worlds
async def test_a_refusal_elsewhere_is_problem_details(world: str) -> None:
    """A view that is not guarded may make guarded calls all the same."""

    def answer(request: HttpRequest) -> HttpResponse:
        raise RequestError("This cannot be read.", status=422)

    async with Bench(world, view_of(world, answer)) as bench:
        got = await bench.post(path="/other")

    assert (got.status, got.headers["content-type"]) == (422, "application/problem+json")


@all_worlds
async def test_a_stream_that_fails_is_settled_at_once(world: str) -> None:
    """By what was counted; the error goes on."""
    kind = "sync" if world == "sync" else "async"
    pieces = streamed(kind, *STREAM[:2], fails=OSError("gone"))
    answer = view_of(kind, lambda request: StreamingHttpResponse(pieces, content_type=EVENTS))

    async with Bench(world, answer) as bench:
        with pytest.raises(OSError, match="gone"):
            await bench.post(ASKED)
        await bench.idle()

    assert (bench.settled["ending"], bench.settled["grade"]) == ("cut", "counted")


async def test_a_stream_that_is_closed_is_cut() -> None:
    """A server closes what its client no longer reads; the piece on its way is billed."""
    answer = view_of(
        "sync",
        lambda request: StreamingHttpResponse(streamed("sync", *STREAM), content_type=EVENTS),
    )

    async with Bench("sync", answer) as bench:
        response = bench.response(ASKED)
        assert next(iter(response)) == STREAM[0]
        response.close()
        response.close()

    assert bench.settled["ending"] == "cut"
    assert bench.settled["output_tokens"] == len("abcd")


@both_worlds
async def test_an_answer_that_nobody_reads_is_settled(world: str) -> None:
    """Such as that of HEAD, or one a middleware above has replaced."""
    answer = view_of(
        world, lambda request: StreamingHttpResponse(streamed(world, *STREAM), content_type=EVENTS)
    )

    async with Bench(world, answer, above=[f"{__name__}.replacing"]) as bench:
        got = await bench.post(ASKED)

    assert got.body == b"another"
    assert bench.settled["ending"] == "cut"


@sync_and_async_middleware
def replacing(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        get_response(request)
        return HttpResponse("another")

    async def middleware_on_a_loop(request: HttpRequest) -> HttpResponse:
        await get_response(request)
        return HttpResponse("another")

    return middleware_on_a_loop if iscoroutinefunction(get_response) else middleware


@both_worlds
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
async def test_a_file_is_sent_through_the_middleware(world: str, tmp_path: Any) -> None:
    """The answer of a route of one's own may be anything."""
    (tmp_path / "speech").write_bytes(b"wave" * 2000)

    def answer(request: HttpRequest) -> FileResponse:
        current_budget().record({"prompt_tokens": 7, "completion_tokens": 5})
        return FileResponse((tmp_path / "speech").open("rb"))

    async with Bench(world, view_of(world, answer)) as bench:
        got = await bench.post(path=OWN)

    assert got.body == b"wave" * 2000
    assert bench.settled["total_tokens"] == 12


@both_worlds
async def test_a_providers_limits_do_not_pass_for_ours(world: str) -> None:
    """A view may pass on all headers of its provider."""
    theirs = {"x-ratelimit-remaining-tokens": "7", "retry-after": "3"}
    answer = view_of(world, lambda request: JsonResponse(ANSWER, headers=theirs))

    async with Bench(world, answer) as bench:
        got = await bench.post()

    assert got.headers["x-ratelimit-remaining-tokens"] == "999925"
    assert got.headers["retry-after"] == "3"


async def test_a_cancelled_request_is_settled() -> None:
    """A client that leaves before there is an answer has the view cancelled."""
    begun = asyncio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        begun.set()
        await asyncio.Event().wait()
        return HttpResponse()

    async with Bench("async", view) as bench:
        task = asyncio.create_task(bench.post())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await bench.idle()

    assert bench.settled["ending"] == "cut"


@pytest.mark.filterwarnings("ignore:Unclosed file")
@pytest.mark.parametrize("world", ["async", MIXED])
async def test_a_stream_that_fails_on_a_server_is_settled(world: str) -> None:
    """Django does not close an answer that failed, and the error keeps its request alive."""
    pieces = streamed("async", STREAM[0], fails=OSError("gone"))
    view = view_of("async", lambda request: StreamingHttpResponse(pieces, content_type=EVENTS))

    async with Bench(world, view) as bench:
        with pytest.raises(OSError, match="gone") as caught:
            await serve(asyncio.Event())
        await bench.idle()
        assert str(caught.value) == "gone"

    assert bench.settled["ending"] == "cut"
    del caught
    gc.collect()  # the body, which Django does not close either


class Stopped(BaseException):
    """What ends a process."""


async def test_what_ends_a_process_settles_first() -> None:
    """An exception that Django makes no answer of."""

    def view(request: HttpRequest) -> HttpResponse:
        raise Stopped

    async with Bench("sync", view) as bench:
        with pytest.raises(Stopped):
            await bench.post()

    assert bench.settled["ending"] == "not_called"


async def test_an_answer_that_nobody_closes_is_settled() -> None:
    """A middleware above is cancelled while it has the answer: then the request is forgotten."""
    WAITING.clear()
    pieces = streamed("async", *STREAM)
    view = view_of("async", lambda request: StreamingHttpResponse(pieces, content_type=EVENTS))

    async with Bench("async", view, above=[f"{__name__}.Waiting"]) as bench:
        sent = await serve(WAITING)
        gc.collect()
        await bench.idle()

    assert sent == []
    assert bench.settled["ending"] == "cut"


async def serve(leaves: asyncio.Event) -> list[Message]:
    """Send one request as a server does, whose client leaves on cue; return the answer."""
    sent: list[Message] = []
    asked = [{"type": "http.request", "body": json.dumps(ASKED).encode()}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    site: Any = get_asgi_application()
    await site(Exchange().scope, receive, send)
    return sent


WAITING = asyncio.Event()


class Waiting:
    """A middleware that keeps an answer for long."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> Any:
        answer = await self._get_response(request)
        WAITING.set()
        await asyncio.Event().wait()
        return answer


async def test_no_thread_is_between_server_and_view() -> None:
    """In an asynchronous chain all runs on the loop, in a synchronous one in one thread."""
    threads: list[int] = []

    async def who(request: HttpRequest) -> Principal:
        threads.append(threading.get_ident())
        return ALICE

    def who_in_a_thread(request: HttpRequest) -> Principal:
        threads.append(threading.get_ident())
        return ALICE

    def answer(request: HttpRequest) -> HttpResponse:
        threads.append(threading.get_ident())
        return JsonResponse(ANSWER)

    async def answer_on_a_loop(request: HttpRequest) -> HttpResponse:
        return answer(request)

    async with Bench("async", answer_on_a_loop, principal=who) as bench:
        await bench.post()
    async with Bench("sync", answer, principal=who_in_a_thread) as bench:
        await bench.post()

    assert threads[:2] == [threading.get_ident()] * 2
    assert threads[2] == threads[3] != threading.get_ident()
