"""Legacy Completions: prompts, multiplicity, grants and usage."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_completions import OpenAICompletions
from llm_budget_mw.dialects.protocol import Problem, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

HEAD = RequestHead("POST", "/v1/completions")
COMPLETIONS = OpenAICompletions()

FIELDS = ["prompt", "n", "best_of", "max_tokens", "echo", "stream", "stream_options", "suffix"]
hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(FIELDS),
    lambda inner: (
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=12,
)


def read(**fields: Any) -> ModelCall:
    body = {"model": "gpt-x", "prompt": "hello"} | fields
    return COMPLETIONS.read_request(HEAD, json.dumps(body).encode())


def written(output: int, **fields: Any) -> dict[str, Any]:
    rewritten = COMPLETIONS.write_grant(HEAD, read(**fields), "granted", output)
    body: dict[str, Any] = json.loads(rewritten.body)
    return body


def usage(**report: Any) -> Usage | None:
    return COMPLETIONS.read_usage(json.dumps({"model": "c", "usage": report}).encode(), {})


def test_a_plain_request_is_read() -> None:
    """Without a bound generation stops after 16 tokens."""
    call = read(user="u", temperature=0.5)

    assert (call.model, call.max_output, call.samplings, call.stream) == ("gpt-x", 16, 1, False)
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["hello"], 2)


@pytest.mark.parametrize(
    ("prompt", "prompts", "texts", "tokens"),
    [
        ("", 1, [], 0),
        ("a", 1, ["a"], 0),
        (["a", "b", ""], 3, ["a", "b", ""], 0),
        ([1, 2, 3], 1, [], 3),
        ([[1, 2], [3]], 2, [], 3),
        (["a"] * 2048, 2048, ["a"] * 2048, 0),
        (None, 1, [], 0),
    ],
)
def test_a_list_of_integers_is_one_prompt_and_any_other_list_many(
    prompt: Any, prompts: int, texts: list[str], tokens: int
) -> None:
    """Each prompt is answered by itself; tokens count as what they are."""
    call = read(prompt=prompt)

    assert call.samplings == prompts
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (texts, tokens + 2 * prompts)


@pytest.mark.parametrize(
    "prompt",
    [5, {}, True, [], [""] * 2049, [None], ["a", 1], [1, "a"], [[1], "a"], [["a"]], [[]], [[1], []],
     [1.5], [True], [[True]], [[[1]]], [{}]],
)  # fmt: skip
def test_a_prompt_of_another_shape_is_refused(prompt: Any) -> None:
    """Mixtures and empty lists have no number of answers."""
    with pytest.raises(RequestError, match=r"^prompt must be"):
        read(prompt=prompt)


@pytest.mark.parametrize(
    ("fields", "samplings"),
    [
        ({"n": 2}, 2),
        ({"best_of": 3}, 3),
        ({"n": 2, "best_of": 5}, 5),
        ({"n": 4, "best_of": 2}, 4),
        ({"n": 2, "prompt": ["a", "b"]}, 4),
        ({"n": None, "best_of": None}, 1),
        ({"best_of": 3, "prompt": [[1], [2], [3]]}, 9),
        ({"n": 128, "prompt": [1, 2]}, 128),
    ],
)
def test_answers_multiply_with_prompts(fields: dict[str, Any], samplings: int) -> None:
    """Every answer that is generated is billed, also one that is not returned."""
    assert read(**fields).samplings == samplings


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({"max_tokens": 0, "echo": True}, 0),
        ({"max_tokens": None}, 16),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 900}, 900),
        ({"maxOutputTokens": 30, "max_output_tokens": 20}, 30),
    ],
)
def test_the_largest_bound_counts(fields: dict[str, Any], bound: int) -> None:
    """A server may obey any of the names; zero only rates the prompt."""
    assert read(**fields).max_output == bound


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 5}, "model must be a string"),
        ({"models": ["a"]}, "models is not allowed here"),
        ({"max_tokens": -1}, "max_tokens must be an integer"),
        ({"max_tokens": 2**31}, "max_tokens must be an integer"),
        ({"max_tokens": "5"}, "max_tokens must be an integer"),
        ({"n": 0}, "n must be an integer from 1 to 128"),
        ({"best_of": 129}, "best_of must be an integer from 1 to 128"),
        ({"n": 1.0}, "n must be an integer"),
        ({"echo": 1}, "echo must be true or false"),
        ({"stream": "yes"}, "stream must be true or false"),
        ({"stream_options": 5}, "stream_options must be an object"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    """Each message says which field and what it must be."""
    with pytest.raises(RequestError, match=f"^{message}"):
        read(**fields)


def test_a_suffix_and_unknown_fields_are_input() -> None:
    """The model reads what comes after the gap too."""
    assert list(read(suffix="end", new=[1]).prompt.texts) == ["hello", '"end"', "[1]"]


def test_the_grant_is_written_under_the_one_name_that_is_obeyed() -> None:
    """All other names of the bound are gone, so none of them can be larger."""
    body = written(9, max_tokens=50, max_completion_tokens=900, zzz=1, n=2)

    assert body == {"model": "granted", "prompt": "hello", "max_tokens": 9, "zzz": 1, "n": 2}


def test_a_stream_is_asked_for_its_usage() -> None:
    """Without the option no chunk has any."""
    body = written(9, stream=True, stream_options={"x": 1})

    assert body["stream_options"] == {"x": 1, "include_usage": True}


@settings(max_examples=150, deadline=None)
@given(hostile_json, hostile_json)
def test_any_json_is_read_or_refused(body: Any, prompt: Any) -> None:
    """Only `RequestError` is raised, and what was read can be written."""
    for fields in (body, {"prompt": prompt}):
        with contextlib.suppress(RequestError):
            call = COMPLETIONS.read_request(HEAD, json.dumps(fields).encode())
            COMPLETIONS.write_grant(HEAD, call, "m", 0)


def test_usage_is_that_of_chat() -> None:
    """All prompts and answers together."""
    assert usage(prompt_tokens=5, completion_tokens=57, total_tokens=62) == Usage(5, 57, model="c")
    assert usage() is None


@pytest.mark.parametrize("value", [True, "5", -1, float("nan"), [], {}, None, 2**54])
def test_a_count_that_is_no_number_of_tokens_is_unknown(value: Any) -> None:
    """Unknown is None, never zero."""
    assert usage(prompt_tokens=value, completion_tokens=3) == Usage(None, 3, model="c")
    assert usage(prompt_tokens=3, completion_tokens=value) == Usage(3, None, model="c")


def test_openai_own_sdk_raises_its_exception() -> None:
    """Class, code and type are where it looks for them."""
    answer = COMPLETIONS.error(Problem(429, "budget_exceeded", "Why."))
    headers = [("content-type", answer.media_type), ("x-should-retry", "false")]
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(429, headers=headers, content=answer.body)
    )
    with (
        openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport)) as sdk,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        sdk.completions.create(model="m", prompt="hi")

    assert (caught.value.code, caught.value.type) == ("budget_exceeded", "insufficient_quota")
