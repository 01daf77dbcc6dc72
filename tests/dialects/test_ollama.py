"""Ollama: requests, grants, usage and refusals."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.ollama import Ollama
from llm_budget_mw.dialects.protocol import Problem, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

CHAT = RequestHead("POST", "/api/chat")
OLLAMA = Ollama()
PNG = base64.b64encode(b"\x89PNG\r\n" + b"\0" * 60).decode()


def read(**fields: Any) -> ModelCall:
    return OLLAMA.read_request(CHAT, json.dumps({"model": "llama"} | fields).encode())


def written(output: int, **fields: Any) -> dict[str, Any]:
    rewritten = OLLAMA.write_grant(CHAT, read(**fields), "granted", output)
    assert rewritten.path is None
    body: dict[str, Any] = json.loads(rewritten.body)
    return body


def usage(**answer: Any) -> Usage | None:
    return OLLAMA.read_usage(json.dumps({"model": "m", "done": True} | answer).encode(), {})


def test_a_chat_is_read() -> None:
    """Messages with their images and tools; settings are not input."""
    call = read(
        messages=[
            {"role": "user", "content": "hello", "images": [PNG]},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
        ],
        tools=[{"type": "function"}],
        format={"type": "object"},
        options={"num_predict": 99, "temperature": 0.5},
        keep_alive="5m",
        think=True,
    )

    assert (call.model, call.max_output, call.samplings) == ("llama", 99, 1)
    assert (call.surcharges, call.service_tier) == (frozenset(), None)
    assert [(media.kind, media.size) for media in call.prompt.media] == [("image", 66)]
    assert call.prompt.overhead_tokens == 8 + 2 * 8 + 128 + 16
    assert list(call.prompt.texts) == [
        "hello", '{"tool_calls":[{"function":{"name":"f"}}]}', '[{"type":"function"}]',
        '{"type":"object"}',
    ]  # fmt: skip


def test_a_prompt_is_read() -> None:
    """With all the texts around it, and the turns before it, tokenised."""
    call = read(
        prompt="a", suffix="b", system="c", template="d", context=[1, 2, 3], images=[PNG, 5]
    )

    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["a", "b", "c", "d"], 11)
    assert [media.size for media in call.prompt.media] == [66, 0]


@pytest.mark.parametrize(
    ("fields", "stream"),
    [({}, True), ({"stream": None}, True), ({"stream": True}, True), ({"stream": False}, False)],
)
def test_an_answer_is_streamed_unless_told_not_to(fields: dict[str, Any], stream: bool) -> None:
    """Absent means yes."""
    assert read(**fields).stream is stream


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        (None, None), ({}, None), ({"num_predict": None}, None), ({"num_predict": 5}, 5),
        ({"num_predict": -1}, None), ({"num_predict": -2}, None), ({"num_predict": 0}, None),
    ],
)  # fmt: skip
def test_what_means_no_bound_is_none(options: Any, bound: int | None) -> None:
    """For ever, until the context is full, and zero, which is taken for the former."""
    assert read(options=options).max_output == bound


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 5}, "model must be a string"),
        ({"model": ""}, "model must be a string"),
        ({"options": []}, "options must be an object"),
        ({"options": {"num_predict": -3}}, "num_predict must be an integer from -2"),
        ({"options": {"num_predict": 5.5}}, "num_predict must be an integer from -2"),
        ({"options": {"num_predict": "5"}}, "num_predict must be an integer from -2"),
        ({"options": {"num_predict": True}}, "num_predict must be an integer from -2"),
        ({"options": {"num_predict": 2**31}}, "num_predict must be an integer from -2"),
        ({"stream": "false"}, "stream must be true or false"),
        ({"stream": 0}, "stream must be true or false"),
        ({"messages": "x"}, "messages must be an array"),
        ({"messages": [None]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": []}]}, "content must be a string"),
        ({"messages": [{"images": PNG}]}, "images must be an array"),
        ({"prompt": ["a"]}, "prompt must be a string"),
        ({"system": {}}, "system must be a string"),
        ({"context": "x"}, "context must be an array"),
        ({"images": {}}, "images must be an array"),
        ({"tools": {}}, "tools must be an array"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, Any], message: str) -> None:
    """The message says which field, and what it must be."""
    with pytest.raises(RequestError, match=message):
        read(**fields)


@pytest.mark.parametrize(
    "name", ["OPTIONS", "Options", "option\u017f", "\u212aeep_alive", "Stream"]
)
def test_a_name_in_another_case_is_refused(name: str) -> None:
    """To Ollama it would be the same field, and might take the place of the one that is read."""
    with pytest.raises(RequestError, match="is no field: names are in lower case"):
        read(**{name: {"num_predict": -1}})


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b'{"a":1}\n{"b":2}'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Not JSON, or JSON of another kind."""
    with pytest.raises(RequestError, match="request body"):
        OLLAMA.read_request(CHAT, body)


def test_the_grant_is_model_and_bound() -> None:
    """Whether or not there was one, and whatever it meant; nothing else changes."""
    expected = {"model": "granted", "options": {"num_predict": 7}}

    assert written(7) == expected
    assert written(7, options=None) == expected
    assert written(7, options={"num_predict": -1, "seed": 1}, think="low") == {
        "model": "granted", "options": {"num_predict": 7, "seed": 1}, "think": "low",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"prompt_eval_count": 26, "eval_count": 298}, Usage(26, 298, model="m")),
        ({"eval_count": 298}, Usage(None, 298, model="m")),
        ({"prompt_eval_count": 26}, Usage(26, None, model="m")),
        ({"prompt_eval_count": 26.0, "eval_count": 1.5}, Usage(26, 2, model="m")),
        ({"prompt_eval_count": -1, "eval_count": "5"}, None),
        ({"prompt_eval_count": None, "eval_count": True}, None),
        ({"done_reason": "load"}, Usage(0, 0, model="m")),
        ({"done_reason": "unload"}, Usage(0, 0, model="m")),
        ({"done_reason": "load", "done": False}, None),
        ({"done_reason": ["load"]}, None),
        ({"model": 5, "eval_count": 5}, Usage(None, 5)),
        ({}, None),
    ],
)
def test_usage_is_read(answer: dict[str, Any], expected: Usage | None) -> None:
    """The count of a prompt that was remembered is absent, which is unknown, not zero."""
    assert usage(**answer) == expected


def test_usage_of_a_streamed_answer_is_in_its_last_line() -> None:
    """Where lines came without saying that they are lines."""
    lines = b'{"response":"a","done":false}\n{"done":true,"eval_count":5}\n\n'

    assert OLLAMA.read_usage(lines, {}) == Usage(None, 5)


@pytest.mark.parametrize(
    "body", [b"", b"\n", b"{", b"[]", b"5", b"null", b'{"error":"x"}', b'{"usage":{}}']
)
def test_an_answer_of_another_format_is_unknown(body: bytes) -> None:
    """Never an exception, never zero."""
    assert OLLAMA.read_usage(body, {}) is None


def test_a_refusal_is_an_error() -> None:
    """Ollama's SDK reads its text, and takes the status from the answer."""
    full = OLLAMA.error(Problem(429, "budget_exceeded", '"\ud800', 5, ("daily",), "req-1"))
    bare = OLLAMA.error(Problem(400, "c", "m"))

    assert json.loads(full.body) == {
        "error": '"\ud800', "code": "budget_exceeded", "request_id": "req-1",
        "violated_policies": ["daily"], "retry_after": 5,
    }  # fmt: skip
    assert json.loads(bare.body) == {"error": "m", "code": "c"}


NAMES = [
    "model", "messages", "content", "images", "prompt", "system", "options", "num_predict",
    "stream", "tools", "context", "format", "think", "eval_count", "prompt_eval_count", "done",
    "done_reason", "role", "tool_calls",
]  # fmt: skip
hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*NAMES, "load"]),
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
        granted = OLLAMA.write_grant(CHAT, read(**fields), "granted", 3)
        call = OLLAMA.read_request(CHAT, granted.body)
        assert (call.model, call.max_output) == ("granted", 3)


@settings(max_examples=100, deadline=None)
@given(hostile)
def test_any_answer_is_read_without_an_error(answer: Any) -> None:
    """Counts are never below zero."""
    found = OLLAMA.read_usage(json.dumps(answer).encode(), {})

    assert found is None or min(found.input_tokens or 0, found.output_tokens or 0) >= 0
