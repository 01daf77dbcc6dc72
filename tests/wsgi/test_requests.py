"""What reaches a WSGI application of a guarded request, and what does not."""

from __future__ import annotations

import gc
import gzip
import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from llm_budget_mw.guard import Guard
from llm_budget_mw.types import Charges
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from tests.deployment import SwitchStore
from tests.edge.driver import ANSWER, CHAT, ISSUER, QUESTION
from tests.wsgi.driver import Bench, Exchange, answering

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

WHOLE = json.dumps(ANSWER).encode()
RAW = json.dumps(QUESTION).encode()


class Keeper:
    """An application that keeps what it was asked."""

    def __init__(self) -> None:
        self.environ: WSGIEnvironment = {}
        self.body = b""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.environ = environ
        self.body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        assert environ["wsgi.input"].read() == b""
        start_response("200 OK", [("Content-Type", "application/json")])
        return [WHOLE]


class Trickle(io.BytesIO):
    """A body that arrives in pieces smaller than what is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size) if size and size > 0 else size)


@pytest.mark.parametrize(
    ("body", "environ", "length"),
    [
        (RAW, {}, ""),
        (RAW, {"wsgi.input": Trickle(RAW)}, ""),
        (RAW, {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}, None),
        (gzip.compress(RAW), {"HTTP_CONTENT_ENCODING": "gzip"}, ""),
    ],
    ids=["whole", "in pieces", "chunked", "compressed"],
)
def test_the_application_reads_the_request_with_the_grant_in_it(
    body: bytes, environ: dict[str, Any], length: str | None
) -> None:
    """However it came, it goes on whole, plain and with a length."""
    keeper = Keeper()
    bench = Bench(keeper, {"max_tokens": 25})

    exchange = bench.post(body, length=length, **environ)

    assert exchange.body == WHOLE
    assert json.loads(keeper.body) == {**QUESTION, "max_tokens": 25}
    assert not {"HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING"} & set(keeper.environ)


@pytest.mark.parametrize(
    ("body", "options", "status", "code"),
    [
        (RAW, {"token": None}, 401, "unauthenticated"),
        (RAW, {"token": "nonsense"}, 401, "invalid_token"),
        (RAW, {"HTTP_AUTHORIZATION": f"Bearer {ISSUER.token('a')}, Bearer b"}, 400, None),
        (RAW[:-1], {}, 400, "invalid_request"),
        (b"", {"length": None}, 400, "invalid_request"),
        (RAW, {"length": None}, 400, "invalid_request"),
        (RAW, {"length": "many"}, 400, "invalid_request"),
        (RAW, {"length": "-5"}, 400, "invalid_request"),
        (RAW, {"length": str(len(RAW) + 1)}, 400, "invalid_request"),
        (RAW, {"length": "9" * 5000}, 413, "request_too_large"),
        (b"[" + b"1," * 600 + b"1]", {}, 413, "request_too_large"),
        (
            b"[" + b"1," * 600 + b"1]",
            {"length": None, "wsgi.input_terminated": True},
            413,
            "request_too_large",
        ),
        (
            gzip.compress(b" " * 100_000),
            {"HTTP_CONTENT_ENCODING": "gzip"},
            413,
            "request_too_large",
        ),
        (RAW, {"HTTP_CONTENT_ENCODING": "br"}, 415, "unsupported_encoding"),
    ],
    ids=[
        "no credential",
        "nonsense",
        "two credentials",
        "broken JSON",
        "nothing",
        "no length and no end",
        "a length that is no number",
        "a negative length",
        "a body that ends early",
        "a length of thousands of digits",
        "too large",
        "too large without a length",
        "a bomb",
        "an encoding nobody can undo",
    ],
)
def test_what_cannot_be_read_never_reaches_the_application(
    body: bytes, options: dict[str, Any], status: int, code: str | None
) -> None:
    """It is answered in the dialect of the route, before the store is asked."""
    keeper = Keeper()
    bench = Bench(keeper, max_body_bytes=1024)

    exchange = bench.post(body, **options)

    assert exchange.status == status
    assert code is None or exchange.error["code"] == code
    assert keeper.environ == {}
    assert bench.store.plans == []
    assert bench.sink.names == ["budget.denied"]


def test_a_spent_limit_is_answered_with_everything_a_client_needs() -> None:
    """Status, wait, limits, and the words of the route's dialect."""
    bench = Bench(answering(WHOLE), {"requests": "1/day"})

    bench.post()
    refused = bench.post()

    assert (refused.status, refused.error["code"]) == (429, "budget_exceeded")
    assert int(refused.headers["retry-after"]) > 0
    assert '"requests-per-day";r=0' in refused.headers["ratelimit"]
    assert refused.headers["x-should-retry"] == "false"


def test_the_answer_to_head_has_no_body() -> None:
    """A refusal of a route that guards GET keeps to that."""
    routes = [{"path": "/ask", "methods": ["GET"], "dialect": "custom", "model": "big"}]
    bench = Bench(answering(b""), {"requests": "1/day"}, routes=routes)

    bench.post(b"", "/ask", method="GET")
    refused = bench.post(b"", "/ask", method="HEAD")

    assert (refused.status, refused.body) == (429, b"")
    assert int(refused.headers["content-length"]) > 0


@pytest.mark.parametrize("environ", [{"REQUEST_METHOD": "GET"}, {"PATH_INFO": "/other"}])
def test_everything_else_passes_through_untouched(environ: dict[str, Any]) -> None:
    """The application gets the very objects of the server, and answers by itself."""
    given: list[Any] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given.extend([environ, start_response])
        return answer

    def start(*_: Any) -> Any:
        raise AssertionError("nothing is sent")

    answer = [b"own"]
    asked = {**Exchange(token=None).environ, **environ}

    assert Bench(app).middleware(asked, start) is answer
    assert given[0] is asked
    assert given[1] is start


def test_a_mounted_application_is_guarded_by_its_whole_path() -> None:
    """What is before it counts: a route is named as the client names it."""
    keeper = Keeper()
    bench = Bench(keeper)

    bench.post(path="/chat/completions", SCRIPT_NAME="/v1")

    assert bench.store.charged() == Charges(1, 42, 12 * 2500 + 30 * 10_000)
    assert keeper.environ["PATH_INFO"] == "/chat/completions"


def test_a_model_that_stands_in_the_path_is_replaced_there() -> None:
    """The rest of the path stays, and its bytes are those of WSGI."""
    keeper = Keeper()
    routes = [{"path": "/aws/model/*", "dialect": "bedrock"}]
    offers = [{"model": "big", "ceiling": 0.00001}, {"model": "smäll"}]
    prices = {
        "catalogue": False,
        "models": {
            "big": {"input": "2.50", "output": "10"},
            "smäll": {"input": "0.15", "output": "0.60"},
        },
    }
    bench = Bench(keeper, {"offers": offers}, routes=routes, prices=prices)
    body = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}

    exchange = bench.post(body, "/model/big/converse", SCRIPT_NAME="/aws")

    assert exchange.status == 200
    assert keeper.environ["PATH_INFO"].encode("latin-1").decode() == "/model/smäll/converse"


def test_threads_never_exceed_a_limit_together() -> None:
    """64 at once under a limit of 7: 7 are served."""
    bench = Bench(answering(WHOLE), {"requests": "7/day"})

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: bench.post().status, range(64)))

    assert sorted(statuses) == [200] * 7 + [429] * 57
    assert bench.store.charged().requests == 7


def test_an_outage_is_settled_when_the_store_is_back() -> None:
    """What was used meanwhile is delivered at the end of the process at the latest."""
    bench = Bench(answering(WHOLE, before=lambda environ: setattr(bench.store, "down", True)))

    bench.post()
    assert bench.store.settled == []
    bench.store.down = False
    bench.middleware.close()

    assert bench.store.charged() == Charges(1, 42, 12 * 2500 + 30 * 10_000)
    assert bench.store.closed


def test_the_end_of_the_process_closes_the_guard_it_opened() -> None:
    """WSGI has no word for the end; a guard that was given is its owner's to close."""
    store, given = SwitchStore(), SwitchStore()
    bench = Bench(answering(WHOLE))
    middleware = WSGIBudgetMiddleware(bench.app, config=bench.config, store=store)
    shared = Guard(bench.guard.engine, bench.config, given)
    other = WSGIBudgetMiddleware(bench.app, guard=shared)

    del middleware, other
    gc.collect()

    assert store.closed
    assert not given.closed


def test_a_grant_that_cannot_be_written_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours gives the reservation back."""
    bench = Bench(answering(WHOLE))
    route = bench.middleware.find_route(Exchange(path=CHAT).environ)
    assert route is not None

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(route.dialect), "write_grant", fail)

    with pytest.raises(ZeroDivisionError):
        bench.post()

    assert bench.store.charged() == Charges(0, 0, 0)
