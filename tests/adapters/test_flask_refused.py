"""Refused requests: the core's answers, given by Flask, its handlers and its hooks."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Blueprint, Response, abort, g, request
from werkzeug.exceptions import TooManyRequests, Unauthorized

from llm_budget_mw.errors import AuthenticationError, BudgetError, BudgetExceeded, RequestError
from llm_budget_mw_flask import BudgetRefused, current_budget
from tests.adapters.flask_bench import FlaskBench, content
from tests.edge.driver import ANSWER, CHAT, ISSUER, MESSAGES, OWN, QUESTION, delta

RAW = json.dumps(QUESTION).encode()
BOUND = 50_000
SHORT = [{"role": "user", "content": "hi"}]
DEEP = b'{"model":"big","messages":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
STRANGER = ISSUER.token("alice")[:-6] + "AAAAAA"
CHUNKED = {
    "wsgi.input_terminated": True,
    "HTTP_TRANSFER_ENCODING": "chunked",
    "CONTENT_LENGTH": "",
}


def chatting(bench: FlaskBench) -> list[str]:
    """Give an application views on all routes; return which of them ran."""
    ran: list[str] = []

    def view() -> dict[str, Any]:
        ran.append(request.path)
        return ANSWER

    for path in (CHAT, MESSAGES, OWN):
        bench.app.add_url_rule(path, path[1:].replace("/", "-"), view, methods=["POST"])
    return ran


BAD: list[tuple[str, Any, dict[str, Any], int]] = [
    ("no credential", RAW, {"token": None}, 401),
    ("nonsense", RAW, {"token": "a.b.c"}, 401),
    ("another key", RAW, {"token": STRANGER}, 401),
    ("expired", RAW, {"token": ISSUER.token("alice", expires_in=-120)}, 401),
    ("1 MB of token", RAW, {"token": "a" * 2**20}, 400),
    ("another scheme", RAW, {"token": None, "headers": {"authorization": "Basic eA=="}}, 401),
    ("empty", b"", {}, 400),
    ("not JSON", b"{", {}, 400),
    ("NUL", b"\0" * 100, {}, 400),
    ("not text", b"\xff\xfe", {}, 400),
    ("an array", b"[1]", {}, 400),
    ("deep nesting", DEEP, {}, 400),
    ("an unknown model", {**QUESTION, "model": "nobody-knows"}, {}, 400),
    ("a model of a wrong type", {**QUESTION, "model": 7}, {}, 400),
    ("negative max_tokens", {**QUESTION, "max_tokens": -1}, {}, 400),
    ("huge max_tokens", {**QUESTION, "max_tokens": 10**30}, {}, 400),
    ("too large", b" " * (BOUND + 1), {}, 413),
    ("too large, in chunks", b" " * (BOUND + 1), {"environ_overrides": CHUNKED}, 413),
    ("broken, in chunks", b"{", {"environ_overrides": CHUNKED}, 400),
    ("a length too many", RAW, {"environ_overrides": {"CONTENT_LENGTH": "9" * 5000}}, 413),
    ("a length in words", RAW, {"environ_overrides": {"CONTENT_LENGTH": "many"}}, 400),
    ("a length too long", RAW, {"environ_overrides": {"CONTENT_LENGTH": "300"}}, 400),
    ("a bomb", gzip.compress(b" " * 10**7), {"headers": {"content-encoding": "gzip"}}, 413),
    ("damaged", b"no gzip", {"headers": {"content-encoding": "gzip"}}, 400),
    ("unknown coding", RAW, {"headers": {"content-encoding": "br"}}, 415),
]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    ("body", "options", "status"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_never_reaches_a_view(
    path: str,
    body: Any,
    options: dict[str, Any],
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is answered in the dialect of its route; nothing is held and no exception is logged."""
    bench = FlaskBench(max_body_bytes=BOUND)
    ran = chatting(bench)

    with caplog.at_level(logging.WARNING):
        answer = bench.post(body, path, **options)

    assert answer.status_code == status
    assert content(answer)["error"]["message"]
    assert answer.content_length == len(answer.data)
    assert ("www-authenticate" in answer.headers) == ("token" in options)
    assert not ran
    assert not bench.store.plans
    assert bench.sink.names == ["budget.denied"]
    assert not caplog.records


def test_a_spent_limit_is_answered_with_everything_a_client_needs() -> None:
    """Status, wait, limits, and the words of the route's dialect."""
    bench = FlaskBench({"requests": "1/day"})
    ran = chatting(bench)

    bench.post()
    answer = bench.post()

    assert (answer.status_code, content(answer)["error"]["code"]) == (429, "budget_exceeded")
    assert answer.content_type == "application/json"
    assert int(answer.headers["retry-after"]) > 0
    assert '"requests-per-day";r=0' in answer.headers["ratelimit"]
    assert len(answer.headers.getlist("content-type")) == 1
    assert ran == [CHAT]


def test_a_store_that_is_away_is_a_503() -> None:
    """A closed limit refuses, through Flask like everything else."""
    bench = FlaskBench({"requests": "9/day", "on_outage": {"requests": "closed"}})
    chatting(bench)
    bench.store.down = True

    answer = bench.post()

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_the_answer_to_head_has_no_body() -> None:
    """Flask answers HEAD by the view of GET, which is guarded."""
    routes = [{"path": OWN, "methods": ["GET"], "dialect": "custom", "model": "big"}]
    bench = FlaskBench({"requests": "1/day"}, routes=routes)
    bench.app.add_url_rule(OWN, "own", lambda: "hi")

    first, second = (bench.post(b"", OWN, method="HEAD") for _ in "ab")

    assert (first.status_code, second.status_code) == (200, 429)
    assert second.data == b""
    assert int(second.headers["content-length"]) > 0


def test_hooks_of_the_application_see_a_refusal() -> None:
    """CORS headers are on it, and no hook before the request runs for nobody."""
    ran: list[str] = []
    bench = FlaskBench(before=lambda app: app.before_request(lambda: ran.append("before")))
    chatting(bench)

    @bench.app.after_request
    def allow_other_origins(response: Response) -> Response:
        response.headers["access-control-allow-origin"] = "*"
        return response

    answer = bench.post(token=None)

    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "*"
    assert not ran


@pytest.mark.parametrize("kind", [BudgetRefused, TooManyRequests, 429, Exception])
@pytest.mark.parametrize("inside", [False, True], ids=["before the view", "in the view"])
def test_an_application_may_answer_by_itself(kind: Any, inside: bool) -> None:
    """By our class, by werkzeug's, by the status or for everything, wherever the refusal was."""
    bench = FlaskBench({"requests": "1/day"})
    seen: list[BudgetRefused] = []

    @bench.app.errorhandler(kind)
    def sorry(error: BudgetRefused) -> tuple[dict[str, Any], int]:
        seen.append(error)
        assert (request.get_data() == b"") == (not inside)  # what was read is not waited for
        return {"sorry": error.description}, error.code or 0

    @bench.app.post(OWN)
    def own() -> str:
        if inside:
            with current_budget.call(model="big", messages=SHORT, max_tokens=20):
                pass
            with current_budget.call(model="big", messages=SHORT, max_tokens=20):
                pass
        return "fine"

    if not inside:
        bench.post(path=OWN)
    refused = bench.post(path=OWN)

    (error,) = seen
    assert refused.status_code == 429
    assert "requests-per-day" in content(refused)["sorry"]
    assert isinstance(error.error, BudgetExceeded)
    assert error.error.refusal.binding is not None


def test_a_blueprint_may_answer_for_its_views() -> None:
    """The refused request is known to be one of the blueprint's."""
    bench = FlaskBench({"requests": "1/day"})
    blueprint = Blueprint("own", "own")

    @blueprint.post(OWN)
    def own() -> str:
        return "fine"

    @blueprint.errorhandler(BudgetRefused)
    def sorry(error: BudgetRefused) -> tuple[str, int]:
        return f"{request.blueprint} says no", 418

    bench.app.register_blueprint(blueprint)

    answers = [bench.post(path=path) for path in (OWN, OWN, CHAT)]

    assert [answer.status_code for answer in answers] == [200, 418, 429]
    assert answers[1].text == "own says no"


def test_a_handler_that_rewrites_every_error_works_on_refusals() -> None:
    """The pattern of Flask's documentation: take the response, replace its body."""
    bench = FlaskBench()
    chatting(bench)

    @bench.app.errorhandler(Unauthorized)
    def as_json(error: Unauthorized) -> Any:
        response = error.get_response()
        response.data = json.dumps({"name": error.name, "description": error.description})
        return response

    answer = bench.post(token=None)

    assert answer.status_code == 401
    assert json.loads(answer.data)["name"] == "Unauthorized"
    assert answer.content_length == len(answer.data)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_call_that_is_refused_in_a_view_is_answered_like_its_request() -> None:
    """In the dialect of the route; what the request held is given back."""
    bench = FlaskBench({"tokens": "1000/minute"})

    @bench.app.post(CHAT)
    def chat() -> str:
        text = "x" * 5000
        messages = [{"role": "user", "content": text}]
        with current_budget.call(model="big", messages=messages, max_tokens=40):
            raise AssertionError("it was admitted")

    answer = bench.post()

    assert answer.status_code == 413
    assert content(answer)["error"]["code"] == "request_exceeds_budget"
    assert bench.settled["grade"] == "released"
    assert bench.store.charged().tokens == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [(RequestError("No such voice.", status=422), 422), (AuthenticationError("Who?"), 401)],
)
def test_errors_of_the_core_in_any_view_have_their_status(error: Exception, status: int) -> None:
    """Also in a view that is not guarded, where they are problem details."""
    bench = FlaskBench()

    @bench.app.post("/free")
    def free() -> str:
        raise error

    answer = bench.post(path="/free")

    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    assert content(answer)["detail"] == str(error)


@pytest.mark.parametrize("kind", [BudgetExceeded, BudgetError])
def test_an_application_may_answer_for_refused_calls(kind: type[Exception]) -> None:
    """A handler of its own for the core's errors is left its work."""
    bench = FlaskBench({"requests": "1/day"})
    bench.app.register_error_handler(kind, lambda e: ("busy", 429))

    @bench.app.post(OWN)
    def own() -> str:
        for _ in "ab":
            with current_budget.call(model="big", messages=SHORT, max_tokens=20):
                pass
        return "fine"

    assert bench.post(path=OWN).text == "busy"


def test_a_stream_that_is_refused_a_call_breaks_off() -> None:
    """Its head has left: nothing else can be said."""
    bench = FlaskBench({"requests": "1/day"})

    @bench.app.post(CHAT)
    def chat() -> Response:
        budget = current_budget._get_current_object()  # type: ignore[attr-defined]

        def events() -> Iterator[bytes]:
            yield delta("hel")
            for _ in "ab":
                with budget.call(model="big", messages=SHORT, max_tokens=20) as call:
                    call.record({"prompt_tokens": 1, "completion_tokens": 1})

        return Response(events(), mimetype="text/event-stream")

    with pytest.raises(BudgetExceeded):
        bench.post({**QUESTION, "stream": True})

    assert bench.store.charged()[:2] == (1, 2)


def test_a_view_that_answers_429_itself_is_left_alone() -> None:
    """An abort of the application is its own affair; nothing is charged for it."""
    bench = FlaskBench()

    @bench.app.post(OWN)
    def own() -> str:
        g.asked = True
        abort(429)

    answer = bench.post(path=OWN)

    assert answer.status_code == 429
    assert answer.content_type.startswith("text/html")
    assert bench.settled["grade"] == "released"


def test_flasks_own_bound_on_bodies_is_kept() -> None:
    """A body over `MAX_CONTENT_LENGTH` is refused unread, in the dialect of its route."""
    bench = FlaskBench()
    app = type(bench.app)("bounded")
    app.config.update(
        MAX_CONTENT_LENGTH=len(RAW) - 1, LLM_BUDGET_CONFIG=bench.config.model_dump(mode="json")
    )
    app.config["LLM_BUDGET_JWT_KEY"] = ISSUER.key
    bench.budget.init_app(app)
    bench.app = app

    answer = bench.post()

    assert answer.status_code == 413
    assert content(answer)["error"]["code"] == "request_too_large"
    assert str(len(RAW) - 1) in content(answer)["error"]["message"]
