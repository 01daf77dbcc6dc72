"""Anthropic Messages: requests, grants, and the usage of whole answers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import Media, ModelCall, Usage

HEAD = RequestHead("POST", "/v1/messages")
HELLO = [{"role": "user", "content": "hello"}]
ANTHROPIC = AnthropicMessages()
PLAIN_TOKENS = 13 + 8

FIELDS = [
    "system", "messages", "max_tokens", "content", "type", "text", "source", "data", "tools",
    "thinking", "cache_control", "context_management", "edits", "signature", "tool_result",
    "document", "stream", "mcp_servers",
]  # fmt: skip
hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(FIELDS),
    lambda inner: (
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=15,
)


def read(**fields: Any) -> ModelCall:
    body = {"model": "claude-x", "max_tokens": 4096, "messages": HELLO} | fields
    return ANTHROPIC.read_request(HEAD, json.dumps(body).encode())


def content(*blocks: Any) -> ModelCall:
    return read(messages=[{"role": "user", "content": list(blocks)}])


def written(output: int, **fields: Any) -> dict[str, Any]:
    rewritten = ANTHROPIC.write_grant(HEAD, read(**fields), "granted", output)
    body: dict[str, Any] = json.loads(rewritten.body)
    return body


def usage(**report: Any) -> Usage | None:
    return ANTHROPIC.read_usage(json.dumps({"model": "c", "usage": report}).encode(), {})


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({}, None),
        ({"service_tier": "standard_only"}, "standard_only"),
        ({"speed": "fast", "service_tier": "auto"}, "fast"),
        ({"inference_geo": "global"}, None),
        ({"inference_geo": "us"}, "regional_standard"),
        ({"inference_geo": "us", "service_tier": "auto"}, "regional_auto"),
        ({"inference_geo": "us", "speed": "fast"}, "regional_fast"),
        ({"inference_geo": "us", "service_tier": "x" * 256}, "regional_" + "x" * 247),
        ({"service_tier": "priority"}, "reserved"),
    ],
)
def test_speed_and_region_are_a_part_of_the_service_tier(
    fields: dict[str, Any], tier: str | None
) -> None:
    """What decides the price of a request decides it the same way in its answer."""
    answered = usage(input_tokens=1, output_tokens=1, **fields)

    assert read(**fields).service_tier == tier
    assert answered
    assert answered.service_tier == tier


@pytest.mark.parametrize("field", ["service_tier", "inference_geo"])
def test_a_tier_or_region_that_is_no_name_is_refused(field: str) -> None:
    """The price of such a request would be a guess."""
    with pytest.raises(RequestError, match=field):
        read(**{field: 5})


def test_a_plain_request_is_read() -> None:
    """Model, bound, stream, tier and text are those of the body."""
    call = read(system="be good", stream=True, service_tier="auto")

    assert (call.model, call.max_output, call.samplings, call.stream) == ("claude-x", 4096, 1, True)
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (
        ["be good", "hello"],
        PLAIN_TOKENS,
    )
    assert (call.surcharges, call.service_tier) == (frozenset(), "auto")


@pytest.mark.parametrize("value", [-1, 1.0, True, "5", [], 2**31])
def test_a_bound_that_bounds_nothing_is_refused(value: Any) -> None:
    """Negative, fractional, boolean, textual and huge bounds are a 400."""
    with pytest.raises(RequestError, match=r"^max_tokens must be an integer from 0 to"):
        read(max_tokens=value)


def test_a_bound_is_required_and_may_be_zero() -> None:
    """The API knows no default; zero only fills the cache."""
    assert read(max_tokens=0).max_output == 0
    with pytest.raises(RequestError, match="max_tokens is required"):
        read(max_tokens=None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 5}, "model must be a string"),
        ({"messages": []}, "messages must be an array with"),
        ({"messages": [5]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": 5}]}, r"messages\[0\].content must be a string or"),
        ({"system": 5}, "system must be a string or an array of blocks, not 5"),
        ({"stream": 1}, "stream must be true or false"),
        ({"tools": [1]}, r"tools\[0\] must be an object"),
        ({"service_tier": []}, "service_tier must be a string"),
        ({"fallbacks": "default"}, "fallbacks is not allowed here"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    """Each message says which field and what it must be."""
    with pytest.raises(RequestError, match=f"^{message}"):
        read(**fields)


def test_blocks_become_text_and_media() -> None:
    """Text of every kind is text, sources are media, base64 is never text."""
    call = content(
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "document", "title": "T", "context": "C", "source": {"type": "file"}},
        {"type": "document", "source": {"type": "text", "data": "plain"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "in"}]}},
        {"type": "document", "source": {"type": "base64", "data": "QUJDRA=="}},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"data": "QUJD"}},
        {"type": "tool_result", "tool_use_id": "t", "content": "42"},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]},
        {"type": "search_result", "title": "S", "data": "QUJD"},
    )  # fmt: skip

    assert list(call.prompt.texts) == [
        "look", "T", "C", "plain", "in",
        '{"type":"tool_use","id":"t","name":"f","input":{"data":"QUJD"}}',
        "t", "42", '{"type":"search_result","title":"S","data":""}',
    ]  # fmt: skip
    assert list(call.prompt.media) == [
        Media("image", b"ABC", 3),
        Media("image"),
        Media("file"),
        Media("file", b"ABCD", 4),
        Media("image"),
        Media("file", b"ABC", 3),
    ]


def test_sealed_text_is_reserved_by_its_length() -> None:
    """Encrypted thinking and search results count a token for three of their bytes."""
    call = content(
        {"type": "thinking", "thinking": "hm", "signature": "A" * 400},
        {"type": "redacted_thinking", "data": "A" * 401},
        {"type": "web_search_tool_result", "content": [{"encrypted_content": "A" * 4}]},
        {"type": "redacted_thinking", "data": 5},
    )

    assert call.prompt.overhead_tokens == PLAIN_TOKENS + 100 + 101 + 1
    assert sum(map(len, call.prompt.texts)) < 200
    assert not call.prompt.media


@pytest.mark.parametrize(
    ("tool", "overhead", "features"),
    [
        ({"name": "f", "input_schema": {}}, 16, set[str]()),
        ({"type": "custom", "name": "f"}, 16, set[str]()),
        ({"type": "bash_20250124", "name": "bash"}, 800, set[str]()),
        ({"type": "web_search_20260318", "max_uses": 2}, 800, {"web_search"}),
        ({"type": "web_fetch_20260318"}, 800, {"web_fetch"}),
        ({"type": "code_execution_20260521"}, 800, {"code_execution"}),
        ({"type": "mcp_toolset"}, 800, {"mcp"}),
        ({"type": "advisor_20260301"}, 800, {"server_tool"}),
        ({"type": []}, 800, {"server_tool"}),
    ],
)
def test_tools_bring_hidden_input(tool: dict[str, Any], overhead: int, features: set[str]) -> None:
    """Any tool adds a system prompt; one of the provider's adds its schema, and may add more."""
    call = read(tools=[tool])

    assert call.prompt.overhead_tokens == PLAIN_TOKENS + 700 + overhead
    assert call.surcharges == features
    assert list(call.prompt.texts)[1:] == [json.dumps([tool], separators=(",", ":"))]


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"mcp_servers": [{"url": "https://example.com"}]}, {"mcp"}),
        ({"mcp_servers": []}, set[str]()),
        ({"container": {"skills": []}}, {"code_execution"}),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, {"compaction"}),
        ({"context_management": {"edits": [{"type": "clear_tool_uses"}, 5]}}, set[str]()),
        ({"cache_control": {"type": "ephemeral"}}, {"cache_write"}),
        ({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, {"cache_write_1h"}),
        ({"system": [{"type": "text", "text": "a", "cache_control": {}}]}, {"cache_write"}),
        ({"tools": [{"name": "f", "cache_control": {"ttl": "5m"}}]}, {"cache_write"}),
    ],
)
def test_features_that_cost_more_are_named(fields: dict[str, Any], features: set[str]) -> None:
    """Servers, containers, compaction and cache writes are known before the call."""
    assert read(**fields).surcharges == features


def test_fast_mode_is_a_price_tier() -> None:
    """`speed` selects the price where it is set."""
    assert read(speed="fast", service_tier="auto").service_tier == "fast"


def test_fields_nobody_knows_count_as_input() -> None:
    """Text in a new field cannot hide from the estimate."""
    assert list(read(new="text").prompt.texts) == ["hello", '"text"']


def test_the_grant_is_written_and_nothing_else() -> None:
    """Model and bound change; unknown fields and order stay."""
    body = written(100, zzz={"b": 1, "a": 2}, temperature=0.5)

    assert body == {
        "model": "granted",
        "max_tokens": 100,
        "messages": HELLO,
        "zzz": {"b": 1, "a": 2},
        "temperature": 0.5,
    }
    assert list(body)[:3] == ["model", "max_tokens", "messages"]


@pytest.mark.parametrize(
    ("output", "budget", "expected"),
    [
        (3000, 2000, 2000),
        (2001, 2000, 2000),
        (2000, 2000, 1999),
        (1025, 2000, 1024),
        (1024, 2000, None),
        (0, 2000, None),
        (4096, 9000, 9000),
        (3000, "x", "x"),
    ],
)
def test_a_thinking_budget_still_fits(output: int, budget: Any, expected: Any) -> None:
    """Below a lowered bound, at least 1024, or no thinking; an unchanged bound changes nothing."""
    thinking = {"type": "enabled", "budget_tokens": budget}
    body = written(output, thinking=thinking)

    wanted = None if expected is None else thinking | {"budget_tokens": expected}
    assert body.get("thinking") == wanted


@pytest.mark.parametrize("thinking", [{"type": "adaptive"}, {"type": "disabled"}, None])
def test_thinking_without_a_budget_is_left_alone(thinking: Any) -> None:
    """Only a number of tokens can be too large."""
    assert written(5, thinking=thinking)["thinking"] == thinking


def test_the_request_that_was_read_is_not_touched() -> None:
    """The grant is written into a copy: a call may be granted again."""
    call = read(thinking={"type": "enabled", "budget_tokens": 2000})
    before = json.dumps(call.body)
    ANTHROPIC.write_grant(HEAD, call, "other", 1500)

    assert json.dumps(call.body) == before


@settings(deadline=None)
@given(hostile_json, hostile_json, hostile_json)
def test_any_json_is_read_or_refused(body: Any, system: Any, block: Any) -> None:
    """Only `RequestError` is raised, and what was read can be written."""
    for fields in (body, {"system": system, "messages": [{"content": [block]}], "max_tokens": 1}):
        with contextlib.suppress(RequestError):
            call = ANTHROPIC.read_request(HEAD, json.dumps(fields).encode())
            ANTHROPIC.write_grant(HEAD, call, "m", 0)


def test_input_holds_what_the_cache_gave_and_took() -> None:
    """Anthropic leaves cache reads and writes out of `input_tokens`; here they are in."""
    report = {
        "input_tokens": 21,
        "cache_creation_input_tokens": 188,
        "cache_read_input_tokens": 2048,
        "cache_creation": {"ephemeral_5m_input_tokens": 88, "ephemeral_1h_input_tokens": 100},
        "output_tokens": 393,
        "output_tokens_details": {"thinking_tokens": 200},
        "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0},
        "service_tier": "standard",
    }

    assert usage(**report) == Usage(
        input_tokens=2257,
        output_tokens=393,
        cache_read_tokens=2048,
        cache_write_tokens=188,
        cache_write_1h_tokens=100,
        reasoning_tokens=200,
        web_searches=1,
        model="c",
        service_tier="standard",
    )


def test_a_cache_split_stands_for_a_missing_sum() -> None:
    """Writes are the larger of the total and its parts, never both."""
    split = {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 7}

    assert usage(input_tokens=1, cache_creation=split) == Usage(
        13, None, cache_write_tokens=12, cache_write_1h_tokens=7, model="c"
    )


def test_iterations_beside_the_answer_are_extra() -> None:
    """Compaction and an advisor are billed on top, the advisor at its own model's price."""
    found = usage(
        input_tokens=220,
        output_tokens=8,
        iterations=[
            {"type": "message", "input_tokens": 220, "output_tokens": 8},
            {"type": "compaction", "input_tokens": 55_196, "output_tokens": 125},
            {"type": "advisor_message", "model": "big", "input_tokens": 9, "output_tokens": 3},
            {"type": "fallback_message", "model": "other", "input_tokens": 1, "output_tokens": 1},
            5,
        ],
    )

    assert found == Usage(
        220,
        8,
        model="c",
        extra=(Usage(55_196, 125, model="c"), Usage(9, 3, model="big")),
    )


def test_fast_mode_is_the_tier_of_the_answer() -> None:
    """`speed` says at which price the answer was made."""
    assert usage(input_tokens=1, speed="fast", service_tier="standard") == Usage(
        1, None, model="c", service_tier="fast"
    )


@pytest.mark.parametrize("value", [True, "5", -1, float("nan"), [], {}, None, 2**54])
def test_a_count_that_is_no_number_of_tokens_is_unknown(value: Any) -> None:
    """Unknown is None, never zero, and one unknown side does not hide the other."""
    assert usage(input_tokens=value, output_tokens=3) == Usage(None, 3, model="c")
    assert usage(input_tokens=3, output_tokens=value) == Usage(3, None, model="c")
    assert usage(input_tokens=value, cache_read_input_tokens=9) is None


@pytest.mark.parametrize("body", [b"", b"\x1f\x8b", b"[]", b"{}", b'{"usage":5}', b'{"usage":{}}'])
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    """Garbage and silence are both None."""
    assert ANTHROPIC.read_usage(body, {}) is None


@settings(deadline=None)
@given(hostile_json)
def test_any_answer_is_read_without_an_error(report: Any) -> None:
    """Reading an answer never raises."""
    for body in (report, {"usage": report}, {"usage": {"iterations": [report]}}):
        ANTHROPIC.read_usage(json.dumps(body).encode(), {})
