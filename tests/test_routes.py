"""Tests of `llm_budget_mw.routes`."""

from __future__ import annotations

from typing import Any

import pytest

from llm_budget_mw.config import RouteConfig
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.routes import Routes
from llm_budget_mw.types import Prompt

HEAD = RequestHead("POST", "/chat")


def route(path: str, dialect: str = "openai_chat", **options: Any) -> RouteConfig:
    return RouteConfig.model_validate({"path": path, "dialect": dialect, **options})


def found(routes: Routes, path: str, method: str = "POST") -> str | None:
    match = routes.find(method, path)
    return match.config.path if match else None


def test_what_is_not_listed_is_not_guarded() -> None:
    """Paths are exact: no slash, case or beginning stands for another."""
    routes = Routes([route("/chat")])

    assert found(routes, "/chat") == "/chat"
    assert {found(routes, path) for path in ("/", "", "/chat/", "/Chat", "/chat/x")} == {None}


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/v1/chat", "/v1/chat"),
        ("/v1/chats", "/v1/chat*"),
        ("/v1/models", "/v1/*"),
        ("/", "/*"),
    ],
)
def test_the_most_specific_route_wins(path: str, match: str) -> None:
    """An exact path before a prefix, a longer prefix before a shorter one."""
    routes = Routes([route("/*"), route("/v1/*"), route("/v1/chat*"), route("/v1/chat")])

    assert found(routes, path) == match


def test_a_method_that_one_route_leaves_out_is_still_guarded_by_another() -> None:
    """A route for some methods takes none of the others from the prefix around it."""
    routes = Routes([route("/v1/*", methods=["GET", "POST"]), route("/v1/chat")])

    assert found(routes, "/v1/chat", "POST") == "/v1/chat"
    assert found(routes, "/v1/chat", "GET") == "/v1/*"
    assert found(routes, "/v1/chat", "DELETE") is None


def test_a_route_reads_its_dialect() -> None:
    """What the body says stands; no configuration adds to it."""
    match = Routes([route("/chat")]).find("POST", "/chat")
    assert match is not None
    body = b'{"model":"big","messages":[{"role":"user","content":"hi"}],"max_tokens":7}'

    call = match.read(HEAD, body)

    assert not match.is_custom
    assert (call.model, call.max_output, call.prompt.texts) == ("big", 7, ["hi"])
    with pytest.raises(RequestError):
        match.read(HEAD, b"[]")


def test_a_custom_route_is_read_from_the_configuration() -> None:
    """The body is the application's own: model and size are configured."""
    own = route("/ask", "custom", model="big", input_tokens=3_000, max_tokens=50)
    match = Routes([own]).find("POST", "/ask")
    assert match is not None

    call = match.read(HEAD, b"\xff anything")

    assert match.is_custom
    assert (call.model, call.max_output) == ("big", 50)
    assert call.prompt == Prompt(overhead_tokens=3_000)
    assert match.dialect.write_grant(HEAD, call, "big", 50).body == b"\xff anything"


@pytest.mark.parametrize(("methods", "match"), [(["GET"], "/chat"), (["POST"], None)])
def test_head_is_guarded_where_get_is(methods: list[str], match: str | None) -> None:
    """Frameworks answer HEAD with the handler of GET: it must not be a way around."""
    assert found(Routes([route("/chat", methods=methods)]), "/chat", "HEAD") == match
