"""Guarded views: what they get, how they end, and which requests are guarded at all."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, assert_type

import pytest
from flask import Blueprint, Flask, Response, request, stream_with_context
from flask.views import MethodView, View
from werkzeug.exceptions import GatewayTimeout
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from llm_budget_mw import Budget
from llm_budget_mw.errors import ConfigurationError, MissingDependencyError
from llm_budget_mw.types import Charges
from llm_budget_mw_flask import LLMBudget, current_budget
from tests.adapters.flask_bench import FlaskBench, content
from tests.edge.driver import ANSWER, CHAT, DONE, ISSUER, OWN, QUESTION, USAGE_EVENT, delta

EXACT = Charges(1, 42, 12 * 2500 + 30 * 10_000)
NOTHING = Charges(0, 0, 0)
REPORT = {"prompt_tokens": 12, "completion_tokens": 30}


def chatting(bench: FlaskBench) -> list[dict[str, Any]]:
    """Give an application a view that answers as a provider would; return what that is asked."""
    asked: list[dict[str, Any]] = []

    @bench.app.post(CHAT)
    def chat() -> dict[str, Any]:
        asked.append(request.get_json(force=True))
        return ANSWER

    return asked


def test_a_view_reads_the_request_with_the_grant_in_it() -> None:
    """And its answer is charged by the usage in it, with the limits in its headers."""
    bench = FlaskBench({"max_tokens": 25})
    asked = chatting(bench)

    answer = bench.post()

    assert answer.json == ANSWER
    assert asked == [{**QUESTION, "max_tokens": 25}]
    assert "budget-per-month" in answer.headers["ratelimit"]
    assert bench.store.charged() == EXACT


def test_the_budget_is_at_hand_in_a_view() -> None:
    """`current_budget` is the budget of the request, and of nothing else."""
    bench = FlaskBench()

    @bench.app.post(OWN)
    def own() -> dict[str, Any]:
        current_budget.record(REPORT)
        assert isinstance(current_budget, Budget)
        return {"model": current_budget.model, "max_tokens": current_budget.max_tokens}

    answer = bench.post(b"anything", OWN)

    assert answer.json == {"model": "big", "max_tokens": 50}
    assert bench.store.charged() == EXACT
    assert bool(current_budget) is False
    assert_type(current_budget, Budget)
    with pytest.raises(RuntimeError, match="outside of a request"):
        _ = current_budget.model


def test_a_view_that_is_not_guarded_is_told_what_to_do() -> None:
    """Using a budget that is not there names the request and the remedy."""
    bench = FlaskBench(settings={"TESTING": True})

    @bench.app.post("/free")
    def free() -> str:
        return current_budget.model

    with pytest.raises(RuntimeError, match="POST /free has no budget: mark its view"):
        bench.post(path="/free")


def test_a_stream_is_passed_on_and_charged_by_its_usage() -> None:
    """The request and its budget are at hand while it is made; the spare usage is taken out."""
    bench = FlaskBench()
    seen: list[object] = []

    @bench.app.post(CHAT)
    def chat() -> Response:
        def events() -> Iterator[bytes]:
            for piece in (delta("hel"), delta("lo"), USAGE_EVENT, DONE):
                seen.append((request.path, current_budget.model))
                yield piece

        return Response(stream_with_context(events()), mimetype="text/event-stream")

    answer = bench.post({**QUESTION, "stream": True})

    assert answer.data == delta("hel") + delta("lo") + DONE
    assert seen == [(CHAT, "big")] * 4
    assert bench.store.charged() == EXACT
    assert bench.grade == ("exact", "complete")


def test_a_client_that_leaves_in_mid_stream_is_charged_what_was_made() -> None:
    """The generator is closed with the request and the budget still at hand."""
    bench = FlaskBench()
    cleaned: list[object] = []

    @bench.app.post(CHAT)
    def chat() -> Response:
        def events() -> Iterator[bytes]:
            try:
                while True:
                    yield delta("abcd")
            finally:
                cleaned.append((request.path, current_budget.model))

        return Response(stream_with_context(events()), mimetype="text/event-stream")

    answer = bench.post({**QUESTION, "stream": True}, buffered=False)
    pieces = answer.iter_encoded()
    next(pieces)
    next(pieces)
    answer.close()

    assert bench.grade == ("counted", "cut")
    assert bench.settled["output_tokens"] == 8
    assert cleaned == [(CHAT, "big")]


def test_an_async_view_makes_a_call_that_draws_on_its_request() -> None:
    """The budget is at hand in its event loop, and the call settles the reservation."""
    bench = FlaskBench()
    messages = [{"role": "user", "content": "hi"}]

    @bench.app.post(OWN)
    async def own() -> dict[str, Any]:
        async with current_budget.call(model="big", messages=messages, max_tokens=30) as call:
            call.record(REPORT)
        return {"reservation": call.grant.plan.id}

    answer = bench.post(b"", OWN)

    assert answer.status_code == 200
    assert [plan.id for plan in bench.store.plans] == [content(answer)["reservation"]]
    assert bench.store.charged() == EXACT


def test_an_async_stream_in_a_view_fails_as_flask_says() -> None:
    """Flask takes no async generators: nothing is sent, and nothing charged."""
    bench = FlaskBench()

    @bench.app.post(CHAT)
    def chat() -> Any:
        async def events() -> AsyncIterator[bytes]:
            yield b""

        return events()

    assert bench.post().status_code == 500
    assert bench.store.charged() == NOTHING


class UpstreamTimeoutError(Exception):
    """What a client library raises when it has waited in vain."""


@pytest.mark.parametrize("path", [CHAT, OWN])
@pytest.mark.parametrize("handled", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UpstreamTimeoutError(), ("estimated", "held")),
        (GatewayTimeout(), ("estimated", "held")),
        (ValueError("a bug"), ("released", "free")),
    ],
    ids=["time-out", "504", "bug"],
)
def test_after_a_time_out_the_hold_stays(
    path: str, handled: bool, error: Exception, expected: tuple[str, str]
) -> None:
    """Whether Flask or a handler of the application answers it: the provider may have worked."""
    bench = FlaskBench()
    if handled:
        bench.app.register_error_handler(Exception, lambda e: ("sorry", 500))

    @bench.app.post(path)
    def failing() -> str:
        raise error

    answer = bench.post(path=path)

    charged = bench.store.charged()
    assert answer.status_code >= 500
    assert bench.settled["grade"] == expected[0]
    assert ("free" if charged == NOTHING else "held") == expected[1]


def test_a_time_out_in_debug_mode_keeps_its_hold() -> None:
    """There Flask lets the exception through to the server."""
    bench = FlaskBench(settings={"PROPAGATE_EXCEPTIONS": True})

    @bench.app.post(OWN)
    def own() -> str:
        raise UpstreamTimeoutError

    with pytest.raises(UpstreamTimeoutError):
        bench.post(path=OWN)

    assert bench.settled["grade"] == "estimated"


def test_a_stream_that_breaks_is_charged_what_was_seen() -> None:
    """An exception in a generator is past Flask's handlers, and settled all the same."""
    bench = FlaskBench()

    @bench.app.post(CHAT)
    def chat() -> Response:
        def events() -> Iterator[bytes]:
            yield delta("hello")
            raise ConnectionError("upstream is gone")

        return Response(events(), mimetype="text/event-stream")

    with pytest.raises(ConnectionError, match="upstream is gone"):
        bench.post({**QUESTION, "stream": True})

    assert bench.grade == ("counted", "cut")


def wrapped(view: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a view as a decorator of the application does."""

    @functools.wraps(view)
    def wrapper(**arguments: Any) -> Any:
        return view(**arguments)

    return wrapper


def marked_views(app: Flask, budget: LLMBudget) -> None:
    """Add a view to every path below, each marked in another way."""
    guard = budget.guard(feature="search", model="big", input_tokens=100, max_tokens=30)

    @guard
    def view(**_: Any) -> str:
        current_budget.record(REPORT)
        return current_budget.model

    app.add_url_rule("/plain/<int:n>", "plain", view, methods=["GET", "POST"])
    app.add_url_rule("/wrapped", "wrapped", wrapped(view), methods=["POST"])

    class ByMethod(MethodView):
        @guard
        def get(self) -> str:
            return current_budget.model

        @guard
        def post(self) -> str:
            return current_budget.model

        def put(self) -> str:
            return "free"

    @guard
    class Whole(View):
        methods = ("POST",)

        def dispatch_request(self) -> str:
            return current_budget.model

    app.add_url_rule("/methods", view_func=ByMethod.as_view("methods"))
    app.add_url_rule("/class", view_func=Whole.as_view("class"))
    blueprint = Blueprint("inner", "inner", url_prefix="/inner")
    blueprint.add_url_rule("/<path:rest>", "view", view, methods=["POST"])
    app.register_blueprint(blueprint)

    @app.post("/async")
    @guard
    async def late() -> str:
        return current_budget.model


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/plain/7", "/plain/<int:n>"),
        ("GET", "/plain/7", "/plain/<int:n>"),
        ("HEAD", "/plain/7", "/plain/<int:n>"),
        ("POST", "/wrapped", "/wrapped"),
        ("POST", "/methods", "/methods"),
        ("HEAD", "/methods", "/methods"),
        ("POST", "/class", "/class"),
        ("POST", "/inner/a/b", "/inner/<path:rest>"),
        ("POST", "/async", "/async"),
        ("PUT", "/methods", None),
        ("OPTIONS", "/plain/7", None),
        ("POST", "/plain/seven", None),
        ("DELETE", "/plain/7", None),
    ],
)
def test_a_marked_view_is_guarded(method: str, path: str, route: str | None) -> None:
    """Under every method but OPTIONS, however it is registered; events name its rule."""
    bench = FlaskBench()
    marked_views(bench.app, bench.budget)

    answer = bench.post(b"", path, method=method)

    events = bench.sink.named("budget.settled")
    assert [(e["route"], e["feature"]) for e in events] == ([(route, "search")] if route else [])
    assert (answer.status_code == 200) == (method in ("PUT", "OPTIONS") or bool(route))


def test_a_marked_view_asks_who_pays() -> None:
    """A mark guards like a path in the configuration."""
    bench = FlaskBench(routes=[])
    marked_views(bench.app, bench.budget)

    answer = bench.post(b"", "/wrapped", token=None)

    assert answer.status_code == 401
    assert not bench.store.plans


def test_a_mark_is_stronger_than_the_configuration() -> None:
    """Who marks a view knows it better than a pattern does."""
    routes = [{"path": "/*", "dialect": "custom", "model": "big", "methods": ["GET", "POST"]}]
    bench = FlaskBench(routes=routes)

    @bench.app.get("/health")
    @bench.budget.exempt
    def health() -> str:
        return "fine"

    @bench.app.post("/small")
    @bench.budget.guard(model="small", max_tokens=7)
    def small() -> str:
        return f"{current_budget.model} {current_budget.max_tokens}"

    @bench.app.post("/other")
    def other() -> str:
        return current_budget.model

    assert bench.client.get("/health").text == "fine"
    assert bench.post(b"", "/small").text == "small 7"
    assert bench.post(b"", "/other").text == "big"
    assert bench.client.post("/nowhere").status_code == 401


def test_a_mark_may_speak_a_providers_dialect() -> None:
    """Then the body says which model, and its bound is written into it."""
    bench = FlaskBench({"max_tokens": 25}, routes=[])

    @bench.app.post("/proxy")
    @bench.budget.guard(dialect="openai_chat")
    def proxy() -> dict[str, Any]:
        assert request.get_json(force=True)["max_tokens"] == 25
        return ANSWER

    assert bench.post(path="/proxy").json == ANSWER
    assert bench.store.charged() == EXACT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dialect": "openai"}, "dialect"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"input_tokens": -1}, "input_tokens"),
        ({"dialect": "openai_chat", "model": "big"}, "`model` can be set with dialect 'custom'"),
    ],
)
def test_a_wrong_mark_stops_the_start(options: dict[str, Any], said: str) -> None:
    """It names the option where the view is defined, before any request."""
    with pytest.raises(ConfigurationError, match=said):
        LLMBudget().guard(**options)


@pytest.mark.parametrize("path", [OWN, "/", "//ask", "///ask", "/ask/", "ask", "", "//"])
@pytest.mark.parametrize("method", ["POST", "post"])
@pytest.mark.parametrize("strict", [True, False])
def test_no_way_of_writing_a_path_leads_past_the_guard(
    path: str, method: str, strict: bool
) -> None:
    """Whatever Flask takes for a guarded path or method, a stranger does not reach its view."""
    routes = [{"path": path, "dialect": "custom", "model": "big"} for path in (OWN, "/end/", "/")]
    bench = FlaskBench(routes=routes)
    bench.app.url_map.strict_slashes = strict
    for rule in (OWN, "/end/", "/"):
        bench.app.add_url_rule(rule, rule, lambda: "served", methods=["POST"])
    bench.app.add_url_rule("/free", "free", lambda: "served", methods=["POST"])

    for written in (path, path.replace("ask", "end"), path.replace("ask", "end") + "/"):
        environ = {"PATH_INFO": written, "REQUEST_METHOD": method}
        answer = bench.post(token=None, environ_overrides=environ)
        assert answer.text != "served"
        assert answer.status_code in (308, 401, 404)

    assert bench.post(path="/free", token=None).text == "served"


def test_views_are_not_matched_twice_without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application without marks does not pay for them."""
    bench = FlaskBench()
    chatting(bench)
    matched: list[object] = []
    adapt = bench.app.create_url_adapter

    def counting(asked: Any) -> Any:
        matched.append(asked)
        return adapt(asked)

    monkeypatch.setattr(bench.app, "create_url_adapter", counting)

    bench.post()

    assert len([asked for asked in matched if asked is not None]) == 1


def test_one_extension_serves_several_applications() -> None:
    """Each has its settings, its store and its marks; the extension keeps nothing of them."""
    first, second = FlaskBench({"requests": "1/day"}), FlaskBench()
    budget = LLMBudget()
    before = dict(vars(budget))
    apps = []
    for bench in (first, second):
        app = Flask("one of two")
        app.config["LLM_BUDGET_GUARD"] = bench.guard
        budget.init_app(app)
        app.add_url_rule(OWN, "own", lambda: current_budget.model, methods=["POST"])
        apps.append(app)
    headers = {"authorization": f"Bearer {ISSUER.token('alice')}"}
    both = Client(DispatcherMiddleware(apps[0], {"/second": apps[1]}))

    statuses = [apps[0].test_client().post(OWN, headers=headers).status_code for _ in "ab"]
    other = apps[1].test_client().post(OWN, headers=headers)
    mounted = both.post(f"/second{OWN}", headers=headers)

    assert statuses == [200, 429]
    assert other.status_code == 200
    # A mounted application is guarded by its whole path, which is not among its routes.
    assert mounted.status_code == 500
    assert (len(first.store.plans), len(second.store.plans)) == (2, 1)
    assert vars(budget) == before


def test_an_application_is_guarded_once() -> None:
    """Guarded twice, every request would be charged twice."""
    bench = FlaskBench()

    with pytest.raises(RuntimeError, match="'bench' is guarded already"):
        LLMBudget(bench.app)


def test_a_refused_start_leaves_the_application_as_it_was() -> None:
    """Nothing is registered for an application whose settings are wrong."""
    app = Flask("wrong")
    with pytest.raises(ConfigurationError):
        LLMBudget(app)

    assert "llm_budget" not in app.extensions
    assert "wsgi_app" not in vars(app)


def test_a_chunked_request_is_read() -> None:
    """A body without a length reaches the view with one."""
    bench = FlaskBench()
    asked = chatting(bench)
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}

    answer = bench.post(
        environ_overrides={**environ, "CONTENT_LENGTH": ""}, body=json.dumps(QUESTION).encode()
    )

    assert answer.status_code == 200
    assert asked == [QUESTION]


@pytest.mark.parametrize(
    ("missing", "error"),
    [("flask", MissingDependencyError), ("werkzeug.local", ModuleNotFoundError)],
)
def test_a_missing_package_is_named(
    missing: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Flask the import says what to install; another missing module keeps its name."""
    for name in [name for name in sys.modules if name.startswith("llm_budget_mw_flask")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(error) as caught:
        importlib.import_module("llm_budget_mw_flask")

    assert type(caught.value) is error
