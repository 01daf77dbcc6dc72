"""OpenAI Responses: requests, grants, and the usage of whole answers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_responses import OpenAIResponses
from llm_budget_mw.dialects.protocol import Problem, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import Media, ModelCall, Usage

HEAD = RequestHead("POST", "/v1/responses")
COMPACT = RequestHead("POST", "/v1/responses/compact")
COUNT = RequestHead("POST", "/v1/responses/input_tokens/")
RESPONSES = OpenAIResponses()
PLAIN_TOKENS = 3 + 4
GARBAGE = [True, "5", -1, 1e999, float("nan"), [], {}, None, 2**54]

FIELDS = [
    "input", "content", "type", "role", "text", "tools", "message", "input_image", "image_url",
    "namespace", "output", "reasoning", "encrypted_content", "prompt", "instructions", "stream",
    "item_reference", "max_output_tokens", "environment", "usage", "status", "tool_usage",
    "image_gen", "svg_usage", "input_tokens", "output_tokens", "response", "delta", "item",
    "response.completed", "response.output_text.delta", "image_generation_call",
]  # fmt: skip
hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(FIELDS),
    lambda inner: (
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=15,
)


def read(head: RequestHead = HEAD, **fields: Any) -> ModelCall:
    body = {"model": "gpt-x", "input": "hello"} | fields
    return RESPONSES.read_request(head, json.dumps(body).encode())


def written(output: int, head: RequestHead = HEAD, **fields: Any) -> dict[str, Any]:
    rewritten = RESPONSES.write_grant(head, read(head, **fields), "granted", output)
    assert rewritten.path is None
    body: dict[str, Any] = json.loads(rewritten.body)
    return body


def usage(**answer: Any) -> Usage | None:
    return RESPONSES.read_usage(json.dumps(answer).encode(), {})


def test_a_plain_request_is_read() -> None:
    """Model, bound, stream, tier and text are those of the body."""
    call = read(
        instructions="be good", max_output_tokens=99, stream=True, service_tier="flex", user="u",
        background=True, store=True, max_tool_calls=3, reasoning={"effort": "low"},
    )  # fmt: skip

    assert (call.model, call.max_output, call.samplings, call.stream) == ("gpt-x", 99, 1, True)
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (
        ["be good", "hello"],
        PLAIN_TOKENS,
    )
    assert (call.surcharges, call.service_tier) == (frozenset(), "flex")


def test_the_largest_bound_counts_and_replaces_all() -> None:
    """A server may obey any of the names, so only the granted one stays."""
    names: dict[str, Any] = {
        "max_output_tokens": 5,
        "max_tokens": 700,
        "max_completion_tokens": None,
    }

    assert read(**names).max_output == 700
    assert written(30, **names) == {"model": "granted", "input": "hello", "max_output_tokens": 30}


@pytest.mark.parametrize("name", ["max_output_tokens", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "5", [], 2**31])
def test_a_bound_that_bounds_nothing_is_refused(name: str, value: Any) -> None:
    """Zero, negative, fractional, boolean, textual and huge bounds are a 400."""
    with pytest.raises(RequestError, match=rf"^{name} must be an integer from 1 to"):
        read(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 5}, "model must be a string"),
        ({"model": ""}, "model must be a string"),
        ({"models": ["a"]}, "models is not allowed here"),
        ({"input": 5}, "input must be a string or an array of items, not 5"),
        ({"input": [5]}, r"input\[0\] must be an object"),
        ({"input": [{"role": "user", "content": 5}]}, r"input\[0\].content must be a string or"),
        ({"instructions": []}, "instructions must be a string"),
        ({"stream": 1}, "stream must be true or false"),
        ({"background": "yes"}, "background must be true or false"),
        ({"max_tool_calls": -1}, "max_tool_calls must be an integer"),
        ({"tools": {}}, "tools must be an array"),
        ({"tools": [1]}, r"tools\[0\] must be an object"),
        ({"service_tier": []}, "service_tier must be a string"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    """Each message says which field and what it must be."""
    with pytest.raises(RequestError, match=f"^{message}"):
        read(**fields)


def test_tools_nested_without_end_are_refused() -> None:
    """Namespaces may hold tools, but not for ever."""
    tool: dict[str, Any] = {"type": "function"}
    for _ in range(70):
        tool = {"type": "namespace", "tools": [tool]}

    with pytest.raises(RequestError, match="nested deeper"):
        read(tools=[tool])


def test_items_become_text_and_media() -> None:
    """Text of every kind is text, files and images are media, sealed text is tokens."""
    parts = [
        {"type": "input_text", "text": "look"},
        "bare",
        {"type": "input_image", "image_url": "data:image/png;base64,QUJD", "detail": "low"},
        {"type": "input_image", "file_id": "f"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "QUJDRA=="},
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
        {"type": "new", "what": "ever"},
        5,
    ]
    screenshot = {"type": "computer_screenshot", "image_url": "https://example.com/a.png"}
    call = read(
        input=[
            {"type": "message", "role": "user", "content": parts},
            {"role": "odd", "content": "strange"},
            {"type": "function_call", "id": "i", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "output": "42"},
            {"type": "function_call_output", "output": [{"type": "output_text", "text": "in"}]},
            {"type": "computer_call_output", "output": screenshot},
            {"type": "image_generation_call", "result": "QUJD"},
            {"type": "reasoning", "summary": [], "encrypted_content": "A" * 40},
        ]
    )

    assert list(call.prompt.texts) == [
        "look", "bare", "a.pdf", '{"type":"new","what":"ever"}', '{"role":"odd"}', "strange",
        '{"name":"f","arguments":"{}"}', "42", "in", '{"summary":[],"encrypted_content":""}',
    ]  # fmt: skip
    assert list(call.prompt.media) == [
        Media("image", b"ABC", 3, "low"), Media("image"), Media("file", b"ABCD", 4), Media("file"),
        Media("audio", b"ABC", 3), Media("image"), Media("image", b"ABC", 3),
    ]  # fmt: skip
    assert call.prompt.overhead_tokens == 3 + 8 * 4 + 11 * 2 + 10


@pytest.mark.parametrize(
    ("tool", "built_in", "features"),
    [
        ({"type": "function", "name": "f"}, False, set[str]()),
        ({"type": "custom", "name": "f"}, False, set[str]()),
        ({"type": "computer_use_preview"}, True, set[str]()),
        ({"type": "apply_patch"}, True, set[str]()),
        ({"type": "local_shell"}, True, set[str]()),
        ({"type": "shell", "environment": {"type": "local"}}, True, set[str]()),
        ({"type": "shell"}, True, {"code_execution"}),
        ({"type": "shell", "execution": "local"}, True, {"code_execution"}),
        ({"type": "programmatic_tool_calling"}, True, {"code_execution"}),
        ({"type": "code_interpreter", "container": {"type": "auto"}}, True, {"code_execution"}),
        ({"type": "tool_search"}, True, {"server_tool"}),
        ({"type": "tool_search", "execution": "client"}, True, set[str]()),
        ({"type": "web_search_preview_2025_03_11"}, True, {"web_search"}),
        ({"type": "file_search", "vector_store_ids": ["v"]}, True, {"file_search"}),
        ({"type": "mcp", "server_label": "s"}, True, {"mcp"}),
        ({"type": "image_generation"}, True, {"image_generation"}),
        ({"type": "brand_new"}, True, {"server_tool"}),
        ({"type": []}, True, {"server_tool"}),
        ({}, True, {"server_tool"}),
    ],
)
def test_tools_bring_hidden_input(tool: dict[str, Any], built_in: bool, features: set[str]) -> None:
    """A tool that the provider runs is named, one whose schema it knows costs a flat sum."""
    call = read(tools=[tool])

    assert call.surcharges == features
    assert call.prompt.overhead_tokens == PLAIN_TOKENS + 64 + 12 + 800 * built_in
    assert list(call.prompt.texts)[1:] == [json.dumps([tool], separators=(",", ":"))]


@pytest.mark.parametrize(
    "holder",
    [
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]},
        {"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]},
        {"input": [{"type": "tool_search_output", "tools": [{"type": "web_search"}]}]},
    ],
)
def test_a_tool_is_found_wherever_it_is_declared(holder: dict[str, Any]) -> None:
    """Inside a namespace and inside the input."""
    assert read(**holder).surcharges == {"web_search"}


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"previous_response_id": "r"}, {"conversation"}),
        ({"conversation": {"id": "c"}}, {"conversation"}),
        ({"conversation": "c"}, {"conversation"}),
        ({"prompt": {"id": "p", "variables": {"a": "b"}}}, {"prompt_template"}),
        ({"context_management": [{"type": "compaction"}]}, {"compaction"}),
        ({"context_management": []}, set[str]()),
        ({"search_parameters": {}}, {"web_search"}),
        ({"plugins": [{"id": "web"}]}, {"web_search"}),
        ({"input": [{"type": "item_reference", "id": "i"}]}, {"conversation"}),
        ({"input": [{"id": "i"}]}, {"conversation"}),
        ({"input": [{"type": "compaction_trigger"}]}, {"compaction"}),
        ({"input": [{"type": []}]}, set[str]()),
        ({"prompt_cache_options": {"ttl": "12h"}}, {"cache_write_1h"}),
        ({"prompt_cache_options": {"ttl": "30m"}}, set[str]()),
        (
            {"input": [{"role": "user", "content": [{"prompt_cache_breakpoint": {"ttl": "12h"}}]}]},
            {"cache_write_1h"},
        ),
    ],
)
def test_unseen_input_is_named(fields: dict[str, Any], features: set[str]) -> None:
    """What the provider adds to the request is known before the call."""
    assert read(**fields).surcharges == features


def test_variables_of_a_template_and_a_schema_are_input() -> None:
    """Text in a new field cannot hide from the estimate either."""
    call = read(
        input=None,
        prompt={"variables": {"a": "b"}},
        text={"format": {"type": "json_schema"}},
        new="text",
    )

    assert list(call.prompt.texts) == [
        '{"variables":{"a":"b"}}',
        '{"format":{"type":"json_schema"}}',
        '"text"',
    ]
    assert call.prompt.overhead_tokens == PLAIN_TOKENS + 64


def test_a_compaction_takes_no_bound() -> None:
    """Its output cannot be bounded, so it is a feature; only the model is written."""
    assert read(COMPACT).surcharges == {"compaction"}
    assert written(30, COMPACT) == {"model": "granted", "input": "hello"}


def test_counting_tokens_generates_nothing() -> None:
    """It has no output and no surcharge, takes no bound, and is free."""
    call = read(COUNT, previous_response_id="r", max_output_tokens=7)

    assert (call.max_output, call.surcharges) == (0, frozenset())
    assert "max_output_tokens" not in written(0, COUNT)
    assert usage(object="response.input_tokens", input_tokens=11) == Usage(0, 0)


def test_the_request_that_was_read_is_not_touched() -> None:
    """The grant is written into a copy, unknown fields and order stay."""
    call = read(max_tokens=5, zzz={"b": 1, "a": 2})
    before = json.dumps(call.body)
    body = json.loads(RESPONSES.write_grant(HEAD, call, "other", 15).body)

    assert json.dumps(call.body) == before
    assert list(body) == ["model", "input", "zzz", "max_output_tokens"]


@settings(max_examples=150, deadline=None)
@given(hostile_json, hostile_json, hostile_json)
def test_any_json_is_read_or_refused(body: Any, item: Any, tool: Any) -> None:
    """Only `RequestError` is raised, and what was read can be written."""
    for fields in (body, {"input": [item]}, {"tools": [tool]}, {"input": item}):
        for head in (HEAD, COMPACT):
            with contextlib.suppress(RequestError):
                call = RESPONSES.read_request(head, json.dumps(fields).encode())
                RESPONSES.write_grant(head, call, "m", 1)


REPORT = {
    "input_tokens": 328,
    "input_tokens_details": {
        "cached_tokens": 100,
        "cache_write_tokens": 50,
        "cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 30},
    },
    "output_tokens": 52,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 380,
}


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled", None])
def test_a_full_report_is_read(status: str | None) -> None:
    """However the response ended; cached and reasoning tokens are parts of their side."""
    assert usage(status=status, model="gpt-x", service_tier="flex", usage=REPORT) == Usage(
        input_tokens=328,
        output_tokens=52,
        cache_read_tokens=100,
        cache_write_tokens=50,
        cache_write_1h_tokens=30,
        reasoning_tokens=40,
        model="gpt-x",
        service_tier="flex",
    )


def test_a_compaction_is_read_like_a_response() -> None:
    """It has the same usage and no model."""
    found = usage(object="response.compaction", usage={"input_tokens": 9, "output_tokens": 4})

    assert found == Usage(9, 4)


@pytest.mark.parametrize("status", ["queued", "in_progress"])
@pytest.mark.parametrize("report", [None, {"input_tokens": 0, "output_tokens": 0}])
def test_a_response_in_the_background_has_no_usage_yet(status: str, report: Any) -> None:
    """Nothing and zeros are both unknown while it is queued or runs."""
    assert usage(status=status, background=True, usage=report) is None


def test_searches_are_those_the_provider_bills() -> None:
    """Its own count where there is one, else the calls that searched."""
    calls = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call"},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "message"},
        5,
    ]
    told = usage(usage=REPORT, output=calls, tool_usage={"web_search": {"num_requests": 7}})
    counted = usage(usage=REPORT, output=calls)

    assert told is not None
    assert counted is not None
    assert (told.web_searches, counted.web_searches) == (7, 2)


@pytest.mark.parametrize(
    ("tools", "model"),
    [
        ([{"type": "web_search", "model": "no"}, {"type": "image_generation", "model": "i"}], "i"),
        ([{"type": "image_generation"}], "gpt-image-2.6-sunburst"),
        (None, "gpt-image-2.6-sunburst"),
    ],
)
def test_images_are_billed_beside_the_answer(tools: Any, model: str) -> None:
    """At the price of the tool's model, or of its default."""
    report = {"input_tokens": 50, "output_tokens": 4000, "cached_tokens": 10}
    found = usage(usage=REPORT, tools=tools, tool_usage={"image_gen": report})

    assert found is not None
    assert found.extra == (Usage(50, 4000, cache_read_tokens=10, model=model),)


@pytest.mark.parametrize("report", [None, {}, 5, {"input_tokens": 0, "output_tokens": 0}])
def test_images_nobody_made_cost_nothing(report: Any) -> None:
    """Families of tools that were not used report zeros."""
    found = usage(usage=REPORT, tool_usage={"image_gen": report})

    assert found is not None
    assert found.extra == ()


def test_a_report_of_images_that_cannot_be_read_is_unknown() -> None:
    """Then the whole price is unknown, never that of the text alone."""
    found = usage(usage=REPORT, tool_usage={"image_gen": {"input_tokens": "many"}})

    assert found is not None
    assert (found.extra[0].input_tokens, found.extra[0].output_tokens) == (None, None)


def test_the_author_of_a_vector_image_is_another_model() -> None:
    """Each call reports it, and each model has its own price."""
    report = {"model": "gpt-d", "input_tokens": 5, "output_tokens": 9, "reasoning_tokens": 4}
    found = usage(usage=REPORT, output=[{"svg_usage": report}, {"svg_usage": None}])

    assert found is not None
    assert found.extra == (Usage(5, 9, reasoning_tokens=4, model="gpt-d"),)


@pytest.mark.parametrize("value", GARBAGE)
def test_a_count_that_is_no_number_of_tokens_is_unknown(value: Any) -> None:
    """Booleans, texts, negative, infinite and absurd numbers are None, never zero."""
    assert usage(usage={"input_tokens": value, "output_tokens": 3}) == Usage(None, 3)
    assert usage(usage={"input_tokens": 3, "output_tokens": value}) == Usage(3, None)
    assert usage(usage={"input_tokens": value, "output_tokens": value}) is None


def test_an_answer_of_another_format_is_right_or_unknown() -> None:
    """Chat's names mean the same; Anthropic's are these names with another meaning."""
    assert usage(usage={"prompt_tokens": 5, "completion_tokens": 3}) == Usage(5, 3)
    assert (
        usage(usage={"input_tokens": 21, "cache_read_input_tokens": 2048, "output_tokens": 3})
        is None
    )
    assert usage(usageMetadata={"promptTokenCount": 5}) is None


@pytest.mark.parametrize(
    "body", [b"", b"\xff\x1f\x8b", b"[]", b"5", b"{}", b'{"usage":null}', b'{"usage":5}']
)
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    """Garbage and silence are both None."""
    assert RESPONSES.read_usage(body, {}) is None


@settings(max_examples=150, deadline=None)
@given(hostile_json, hostile_json)
def test_any_answer_is_read_without_an_error(report: Any, other: Any) -> None:
    """Reading an answer never raises."""
    for answer in (
        report,
        {"usage": report, "output": other},
        {"usage": REPORT, "tool_usage": report, "output": [other], "tools": other},
    ):
        RESPONSES.read_usage(json.dumps(answer).encode(), {})


@pytest.mark.parametrize(
    ("code", "kind"), [("budget_exceeded", "insufficient_quota"), ("rate_limited", "rate_limit_exceeded")]
)  # fmt: skip
def test_openai_own_sdk_raises_its_exception_once(code: str, kind: str) -> None:
    """With the header of a spent budget it does not ask again, whatever its retries."""
    answer = RESPONSES.error(Problem(429, code, "Why.", 3600, ("daily",), "req-1"))
    headers = [("content-type", answer.media_type), ("x-should-retry", "false"), *answer.headers]
    asked: list[httpx2.Request] = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(429, headers=headers, content=answer.body)

    http = httpx2.Client(transport=httpx2.MockTransport(refuse))
    with (
        openai.OpenAI(api_key="k", http_client=http) as sdk,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        sdk.responses.create(model="m", input="hi")

    assert (caught.value.code, caught.value.type, len(asked)) == (code, kind, 1)
    assert caught.value.request_id == "req-1"
