"""Converse: requests, grants, usage and refusals."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.bedrock import Bedrock
from llm_budget_mw.dialects.protocol import Problem, RequestHead, Rewritten
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Usage

BEDROCK = Bedrock()
CLAUDE = "us.anthropic.claude-x-v1:0"
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-x-v1:0"
ENCODED = "arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.anthropic.claude-x-v1%3A0"
HEAD = RequestHead("POST", f"/model/{CLAUDE}/converse")
HELLO = [{"role": "user", "content": [{"text": "hello"}]}]
PNG = base64.b64encode(b"\x89PNG\r\n" + b"\0" * 60).decode()


def read(head: RequestHead = HEAD, **fields: Any) -> ModelCall:
    return BEDROCK.read_request(head, json.dumps({"messages": HELLO} | fields).encode())


def read_content(*blocks: Any) -> ModelCall:
    return read(messages=[{"role": "user", "content": list(blocks)}])


def written(
    output: int, model: str = CLAUDE, head: RequestHead = HEAD, **fields: Any
) -> tuple[dict[str, Any], str | None]:
    rewritten: Rewritten = BEDROCK.write_grant(head, read(head, **fields), model, output)
    return json.loads(rewritten.body), rewritten.path


def answered(**answer: Any) -> Usage | None:
    return BEDROCK.read_usage(json.dumps(answer).encode(), {})


def usage(**report: Any) -> Usage | None:
    return answered(output={"message": {}}, stopReason="end_turn", usage=report)


def test_a_plain_request_is_read() -> None:
    """The model is that of the path; bound, tier and text those of the body."""
    call = read(
        system=[{"text": "be good"}],
        inferenceConfig={"maxTokens": 99, "temperature": 0.5, "stopSequences": ["x"]},
        serviceTier={"type": "flex"},
        requestMetadata={"n": "5"},
        guardrailConfig={"guardrailIdentifier": "g"},
    )

    assert (call.model, call.max_output, call.samplings) == (CLAUDE, 99, 1)
    assert (call.stream, call.surcharges, call.service_tier) == (False, frozenset(), "flex")
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["be good", "hello"], 21)


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        (f"/model/{CLAUDE}/converse", CLAUDE, False),
        ("/model/us.anthropic.claude-x-v1%3A0/converse-stream", CLAUDE, True),
        (f"/aws/model/{ARN}/converse", ARN, False),
        (f"/model/model/{ENCODED}/converse-stream", ARN, True),
    ],
)
def test_the_path_says_which_model_and_whether_to_stream(
    path: str, model: str, stream: bool
) -> None:
    """As an id or an ARN, encoded or decoded by the server, behind a prefix or not."""
    call = read(RequestHead("POST", path))

    assert (call.model, call.stream) == (model, stream)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "path must end"), ("/", "path must end"), ("/converse", "path must end"),
        (f"/model/{CLAUDE}", "path must end"), (f"/model/{CLAUDE}/invoke", "path must end"),
        (f"/model/{CLAUDE}/converse/", "path must end"), ("model/a.b/converse", "path must end"),
        (f"/model/{CLAUDE}/count-tokens", "path must end"), ("/model//converse", "name a model"),
        ("/model/a/b/converse", "name a model"), ("/model/a%2Fb/converse", "name a model"),
        ("/model/a%0Ab/converse", "name a model"), ("/model/ü/converse", "name a model"),
        (f"/model/{'m' * 257}/converse", "name a model"), ("/model/a b/converse", "name a model"),
        ("/model/arn:aws:bedrock:us-east-1:1:prompt/ABCDEFGHIJ:1/converse", "stored prompt"),
        ("/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprompt%2FAB/converse", "stored prompt"),
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(path: str, message: str) -> None:
    """No other endpoint, and nothing whose output has no bound, escapes through this dialect."""
    with pytest.raises(RequestError, match=message):
        read(RequestHead("POST", path))


def test_a_path_full_of_models_is_refused_in_time() -> None:
    """Nothing about it is tried more than once."""
    with pytest.raises(RequestError, match="path must end"):
        read(RequestHead("POST", "/model/arn:" * 100_000))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages must be an array with at least"),
        ({"messages": []}, "messages must be an array with at least"),
        ({"messages": [5]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": 5}]}, r"messages\[0\].content must be an array of blocks"),
        ({"system": {"text": "x"}}, "system must be an array of blocks"),
        ({"inferenceConfig": []}, "inferenceConfig must be an object"),
        ({"inferenceConfig": {"maxTokens": 0}}, "maxTokens must be an integer from 1"),
        ({"inferenceConfig": {"maxTokens": 5.0}}, "maxTokens must be an integer from 1"),
        ({"inferenceConfig": {"maxTokens": "5"}}, "maxTokens must be an integer from 1"),
        ({"inferenceConfig": {"maxTokens": True}}, "maxTokens must be an integer from 1"),
        ({"inferenceConfig": {"maxTokens": 2**31}}, "maxTokens must be an integer from 1"),
        ({"inferenceConfig": {"max_tokens": 5}}, "inferenceConfig.max_tokens is not allowed"),
        ({"toolConfig": 5}, "toolConfig must be an object"),
        ({"toolConfig": {"tools": {}}}, "tools must be an array"),
        ({"performanceConfig": "fast"}, "performanceConfig must be an object"),
        ({"serviceTier": "flex"}, "serviceTier must be an object"),
        ({"serviceTier": {"type": 5}}, "type must be a string"),
        ({"outputConfig": 5}, "outputConfig must be an object"),
        ({"additionalModelRequestFields": 5}, "additionalModelRequestFields must be an object"),
        (
            {"additionalModelRequestFields": {"reasoningConfig": {"maxReasoningEffort": "high"}}},
            "maxReasoningEffort must be low or medium",
        ),
        ({"additionalModelRequestFields": {"tools": 5}}, "tools must be an array"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, Any], message: str) -> None:
    """The message says which field, and what it must be."""
    with pytest.raises(RequestError, match=message):
        read(**fields)


@pytest.mark.parametrize(
    "extra",
    [
        {"max_tokens": 9}, {"maxTokens": 9}, {"max_new_tokens": 9}, {"max_gen_len": 9},
        {"maxTokenCount": 9}, {"Max-Tokens": 9}, {"max_completion_tokens": 9}, {"n": 2},
        {"best_of": 2}, {"num_generations": 2}, {"numResults": 2}, {"max_tokens_to_sample": 9},
        {"inferenceConfig": {"maxTokens": 9}}, {"textGenerationConfig": {"maxTokenCount": 9}},
    ],
)  # fmt: skip
def test_no_bound_hides_among_additional_fields(extra: dict[str, Any]) -> None:
    """A model might take it for the one that was granted."""
    with pytest.raises(RequestError, match=r"^additionalModelRequestFields.* is not allowed here"):
        read(additionalModelRequestFields=extra)


def test_additional_fields_of_no_account_are_allowed() -> None:
    """Null sets nothing, other settings are the model's own, and all may be input."""
    extra = {"top_k": 5, "max_tokens": None, "inferenceConfig": {"topK": 3, "maxTokens": None}}
    call = read(additionalModelRequestFields=extra)

    assert call.max_output is None
    assert any("top_k" in text for text in call.prompt.texts)


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"{", b"\xff", b'{"a":NaN}'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Not JSON, or JSON of another kind."""
    with pytest.raises(RequestError, match="request body"):
        BEDROCK.read_request(HEAD, body)


def test_media_are_measured_and_never_text() -> None:
    """Base64 becomes a size, a place in S3 an unknown one; names and contexts are read."""
    call = read_content(
        {"image": {"format": "png", "source": {"bytes": PNG}}},
        {"audio": {"format": "mp3", "source": {"bytes": PNG}}},
        {"document": {"name": "n", "context": "c", "source": {"s3Location": {"uri": "s3://b"}}}},
        {"document": {"name": "m", "source": {"text": "plain"}}},
        {"document": {"name": "o", "source": {"content": [{"text": "inner"}]}}},
        {"guardContent": {"image": {"format": "png", "source": {"bytes": PNG}}}},
        {"guardContent": {"text": {"text": "g"}}},
    )

    found = [(media.kind, media.size) for media in call.prompt.media]
    assert found == [("image", 66), ("audio", 66), ("file", 0), ("image", 66)]
    assert list(call.prompt.texts) == ["n", "c", "m", "plain", "o", "inner", '{"text":"g"}']


def test_a_film_is_a_feature() -> None:
    """It costs by the second, and no header tells how long it is."""
    call = read_content({"video": {"format": "mp4", "source": {"bytes": PNG}}})

    assert call.surcharges == {"video"}
    assert [media.kind for media in call.prompt.media] == ["file"]


def test_tools_and_earlier_turns_are_input() -> None:
    """Calls, results in all their forms, reasoning, and what nobody knows yet."""
    call = read_content(
        {"toolUse": {"toolUseId": "t", "name": "f", "input": {"data": "not media"}}},
        {"toolResult": {"toolUseId": "t", "content": [{"text": "r"}, {"json": {"bytes": "x"}}]}},
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "AAAA" * 4}}},
        {"reasoningContent": {"redactedContent": "AAAA" * 8}},
        {"hologram": {"bytes": PNG}},
        "loose",
    )

    assert [media.size for media in call.prompt.media] == [66]
    assert call.prompt.overhead_tokens == 21 + 4 + 8
    assert list(call.prompt.texts) == [
        '{"toolUseId":"t","name":"f","input":{"data":"not media"}}',
        "t", "r", '{"bytes":"x"}', '{"text":"hm","signature":""}', '{"hologram":{"bytes":""}}',
        '"loose"',
    ]  # fmt: skip


def test_a_block_with_two_contents_is_counted_twice() -> None:
    """Nobody knows which of them a server takes."""
    call = read_content({"text": "a", "image": {"source": {"bytes": PNG}}, "json": {"b": 1}})

    assert (list(call.prompt.texts), len(call.prompt.media)) == (["a", '{"b":1}'], 1)


def test_content_may_be_a_string() -> None:
    """Some servers of this format take it."""
    assert read(messages=[{"content": "x"}, {}]).prompt.texts == ["x"]


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"system": [{"cachePoint": {"type": "default"}}]}, {"cache_write"}),
        ({"system": [{"cachePoint": {"ttl": "1h"}}]}, {"cache_write_1h"}),
        ({"toolConfig": {"tools": [{"cachePoint": {"ttl": "5m"}}]}}, {"cache_write"}),
        ({"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}}, {"web_search"}),
        (
            {"toolConfig": {"tools": [{"systemTool": {"name": "nova_code_interpreter"}}]}},
            {"code_execution"},
        ),
        ({"toolConfig": {"tools": [{"systemTool": 5}]}}, {"server_tool"}),
        (
            {"additionalModelRequestFields": {"tools": [{"type": "web_search_2026"}]}},
            {"web_search"},
        ),
        ({"additionalModelRequestFields": {"tools": [{"type": "computer_2025"}]}}, set()),
        ({"additionalModelRequestFields": {"mcp_servers": [{}], "container": None}}, {"mcp"}),
        ({"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]}}, set()),
    ],
)
def test_what_the_provider_adds_by_itself_is_a_feature(
    fields: dict[str, Any], features: set[str]
) -> None:
    """Caches, system tools, and Claude's server tools among the additional fields."""
    assert read(**fields).surcharges == features


def test_tool_definitions_are_input() -> None:
    """Their JSON, and the system prompt they bring with them."""
    tools = [{"toolSpec": {"name": "f", "inputSchema": {"json": {}}}}]
    call = read(toolConfig={"tools": tools, "toolChoice": {"auto": {}}})

    assert json.dumps(tools, separators=(",", ":")) in call.prompt.texts
    assert call.prompt.overhead_tokens == 21 + 700 + 16


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({}, None),
        ({"performanceConfig": {"latency": "optimized"}}, "optimized"),
        ({"performanceConfig": {"latency": "standard"}}, None),
        (
            {"performanceConfig": {"latency": "optimized"}, "serviceTier": {"type": "flex"}},
            "optimized",
        ),
        ({"serviceTier": {"type": "priority"}}, "priority"),
    ],
)
def test_what_decides_the_price_is_the_tier(fields: dict[str, Any], tier: str | None) -> None:
    """Faster hardware has a price of its own, whatever else was asked for."""
    assert read(**fields).service_tier == tier


def test_the_grant_is_written_into_the_configuration() -> None:
    """What else is there stays, and so does the path of the model asked for."""
    body, path = written(7, inferenceConfig={"maxTokens": 99, "topP": 0.5}, top="x")

    assert body["inferenceConfig"] == {"maxTokens": 7, "topP": 0.5}
    assert (body["messages"], body["top"], path) == (HELLO, "x", None)
    assert written(7)[0]["inferenceConfig"] == {"maxTokens": 7}


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        (f"/p/model/{CLAUDE}/converse", "amazon.nova-lite-v1:0", "/p/model/amazon.nova-lite-v1:0/converse"),
        ("/model/a.b%3A0/converse-stream", "c.d:1", "/model/c.d:1/converse-stream"),
        (f"/model/{ENCODED}/converse", "arn:aws:x/y", "/model/arn:aws:x/y/converse"),
        (f"/model/{ARN}/converse", "arn:aws:x/y", "/model/arn:aws:x/y/converse"),
        (f"/model/{ENCODED}/converse", ARN, None),
        (f"/model/{CLAUDE}/converse", "a ü?", "/model/a ü?/converse"),
    ],
)  # fmt: skip
def test_another_model_is_written_into_the_path(
    path: str, model: str, expected: str | None
) -> None:
    """Decoded, however the one it replaces came; the path of the same model is left alone."""
    assert written(7, model, RequestHead("POST", path))[1] == expected


def test_another_model_is_not_given_the_wishes_to_the_first() -> None:
    """It might refuse them, and the call with them."""
    body, _ = written(
        7,
        "c.d",
        additionalModelRequestFields={"thinking": {"type": "enabled", "budget_tokens": 2000}},
        performanceConfig={"latency": "optimized"},
        outputConfig={"effort": "max", "textFormat": {"type": "json_schema"}},
        serviceTier={"type": "flex"},
    )

    assert body["outputConfig"] == {"textFormat": {"type": "json_schema"}}
    assert body["serviceTier"] == {"type": "flex"}
    assert body.keys().isdisjoint({"additionalModelRequestFields", "performanceConfig"})
    assert written(7, "c.d")[0].keys() == {"messages", "inferenceConfig"}


@pytest.mark.parametrize("name", ["thinking", "reasoning_config"])
@pytest.mark.parametrize(
    ("asked", "granted", "budget"),
    [(5000, 5000, 4000), (5000, 3000, 2999), (None, 3000, 2999), (5000, 1025, 1024), (5000, 1024, 0)],
)  # fmt: skip
def test_thinking_is_made_to_fit_below_the_bound(
    name: str, asked: int | None, granted: int, budget: int
) -> None:
    """Claude refuses a budget that is not below the bound, or below its least."""
    thinking = {"type": "enabled", "budget_tokens": 4000}
    body, _ = written(
        granted,
        inferenceConfig={"maxTokens": asked},
        additionalModelRequestFields={name: thinking, "top_k": 5},
    )

    kept = {name: thinking | {"budget_tokens": budget}} if budget else {}
    assert body["additionalModelRequestFields"] == kept | {"top_k": 5}


def test_a_grant_does_not_change_the_call() -> None:
    """A call may be granted again, after a failure."""
    extra = {"thinking": {"type": "enabled", "budget_tokens": 4000}}
    call = read(inferenceConfig={"maxTokens": 5000}, additionalModelRequestFields=extra)
    before = json.dumps(call.body)
    BEDROCK.write_grant(HEAD, call, CLAUDE, 10)
    BEDROCK.write_grant(HEAD, call, "c.d", 10)

    assert json.dumps(call.body) == before


def test_the_arguments_of_an_sdk_carry_the_model() -> None:
    """In code there is no path: `modelId` is read and written."""
    head = RequestHead("POST", "")
    call = read(head, modelId=ARN, inferenceConfig={"maxTokens": 9})
    rewritten = json.loads(BEDROCK.write_grant(head, call, "c.d", 5).body)

    assert (call.model, rewritten["modelId"]) == (ARN, "c.d")
    with pytest.raises(RequestError, match="modelId must be a string"):
        read(head, modelId=5.5e9)
    with pytest.raises(RequestError, match="name a model"):
        read(head, modelId="a/converse/model/b")


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"inputTokens": 433, "outputTokens": 16, "totalTokens": 449}, Usage(433, 16)),
        (
            {"inputTokens": 433, "outputTokens": 16, "totalTokens": 3201,
             "cacheReadInputTokens": 2752, "cacheWriteInputTokens": 0},
            Usage(3185, 16, cache_read_tokens=2752),
        ),
        (
            {"inputTokens": 3, "outputTokens": 1, "cacheReadInputTokens": 20,
             "cacheReadInputTokenCount": 20, "cacheWriteInputTokens": 7,
             "cacheWriteInputTokenCount": 7},
            Usage(30, 1, cache_read_tokens=20, cache_write_tokens=7),
        ),
        (
            {"inputTokens": 3, "outputTokens": 1, "cacheWriteInputTokenCount": 7,
             "cacheDetails": [{"ttl": "1h", "inputTokens": 5}, {"ttl": "5m", "inputTokens": 2}]},
            Usage(10, 1, cache_write_tokens=7, cache_write_1h_tokens=5),
        ),
        (
            {"inputTokens": 3, "outputTokens": 1,
             "cacheDetails": [{"ttl": "1h", "inputTokens": 5}, {"ttl": 5}, None, "x"]},
            Usage(8, 1, cache_write_tokens=5, cache_write_1h_tokens=5),
        ),
        ({"inputTokens": 10, "cacheReadInputTokens": 5, "totalTokens": 18},
         Usage(15, 3, cache_read_tokens=5)),
        ({"inputTokens": 10, "totalTokens": 10}, Usage(10, None)),
        ({"inputTokens": 10, "cacheReadInputTokens": 5, "totalTokens": 12},
         Usage(15, None, cache_read_tokens=5)),
        ({"outputTokens": 5, "totalTokens": 12}, Usage(None, 5)),
        ({"inputTokens": 9.0, "outputTokens": 1.5}, Usage(9, 2)),
        ({"inputTokens": -1, "outputTokens": 5}, Usage(None, 5)),
        ({"inputTokens": "9", "outputTokens": True}, None),
        ({"inputTokens": None, "outputTokens": 2**60}, None),
        ({"inputTokens": 4, "outputTokens": 5, "cacheReadInputTokens": -3}, Usage(4, 5)),
        ({"totalTokens": 5}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_usage_is_read(report: dict[str, Any], expected: Usage | None) -> None:
    """Input and both sides of the cache add up; two names of one count are one count."""
    assert usage(**report) == expected


def test_model_and_tier_are_read_from_the_answer() -> None:
    """A prompt router says which model it chose."""
    found = answered(
        usage={"inputTokens": 1, "outputTokens": 1},
        trace={"promptRouter": {"invokedModelId": "a.b"}},
        performanceConfig={"latency": "optimized"},
    )

    assert found == Usage(1, 1, model="a.b", service_tier="optimized")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b'"x"', b"null", b'{"usage":5}', b'{"usage":[{}]}', b'{"trace":[]}',
     b'{"message":"Too many"}', b'{"usage":{"prompt_tokens":5,"completion_tokens":5}}'],
)  # fmt: skip
def test_an_answer_of_another_format_is_unknown(body: bytes) -> None:
    """Never an exception, never zero."""
    assert BEDROCK.read_usage(body, {}) is None


@pytest.mark.parametrize("name", ["bedrock", "bedrock_invoke"])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", "ValidationException"),
        (401, "invalid_token", "AccessDeniedException"),
        (402, "payment", "ServiceQuotaExceededException"),
        (402, "budget_exceeded", "ServiceQuotaExceededException"),
        (403, "insufficient_scope", "AccessDeniedException"),
        (404, "unknown_route", "ResourceNotFoundException"),
        (413, "request_exceeds_budget", "ValidationException"),
        (422, "x", "ValidationException"),
        (429, "budget_exceeded", "ServiceQuotaExceededException"),
        (429, "rate_limited", "ThrottlingException"),
        (500, "x", "InternalServerException"),
        (503, "store_down", "ServiceUnavailableException"),
        (504, "x", "ModelTimeoutException"),
    ],
)
def test_a_refusal_is_an_exception_of_aws(name: str, status: int, code: str, kind: str) -> None:
    """Botocore takes class and request id from headers, the message from the body."""
    answer = dialect_for(name).error(Problem(status, code, "Why.", request_id="req-1"))

    assert answer.headers == (("x-amzn-errortype", kind), ("x-amzn-requestid", "req-1"))
    assert json.loads(answer.body) == {"message": "Why.", "code": code, "request_id": "req-1"}
    assert answer.media_type == "application/json"


def test_a_refusal_tells_what_else_is_known() -> None:
    """Beside the message; absent things are absent."""
    full = BEDROCK.error(Problem(429, "c", '"\ud800', 5, ("daily",)))

    assert json.loads(full.body) == {
        "message": '"\ud800', "code": "c", "violated_policies": ["daily"], "retry_after": 5,
    }  # fmt: skip
    assert full.headers == (("x-amzn-errortype", "ThrottlingException"),)


NAMES = [
    "messages", "content", "text", "system", "inferenceConfig", "maxTokens", "toolConfig", "tools",
    "toolSpec", "systemTool", "cachePoint", "image", "source", "bytes", "document", "toolResult",
    "guardContent", "reasoningContent", "additionalModelRequestFields", "thinking",
    "budget_tokens", "serviceTier", "type", "performanceConfig", "latency", "reasoningConfig",
    "outputConfig", "effort", "usage", "trace", "inputTokens", "outputTokens", "totalTokens",
    "cacheDetails", "ttl",
]  # fmt: skip
hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES) | st.just(PNG),
    lambda inner: (
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), hostile, max_size=6), st.integers(1, 9))
def test_any_request_is_bounded_or_refused(fields: dict[str, Any], output: int) -> None:
    """Whatever is read can be granted, and holds the bound at the only place there is."""
    body = {"messages": HELLO} | fields
    with contextlib.suppress(RequestError):
        call = BEDROCK.read_request(HEAD, json.dumps(body).encode())
        granted = json.loads(BEDROCK.write_grant(HEAD, call, CLAUDE, output).body)
        assert granted["inferenceConfig"]["maxTokens"] == output


@settings(max_examples=100, deadline=None)
@given(hostile)
def test_any_answer_is_read_without_an_error(answer: Any) -> None:
    """Counts are never below zero."""
    found = BEDROCK.read_usage(json.dumps(answer).encode(), {})

    assert found is None or min(found.input_tokens or 0, found.output_tokens or 0) >= 0
