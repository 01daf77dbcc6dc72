"""InvokeModel: families, requests, grants and usage."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.bedrock_invoke import BedrockInvoke
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

INVOKE = BedrockInvoke()
PNG = base64.b64encode(b"\x89PNG\r\n" + b"\0" * 60).decode()
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"

CHAT = [{"role": "user", "content": "hello"}]
BLOCKS = [{"role": "user", "content": [{"text": "hello"}]}]
CLAUDE = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 50, "messages": CHAT}
NOVA = {"schemaVersion": "messages-v1", "messages": BLOCKS, "inferenceConfig": {"maxTokens": 50}}
TITAN = {"inputText": "hello", "textGenerationConfig": {"maxTokenCount": 50, "topP": 1}}
LLAMA = {"prompt": "hello", "max_gen_len": 50, "temperature": 0.5}
OPENAI = {"messages": CHAT, "max_tokens": 50}
LEGACY = {"prompt": "hello", "max_tokens": 50}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "claude": ("us.anthropic.claude-x-v1:0", CLAUDE),
    "nova": ("amazon.nova-2-lite-v1:0", NOVA),
    "titan": ("amazon.titan-text-express-v1", TITAN),
    "llama": ("meta.llama3-70b-instruct-v1:0", LLAMA),
    "gpt": ("openai.gpt-oss-20b-1:0", {"messages": CHAT, "max_completion_tokens": 50}),
    "chat": ("qwen.qwen3-32b-v1:0", OPENAI),
    "completions": ("mistral.mistral-7b-instruct-v0:2", LEGACY),
}


def head(model: str, method: str = "invoke", **headers: str) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHead("POST", f"/model/{model}/{method}", headers=named)


def read(model: str, body: dict[str, Any], **more: Any) -> ModelCall:
    return INVOKE.read_request(head(model), json.dumps(body | more).encode())


def written(
    model: str, body: dict[str, Any], output: int, granted: str = ""
) -> tuple[dict[str, Any], str | None]:
    call = read(model, body)
    rewritten = INVOKE.write_grant(head(model), call, granted or model, output)
    return json.loads(rewritten.body), rewritten.path


def answered(answer: Any, **headers: str) -> Usage | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return INVOKE.read_usage(json.dumps(answer).encode(), named)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_in_its_own_words(name: str) -> None:
    """The model is that of the path, the bound where the family has it, the text what is read."""
    model, body = FAMILIES[name]
    call = read(model, body)

    assert (call.model, call.max_output, call.samplings) == (model, 50, 1)
    assert (call.stream, call.surcharges, call.service_tier) == (False, frozenset(), None)
    assert call.prompt.texts[0] == "hello"
    assert call.prompt.overhead_tokens > 0


@pytest.mark.parametrize("name", ["claude", "nova", "titan", "llama", "chat", "completions"])
def test_an_arn_leaves_the_family_to_the_request(name: str) -> None:
    """A profile does not say what is behind it; the shape of the body does."""
    body = FAMILIES[name][1]
    call = read(PROFILE, body)
    granted, path = written(PROFILE, body, 7)

    assert (call.model, call.max_output, path) == (PROFILE, 50, None)
    assert json.dumps(granted).count("7") == 1 + json.dumps(body).count("7")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude", CLAUDE | {"max_tokens": 7}),
        ("nova", NOVA | {"inferenceConfig": {"maxTokens": 7}}),
        ("titan", TITAN | {"textGenerationConfig": {"maxTokenCount": 7, "topP": 1}}),
        ("llama", LLAMA | {"max_gen_len": 7}),
        ("gpt", {"messages": CHAT, "max_completion_tokens": 7}),
        ("chat", OPENAI | {"max_tokens": 7}),
        ("completions", LEGACY | {"max_tokens": 7}),
    ],
)
def test_the_grant_is_written_where_the_family_takes_it(
    name: str, expected: dict[str, Any]
) -> None:
    """And nothing is added that the family's strict servers would refuse."""
    assert written(*FAMILIES[name], 7) == (expected, None)


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("amazon.nova-lite-v1:0", {"messages": BLOCKS}, {"inferenceConfig": {"maxTokens": 7}}),
        (
            "amazon.nova-lite-v1:0",
            {"messages": BLOCKS, "inferenceConfig": {"max_new_tokens": 9}},
            {"inferenceConfig": {"max_new_tokens": 7}},
        ),
        ("amazon.titan-tg1-large", {"inputText": "x"}, {"textGenerationConfig": {"maxTokenCount": 7}}),
        ("meta.llama3-8b", {"prompt": "x"}, {"max_gen_len": 7}),
        ("openai.gpt-oss-20b-1:0", {"messages": CHAT}, {"max_completion_tokens": 7}),
        ("openai.gpt-oss-20b-1:0", OPENAI, {"max_tokens": 7}),
        ("qwen.q", {"messages": CHAT}, {"max_tokens": 7}),
        (
            "qwen.q",
            {"messages": CHAT, "max_tokens": 5, "max_completion_tokens": 9},
            {"max_tokens": 7},
        ),
    ],
)  # fmt: skip
def test_the_bound_keeps_the_name_the_caller_used(
    model: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Only one bound is left, and where there was none the family's own is written."""
    granted = written(model, body, 7)[0]

    bounds = ("max_tokens", "max_completion_tokens", "max_gen_len", "inferenceConfig")
    found = {
        key: value for key, value in granted.items() if key in (*bounds, "textGenerationConfig")
    }
    assert found == expected


def test_the_largest_of_two_bounds_is_reserved() -> None:
    """Nobody knows which of them a server obeys."""
    call = read("qwen.q", {"messages": CHAT, "max_tokens": 5, "max_completion_tokens": 9})

    assert call.max_output == 9


def test_without_a_bound_the_tier_decides() -> None:
    """The legacy format's default of 16 is OpenAI's, not that of the models here."""
    assert read("mistral.mistral-7b", {"prompt": "x"}).max_output is None
    with pytest.raises(RequestError, match="max_tokens is required"):
        read("anthropic.claude-x", {"messages": CHAT})


@pytest.mark.parametrize(("field", "samplings"), [({"n": 3}, 3), ({"best_of": 4, "n": 2}, 4)])
def test_answers_multiply_in_openais_format(field: dict[str, Any], samplings: int) -> None:
    """As with OpenAI; prompts multiply as well."""
    assert read("qwen.q", OPENAI | field).samplings == samplings
    assert read("qwen.q", LEGACY | field | {"prompt": ["a", "b"]}).samplings == 2 * samplings


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("claude", {"max_gen_len": 9}), ("claude", {"n": 2}), ("claude", {"inferenceConfig": {"maxTokens": 9}}),
        ("nova", {"max_tokens": 9}), ("nova", {"inferenceConfig": {"maxNewTokens": 9}}),
        ("titan", {"max_tokens": 9}), ("titan", {"textGenerationConfig": {"numResults": 9}}),
        ("llama", {"max_tokens": 9}), ("llama", {"n": 2}), ("llama", {"maxTokenCount": 9}),
        ("gpt", {"max_output_tokens": 9}), ("chat", {"max_gen_len": 9}), ("chat", {"maxTokens": 9}),
        ("completions", {"num_generations": 9}), ("completions", {"max_length": 9}),
    ],
)  # fmt: skip
def test_a_bound_in_foreign_words_is_refused(name: str, field: dict[str, Any]) -> None:
    """The server behind an ARN might obey it instead of the one that was granted."""
    with pytest.raises(RequestError, match="is not allowed here: the model called"):
        read(*FAMILIES[name], **field)


@pytest.mark.parametrize(
    "model",
    [
        "cohere.command-r-v1:0", "cohere.embed-english-v3", "amazon.titan-embed-text-v2:0",
        "amazon.nova-canvas-v1:0", "amazon.nova-reel-v1:0", "amazon.nova-2-sonic-v1:0",
        "amazon.nova-2-multimodal-embeddings-v1:0", "stability.sd3-5-large-v1:0", "us.luma.ray-v2:0",
        "amazon.titan-image-generator-v2:0", "arn:aws:bedrock:us-east-1::foundation-model/cohere.x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [CLAUDE, TITAN, OPENAI, LEGACY])
def test_a_family_that_is_not_known_is_refused(model: str, body: dict[str, Any]) -> None:
    """Whatever its request looks like."""
    with pytest.raises(RequestError, match="is not guarded by InvokeModel here"):
        read(model, body)


@pytest.mark.parametrize("body", [{}, {"texts": ["a"]}, {"message": "hi"}, {"input": "x"}])
def test_a_request_of_no_known_shape_is_refused(body: dict[str, Any]) -> None:
    """Where an ARN does not say which family it would be."""
    with pytest.raises(RequestError, match="is not guarded by InvokeModel here"):
        read(PROFILE, body)


def test_an_id_is_believed_before_a_body() -> None:
    """A request cannot choose the words it is bounded in."""
    with pytest.raises(RequestError, match=r"messages must be an array|prompt must be a string"):
        read("meta.llama3-8b", OPENAI | {"anthropic_version": "x", "max_tokens": None})
    with pytest.raises(RequestError, match="max_gen_len is not allowed"):
        read("us.anthropic.claude-x", LLAMA | {"messages": CHAT})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("titan", {"inputText": 5}, "inputText must be a string"),
        ("titan", {"textGenerationConfig": 5}, "textGenerationConfig must be an object"),
        ("titan", {"textGenerationConfig": {"maxTokenCount": "9"}}, "maxTokenCount must be an int"),
        ("llama", {"prompt": None}, "prompt must be a string"),
        ("llama", {"max_gen_len": 1.5}, "max_gen_len must be an integer"),
        ("llama", {"max_gen_len": -1}, "max_gen_len must be an integer"),
        ("nova", {"messages": []}, "messages must be an array"),
        ("nova", {"inferenceConfig": []}, "inferenceConfig must be an object"),
        ("nova", {"reasoningConfig": {"maxReasoningEffort": "high"}}, "must be low or medium"),
        ("claude", {"messages": 5}, "messages must be an array"),
        ("claude", {"max_tokens": True}, "max_tokens must be an integer"),
        ("chat", {"messages": 5}, "messages must be an array"),
        ("chat", {"max_tokens": 0}, "max_tokens must be an integer from 1"),
        ("completions", {"prompt": 5}, "prompt must be"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_its_name(
    name: str, fields: dict[str, Any], message: str
) -> None:
    """The message says which field, and what it must be."""
    with pytest.raises(RequestError, match=message):
        read(*FAMILIES[name], **fields)


def test_all_of_a_bare_prompt_is_input() -> None:
    """Images as media, what nobody knows as JSON, also the other family's text."""
    call = read("meta.llama4-x", LLAMA, images=[PNG], inputText="long", system={"a": 1})

    assert [(media.kind, media.size) for media in call.prompt.media] == [("image", 66)]
    assert list(call.prompt.texts) == ["hello", '"long"', '{"a":1}']


def test_claudes_features_are_found() -> None:
    """The reading is that of Anthropic's own format."""
    tools = [{"type": "web_search_2026", "name": "s"}]

    assert read(*FAMILIES["claude"], tools=tools).surcharges == {"web_search"}


def test_the_path_says_whether_to_stream_and_headers_which_tier() -> None:
    """Neither stands in the body."""
    body = json.dumps(LLAMA).encode()
    tier = head("meta.l", "invoke-with-response-stream", x_amzn_bedrock_service_tier="flex")
    fast = head("meta.l", x_amzn_bedrock_performanceconfig_latency="optimized")

    assert INVOKE.read_request(tier, body).stream
    assert INVOKE.read_request(tier, body).service_tier == "flex"
    assert INVOKE.read_request(fast, body).service_tier == "optimized"
    with pytest.raises(RequestError, match=r"path must end in .* /invoke or /invoke-with"):
        INVOKE.read_request(RequestHead("POST", "/model/meta.l/converse"), body)


def test_another_model_is_written_into_the_path() -> None:
    """And into the body only where the caller had one there."""
    path = "/model/qwen.r/invoke"

    assert written("qwen.q", OPENAI, 7, "qwen.r") == (OPENAI | {"max_tokens": 7}, path)
    assert written("qwen.q", OPENAI | {"model": "qwen.q"}, 7, "qwen.r")[0]["model"] == "qwen.r"


def test_claudes_thinking_is_made_to_fit() -> None:
    """Lowered below a lowered bound, left out for another model, which may not be able to."""
    thinking = {"type": "enabled", "budget_tokens": 4000}
    body = CLAUDE | {"max_tokens": 5000, "thinking": thinking}

    assert written("anthropic.c", body, 5000)[0]["thinking"] == thinking
    assert written("anthropic.c", body, 3000)[0]["thinking"]["budget_tokens"] == 2999
    assert "thinking" not in written("anthropic.c", body, 1024)[0]
    assert "thinking" not in written("anthropic.c", body, 5000, "anthropic.d")[0]


def test_a_grant_does_not_change_the_call() -> None:
    """A call may be granted again, after a failure."""
    for model, body in FAMILIES.values():
        call = read(model, body)
        INVOKE.write_grant(head(model), call, model, 3)

        assert call.body == body


COUNTS = {
    "x_amzn_bedrock_input_token_count": "12",
    "x_amzn_bedrock_output_token_count": "5",
    "x_amzn_bedrock_cache_read_input_token_count": "100",
    "x_amzn_bedrock_cache_write_input_token_count": "10",
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {"model": "c", "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 9}},
            Usage(7, 9, cache_read_tokens=4, model="c"),
        ),
        (
            {"usage": {"inputTokens": 3, "outputTokens": 9, "cacheReadInputTokenCount": 4}},
            Usage(7, 9, cache_read_tokens=4),
        ),
        (
            {"inputTextTokenCount": 3, "results": [{"tokenCount": 4.0}, {"tokenCount": 5}]},
            Usage(3, 9),
        ),
        ({"inputTextTokenCount": 3, "results": [{"tokenCount": 4}, {}]}, Usage(3, None)),
        ({"inputTextTokenCount": 3, "results": []}, Usage(3, None)),
        ({"prompt_token_count": 3, "generation_token_count": 9, "generation": "x"}, Usage(3, 9)),
        ({"prompt_token_count": None, "generation_token_count": 9}, Usage(None, 9)),
        (
            {"model": "q", "usage": {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}},
            Usage(3, 9, model="q"),
        ),
        ({"generation": "x"}, None),
        ({"usage": {"input_tokens": "3", "output_tokens": -1}}, None),
        ({"usage": [], "results": {}}, None),
        ([], None),
        (None, None),
    ],
)  # fmt: skip
def test_usage_is_read_from_the_body_of_any_family(answer: Any, expected: Usage | None) -> None:
    """Each in its own words, whichever model was asked for."""
    assert answered(answer) == expected


def test_usage_is_read_from_headers_where_the_body_has_none() -> None:
    """Their input leaves out the cache, as everywhere on Bedrock."""
    expected = Usage(122, 5, cache_read_tokens=100, cache_write_tokens=10)

    assert answered({"embedding": []}, **COUNTS) == expected
    assert INVOKE.read_usage(b"\xff", {"x-amzn-bedrock-output-token-count": "5"}) == Usage(None, 5)


def test_a_body_is_believed_before_headers() -> None:
    """Which fill only what it does not say, each side whole."""
    llama = {"generation_token_count": 9}
    claude = {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4}}

    assert answered({"usage": {"input_tokens": 3, "output_tokens": 4}}, **COUNTS) == Usage(3, 4)
    assert answered(llama, **COUNTS) == Usage(122, 9, cache_read_tokens=100, cache_write_tokens=10)
    assert answered(claude, **COUNTS) == Usage(7, 5, cache_read_tokens=4)
    assert answered(llama, x_amzn_bedrock_output_token_count="5") == Usage(None, 9)
    written = {"outputTokens": 9, "cacheDetails": [{"ttl": "1h", "inputTokens": 7}]}
    assert answered({"usage": written}, x_amzn_bedrock_input_token_count="5") == Usage(5, 9)


@pytest.mark.parametrize("count", ["", "-5", "1.5", "٣", "1" * 17, "x", " 5", "1e3"])
def test_a_header_that_is_no_count_is_unknown(count: str) -> None:
    """Never an exception, never a wrong charge."""
    assert answered({}, x_amzn_bedrock_input_token_count=count) is None


def test_the_tier_that_was_served_is_told_by_a_header() -> None:
    """It decides the price, whatever was asked for."""
    usage = answered({"prompt_token_count": 3}, x_amzn_bedrock_service_tier="priority")

    assert usage == Usage(3, None, service_tier="priority")
    assert answered({}, x_amzn_bedrock_service_tier="priority") is None


NAMES = [
    "messages", "content", "text", "prompt", "inputText", "max_tokens", "max_gen_len",
    "max_completion_tokens", "inferenceConfig", "maxTokens", "textGenerationConfig",
    "maxTokenCount", "anthropic_version", "thinking", "budget_tokens", "n", "best_of", "images",
    "model", "schemaVersion", "usage", "input_tokens", "outputTokens", "prompt_tokens", "results",
    "tokenCount", "inputTextTokenCount", "generation_token_count", "tools", "system",
]  # fmt: skip
hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES),
    lambda inner: (
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*FAMILIES, "arn"]),
    st.dictionaries(st.sampled_from(NAMES), hostile, max_size=5),
)
def test_any_request_is_bounded_or_refused(name: str, fields: dict[str, Any]) -> None:
    """Whatever is read can be granted, and its grant reads as what was granted."""
    model, body = FAMILIES.get(name, (PROFILE, {}))
    with contextlib.suppress(RequestError):
        call = read(model, body | fields)
        granted = INVOKE.write_grant(head(model), call, model, 3)
        assert INVOKE.read_request(head(model), granted.body).max_output == 3


@settings(max_examples=150, deadline=None)
@given(hostile, st.dictionaries(st.sampled_from(list(COUNTS)), st.text(max_size=4)))
def test_any_answer_is_read_without_an_error(answer: Any, headers: dict[str, str]) -> None:
    """Counts are never below zero."""
    found = answered(answer, **headers)

    assert found is None or min(found.input_tokens or 0, found.output_tokens or 0) >= 0
