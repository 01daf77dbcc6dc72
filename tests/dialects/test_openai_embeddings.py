"""Embeddings: input in four shapes, no output, and the usage of OpenAI, Voyage and Mistral."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_embeddings import OpenAIEmbeddings
from llm_budget_mw.dialects.protocol import Problem, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Prompt, Usage

HEAD = RequestHead("POST", "/v1/embeddings")
EMBEDDINGS = OpenAIEmbeddings()


def read(**fields: Any) -> ModelCall:
    body = {"model": "embed-x", "input": "hello"} | fields
    return EMBEDDINGS.read_request(HEAD, json.dumps(body).encode())


def usage(**report: Any) -> Usage | None:
    return EMBEDDINGS.read_usage(json.dumps({"model": "e", "usage": report}).encode(), {})


def test_a_plain_request_is_all_input() -> None:
    """There is no output to reserve, and settings are no input."""
    call = read(dimensions=256, encoding_format="base64", user="u")

    assert (call.model, call.max_output, call.samplings, call.stream) == ("embed-x", 0, 1, False)
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["hello"], 2)


@pytest.mark.parametrize(
    ("value", "texts", "tokens"),
    [
        (["a", "b"], ["a", "b"], 4),
        ([1, 2, 3], [], 5),
        ([[1, 2], [3]], [], 7),
    ],
)
def test_every_input_of_a_list_counts(value: Any, texts: list[str], tokens: int) -> None:
    """Texts, tokens and lists of tokens."""
    call = read(input=value)

    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (texts, tokens)


def test_an_instruction_goes_before_each_text() -> None:
    """Voyage puts a sentence before every text whose kind is given; new fields are input."""
    call = read(input=["a", "b"], input_type="query", new="text")

    assert call.prompt.overhead_tokens == 2 * (2 + 16)
    assert list(call.prompt.texts) == ["a", "b", '"text"']


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": None}, "input is required"),
        ({"input": []}, "input must be a string or an array of 1 to 2048"),
        ({"input": ["a"] * 2049}, "input must be a string or an array of 1 to 2048"),
        ({"input": {"text": "a"}}, "input must be"),
        ({"input": [{"text": "a"}]}, "input must be all strings"),
        ({"model": []}, "model must be a string"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    """Each message says which field and what it must be."""
    with pytest.raises(RequestError, match=f"^{message}"):
        read(**fields)


def test_the_grant_changes_the_model_alone() -> None:
    """No bound is written: the API knows none."""
    rewritten = EMBEDDINGS.write_grant(HEAD, read(dimensions=8), "granted", 0)

    assert json.loads(rewritten.body) == {"model": "granted", "input": "hello", "dimensions": 8}
    assert rewritten.path is None


@pytest.mark.parametrize(
    ("report", "tokens"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, 8),
        ({"total_tokens": 8}, 8),
        ({"prompt_tokens": 0, "total_tokens": 8}, 8),
        ({"prompt_tokens": 8.0}, 8),
        ({"prompt_tokens": "8", "total_tokens": 9}, 9),
        ({"prompt_tokens": 8, "total_tokens": -1, "completion_tokens": 0}, 8),
    ],
)
def test_all_usage_is_input(report: dict[str, Any], tokens: int) -> None:
    """OpenAI counts it twice, Voyage only as a total; output is zero and known to be."""
    assert usage(**report) == Usage(tokens, 0, model="e")


def test_an_answer_that_generated_is_read_as_what_it_is() -> None:
    """A chat completion on this route is not charged as input."""
    assert usage(prompt_tokens=5, completion_tokens=3, total_tokens=8) == Usage(5, 3, model="e")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"usage":5}', b'{"usage":{"prompt_tokens":null}}', b'{"usage":{"total_tokens":true}}']
)  # fmt: skip
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    """Garbage and silence are both None, never zero."""
    assert EMBEDDINGS.read_usage(body, {}) is None


def test_a_stream_is_passed_on() -> None:
    """There is none in this format."""
    reader = EMBEDDINGS.open_stream(ModelCall("m", Prompt(), 0), {})

    assert (reader.feed(b"x"), reader.usage, reader.complete) == (b"x", None, False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.dictionaries(st.sampled_from(["input", "model", "usage", "total_tokens"]), inner)
        | st.lists(inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(json_values, json_values)
def test_any_json_is_read_or_refused(body: Any, value: Any) -> None:
    """Only a request may raise, and only `RequestError`."""
    for fields in (body, {"input": value}, {"usage": value}):
        raw = json.dumps(fields).encode()
        EMBEDDINGS.read_usage(raw, {})
        with contextlib.suppress(RequestError):
            EMBEDDINGS.write_grant(HEAD, EMBEDDINGS.read_request(HEAD, raw), "m", 0)


def test_openai_own_sdk_raises_its_exception() -> None:
    """Class and code are where it looks for them."""
    answer = EMBEDDINGS.error(Problem(429, "budget_exceeded", "Why."))
    headers = [("content-type", answer.media_type), ("x-should-retry", "false")]
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(429, headers=headers, content=answer.body)
    )
    with (
        openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport)) as sdk,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        sdk.embeddings.create(model="m", input="hi")

    assert caught.value.code == "budget_exceeded"
