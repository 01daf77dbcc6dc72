"""Every way a guarded WSGI request can end, and that each is settled once and rightly."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from llm_budget_mw.current import CURRENT, current_budget
from llm_budget_mw.engine import Engine
from llm_budget_mw.errors import BudgetExceeded
from llm_budget_mw.guard import Guard
from llm_budget_mw.types import Charges, Grant, Refusal, Usage
from llm_budget_mw.wsgi import ENVIRON_KEY, WSGIBudgetMiddleware
from tests.deployment import ALICE, SwitchStore
from tests.edge.driver import ANSWER, DONE, OWN, QUESTION, USAGE_EVENT, delta
from tests.wsgi.driver import Bench, Body, Exchange, answering, streaming

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

EXACT = Charges(1, 42, 12 * 2500 + 30 * 10_000)
NOTHING = Charges(0, 0, 0)
STREAMED = {**QUESTION, "stream": True}
ASKING = {**STREAMED, "stream_options": {"include_usage": True}}
WHOLE = json.dumps(ANSWER).encode()


def grade(bench: Bench) -> tuple[str, str]:
    """Return how the one settlement was graded, and how the call ended."""
    assert len(bench.store.settled) == 1
    return bench.settled["grade"], bench.settled["ending"]


def raising(error: BaseException) -> WSGIApplication:
    """Return an application that fails before it answers."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise error

    return app


@pytest.mark.parametrize(
    ("app", "asked", "expected", "charges"),
    [
        (answering(WHOLE), QUESTION, ("exact", "complete"), EXACT),
        (answering(WHOLE[:9], WHOLE[9:]), QUESTION, ("exact", "complete"), EXACT),
        (
            streaming(delta("hel"), delta("lo"), USAGE_EVENT, DONE),
            ASKING,
            ("exact", "complete"),
            EXACT,
        ),
        (streaming(delta("hel"), USAGE_EVENT, DONE), STREAMED, ("exact", "complete"), EXACT),
        (
            answering(b'{"error": {}}', status="429 No"),
            QUESTION,
            ("released", "refused_upstream"),
            NOTHING,
        ),
    ],
    ids=["whole", "in pieces", "stream", "stream that did not ask", "refused upstream"],
)
def test_a_complete_answer_is_charged_what_its_usage_says(
    app: WSGIApplication, asked: dict[str, Any], expected: tuple[str, str], charges: Charges
) -> None:
    """Whole, in pieces or as a stream; an error without usage costs nothing."""
    bench = Bench(app)

    exchange = bench.post(asked)

    assert grade(bench) == expected
    assert bench.store.charged() == charges
    assert exchange.events[-1] == "end"


def test_a_stream_without_usage_is_counted() -> None:
    """What was streamed is counted, and the input keeps its bound."""
    bench = Bench(streaming(delta("hel"), delta("lo"), DONE))

    bench.post(STREAMED)

    assert grade(bench) == ("counted", "complete")
    assert bench.settled["output_tokens"] == len("hello")


@pytest.mark.parametrize("left_after", [1, 2, 3])
def test_a_client_that_leaves_in_mid_stream_is_charged_what_was_made(left_after: int) -> None:
    """The server closes the iterable; the generator's clean-up runs with the budget at hand."""
    cleaned: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        try:
            while True:
                yield delta("abcd")
        finally:
            cleaned.append(current_budget())

    bench = Bench(app)

    exchange = bench.post(STREAMED, leave_after=left_after)

    assert grade(bench) == ("counted", "cut")
    assert bench.settled["output_tokens"] == 4 * left_after
    assert cleaned == [exchange.environ[ENVIRON_KEY]]
    assert CURRENT.get() is None


def test_a_client_that_leaves_before_the_first_piece_keeps_the_hold() -> None:
    """Nobody saw what a whole answer used."""
    body = Body(WHOLE)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        return body

    bench = Bench(app)
    answer = bench.middleware(Exchange().environ, lambda *_: lambda data: None)
    answer.close()  # type: ignore[attr-defined]

    assert grade(bench) == ("estimated", "cut")
    assert body.closed == 1


def test_a_stream_that_breaks_is_charged_what_was_seen() -> None:
    """An exception in the generator reaches the server, and is settled at once."""
    bench = Bench(streaming(delta("hello"), fails=RuntimeError("upstream is gone")))

    with pytest.raises(RuntimeError, match="upstream is gone"):
        bench.post(STREAMED)

    assert grade(bench) == ("counted", "cut")
    assert bench.settled["output_tokens"] == len("hello")


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (raising(ValueError("a bug")), ("released", "not_called")),
        (raising(TimeoutError("no answer")), ("estimated", "cut")),
        (answering(b"late", status="504 Gateway Timeout"), ("estimated", "cut")),
        (answering(b"?", status="500 No"), ("released", "refused_upstream")),
    ],
    ids=["a bug", "a time-out", "a time-out that was answered", "an error that was answered"],
)
def test_only_a_call_that_was_waited_for_may_have_been_billed(
    app: WSGIApplication, expected: tuple[str, str]
) -> None:
    """A failure before it costs nothing; after a time-out the provider may have worked on."""
    bench = Bench(app)

    try:
        bench.post()
    except (ValueError, TimeoutError):
        assert expected[1] != "refused_upstream"

    assert grade(bench) == expected


def test_a_time_out_a_framework_has_answered_keeps_its_hold() -> None:
    """The adapter notes what the handler raised, which the status does not tell."""

    def note(environ: WSGIEnvironment) -> None:
        environ[ENVIRON_KEY].error = TimeoutError()

    bench = Bench(answering(b"sorry", status="500 No", before=note))

    bench.post()

    assert grade(bench) == ("estimated", "cut")


def test_what_is_written_is_read_as_well() -> None:
    """The callable that `start_response` returns is another way to answer."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/event-stream")])
        write(delta("hel"))
        write(USAGE_EVENT)
        return [DONE]

    asking, silent = Bench(app), Bench(app)

    heard = asking.post(ASKING)
    spared = silent.post(STREAMED)

    assert grade(asking) == grade(silent) == ("exact", "complete")
    assert heard.body == delta("hel") + USAGE_EVENT + DONE
    assert spared.body == delta("hel") + DONE


def test_a_client_that_is_gone_when_something_is_written_is_charged_for_it() -> None:
    """It was made all the same."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/event-stream")])
        write(delta("hello"))
        return []

    def broken(data: bytes) -> None:
        raise BrokenPipeError

    bench = Bench(app)

    with pytest.raises(BrokenPipeError):
        bench.middleware(Exchange(STREAMED).environ, lambda *_: broken)

    assert grade(bench) == ("counted", "cut")
    assert bench.settled["output_tokens"] == len("hello")


def test_a_file_passes_through_the_servers_wrapper(tmp_path: Any) -> None:
    """It is iterated, closed and read for its usage like any other body."""
    path = tmp_path / "answer.json"
    path.write_bytes(WHOLE)
    file = path.open("rb")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 7)
        return wrapped

    bench = Bench(app)

    exchange = bench.post()

    assert exchange.body == WHOLE
    assert file.closed
    assert bench.store.charged() == EXACT


def test_an_answer_may_be_replaced_before_it_is_sent() -> None:
    """An error after the head but before the body starts again, with `exc_info`."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        try:
            int("found too late")
        except ValueError:
            start_response("500 No", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    bench = Bench(app)

    exchange = bench.post(STREAMED)

    assert exchange.status == 500
    assert grade(bench) == ("released", "refused_upstream")


def test_a_generator_may_start_its_answer_late() -> None:
    """The head comes with the first piece, and has the limits in it."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response(
            "200 OK", [("Content-Type", "application/json"), ("X-RateLimit-Limit-Tokens", "9")]
        )
        yield WHOLE

    bench = Bench(app)

    exchange = bench.post()

    assert exchange.headers["x-ratelimit-limit-tokens"] == "1000000"
    assert "ratelimit" in exchange.headers
    assert bench.store.charged() == EXACT


def test_a_handler_that_reports_its_usage_is_charged_that() -> None:
    """Through the environ or the context, on a route with a body of its own."""

    def report(environ: WSGIEnvironment) -> None:
        current_budget().record(Usage(7, 5))
        environ[ENVIRON_KEY].record({"prompt_tokens": 1, "completion_tokens": 2})

    bench = Bench(answering(b"fine", before=report))

    bench.post({"question": "?"}, OWN)

    assert grade(bench) == ("exact", "complete")
    assert bench.store.charged().tokens == 15


@pytest.mark.parametrize(
    ("status", "expected"),
    [("200 OK", ("estimated", "unreported")), ("422 No", ("released", "not_called"))],
)
def test_a_handler_that_reports_nothing_keeps_its_hold_unless_it_failed(
    status: str, expected: tuple[str, str]
) -> None:
    """Its own validation is no call."""
    bench = Bench(answering(b"fine", status=status))

    bench.post({"question": "?"}, OWN)

    assert grade(bench) == expected


def test_calls_inside_a_request_are_each_charged_once() -> None:
    """The first draws on the request's reservation, the second is admitted by itself."""

    def two_calls(environ: WSGIEnvironment) -> None:
        for _ in range(2):
            with current_budget().call(**{**QUESTION, "max_tokens": 10}) as call:
                call.record(ANSWER)

    bench = Bench(answering(b"fine", before=two_calls))

    bench.post({"question": "?"}, OWN)

    assert [charges for _, charges, _ in bench.store.settled] == [EXACT, EXACT]
    assert len({plan_id for plan_id, _, _ in bench.store.settled}) == 2


def test_threads_of_a_handler_share_one_reservation() -> None:
    """However many calls it makes at once, only one draws on what the request has reserved."""

    def many_calls(environ: WSGIEnvironment) -> None:
        budget, together = current_budget(), threading.Barrier(8)

        def ask() -> None:
            together.wait()
            with budget.call(**{**QUESTION, "max_tokens": 10}) as call:
                call.record(ANSWER)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    bench = Bench(answering(b"fine", before=many_calls), {"concurrency": 8})

    bench.post({"question": "?"}, OWN)

    assert bench.store.charged().requests == 8
    assert len({plan_id for plan_id, _, _ in bench.store.settled}) == 8


@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [({"max_tokens": 1000}, 413, "request_exceeds_budget"), ({"model": "?"}, 400, "unknown_price")],
)
def test_a_call_refused_inside_a_handler_is_answered_as_such(
    asked: dict[str, Any], status: int, code: str, *, lazily: bool
) -> None:
    """A handler need not catch it, nor a generator that has not begun to answer."""

    def call_more(environ: WSGIEnvironment) -> None:
        with current_budget().call(**{**QUESTION, "n": 100, **asked}):
            pass

    def later(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        call_more(environ)
        yield b""

    app = later if lazily else answering(b"", before=call_more)
    bench = Bench(app, {"tokens": "2000/minute", "min_tokens": 40})

    exchange = bench.post()

    assert exchange.status == status
    assert exchange.error["code"] == code
    assert bench.store.charged() == NOTHING


def test_a_call_refused_after_the_answer_began_is_the_handlers_own() -> None:
    """Half an answer cannot become a refusal."""
    late = BudgetExceeded(Refusal._make([None, None, None, (), None, None, "too late"]))
    bench = Bench(streaming(delta("hello"), fails=late))

    with pytest.raises(BudgetExceeded, match="too late"):
        bench.post(STREAMED)


def test_the_answer_is_out_before_it_is_settled() -> None:
    """Settlement begins after the last byte and never delays it."""
    bench = Bench(answering(WHOLE))
    exchange = Exchange()
    sent_by_then: list[int] = []
    bench.sink.emit = lambda event: sent_by_then.append(len(exchange.pieces))  # type: ignore[method-assign]

    exchange.run(bench.middleware)

    assert sent_by_then == [1]


@pytest.mark.parametrize("inside", ["a request", "a call"])
def test_a_long_call_keeps_its_lease(inside: str) -> None:
    """Half a lease in, the reservation is renewed, whether or not anything passes."""
    renewed = threading.Event()

    class Noticing(SwitchStore):
        def renew(self, grant: Grant) -> bool:
            renewed.set()
            return super().renew(grant)

    def wait(environ: object) -> None:
        assert renewed.wait(10)

    bench = Bench(answering(WHOLE, before=wait))
    engine = bench.guard.engine
    quick = Engine(engine.policy, engine.prices, engine.estimator, lease_ms=20)
    guard = Guard(quick, bench.config, Noticing(), [bench.sink])

    if inside == "a request":
        Exchange().run(WSGIBudgetMiddleware(bench.app, guard=guard))
    else:
        with guard.call(ALICE, **QUESTION) as call:
            wait(None)
            call.record(ANSWER)

    assert bench.settled["grade"] == "exact"
    guard.close()
