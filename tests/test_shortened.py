"""A route that shortens conversations instead of refusing them, from the request to the event."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from llm_budget_mw.config import load
from llm_budget_mw.errors import ConfigurationError
from tests.edge import driver as on_asgi
from tests.edge.driver import ANSWER, CHAT, MESSAGES
from tests.wsgi import driver as on_wsgi

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

RULES = {"role": "system", "content": "Be kind."}
LAST = {"role": "user", "content": "and now?"}
TURN = [
    {"role": "user", "content": "a question of some length"},
    {"role": "assistant", "content": "an answer of some length"},
]
TIER = {"tokens": "200/day", "max_tokens": 20, "min_tokens": 20, "budget": "$20/day"}


def conversation(turns: int) -> list[dict[str, str]]:
    return [RULES, *TURN * turns, LAST]


def routes(*, fit: bool = True) -> list[dict[str, Any]]:
    return [
        {"path": CHAT, "dialect": "openai_chat", "fit_messages": fit},
        {"path": MESSAGES, "dialect": "anthropic_messages", "fit_messages": fit},
    ]


class Keeper:
    """A WSGI application that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.asked = json.loads(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(ANSWER).encode()]


async def sent_over_asgi(body: dict[str, Any], path: str, **options: Any) -> tuple[Any, Any, Any]:
    """Return status, what the application was asked, and the event."""
    asked: list[Any] = []

    async def note(scope: object, receive: Any) -> None:
        asked.append(json.loads((await receive())["body"]))

    app = on_asgi.answering(json.dumps(ANSWER).encode(), before=note)
    bench = on_asgi.Bench(app, TIER, **options)
    exchange = await bench.post(body, path)
    (event,) = bench.sink.events
    return exchange.status, asked[0] if asked else None, event.attributes


async def sent_over_wsgi(body: dict[str, Any], path: str, **options: Any) -> tuple[Any, Any, Any]:
    keeper = Keeper()
    bench = on_wsgi.Bench(keeper, TIER, **options)
    exchange = bench.post(body, path)
    (event,) = bench.sink.events
    return exchange.status, keeper.asked or None, event.attributes


EDGES = pytest.mark.parametrize("send", [sent_over_asgi, sent_over_wsgi], ids=["asgi", "wsgi"])


@EDGES
async def test_a_conversation_too_long_for_a_limit_loses_its_oldest_turns(send: Any) -> None:
    """The system message and the last question stay, and the event tells."""
    messages = conversation(20)
    body = {"model": "big", "messages": messages}

    refused, _, told = await send(body, CHAT, routes=routes(fit=False))
    status, asked, event = await send(body, CHAT, routes=routes())

    assert (refused, told["shortened"]) == (413, False)
    assert (status, event["shortened"]) == (200, True)
    kept = asked["messages"]
    assert (kept[0], kept[-1]) == (RULES, LAST)
    assert 3 < len(kept) < len(messages)
    assert kept[1:-1] == TURN * ((len(kept) - 2) // 2)
    assert event["held_tokens"] <= 200


@EDGES
async def test_what_fits_is_left_as_it_is(send: Any) -> None:
    """To the last message."""
    body = {"model": "big", "messages": conversation(1)}

    status, asked, event = await send(body, CHAT, routes=routes())

    assert (status, event["shortened"]) == (200, False)
    assert asked["messages"] == body["messages"]


@EDGES
async def test_a_last_question_too_long_by_itself_is_refused(send: Any) -> None:
    """By the limit that refused it, as without the option."""
    body = {"model": "big", "messages": [{"role": "user", "content": "x" * 4000}]}

    status, asked, event = await send(body, CHAT, routes=routes())

    assert (status, asked) == (413, None)
    assert event["limit"] == "tokens-per-day"


async def test_a_conversation_with_claude_is_shortened_as_well() -> None:
    """Its system prompt stands beside the messages, and counts."""
    body = {
        "model": "claude-x",
        "system": "Be kind.",
        "max_tokens": 20,
        "messages": conversation(20)[1:],
    }

    status, asked, event = await sent_over_asgi(body, MESSAGES, routes=routes())

    assert (status, event["shortened"]) == (200, True)
    assert asked["system"] == "Be kind."
    assert asked["messages"][0]["role"] == "user"
    assert asked["messages"][-1] == LAST


def test_a_format_whose_messages_nobody_can_shorten_is_refused_at_the_start() -> None:
    """The error names option, value and remedy."""
    with pytest.raises(ConfigurationError, match="fit_messages can be set with the dialects"):
        load(
            {
                "tiers": {"default": {}},
                "routes": [{"path": "/x", "dialect": "gemini", "fit_messages": True}],
            }
        )
