"""The fifteen ways in which programs like this one lose money, by what they lose: a checklist.

Each docstring says what goes wrong elsewhere; most have more tests where they belong.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_budget_mw._http import refusal_answer
from llm_budget_mw.config import RefusalsConfig, RouteConfig
from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.engine import Ending
from llm_budget_mw.routes import Routes
from llm_budget_mw.tap import Tap
from llm_budget_mw.tokens.families import family_of
from llm_budget_mw.types import (
    Grade,
    Grant,
    Limit,
    LimitStatus,
    ModelCall,
    Offer,
    Plan,
    Prompt,
    Refusal,
    RefusalReason,
    Settlement,
    Subject,
    Usage,
    Window,
)
from tests.deployment import ALICE, configured, engine_of
from tests.dialects.streaming import event, run

SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}
ASKED = {"stream_options": {"include_usage": True}}
MESSAGES = [{"role": "user", "content": "hi"}]
CLAUDE = {"model": "claude-x", "max_tokens": 9, "messages": MESSAGES}
CHAT: dict[str, Any] = {"model": "big", "messages": MESSAGES}


def usage_of(dialect: str, **answer: Any) -> Usage:
    usage = dialect_for(dialect).read_usage(json.dumps(answer).encode(), {})
    assert usage is not None
    return usage


def call_to(dialect: str, path: str = "/", **fields: Any) -> ModelCall:
    return dialect_for(dialect).read_request(RequestHead("POST", path), json.dumps(fields).encode())


def served(dialect: str, *pieces: bytes, headers: dict[str, str] = SSE) -> Settlement:
    """Return how an answer settles that was passed on and then ended as ASGI ends it."""
    call = ModelCall("big", Prompt(("hello",)), 100, body=ASKED)
    tap = Tap(dialect_for(dialect), call)
    tap.start(200, headers)
    for piece in pieces:
        tap.feed(piece)
    tap.end()
    engine = engine_of(configured({"tokens": "100000/day"}))
    offer = Offer("big", 100, 1, 1.0, 21, 1, 52_500, 10_000)
    grant = Grant(Plan("0" * 24, (), (offer,), 60_000), offer, 100, None)
    return engine.settle(grant, tap.outcome(len), call)


def data(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


# --- 1


@pytest.mark.parametrize(
    ("dialect", "report", "tokens"),
    [
        (
            "anthropic_messages",
            {"input_tokens": 21, "cache_read_input_tokens": 2048, "cache_creation_input_tokens": 9},
            2078,
        ),
        (
            "bedrock",
            {"inputTokens": 21, "cacheReadInputTokens": 2048, "cacheWriteInputTokens": 9},
            2078,
        ),
        (
            "openai_chat",
            {"prompt_tokens": 2078, "prompt_tokens_details": {"cached_tokens": 2048}},
            2078,
        ),
        (
            "openai_responses",
            {"input_tokens": 2078, "input_tokens_details": {"cached_tokens": 2048}},
            2078,
        ),
    ],
)
def test_cached_input_is_added_where_the_provider_leaves_it_out_and_only_there(
    dialect: str, report: dict[str, Any], tokens: int
) -> None:
    """Read with the rule of another provider, cached input is free, or is paid for twice."""
    usage = usage_of(dialect, usage=report)

    assert (usage.input_tokens, usage.cache_read_tokens) == (tokens, 2048)


def test_gemini_counts_cached_input_in_its_prompt() -> None:
    """Elsewhere `cachedContentTokenCount` is added to the prompt that holds it."""
    report = {"promptTokenCount": 2078, "cachedContentTokenCount": 2048, "totalTokenCount": 2078}
    usage = usage_of("gemini", usageMetadata=report)

    assert (usage.input_tokens, usage.cache_read_tokens) == (2078, 2048)


# --- 2


@pytest.mark.parametrize("dialect", ["anthropic_messages", "bedrock_invoke"])
def test_compactions_and_advisors_are_billed_beside_the_counts_at_the_top(dialect: str) -> None:
    """The top says 220 and 8 while a compaction used 55,196 tokens that nobody else charges."""
    entries = [
        {"type": "message", "input_tokens": 220, "output_tokens": 8},
        {"type": "compaction", "input_tokens": 55_196, "output_tokens": 125},
        {"type": "advisor_message", "model": "dear", "input_tokens": 30, "output_tokens": 4},
    ]
    report = {"input_tokens": 220, "output_tokens": 8, "iterations": entries}
    usage = usage_of(dialect, model="c", usage=report)

    assert (usage.input_tokens, usage.output_tokens) == (220, 8)
    assert usage.extra == (Usage(55_196, 125, model="c"), Usage(30, 4, model="dear"))


# --- 3


@pytest.mark.parametrize("dialect", ["openai_chat", "openai_compatible", "openai_completions"])
def test_output_that_only_the_total_shows_is_charged(dialect: str) -> None:
    """Thoughts missing from `completion_tokens` are billed as output, and missed elsewhere."""
    report = {"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109}

    assert usage_of(dialect, usage=report).output_tokens == 74


# --- 4


def test_thoughts_of_gemini_come_on_top_of_its_candidates() -> None:
    """Taking `candidatesTokenCount` for all output loses most of what a thinking model costs."""
    report = {
        "promptTokenCount": 35, "candidatesTokenCount": 12, "thoughtsTokenCount": 62,
        "toolUsePromptTokenCount": 5, "totalTokenCount": 114,
    }  # fmt: skip
    usage = usage_of("gemini", usageMetadata=report)

    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (40, 74, 62)


# --- 5


@pytest.mark.parametrize(
    ("dialect", "path", "fields"),
    [
        ("openai_chat", "/", CHAT | {"web_search_options": {}}),
        ("openai_responses", "/", {"input": "hi", "tools": [{"type": "web_search"}]}),
        ("anthropic_messages", "/", CLAUDE | {"tools": [{"type": "web_search_20260318"}]}),
        (
            "gemini",
            "/models/g:generateContent",
            {"contents": [{"parts": [{"text": "hi"}]}], "tools": [{"google_search": {}}]},
        ),
        (
            "bedrock",
            "/model/m/converse",
            {
                "messages": [{"content": [{"text": "hi"}]}],
                "toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]},
            },
        ),
    ],
)
def test_input_that_a_providers_own_tools_fetch_is_reserved_apart(
    dialect: str, path: str, fields: dict[str, Any]
) -> None:
    """A search brings up to 400,000 tokens into a request that shows ten: no estimate sees them."""
    call = call_to(dialect, path, **fields)
    engine = engine_of(configured({"tokens": "100000/day", "surcharges": {"web_search": 5000}}))

    assert call.surcharges == {"web_search"}
    tier = engine.policy.tier(ALICE)
    assert tier.surcharge("web_search") == 5000


# --- 6


def test_a_stream_of_chat_is_asked_for_its_usage() -> None:
    """Without `include_usage` nothing is reported, and nothing is charged elsewhere."""
    dialect, call = dialect_for("openai_chat"), call_to("openai_chat", **CHAT, stream=True)
    written = json.loads(dialect.write_grant(RequestHead("POST", "/"), call, "big", 9).body)

    assert written["stream_options"] == {"include_usage": True}


def test_the_usage_nobody_else_asked_for_is_charged_and_not_passed_on() -> None:
    """A client that did not ask breaks on a chunk without choices."""
    text = data({"choices": [{"delta": {"content": "hello"}}]})
    usage = data({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    reader = dialect_for("openai_chat").open_stream(call_to("openai_chat", **CHAT), SSE)
    seen = run(reader, [text + usage])

    assert (seen.passed, seen.usage) == (text, Usage(3, 4))


def test_a_stream_without_usage_is_counted_from_its_text() -> None:
    """Taken for zero, such a stream is free."""
    text = data({"choices": [{"delta": {"content": "x" * 50}}]})
    done = served("openai_chat", text, b"data: [DONE]\n\n")

    assert (done.grade, done.usage.output_tokens) == (Grade.COUNTED, 50)


# --- 7


@pytest.mark.parametrize(
    ("dialect", "cut", "terminator", "headers"),
    [
        (
            "openai_chat",
            data({"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "choices": []}),
            b"data: [DONE]\n\n",
            SSE,
        ),
        (
            "openai_responses",
            data({"type": "response.output_text.delta", "delta": "hi"}),
            data({"type": "response.completed", "response": {"usage": {"output_tokens": 1}}}),
            SSE,
        ),
        (
            "anthropic_messages",
            data({"type": "message_delta", "usage": {"output_tokens": 4}}),
            data({"type": "message_stop"}),
            SSE,
        ),
        (
            "gemini",
            data({"candidates": [{"content": {"parts": [{"text": "hi"}]}}]}),
            data({"candidates": [{"finishReason": "STOP"}]}),
            SSE,
        ),
        (
            "bedrock",
            event("contentBlockDelta", {"delta": {"text": "hi"}}) + event("messageStop", {}),
            event("metadata", {"usage": {"inputTokens": 3, "outputTokens": 4}}),
            {"content-type": "application/vnd.amazon.eventstream"},
        ),
        (
            "cohere",
            data({"type": "content-delta", "delta": {}}),
            data({"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}),
            SSE,
        ),
        (
            "ollama",
            b'{"response":"hi","done":false}\n',
            b'{"done":true,"eval_count":4}\n',
            {"content-type": "application/x-ndjson"},
        ),
    ],
)
def test_the_last_message_of_a_server_is_no_proof_that_a_stream_was_complete(
    dialect: str, cut: bytes, terminator: bytes, headers: dict[str, str]
) -> None:
    """A middleware inside ends the body neatly when the client has gone: only the format knows."""
    assert served(dialect, cut, headers=headers).ending == Ending.CUT
    assert served(dialect, cut, terminator, headers=headers).ending == Ending.COMPLETE


# --- 8


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_long_wait_comes_with_a_word_not_to_retry(dialect: str) -> None:
    """With `Retry-After: 3600` alone some SDKs try again at once, and others sleep for an hour."""
    limit = Limit("budget", "cost", 10**9, Window("calendar", unit="day"))
    status = LimitStatus(Subject("p", "alice"), limit, 0, 10**9, 3_600_000)
    refusal = Refusal(
        Plan("0" * 24, (), (), 1), RefusalReason.EXHAUSTED, status, (status,), 3_600_000, None, "no"
    )
    answer = refusal_answer(refusal, (status,), dialect_for(dialect), RefusalsConfig())
    headers = dict(answer.headers)

    assert (headers["retry-after"], headers["x-should-retry"]) == ("3600", "false")
    assert "retry-after-ms" not in headers


# --- 9


@pytest.mark.parametrize(
    ("dialect", "path", "fields", "samplings"),
    [
        ("openai_chat", "/", CHAT | {"n": 3}, 3),
        ("openai_chat", "/", CHAT | {"n": 2, "best_of": 5}, 5),
        ("openai_completions", "/", {"prompt": ["a", "b"], "n": 2}, 4),
        ("openai_completions", "/", {"prompt": [[1, 2], [3]], "best_of": 2}, 4),
        ("openai_completions", "/", {"prompt": [1, 2, 3]}, 1),
        (
            "gemini",
            "/models/g:generateContent",
            {"contents": {"parts": {"text": "hi"}}, "generation_config": {"candidate_count": 3}},
            3,
        ),
        ("bedrock_invoke", "/model/mistral.x/invoke", {"prompt": "a", "n": 3}, 3),
    ],
)
def test_every_answer_and_every_prompt_multiplies_the_output(
    dialect: str, path: str, fields: dict[str, Any], samplings: int
) -> None:
    """Two prompts with `n=2` and a bound of 25 may cost 100 tokens, and reserve 25 elsewhere."""
    call = call_to(dialect, path, **fields)
    engine = engine_of(configured({"tokens": "100000/day", "max_tokens": 25}))
    [offer] = engine.plan(ALICE, ModelCall("big", Prompt(), 25, samplings)).offers

    assert call.samplings == samplings
    assert offer.per_output_tokens == samplings


def test_a_completion_without_a_bound_is_bounded_at_sixteen() -> None:
    """That is where generation stops: reserving a tier's maximum refuses what would fit."""
    assert call_to("openai_completions", prompt="a").max_output == 16


# --- 10


def test_a_response_made_in_the_background_is_charged_once() -> None:
    """A poll shows the usage again: charged by the answer, a response costs as often as it is read."""
    routes = Routes([RouteConfig.model_validate({"path": "/v1/*", "dialect": "openai_responses"})])

    assert routes.find("POST", "/v1/responses") is not None
    assert routes.find("GET", "/v1/responses/resp_1") is None
    created = json.dumps({"object": "response", "status": "queued", "usage": None}).encode()
    done = served("openai_responses", created, headers=JSON)
    assert (done.grade, done.charges.tokens) == (Grade.ESTIMATED, 121)


# --- 11


def test_a_retry_after_on_a_success_is_not_a_refusal() -> None:
    """Anthropic sends the header with answers it bills: taken for a refusal, they are free."""
    answer = json.dumps({"usage": {"input_tokens": 3, "output_tokens": 4}}).encode()
    done = served("anthropic_messages", answer, headers=JSON | {"retry-after": "30"})

    assert (done.grade, done.charges.tokens) == (Grade.EXACT, 7)


# --- 12


def test_cached_tokens_of_cohere_are_not_taken_from_what_it_bills() -> None:
    """They are a part of what the model saw, which is more: subtracting gives negative numbers."""
    report = {
        "billed_units": {"input_tokens": 25.0, "output_tokens": 9},
        "tokens": {"input_tokens": 91, "output_tokens": 11},
        "cached_tokens": 80,
    }

    assert usage_of("cohere", usage=report) == Usage(25, 9)


# --- 13


@pytest.mark.parametrize("dialect", ["bedrock", "bedrock_invoke"])
def test_a_cache_count_of_bedrock_under_two_names_is_one_number(dialect: str) -> None:
    """Adding `cacheReadInputTokens` and `cacheReadInputTokenCount` doubles the cached input."""
    report = {
        "inputTokens": 10, "outputTokens": 4, "cacheReadInputTokens": 100,
        "cacheReadInputTokenCount": 100, "cacheWriteInputTokens": 7,
        "cacheWriteInputTokenCount": 7,
    }  # fmt: skip
    usage = usage_of(dialect, usage=report)

    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (117, 100, 7)


# --- 14


@pytest.mark.parametrize(
    "model", ["claude-opus-4-7", "claude-opus-5-1", "claude-sonnet-5-20261001"]
)
def test_text_has_more_tokens_for_a_new_claude(model: str) -> None:
    """Counted as before, 30 % of the input is not reserved: up to 1.72 times o200k was seen."""
    assert family_of(model).percent >= 172 > family_of("claude-opus-4-1").percent


# --- 15


@pytest.mark.parametrize(
    ("dialect", "answer", "sides"),
    [
        ("openai_chat", {"usage": {"completion_tokens": 4}}, (None, 4)),
        ("openai_responses", {"usage": {"output_tokens": 4}}, (None, 4)),
        ("anthropic_messages", {"usage": {"output_tokens": 4}}, (None, 4)),
        ("gemini", {"usageMetadata": {"candidatesTokenCount": 4}}, (None, 4)),
        ("bedrock", {"usage": {"inputTokens": 3}}, (3, None)),
        ("bedrock_invoke", {"usage": {"inputTokens": 3}}, (3, None)),
        ("cohere", {"usage": {"billed_units": {"input_tokens": 3}}}, (3, None)),
        ("ollama", {"eval_count": 4, "done": True}, (None, 4)),
    ],
)
def test_a_count_that_is_absent_is_unknown(
    dialect: str, answer: dict[str, Any], sides: tuple[int | None, int | None]
) -> None:
    """Read as zero, a remembered prompt or an answer of Nova is free: it keeps what is reserved."""
    usage = usage_of(dialect, **answer)
    done = served(dialect, json.dumps(answer).encode(), headers=JSON)

    assert (usage.input_tokens, usage.output_tokens) == sides
    reserved = (21 if sides[0] is None else 3) + (100 if sides[1] is None else 4)
    assert done.charges.tokens == reserved


def test_an_answer_that_says_only_how_it_was_served_reports_no_input() -> None:
    """A prompt that Vertex blocked has a `trafficType` and no counts: nothing was generated."""
    blocked = {"blockReason": "SAFETY"}
    usage = usage_of("gemini", promptFeedback=blocked, usageMetadata={"trafficType": "ON_DEMAND"})

    assert (usage.input_tokens, usage.output_tokens) == (None, 0)
