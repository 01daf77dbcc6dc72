"""Tests of `llm_budget_mw.routes`."""

from __future__ import annotations

from typing import Any

import pytest

from llm_budget_mw.config import RouteConfig, load
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.routes import Routes
from llm_budget_mw.types import Prompt

HEAD = RequestHead("POST", "/chat")


def route(path: str, dialect: str | None = "openai_chat", **options: Any) -> RouteConfig:
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


# --- told from the path


def below(path: str, **options: Any) -> Routes:
    return Routes([route(path, None, **options)])


def told(routes: Routes, path: str, method: str = "POST") -> str | None:
    """Return in what dialect a request is read: `refused` if in none, None if not at all."""
    match = routes.find(method, path)
    if match is None:
        return None
    return "refused" if match.refuses else match.dialect.name


def test_a_prefix_without_a_dialect_speaks_what_the_path_says() -> None:
    """One route guards all that providers serve below it, each in its own format."""
    routes = below("/proxy/*", feature="all", cache_prompt=True)
    match = routes.find("POST", "/proxy/v1/messages")

    assert match is not None
    assert (match.dialect.name, match.config.feature) == ("anthropic_messages", "all")
    assert told(routes, "/proxy/v1/chat/completions") == "openai_chat"
    assert told(routes, "/v1/chat/completions") is None


def test_a_path_nobody_knows_is_refused() -> None:
    """By default, with a status no SDK tries again, naming path and remedy."""
    match = below("/v1/*").find("POST", "/v1/images/generations")
    assert match is not None

    with pytest.raises(RequestError, match="'/v1/images/generations' is not known") as caught:
        match.read(RequestHead("POST", "/v1/images/generations"), b"{}")

    assert (caught.value.status, caught.value.code) == (404, "unknown_route")
    assert "`unknown_route`" in caught.value.message


def test_a_long_path_is_not_repeated_whole() -> None:
    """The error stays short."""
    head = RequestHead("POST", "/v1/" + "x" * 10_000)
    match = below("/v1/*").find("POST", head.path)
    assert match is not None

    with pytest.raises(RequestError) as caught:
        match.read(head, b"")

    assert len(caught.value.message) < 500


def test_a_path_nobody_knows_may_be_custom() -> None:
    """It is reserved as the configuration says; a known one is read from its request."""
    options = {"model": "big", "input_tokens": 3_000, "max_tokens": 50}
    routes = below("/v1/*", unknown_route="custom", **options)
    match = routes.find("POST", "/v1/images/generations")
    assert match is not None

    call = match.read(HEAD, b"anything")

    assert match.is_custom
    assert (call.model, call.max_output) == ("big", 50)
    assert told(routes, "/v1/embeddings") == "openai_embeddings"


def test_a_path_nobody_knows_may_pass() -> None:
    """Where that is written out, and what is known is guarded all the same."""
    routes = below("/v1/*", unknown_route="pass")

    assert told(routes, "/v1/files") is None
    assert told(routes, "/v1/responses") == "openai_responses"


def test_a_longer_prefix_lets_a_part_pass() -> None:
    """What costs nothing is let through, and not caught by the prefix around it."""
    routes = Routes([route("/v1/*", None), route("/v1/files*", None, unknown_route="pass")])

    assert told(routes, "/v1/files/7") is None
    assert told(routes, "/v1/audio/speech") == "refused"
    assert told(routes, "/v1/files/../chat/completions") == "refused"


def test_only_the_methods_of_a_route_are_told() -> None:
    """Providers generate by POST; listing models costs nothing."""
    routes = below("/v1/*")

    assert told(routes, "/v1/models", "GET") is None
    assert told(below("/v1/*", methods=["GET"]), "/v1/models", "HEAD") == "refused"
    assert told(routes, "/v1/messages", "post") == "anthropic_messages"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/V1/Chat/COMPLETIONS",
        "/v1/chat%2Fcompletions",
        "/v1/%63hat/completions",
        "/%761/chat/completions",
    ],
)
def test_another_spelling_is_guarded_as_well(path: str) -> None:
    """Decoded once by the server, some of it is encoded still: an application may decode it."""
    assert told(below("/v1/*", unknown_route="pass"), path) == "openai_chat"


@pytest.mark.parametrize(
    "path",
    [
        "/v1//chat/completions",
        "//v1/chat/completions",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/x/../v1/chat/completions",
        "/v1/../v1/chat/completions",
        "/v1/chat/completions/.",
        "/v1\\chat\\completions",
        "/v1/chat/completions;x=1",
        "/v1/chat/completions?x",
        "/v1/chat/completions#x",
        "/v1/chat/comple\ttions",
        "/v1/chat/completions\n",
        "/v1/chat/completions\x00",
        "/v1/chat/completions%00",
        "/v1/%252e%252e/v1/chat/completions",
        "/v1/%2563hat/completions",
    ],
)
@pytest.mark.parametrize("unknown", ["refuse", "custom", "pass"])
def test_a_path_that_servers_may_take_differently_is_refused(path: str, unknown: str) -> None:
    """Whatever is configured for paths that are unknown."""
    assert told(below("/v1/*", unknown_route=unknown), path) == "refused"


def test_no_spelling_leads_out_of_a_prefix_with_a_dialect() -> None:
    """It is read in that dialect, as any other request below."""
    routes = Routes([route("/v1/*")])
    paths = ("//v1/chat", "/x/../v1/chat", "/V1/chat", "/%76%31/chat", "\\v1/chat")

    assert [told(routes, path) for path in paths] == ["openai_chat"] * len(paths)
    assert told(routes, "/v2/chat") is None


def test_a_configured_prefix_is_read_as_written() -> None:
    """From a file, with nothing but a path."""
    config = load({"tiers": {"default": {}}, "routes": [{"path": "/*"}]})

    assert told(Routes(config.routes), "/api/chat") == "ollama"
