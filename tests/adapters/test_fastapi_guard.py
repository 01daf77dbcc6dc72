"""Guards of endpoints: where they stand, who is charged, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import APIKeyHeader
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

import llm_budget_mw
from llm_budget_mw import (
    AsyncGuard,
    AuthenticationError,
    Budget,
    BudgetExceeded,
    ConfigurationError,
    Principal,
    current_budget,
)
from llm_budget_mw.testing import Issuer, RecordingSink
from llm_budget_mw_fastapi import BudgetMiddleware, BudgetProblem, CurrentBudget, get_budget, guard
from tests.deployment import SwitchStore, async_store, configured

ISSUER = Issuer()
ALICE = Principal("alice")
CALL: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


class Service:
    """An application to put endpoints into, and what its store and its sink have seen."""

    def __init__(self, app: FastAPI | None = None, *, routes: Any = (), **tier: Any) -> None:
        self.store, self.sink = SwitchStore(), RecordingSink()
        config = configured(
            {"requests": "2/day", "max_tokens": 50, **tier}, jwt=ISSUER.config(), routes=routes
        )
        self.guard = AsyncGuard.open(config, store=async_store(self.store), sinks=[self.sink])
        self.app = app or FastAPI()
        self.app.add_middleware(BudgetMiddleware, guard=self.guard)

    def client(self, **options: Any) -> TestClient:
        """Return a client with the credential of alice."""
        token = ISSUER.token("alice")
        return TestClient(self.app, headers={"authorization": f"Bearer {token}"}, **options)


async def exchange(app: Any, path: str, sent: list[Any]) -> None:
    """Run a request of alice in the task at hand; raises what reaches the server."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    token = f"Bearer {ISSUER.token('alice')}".encode()
    head = {"type": "http", "method": "POST", "query_string": b"", "http_version": "1.1"}
    await app({**head, "path": path, "headers": [(b"authorization", token)]}, receive, send)


async def endpoint(budget: CurrentBudget) -> dict[str, Any]:
    """Tell what was granted, and report a call."""
    budget.record({"prompt_tokens": 7, "completion_tokens": 5})
    return {"sub": budget.principal.id, "model": budget.model, "max_tokens": budget.max_tokens}


def on_an_endpoint(wanted: Any) -> FastAPI:
    app = FastAPI()
    app.post("/v1/ask", dependencies=[Depends(wanted)])(endpoint)
    return app


def on_a_parameter(wanted: Any) -> FastAPI:
    app, given = FastAPI(), Depends(wanted)

    @app.post("/v1/ask")
    async def ask(budget: Budget = given) -> dict[str, Any]:
        return await endpoint(budget)

    return app


def on_a_router(wanted: Any) -> FastAPI:
    router = APIRouter(dependencies=[Depends(wanted)])
    router.post("/ask")(endpoint)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    return app


def on_an_inclusion(wanted: Any) -> FastAPI:
    inner, outer, app = APIRouter(), APIRouter(), FastAPI()
    inner.post("/ask")(endpoint)
    outer.include_router(inner)
    app.include_router(outer, prefix="/v1", dependencies=[Depends(wanted)])
    return app


def on_the_application(wanted: Any) -> FastAPI:
    app = FastAPI(dependencies=[Depends(wanted)])
    app.post("/v1/ask")(endpoint)
    return app


def on_a_mounted_application(wanted: Any) -> FastAPI:
    app, mounted = FastAPI(), FastAPI(dependencies=[Depends(wanted)])
    mounted.post("/ask")(endpoint)
    app.mount("/v1", mounted)
    return app


Place = Callable[[Any], FastAPI]
PLACES = [
    on_an_endpoint,
    on_a_parameter,
    on_a_router,
    on_an_inclusion,
    on_the_application,
    on_a_mounted_application,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_guard_admits_with_its_own_options_wherever_it_stands(place: Place) -> None:
    """Model, bound and feature are the guard's; the answer has the limits, the store the charge."""
    service = Service(place(guard(feature="search", model="small", max_tokens=20)))

    answer = service.client().post("/v1/ask")

    assert answer.json() == {"sub": "alice", "model": "small", "max_tokens": 20}
    assert 'requests-per-day";r=1' in answer.headers["ratelimit"]
    [settled] = service.sink.settled
    assert (settled["feature"], settled["total_tokens"]) == ("search", 12)
    assert settled["route"].endswith("/ask")
    assert service.store.charged().tokens == 12


@pytest.mark.parametrize("place", PLACES)
def test_a_refusal_is_answered_wherever_the_guard_stands(place: Place) -> None:
    """As the core does it: status, headers, a body in the format of the dialect."""
    client = Service(place(guard(model="small"))).client()
    for _ in range(2):
        client.post("/v1/ask")

    answer = client.post("/v1/ask")

    problem = BudgetProblem.model_validate(answer.json(), extra="forbid")
    assert (answer.status_code, problem.violated_policies) == (429, ["requests-per-day"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"retry-after", "ratelimit", "ratelimit-policy"} <= set(answer.headers)


@pytest.mark.parametrize("place", PLACES)
def test_a_caller_without_a_credential_is_asked_for_one(place: Place) -> None:
    """By the middleware's own authenticator, with the challenge; the store is not asked."""
    service = Service(place(guard(model="small")))

    answer = TestClient(service.app).post("/v1/ask")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert service.store.plans == []


def as_a_function() -> Principal:
    return Principal("bob", tier="default")


async def as_a_coroutine() -> Principal:
    return as_a_function()


async def as_a_generator() -> AsyncIterator[Principal]:
    yield as_a_function()


KEY = Depends(APIKeyHeader(name="x-key"))


async def from_a_key(key: str = KEY) -> Principal:
    """Depend on another dependency."""
    return Principal(key)


@pytest.mark.parametrize("principal", [as_a_function, as_a_coroutine, as_a_generator, from_a_key])
@pytest.mark.parametrize("place", [on_an_endpoint, on_a_mounted_application])
def test_the_applications_own_dependency_says_who_is_charged(
    place: Place, principal: Callable[..., object]
) -> None:
    """Any dependency that returns a principal; no token is needed then."""
    service = Service(place(guard(model="small", principal=principal)))

    answer = TestClient(service.app).post("/v1/ask", headers={"x-key": "bob"})

    assert answer.json()["sub"] == "bob"
    assert service.store.plans[0].subjects[0].subject.name == "user/bob"


@pytest.mark.parametrize("place", [on_an_endpoint, on_a_mounted_application])
def test_an_applications_own_refusal_stands(place: Place) -> None:
    """What its dependency answers is answered, and nothing is admitted."""

    async def nobody() -> Principal:
        raise HTTPException(403, "who are you?")

    service = Service(place(guard(model="small", principal=nobody)))

    answer = TestClient(service.app).post("/v1/ask")

    assert (answer.status_code, answer.json()) == (403, {"detail": "who are you?"})
    assert service.store.plans == []


@pytest.mark.parametrize("place", [on_an_endpoint, on_a_mounted_application])
def test_an_applications_dependency_may_refuse_as_we_do(place: Place) -> None:
    """An `AuthenticationError` of its own is answered in the format of the route."""

    async def nobody() -> Principal:
        raise AuthenticationError("The session has ended.")

    service = Service(place(guard(dialect="openai_chat", principal=nobody)))

    answer = TestClient(service.app).post("/v1/ask", json=CALL)

    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "The session has ended."
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("place", [on_an_endpoint, on_a_parameter, on_a_mounted_application])
def test_a_request_the_principal_finds_not_valid_is_answered_as_such(place: Place) -> None:
    """FastAPI runs the other dependencies before it says 422; `CurrentBudget` does not mind."""

    def keyed(x_key: Annotated[str, Header()]) -> Principal:
        return Principal(x_key)

    service = Service(place(guard(model="small", principal=keyed)))

    answer = TestClient(service.app).post("/v1/ask")

    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["header", "x-key"])
    assert service.store.plans == []


def test_a_dependency_that_returns_no_principal_is_named() -> None:
    """Nobody else is charged instead."""

    def user() -> str:
        return "bob"

    service = Service(on_an_endpoint(guard(model="small", principal=user)))

    with pytest.raises(TypeError, match=r"got str from .*user.*: let it return an llm_budget_mw"):
        service.client().post("/v1/ask")
    assert service.store.plans == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dialect": "openai"}, r"dialect: found 'openai'; should be .*openai_chat"),
        ({"dialect": "openai_chat", "model": "big"}, "can be set with dialect 'custom' only"),
        ({"max_tokens": -1}, r"max_tokens: found -1; should be"),
        ({"input_tokens": "many"}, r"input_tokens: found 'many'; should be"),
        ({"dialect": "gemini"}, r"guard\(dialect='gemini'\) comes too late: .* add the path to"),
    ],
)
def test_a_wrong_option_is_refused_as_the_guard_is_made(
    options: dict[str, Any], complaint: str
) -> None:
    """So that the program does not start; the message has option, value and remedy."""
    with pytest.raises(ConfigurationError, match=complaint):
        guard(**options)


def test_the_applications_handler_may_replace_a_refusal() -> None:
    """Its own, or that of the mounted application the guard stands in."""
    app, mounted = FastAPI(), FastAPI()
    wanted = Depends(guard(model="small", input_tokens=90))
    for each in (app, mounted):
        each.post("/ask", dependencies=[wanted])(endpoint)

        @each.exception_handler(BudgetExceeded)
        async def poor(request: Request, error: BudgetExceeded) -> JSONResponse:
            return JSONResponse({"poor": error.refusal.binding is not None}, 402)

    app.mount("/sub", mounted)
    client = Service(app, tokens="9/day").client()

    for path in ("/ask", "/sub/ask"):
        answer = client.post(path)
        assert (answer.status_code, answer.json()) == (402, {"poor": True})


async def test_a_mounted_applications_handler_of_everything_keeps_its_answer() -> None:
    """Starlette raises the exception further all the same; nothing is answered twice."""
    app, mounted = FastAPI(), FastAPI()
    mounted.post("/ask", dependencies=[Depends(guard(model="small", input_tokens=90))])(endpoint)

    @mounted.exception_handler(Exception)
    async def teapot(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(type(error).__name__, 418)

    app.mount("/sub", mounted)
    service, sent = Service(app, tokens="9/day"), list[Any]()

    with pytest.raises(BudgetExceeded):
        await exchange(service.app, "/sub/ask", sent)

    said = [message.get("status", message.get("body")) for message in sent]
    assert said == [418, b"BudgetExceeded"]


@pytest.mark.parametrize("place", PLACES)
def test_without_the_middleware_the_error_says_so(place: Place) -> None:
    """It names the request and the remedy; the core's own middleware is not enough."""
    bare, core = place(guard(model="small")), place(guard(model="small"))
    core.add_middleware(llm_budget_mw.BudgetMiddleware, guard=Service().guard)

    for app in (bare, core):
        with pytest.raises(RuntimeError, match=r"POST /v1/ask cannot be guarded: add BudgetMidd"):
            TestClient(app).post("/v1/ask")


def test_a_configured_route_is_admitted_once() -> None:
    """By the options of the configuration, which is the operator's; the guard adds nothing."""
    route = {"path": "/v1/*", "dialect": "custom", "model": "big", "max_tokens": 9}
    service = Service(on_a_parameter(guard(model="small", max_tokens=20)), routes=[route])

    answer = service.client().post("/v1/ask")

    assert answer.json() == {"sub": "alice", "model": "big", "max_tokens": 9}
    assert len(service.store.plans) == 1
    assert len(service.sink.settled) == 1


def test_an_application_inside_a_guarded_route_is_not_guarded_twice() -> None:
    """It may have a middleware and guards of its own; the budget is the outer one's."""
    inner = Service(on_a_parameter(guard(model="big")))
    outer = Service(routes=[{"path": "/in/*", "dialect": "custom", "model": "small"}])

    @inner.app.post("/free")
    def free() -> str:
        return current_budget().model

    outer.app.mount("/in", inner.app)
    client = outer.client()

    assert client.post("/in/v1/ask").json()["model"] == "small"
    assert client.post("/in/free").json() == "small"
    assert inner.store.plans == []
    assert len(outer.sink.settled) == 2


@pytest.mark.parametrize("other", ["the same guard", "an equal guard"])
def test_two_guards_that_agree_admit_once(other: str) -> None:
    """On the router and on the endpoint, as a parameter."""
    wanted = guard(model="small")
    again = wanted if other == "the same guard" else guard(model="small")
    service, given = Service(FastAPI(dependencies=[Depends(wanted)])), Depends(again)

    @service.app.post("/ask")
    async def ask(budget: Budget = given) -> dict[str, Any]:
        return await endpoint(budget)

    assert service.client().post("/ask").json()["model"] == "small"
    assert service.store.charged().requests == 1
    assert len(service.store.plans) == 1


def test_two_guards_that_differ_are_a_mistake() -> None:
    """The error shows both, and what the first one held is given back."""
    service = Service(FastAPI(dependencies=[Depends(guard(model="small"))]))
    service.app.post("/ask", dependencies=[Depends(guard(model="big"))])(endpoint)

    with pytest.raises(RuntimeError, match=r"(?s)POST /ask has two guards.*'small'.*'big'"):
        service.client().post("/ask")
    assert service.store.charged().requests == 0


@pytest.mark.parametrize(("method", "admitted"), [("GET", 1), ("HEAD", 1), ("OPTIONS", 0)])
def test_every_method_but_options_is_admitted(method: str, admitted: int) -> None:
    """A HEAD is answered by the handler of GET; OPTIONS only asks what there is."""
    service = Service()
    seen: list[Budget | None] = []

    @service.app.api_route("/ask", methods=["GET", "HEAD", "OPTIONS"])
    async def ask(budget: Annotated[Budget | None, Depends(guard(model="small"))]) -> None:
        seen.append(budget)

    headers = {} if method == "OPTIONS" else service.client().headers
    assert TestClient(service.app).request(method, "/ask", headers=headers).status_code == 200
    assert (len(service.store.plans), len(seen)) == (admitted, 1)
    assert (seen[0] is not None) == bool(admitted)


def test_a_websocket_is_not_guarded() -> None:
    """The error says what to do instead."""
    service = Service()

    @service.app.websocket("/talk", dependencies=[Depends(guard(model="small"))])
    async def talk(socket: WebSocket) -> None: ...

    with (
        pytest.raises(RuntimeError, match=r"/talk: guard\(\) cannot guard a WebSocket; make each"),
        service.client().websocket_connect("/talk"),
    ):
        pass


def test_the_budget_is_at_hand_everywhere_in_the_request() -> None:
    """In coroutines, threads, dependencies and streams of both kinds; nowhere after it."""
    service = Service(requests="9/day")
    app, wanted = service.app, Depends(guard(model="small", feature="here"))
    seen: list[tuple[str, Budget]] = []

    def note(where: str) -> None:
        seen.append((where, current_budget()))

    def in_a_thread() -> None:
        note("a dependency in a thread")

    @app.post("/async", dependencies=[wanted, Depends(in_a_thread)])
    async def asynchronous() -> StreamingResponse:
        async def stream() -> AsyncIterator[bytes]:
            note("a stream")
            yield b"."

        note("a coroutine")
        return StreamingResponse(stream())

    @app.post("/sync", dependencies=[wanted])
    def synchronous() -> StreamingResponse:
        def stream() -> Iterator[bytes]:
            note("a stream in threads")
            yield b"."

        note("a thread")
        return StreamingResponse(stream())

    client = service.client()
    client.post("/async")
    client.post("/sync")

    assert [where for where, _ in seen] == [
        "a dependency in a thread",
        "a coroutine",
        "a stream",
        "a thread",
        "a stream in threads",
    ]
    assert len({id(budget) for _, budget in seen}) == 2
    with pytest.raises(LookupError):
        current_budget()


async def test_the_budget_does_not_outlive_its_request() -> None:
    """Also where the application runs in the task of its caller."""
    service = Service(on_an_endpoint(guard(model="small")))

    await exchange(service.app, "/v1/ask", [])

    assert len(service.sink.settled) == 1
    with pytest.raises(LookupError):
        current_budget()


def test_a_base_http_middleware_in_between_does_no_harm() -> None:
    """It runs the application in another task and hands its messages on by itself."""
    service = Service(on_an_endpoint(guard(model="small")))

    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    # The one added last is the outermost; this one goes inside.
    service.app.user_middleware.append(Middleware(BaseHTTPMiddleware, dispatch=pass_on))
    client = service.client()

    assert [client.post("/v1/ask").status_code for _ in range(3)] == [200, 200, 429]
    assert service.store.charged().tokens == 24


def test_a_synchronous_endpoint_makes_guarded_calls() -> None:
    """With a plain `with`; the first draws on the request's reservation, the second is new."""
    service = Service(requests="2/day")

    @service.app.post("/ask", dependencies=[Depends(guard(model="small", input_tokens=100))])
    def ask(budget: CurrentBudget) -> int:
        for _ in range(3):
            with budget.call(**CALL) as call:
                call.record({"prompt_tokens": 7, "completion_tokens": 5})
        return 0

    answer = service.client().post("/ask")

    assert answer.status_code == 429  # the third
    assert service.store.charged().tokens == 24


def test_an_asynchronous_endpoint_makes_guarded_calls() -> None:
    """With `async with`; a plain `with` would block its loop and is refused."""
    service = Service(requests="9/day")

    @service.app.post("/ask", dependencies=[Depends(guard(model="small", input_tokens=100))])
    async def ask(budget: CurrentBudget) -> int:
        with pytest.raises(RuntimeError, match="async with"), budget.call(**CALL):
            pass
        async with budget.call(**CALL) as call:
            call.record({"prompt_tokens": 7, "completion_tokens": 5})
        return budget.calls

    assert service.client().post("/ask").status_code == 200
    assert service.store.charged().tokens == 12


def test_a_call_in_the_stream_of_threads_is_guarded() -> None:
    """Entered and left in different threads, as a generator is that FastAPI iterates over."""
    service = Service()

    @service.app.post("/ask", dependencies=[Depends(guard(model="small", input_tokens=100))])
    def ask(budget: CurrentBudget) -> StreamingResponse:
        def stream() -> Iterator[bytes]:
            with budget.call(**CALL) as call:
                yield b"a"
                yield b"b"
                call.record({"prompt_tokens": 7, "completion_tokens": 5})

        return StreamingResponse(stream())

    assert service.client().post("/ask").text == "ab"
    assert service.store.charged().tokens == 12
    assert len(service.sink.settled) == 1


class BugError(Exception):
    """A bug of the application, before it asked anybody."""


class ProviderTimeoutError(Exception):
    """A provider that did not answer; it may bill all the same."""


@pytest.mark.parametrize(("error", "charged"), [(ProviderTimeoutError, 150), (BugError, 0)])
@pytest.mark.parametrize("wanted", ["a guard", "the budget of a configured route"])
def test_a_handled_time_out_keeps_its_hold(
    error: type[Exception], charged: int, wanted: str
) -> None:
    """Also where an exception handler has made an answer of it that does not tell any more."""
    options: dict[str, Any] = {"model": "small", "input_tokens": 100, "max_tokens": 50}
    guarded = wanted == "a guard"
    routes = [] if guarded else [{"path": "/ask", "dialect": "custom", **options}]
    service = Service(routes=routes)

    @service.app.post("/ask", dependencies=[Depends(guard(**options) if guarded else get_budget)])
    async def ask() -> None:
        raise error

    @service.app.exception_handler(error)
    async def sorry(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("sorry", 502)

    assert service.client().post("/ask").status_code == 502
    assert service.store.charged().tokens == (charged + 16 if charged else 0)


def test_a_request_that_is_not_valid_is_charged_nothing() -> None:
    """FastAPI tells of it after the dependencies have run."""
    service = Service()

    @service.app.post("/ask", dependencies=[Depends(guard(model="small"))])
    async def ask(count: int) -> None: ...

    assert service.client().post("/ask?count=many").status_code == 422
    assert service.store.charged().requests == 0
    assert len(service.store.settled) == 1


def test_tests_of_an_application_replace_guard_and_principal() -> None:
    """By `dependency_overrides`, like any dependency; a replaced guard needs no middleware."""
    wanted = guard(model="small", principal=as_a_function)
    service, bare = Service(on_an_endpoint(wanted)), on_a_parameter(wanted)
    service.app.dependency_overrides[as_a_function] = lambda: Principal("eve")

    class Fixed:
        principal, model, max_tokens = Principal("test"), "none", 1

        def record(self, report: Any) -> None: ...

    bare.dependency_overrides[wanted] = Fixed

    assert TestClient(service.app).post("/v1/ask").json()["sub"] == "eve"
    assert TestClient(bare).post("/v1/ask").json()["sub"] == "test"


def test_the_openapi_document_shows_nothing_of_a_guard_but_its_credential() -> None:
    """No parameter is made up; what the application's dependency asks for is documented."""
    app = FastAPI()
    app.post("/plain", dependencies=[Depends(guard(model="small"))])(endpoint)
    app.post("/keyed", dependencies=[Depends(guard(model="small", principal=from_a_key))])(endpoint)

    paths = app.openapi()["paths"]

    assert not {"parameters", "requestBody", "security"} & set(paths["/plain"]["post"])
    assert paths["/keyed"]["post"]["security"] == [{"APIKeyHeader": []}]
    assert "parameters" not in paths["/keyed"]["post"]
