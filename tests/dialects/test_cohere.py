"""Cohere's v2 chat: requests, grants, usage and refusals."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.cohere import Cohere
from llm_budget_mw.dialects.protocol import Problem, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

HEAD = RequestHead("POST", "/v2/chat")
COHERE = Cohere()
HELLO = [{"role": "user", "content": "hello"}]


def read(**fields: Any) -> ModelCall:
    body = {"model": "command-x", "messages": HELLO} | fields
    return COHERE.read_request(HEAD, json.dumps(body).encode())


def read_message(**message: Any) -> ModelCall:
    return read(messages=[{"role": "user"} | message])


def written(output: int, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(
        COHERE.write_grant(HEAD, read(**fields), "granted", output).body
    )
    return body


def usage(**report: Any) -> Usage | None:
    return COHERE.read_usage(json.dumps({"message": {}, "usage": report}).encode(), {})


def test_a_plain_request_is_read() -> None:
    """Settings are not input."""
    call = read(
        max_tokens=99, temperature=0.5, k=5, stream=True, thinking={"token_budget": 50}, priority=1
    )

    assert (call.model, call.max_output, call.samplings) == ("command-x", 99, 1)
    assert (call.stream, call.surcharges, call.service_tier) == (True, frozenset(), None)
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["hello"], 12)


def test_everything_a_model_reads_is_input() -> None:
    """Parts, images as media, tool calls and their results, documents, schemas."""
    call = read(
        messages=[
            {"content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}, 5]},
            {
                "content": [
                    {"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}}
                ]
            },
            {"content": [{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}]},
            {"content": {"type": "text", "text": "c"}},
            {"content": [{"type": "document", "document": {"t": "d"}}]},
            {"role": "assistant", "tool_plan": "e"},
        ],
        tools=[{"type": "function"}],
        documents=["f", {"g": "h"}],
        response_format={"type": "json_object"},
    )

    assert [(media.size, media.detail) for media in call.prompt.media] == [(0, "low"), (3, "")]
    assert call.prompt.overhead_tokens == 8 + 6 * 4 + 7 * 2 + 16 + 2 * 16
    assert list(call.prompt.texts) == [
        "a", "b", "c", '{"type":"document","document":{"t":"d"}}', '{"tool_plan":"e"}',
        '[{"type":"function"}]', '["f",{"g":"h"}]', '{"type":"json_object"}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages must be an array with at least"),
        ({"messages": []}, "messages must be an array with at least"),
        ({"messages": {}}, "messages must be an array"),
        ({"messages": [5]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": 5}]}, r"messages\[0\].content must be a string or an array"),
        ({"max_tokens": 0}, "max_tokens must be an integer from 1"),
        ({"max_tokens": -1}, "max_tokens must be an integer from 1"),
        ({"max_tokens": 1.0}, "max_tokens must be an integer from 1"),
        ({"max_tokens": True}, "max_tokens must be an integer from 1"),
        ({"max_tokens": 2**31}, "max_tokens must be an integer from 1"),
        ({"model": 5}, "model must be a string"),
        ({"model": "m" * 257}, "model must be a string"),
        ({"stream": "yes"}, "stream must be true or false"),
        ({"tools": {}}, "tools must be an array"),
        ({"tools": ["x"]}, r"tools\[0\] must be an object"),
        ({"documents": "x"}, "documents must be an array"),
        ({"num_generations": 5}, "num_generations is not allowed"),
        ({"Max_Tokens": 5}, "'Max_Tokens' is no field: names are in lower case"),
        ({"max_token\u017f": 5}, "is no field: names are in lower case"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, Any], message: str) -> None:
    """The message says which field, and what it must be."""
    with pytest.raises(RequestError, match=message):
        read(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Not JSON, or JSON of another kind."""
    with pytest.raises(RequestError, match="request body"):
        COHERE.read_request(HEAD, body)


def test_null_is_absent() -> None:
    """Every optional field may be null."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("model", "max_tokens", "stream", "tools", "documents", "num_generations", "connectors")
    )
    call = read(**nothing)

    assert (call.model, call.max_output, call.stream) == (None, None, False)
    assert list(read_message(content=None).prompt.texts) == []


def test_a_connector_searches_the_web() -> None:
    """What it finds is input that is not in the request."""
    assert read(connectors=[{"id": "web-search"}]).surcharges == {"web_search"}


def test_the_grant_is_model_and_bound() -> None:
    """Whether or not there was one; nothing else changes."""
    expected = {"model": "granted", "messages": HELLO, "max_tokens": 7}

    assert written(7) == expected
    assert written(7, max_tokens=99, p=0.5) == expected | {"p": 0.5}
    assert COHERE.write_grant(HEAD, read(), "m", 1).path is None


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            {"billed_units": {"input_tokens": 25, "output_tokens": 9},
             "tokens": {"input_tokens": 91, "output_tokens": 11}, "cached_tokens": 80},
            Usage(25, 9),
        ),
        ({"billed_units": {"input_tokens": 28.0, "output_tokens": 1.5}}, Usage(28, 2)),
        ({"tokens": {"input_tokens": 91, "output_tokens": 11}}, Usage(91, 11)),
        (
            {"billed_units": {"input_tokens": 0}, "tokens": {"input_tokens": 9, "output_tokens": 4}},
            Usage(0, 4),
        ),
        ({"billed_units": {"input_tokens": 25}}, Usage(25, None)),
        ({"billed_units": {"input_tokens": -1, "output_tokens": 4}}, Usage(None, 4)),
        ({"billed_units": {"input_tokens": "25", "output_tokens": True}}, None),
        ({"billed_units": {"search_units": 1}}, None),
        ({"billed_units": 5, "tokens": []}, None),
        ({"cached_tokens": 80}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_usage_is_what_is_billed(report: dict[str, Any], expected: Usage | None) -> None:
    """Cached tokens are a part of what was read, not of what is billed: nothing is taken off."""
    assert usage(**report) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"null", b'{"usage":5}', b'{"id":"x"}'])
def test_an_answer_of_another_format_is_unknown(body: bytes) -> None:
    """Never an exception, never zero."""
    assert COHERE.read_usage(body, {}) is None


def test_a_refusal_is_a_message() -> None:
    """Cohere's SDK takes the exception from the status and hands out the body."""
    full = COHERE.error(Problem(429, "budget_exceeded", '"\ud800', 5, ("daily",), "req-1"))
    bare = COHERE.error(Problem(400, "c", "m"))

    assert json.loads(full.body) == {
        "message": '"\ud800', "code": "budget_exceeded", "id": "req-1",
        "violated_policies": ["daily"], "retry_after": 5,
    }  # fmt: skip
    assert json.loads(bare.body) == {"message": "m", "code": "c"}
    assert (bare.headers, bare.media_type) == ((), "application/json")


NAMES = [
    "model", "messages", "content", "type", "text", "image_url", "url", "max_tokens", "stream",
    "tools", "documents", "thinking", "usage", "billed_units", "tokens", "input_tokens",
    "output_tokens", "connectors", "role", "tool_calls",
]  # fmt: skip
hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES),
    lambda inner: (
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), hostile, max_size=6))
def test_any_request_is_bounded_or_refused(fields: dict[str, Any]) -> None:
    """Whatever is read can be granted, and its grant reads as what was granted."""
    with contextlib.suppress(RequestError):
        granted = COHERE.write_grant(HEAD, read(**fields), "granted", 3)
        call = COHERE.read_request(HEAD, granted.body)
        assert (call.model, call.max_output) == ("granted", 3)


@settings(max_examples=100, deadline=None)
@given(hostile)
def test_any_answer_is_read_without_an_error(answer: Any) -> None:
    """Counts are never below zero."""
    found = COHERE.read_usage(json.dumps(answer).encode(), {})

    assert found is None or min(found.input_tokens or 0, found.output_tokens or 0) >= 0
