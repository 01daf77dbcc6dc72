"""Marking the stable prefix of Anthropic requests, so that it is cached."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope

from llm_budget_mw.config import load, load_route
from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.routes import Routes, route_of
from llm_budget_mw.types import ModelCall
from tests.edge.driver import MESSAGES, Bench, answering

HEAD = RequestHead("POST", "/v1/messages")
CACHING = AnthropicMessages(cache_prompt=True)
MARK = {"type": "ephemeral"}
CACHED = {"cache_prompt": True}
LONG = "Answer in verse. " * 200
"""3,400 bytes, counted as 1,133 tokens."""
SHORT = "Answer in verse."
TOOL = {"name": "look", "description": LONG, "input_schema": {"type": "object"}}
BODY = {"model": "claude-x", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


def read(**fields: Any) -> ModelCall:
    return CACHING.read_request(HEAD, json.dumps({**BODY, **fields}).encode())


def sent(**fields: Any) -> dict[str, Any]:
    """Return what the provider gets."""
    rewritten = CACHING.write_grant(HEAD, read(**fields), "claude-x", 100)
    body: dict[str, Any] = json.loads(rewritten.body)
    return body


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


def marks(body: dict[str, Any]) -> int:
    return json.dumps(body).count("cache_control")


def test_a_long_system_prompt_is_marked_at_its_end() -> None:
    """A string becomes a block with the mark; nothing else of the request changes."""
    body = sent(system=LONG)

    assert body == {**BODY, "system": [text(LONG, cache_control=MARK)]}


def test_the_last_block_with_text_carries_the_mark() -> None:
    """The provider refuses a mark on empty text."""
    body = sent(system=[text(LONG), text(SHORT), text(" \n")])

    assert body["system"] == [text(LONG), text(SHORT, cache_control=MARK), text(" \n")]


def test_tools_before_a_system_prompt_are_cached_with_it() -> None:
    """Tools come first, so that one mark covers both, and their length counts."""
    body = sent(system=SHORT, tools=[TOOL])

    assert (marks(body), body["tools"]) == (1, [TOOL])
    assert body["system"] == [text(SHORT, cache_control=MARK)]


@pytest.mark.parametrize("system", [None, "", " ", []])
def test_without_a_system_prompt_the_last_tool_carries_the_mark(system: Any) -> None:
    """A tool that is loaded when it is needed may not have one."""
    deferred = {**TOOL, "name": "later", "defer_loading": True}

    body = sent(system=system, tools=[TOOL, {**TOOL, "name": "see"}, deferred])

    assert body["tools"] == [TOOL, {**TOOL, "name": "see", "cache_control": MARK}, deferred]
    assert body["system"] == system


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-sonnet-4-5-20250929", 1024),
        ("claude-opus-4-8", 1024),
        ("claude-opus-4-7", 2048),
        ("claude-3-5-haiku-latest", 2048),
        ("claude-haiku-4.5", 4096),
        ("anthropic/claude-opus-4-6@20260101", 4096),
        (None, 1024),
    ],
)
def test_a_prefix_below_the_models_minimum_is_not_marked(model: str | None, tokens: int) -> None:
    """What cannot be cached is neither marked nor reserved at the price of writing."""
    frame = len('["",null]')
    enough = "x" * (3 * tokens - frame)

    assert marks(sent(model=model, system=enough)) == 1
    short = read(model=model, system=enough[1:])
    assert (short.body["system"], short.surcharges) == (enough[1:], frozenset())


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": MARK},
        {"system": [text(LONG, cache_control=MARK), text(SHORT)]},
        {"tools": [{**TOOL, "cache_control": {**MARK, "ttl": "1h"}}]},
        {"messages": [{"role": "user", "content": [text("hi", cache_control=MARK)]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [text("42", cache_control=MARK)],
                        }
                    ],
                }
            ]
        },
    ],
)
def test_marks_of_the_caller_are_left_alone(fields: dict[str, Any]) -> None:
    """Who sets a mark anywhere decides alone what is cached."""
    body = {"system": LONG, **fields}

    assert sent(**body) == {**BODY, **body}


def test_a_marked_prompt_is_held_at_the_price_of_writing() -> None:
    """The dialect says that the request writes to the cache, which costs more than input."""
    assert read(system=LONG).surcharges == {"cache_write"}
    assert read(system=LONG).prompt == AnthropicMessages().read_request(HEAD, plain(LONG)).prompt


def plain(system: str) -> bytes:
    return json.dumps({**BODY, "system": system}).encode()


def test_nothing_is_marked_unless_the_route_says_so() -> None:
    """The option is off by default."""
    marked = {}
    for path, options in {"/m": {}, "/off": {"cache_prompt": False}, "/on": CACHED}.items():
        config = load_route(path, {"dialect": "anthropic_messages", **options})
        route = Routes([config]).find("POST", path)
        assert route
        marked[path] = marks(route.read(HEAD, plain(LONG)).body)

    assert marked == {"/m": 0, "/off": 0, "/on": 1}
    in_code = route_of("/ask", dialect="anthropic_messages", cache_prompt=True)
    assert marks(in_code.read(HEAD, plain(LONG)).body) == 1


@pytest.mark.parametrize("tools", [[{}], [{"name": "x" * 4_000, "defer_loading": True}], []])
def test_what_cannot_carry_a_mark_is_sent_as_it_is(tools: Any) -> None:
    """Length alone does not make a prefix."""
    assert sent(tools=tools) == {**BODY, "tools": tools}


def test_the_option_on_another_dialect_is_an_error_that_names_it() -> None:
    """Option, value and remedy are in the message."""
    route = {"path": "/v1/chat", "dialect": "openai_chat", "cache_prompt": True}

    with pytest.raises(ConfigurationError) as caught:
        load({"tiers": {"default": {}}, "routes": [route]})

    for words in ("routes[0]", "cache_prompt = true", "'openai_chat'", "leave it out"):
        assert words in str(caught.value)


async def test_a_marked_request_is_reserved_cached_and_settled_with_what_it_saved() -> None:
    """Through the middleware: the provider gets the mark, and the event tells what it cost."""
    seen: list[bytes] = []

    async def look(scope: Scope, receive: Receive) -> None:
        seen.append(await Request(scope, receive).body())

    usage = {"input_tokens": 10, "cache_creation_input_tokens": 1_200, "output_tokens": 5}
    answer = {"type": "message", "model": "claude-x", "usage": usage}
    bench = Bench(
        answering(json.dumps(answer).encode(), before=look),
        routes=[{"path": MESSAGES, "dialect": "anthropic_messages", "cache_prompt": True}],
    )

    exchange = await bench.post({**BODY, "system": LONG}, MESSAGES)

    assert exchange.status == 200
    assert json.loads(seen[0])["system"] == [text(LONG, cache_control=MARK)]
    # In nano-dollars a token: input 3,000, written to the cache 3,750, output 15,000.
    assert bench.settled["cost_nano"] == 10 * 3_000 + 1_200 * 3_750 + 5 * 15_000
    assert bench.settled["cache_saved_nano"] == -1_200 * 750
    assert bench.settled["cache_write_tokens"] == 1_200
    (offer,) = bench.store.plans[0].offers
    assert offer.fixed_nano == offer.fixed_tokens * 3_750
    assert not bench.settled["overrun"]
