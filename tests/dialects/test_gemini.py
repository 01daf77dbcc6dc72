"""Gemini: requests, grants, and the usage of whole answers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.gemini import Gemini
from llm_budget_mw.dialects.protocol import Problem, RequestHead, Rewritten
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import Media, ModelCall, Usage

HEAD = RequestHead("POST", "/v1beta/models/gemini-2.5-pro:generateContent")
HELLO = [{"role": "user", "parts": [{"text": "hello"}]}]
GEMINI = Gemini()
GARBAGE = [True, "5", -1, 1e999, float("nan"), [], {}, None, 2**54]

FIELDS = [
    "contents", "parts", "text", "inlineData", "inline_data", "mimeType", "data", "fileData",
    "fileUri", "tools", "generationConfig", "generation_config", "thinkingConfig",
    "thinkingBudget", "maxOutputTokens", "candidateCount", "systemInstruction", "functionResponse",
    "candidates", "content", "usageMetadata", "promptTokenCount", "promptFeedback", "blockReason",
    "groundingMetadata", "webSearchQueries", "index", "error", "functionCall", "executableCode",
]  # fmt: skip
hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(FIELDS),
    lambda inner: (
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=4)
    ),
    max_leaves=15,
)


def read(head: RequestHead = HEAD, **fields: Any) -> ModelCall:
    return GEMINI.read_request(head, json.dumps({"contents": HELLO} | fields).encode())


def parts(*found: Any) -> ModelCall:
    return read(contents=[{"parts": list(found)}])


def grant(
    output: int, model: str = "gemini-2.5-pro", head: RequestHead = HEAD, **fields: Any
) -> Rewritten:
    return GEMINI.write_grant(head, read(head, **fields), model, output)


def config(output: int, model: str = "gemini-2.5-pro", **given: Any) -> dict[str, Any]:
    body = json.loads(grant(output, model, generationConfig=given).body)
    written: dict[str, Any] = body["generationConfig"]
    return written


def answered(**answer: Any) -> Usage | None:
    return GEMINI.read_usage(json.dumps(answer).encode(), {})


def usage(**report: Any) -> Usage | None:
    text = [{"content": {"parts": [{"text": "hi"}]}}]
    return answered(modelVersion="g", usageMetadata=report, candidates=text)


def test_a_plain_request_is_read() -> None:
    """The model is that of the path; bound, multiplicity, tier and text those of the body."""
    call = read(
        systemInstruction={"parts": [{"text": "be good"}]},
        generationConfig={"maxOutputTokens": 99, "candidateCount": 3, "temperature": 0.5},
        serviceTier="flex",
        safetySettings=[{"category": "x"}],
    )

    assert (call.model, call.max_output, call.samplings) == ("gemini-2.5-pro", 99, 3)
    assert (call.stream, call.surcharges, call.service_tier) == (False, frozenset(), "flex")
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["hello", "be good"], 8)


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        ("/v1beta/models/gemini-x:generateContent", "gemini-x", False),
        ("/v1beta/models/gemini-x:streamGenerateContent", "gemini-x", True),
        ("/mounted/v1/models/g.1_2@001:generateContent", "g.1_2@001", False),
        (
            "/v1/projects/p/locations/l/publishers/google/models/gemini-x:streamGenerateContent",
            "gemini-x",
            True,
        ),
        ("/v1beta/tunedModels/gemini-x:generateContent", "tunedModels/gemini-x", False),
    ],
)
def test_the_path_says_which_model_and_whether_to_stream(
    path: str, model: str, stream: bool
) -> None:
    """Also behind a prefix and on Vertex AI; a tuned model never has the name of Google's own."""
    call = read(RequestHead("POST", path))

    assert (call.model, call.stream) == (model, stream)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/v1beta/models", "/v1beta/models/gemini-x", "/v1beta/models/:generateContent",
        "/v1beta/models/gemini-x:countTokens", "/v1beta/models/gemini-x:batchGenerateContent",
        "/v1beta/models/a/b:generateContent", "/v1beta/models/a%2Fb:generateContent",
        "/v1beta/models/gemini-x:generateContent/", "/v1beta/models/gemini-x:generateContent\n",
        "/v1/projects/p/locations/l/endpoints/5:generateContent", "/models/ü:generateContent",
        f"/models/{'m' * 201}:generateContent", "models/gemini-x:generateContent",
    ],
)  # fmt: skip
def test_a_path_without_a_known_method_is_refused(path: str) -> None:
    """No other endpoint escapes through this dialect."""
    with pytest.raises(RequestError, match="path must end") as caught:
        read(RequestHead("POST", path))

    assert (caught.value.status, caught.value.code) == (404, "unknown_route")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contents": None}, "contents must be an array with at least"),
        ({"contents": []}, "contents must be an array with at least"),
        ({"contents": "hi"}, "contents must be an array"),
        ({"contents": [5]}, r"contents\[0\] must be an object"),
        ({"contents": [{"parts": "hi"}]}, "parts must be an array"),
        ({"contents": [{"parts": [{"inlineData": 5}]}]}, "inlineData must be an object"),
        ({"contents": [{"parts": [{"functionResponse": 5}]}]}, "functionResponse must be an obj"),
        ({"systemInstruction": 5}, "systemInstruction must be an array"),
        ({"tools": 5}, "tools must be an array"),
        ({"tools": [{"functionDeclarations": 5}]}, "functionDeclarations must be an array"),
        ({"generationConfig": []}, "generationConfig must be an object"),
        ({"generationConfig": {"thinkingConfig": 5}}, "thinkingConfig must be an object"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "maxOutputTokens must be an integer from"),
        ({"generationConfig": {"maxOutputTokens": -1}}, "maxOutputTokens must be an integer"),
        ({"generationConfig": {"maxOutputTokens": "5"}}, "maxOutputTokens must be an integer"),
        ({"generationConfig": {"maxOutputTokens": True}}, "maxOutputTokens must be an integer"),
        ({"generationConfig": {"max_output_tokens": 2**31}}, "maxOutputTokens must be an integer"),
        ({"generationConfig": {"candidateCount": 0}}, "candidateCount must be an integer"),
        ({"generationConfig": {"candidate_count": 129}}, "candidateCount must be an integer"),
        ({"serviceTier": []}, "serviceTier must be a string"),
        ({"generationConfig": {}, "generation_config": {}}, "The request has generationConfig twice"),
        (
            {"generation_config": {"maxOutputTokens": 1, "max_output_tokens": 2**30}},
            "generationConfig has maxOutputTokens twice",
        ),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    """Each message says which field and what it must be; no bound hides under a second name."""
    with pytest.raises(RequestError, match=f"^{message}"):
        read(**fields)


def test_the_other_names_mean_the_same() -> None:
    """Google takes `snake_case` as well, and one object where an array is meant."""
    call = read(
        contents={"role": "user", "parts": {"inline_data": {"mime_type": "image/png", "data": "QUJD"}}},
        system_instruction={"parts": {"text": "be good"}},
        generation_config={"max_output_tokens": 9, "candidate_count": 2},
        tools={"google_search": {}},
        cached_content="cachedContents/c",
        service_tier="priority",
    )  # fmt: skip

    assert (call.max_output, call.samplings, call.service_tier) == (9, 2, "priority")
    assert list(call.prompt.media) == [Media("image", b"ABC", 3)]
    assert call.prompt.texts[0] == "be good"
    assert call.surcharges == {"web_search", "cached_content"}


def test_parts_become_text_and_media() -> None:
    """Text is text, blobs are media by their type, signatures are tokens."""
    call = parts(
        {"text": "look", "thoughtSignature": "A" * 40},
        {"inlineData": {"mimeType": "audio/mp3", "data": "QUJD"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "QUJDRA=="}},
        {"inlineData": {"data": 5}},
        {"inlineData": {"mimeType": "IMAGE/PNG", "data": "-_-_"}},
        {"fileData": {"mimeType": "image/png", "fileUri": "gs://a/b"}},
        {"functionCall": {"name": "f", "args": {"my_key": 1}}},
        {"functionResponse": {"name": "f", "response": {"data": "QUJD"}}},
        {"functionResponse": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "QUJD"}}]}},
        {"thought": True, "text": "hm"},
    )  # fmt: skip

    assert list(call.prompt.texts) == [
        "look", '{"functionCall":{"name":"f","args":{"my_key":1}}}',
        '{"functionResponse":{"name":"f","response":{"data":""}}}', '{"functionResponse":{}}',
        "hm", '{"thought":true}',
    ]  # fmt: skip
    assert list(call.prompt.media) == [
        Media("audio", b"ABC", 3), Media("file", b"ABCD", 4), Media("file"),
        Media("image", b"\xfb\xff\xbf", 3), Media("image"), Media("file", b"ABC", 3),
        Media("image", b"ABC", 3),
    ]  # fmt: skip
    assert (call.prompt.overhead_tokens, call.surcharges) == (4 + 10, frozenset())


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "video/mp4", "data": "QUJD"}},
        {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/b"}},
        {"file_data": {"file_uri": "https://example.com/watch"}},
        {"fileData": {"mimeType": 5, "fileUri": "gs://a/b"}},
        {"functionResponse": {"parts": {"inlineData": {"mimeType": "video/mp4", "data": "QQ"}}}},
    ],
)
def test_a_film_has_no_bound(part: dict[str, Any]) -> None:
    """It costs by the second, and nothing tells how many there are: it is a feature."""
    assert parts(part).surcharges == {"video"}


@pytest.mark.parametrize(
    ("part", "given", "detail"),
    [
        ({}, {}, ""),
        ({}, {"mediaResolution": "MEDIA_RESOLUTION_LOW"}, "MEDIA_RESOLUTION_LOW"),
        ({"mediaResolution": {"level": "ULTRA_HIGH"}}, {"mediaResolution": "LOW"}, "ULTRA_HIGH"),
        ({"media_resolution": "HIGH"}, {}, "HIGH"),
        ({"mediaResolution": 5}, {}, ""),
    ],
)
def test_the_resolution_of_media_is_their_detail(
    part: dict[str, Any], given: dict[str, Any], detail: str
) -> None:
    """A part's own goes before that of the whole request."""
    blob = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}
    call = read(contents=[{"parts": [blob | part]}], generationConfig=given)

    assert list(call.prompt.media) == [Media("image", b"ABC", 3, detail)]


@pytest.mark.parametrize(
    ("tool", "overhead", "features"),
    [
        ({"functionDeclarations": [{"name": "f"}, {"name": "g"}]}, 32, set[str]()),
        ({"function_declarations": {"name": "f"}}, 16, set[str]()),
        ({"computerUse": {"environment": "x"}}, 800, set[str]()),
        ({"googleSearch": {}}, 0, {"web_search"}),
        ({"google_search_retrieval": {}}, 0, {"web_search"}),
        ({"enterpriseWebSearch": {}}, 0, {"web_search"}),
        ({"urlContext": {}}, 0, {"web_fetch"}),
        ({"codeExecution": {}}, 0, {"code_execution"}),
        ({"fileSearch": {}}, 0, {"file_search"}),
        ({"retrieval": {}}, 0, {"file_search"}),
        ({"googleMaps": {}}, 0, {"server_tool"}),
        ({"mcpServers": [{}]}, 0, {"mcp"}),
        ({"brandNew": {}, "googleSearch": {}}, 0, {"server_tool", "web_search"}),
        ({"googleSearch": None}, 0, set[str]()),
    ],
)
def test_tools_bring_hidden_input(tool: dict[str, Any], overhead: int, features: set[str]) -> None:
    """Each object may hold several; an empty one is a tool, null is none."""
    call = read(tools=[tool])

    assert call.surcharges == features
    assert call.prompt.overhead_tokens == 4 + 64 + overhead
    assert len(call.prompt.texts) == 2


def test_a_cached_content_is_unseen_input() -> None:
    """It is named by its id only."""
    assert read(cachedContent="cachedContents/c").surcharges == {"cached_content"}


def test_schemas_and_unknown_fields_are_input() -> None:
    """Text in a new field cannot hide from the estimate."""
    call = read(new="text", generationConfig={"responseSchema": {"type": "x"}, "seed": 5})

    assert list(call.prompt.texts) == ["hello", '"text"', '{"type":"x"}']


def test_the_grant_is_written_and_nothing_else() -> None:
    """The bound under its one name; unknown fields, and names inside of them, stay."""
    call = read(
        generation_config={"max_output_tokens": 500, "response_schema": {"my_key": 1}},
        model="models/other",
        zzz={"b_b": 1},
    )
    rewritten = GEMINI.write_grant(HEAD, call, "gemini-2.5-pro", 30)

    assert json.loads(rewritten.body) == {
        "contents": HELLO,
        "zzz": {"b_b": 1},
        "generationConfig": {"maxOutputTokens": 30, "responseSchema": {"my_key": 1}},
    }
    assert rewritten.path is None


@pytest.mark.parametrize(
    ("path", "model", "written"),
    [
        ("/v1beta/models/a:generateContent", "b", "/v1beta/models/b:generateContent"),
        ("/v1beta/models/a:generateContent", "models/b", "/v1beta/models/b:generateContent"),
        ("/v1/models/a:streamGenerateContent", "x/b c", "/v1/models/b c:streamGenerateContent"),
        ("/v1/publishers/google/models/a:generateContent", "b@1", "/v1/publishers/google/models/b@1:generateContent"),
        ("/v1beta/tunedModels/a:generateContent", "b", "/v1beta/models/b:generateContent"),
        ("/v1beta/models/a:generateContent", "tunedModels/a", "/v1beta/tunedModels/a:generateContent"),
        ("/v1beta/models/a:generateContent", "a", None),
        ("/v1beta/models/a:generateContent", "publishers/google/models/a", None),
        ("/v1beta/tunedModels/a:generateContent", "tunedModels/a", None),
    ],
)  # fmt: skip
def test_another_model_goes_into_the_path(path: str, model: str, written: str | None) -> None:
    """The path is left alone where it already names the model."""
    assert grant(5, model, RequestHead("POST", path)).path == written


@pytest.mark.parametrize(
    ("output", "budget", "expected"),
    [
        (3000, 2000, 2000),
        (2000, 2000, 1999),
        (513, 2000, 512),
        (512, 2000, None),
        (1, 2000, None),
        (4096, 9000, 9000),
        (3000, 0, 0),
        (3000, -1, -1),
        (3000, "x", "x"),
    ],
)
def test_a_thinking_budget_still_fits(output: int, budget: Any, expected: Any) -> None:
    """Below a lowered bound, or left to the model; an unchanged bound changes nothing."""
    thinking = {"thinking_budget": budget, "includeThoughts": True}
    written = config(output, maxOutputTokens=4096, thinking_config=thinking)["thinkingConfig"]

    found = written.get("thinkingBudget", written.get("thinking_budget"))
    assert (found, written["includeThoughts"]) == (expected, True)


def test_a_bound_where_there_was_none_lowers_thinking_too() -> None:
    """A level is no number of tokens and stays."""
    assert config(600, thinkingConfig={"thinkingBudget": 5000}) == {
        "maxOutputTokens": 600,
        "thinkingConfig": {"thinkingBudget": 599},
    }
    assert config(600, thinkingConfig={"thinkingLevel": "LOW"})["thinkingConfig"] == {
        "thinkingLevel": "LOW"
    }


def test_another_model_thinks_as_it_likes() -> None:
    """Which budgets and levels it takes, and whether any, is not known here."""
    assert config(600, "gemini-2.5-flash", thinkingConfig={"thinkingLevel": "HIGH"}) == {
        "maxOutputTokens": 600
    }


def test_the_request_that_was_read_is_not_touched() -> None:
    """The grant is written into a copy: a call may be granted again."""
    call = read(generationConfig={"thinkingConfig": {"thinkingBudget": 2000}})
    before = json.dumps(call.body)
    GEMINI.write_grant(HEAD, call, "gemini-2.5-pro", 1500)
    GEMINI.write_grant(HEAD, call, "other", 1500)

    assert json.dumps(call.body) == before


@settings(max_examples=150, deadline=None)
@given(hostile_json, hostile_json, hostile_json)
def test_any_json_is_read_or_refused(body: Any, part: Any, given_config: Any) -> None:
    """Only `RequestError` is raised, and what was read can be written."""
    contents = [{"parts": [part]}]
    for fields in (body, {"contents": contents, "generationConfig": given_config, "tools": [part]}):
        with contextlib.suppress(RequestError):
            call = GEMINI.read_request(HEAD, json.dumps(fields).encode())
            GEMINI.write_grant(HEAD, call, "m", 1)


def test_thoughts_and_tool_use_are_beside_the_counts() -> None:
    """Output is candidates and thoughts; input is prompt and what tools put in."""
    report = {
        "promptTokenCount": 35,
        "toolUsePromptTokenCount": 5,
        "candidatesTokenCount": 12,
        "thoughtsTokenCount": 62,
        "totalTokenCount": 114,
        "cachedContentTokenCount": 30,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 28}, {"modality": "AUDIO", "tokenCount": 7}],
        "toolUsePromptTokensDetails": [{"modality": 4, "tokenCount": 2}],
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}, 5],
        "serviceTier": "priority",
        "trafficType": "ON_DEMAND",
    }  # fmt: skip

    assert usage(**report) == Usage(
        input_tokens=40,
        output_tokens=74,
        cache_read_tokens=30,
        reasoning_tokens=62,
        input_audio_tokens=9,
        output_audio_tokens=3,
        model="g",
        service_tier="priority",
    )


def test_the_other_names_of_an_answer_mean_the_same() -> None:
    """Some gateways answer in `snake_case`; Vertex AI says at which price in `trafficType`."""
    report = {
        "prompt_token_count": 5,
        "candidates_token_count": 2,
        "traffic_type": "ON_DEMAND_FLEX",
    }
    found = answered(usage_metadata=report, model_version="g")

    assert found == Usage(5, 2, model="g", service_tier="ON_DEMAND_FLEX")


@pytest.mark.parametrize(
    ("report", "tokens_in", "tokens_out"),
    [
        ({"promptTokenCount": 35, "candidatesTokenCount": 12, "totalTokenCount": 109}, 35, 74),
        ({"promptTokenCount": 35, "totalTokenCount": 47}, 35, 12),
        ({"promptTokenCount": 35, "totalTokenCount": 35}, 35, None),
        ({"promptTokenCount": 35, "totalTokenCount": 3}, 35, None),
        ({"promptTokenCount": 35}, 35, None),
        ({"promptTokenCount": 35, "thoughtsTokenCount": 9, "totalTokenCount": 44}, 35, None),
        ({"promptTokenCount": 35, "thoughtsTokenCount": 9}, 35, None),
        ({"promptTokenCount": 35, "candidatesTokenCount": 0}, 35, 0),
        ({"promptTokenCount": 35, "responseTokenCount": 4}, 35, 4),
        ({"candidatesTokenCount": 4, "totalTokenCount": 40}, None, 4),
        ({"totalTokenCount": 40}, None, None),
        ({"toolUsePromptTokenCount": 5, "candidatesTokenCount": 4}, None, 4),
        ({"promptTokenCount": 28.0, "candidatesTokenCount": 2.5}, 28, 3),
    ],
)
def test_what_is_absent_is_unknown(
    report: dict[str, Any], tokens_in: int | None, tokens_out: int | None
) -> None:
    """Unless the total tells; an answer with text has some output."""
    found = usage(**report)

    sides = (None, None) if found is None else (found.input_tokens, found.output_tokens)
    assert sides == (tokens_in, tokens_out)


BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}}
THOUGHT = {"content": {"parts": [{"thought": True, "text": "hm"}, {"text": ""}]}}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({**BLOCKED, "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}, Usage(9, 0)),
        ({**BLOCKED, "usageMetadata": {"promptTokenCount": 9}}, Usage(9, 0)),
        ({**BLOCKED, "usageMetadata": {"trafficType": "ON_DEMAND"}}, Usage(None, 0)),
        (BLOCKED, Usage(None, 0)),
        ({"usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}, Usage(9, 0)),
        ({"usageMetadata": {"promptTokenCount": 9}}, Usage(9, None)),
        (
            {
                "candidates": [{"finishReason": "SAFETY"}],
                "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9},
            },
            Usage(9, 0),
        ),
        (
            {
                "candidates": [THOUGHT],
                "usageMetadata": {
                    "promptTokenCount": 9, "thoughtsTokenCount": 5, "totalTokenCount": 14,
                },
            },
            Usage(9, 5, reasoning_tokens=5),
        ),
    ],
)  # fmt: skip
def test_where_nothing_was_generated_an_absent_zero_is_a_zero(
    answer: dict[str, Any], expected: Usage
) -> None:
    """A blocked prompt has no output, and who only thought has no more than the thoughts."""
    assert answered(**answer) == expected


@pytest.mark.parametrize(
    ("model", "searches"),
    [("gemini-2.5-pro", 1), ("models/gemini-1.5-pro", 1), ("gemini-3-pro", 3), (None, 3)],
)
def test_searches_are_billed_by_request_up_to_gemini_2(model: str | None, searches: int) -> None:
    """From Gemini 3 on each different search is; in doubt the dearer."""
    queries = ["a", "b", "a", 5]
    found = answered(
        modelVersion=model,
        usageMetadata={"promptTokenCount": 5, "candidatesTokenCount": 2},
        candidates=[
            {"groundingMetadata": {"webSearchQueries": queries}},
            {"groundingMetadata": {"webSearchQueries": ["c"]}},
        ],
    )

    assert found is not None
    assert found.web_searches == searches


@pytest.mark.parametrize("value", GARBAGE)
def test_a_count_that_is_no_number_of_tokens_is_unknown(value: Any) -> None:
    """Booleans, texts, negative, infinite and absurd numbers are None, never zero."""
    assert usage(promptTokenCount=value, candidatesTokenCount=3) == Usage(None, 3, model="g")
    assert usage(promptTokenCount=3, candidatesTokenCount=value) == Usage(3, None, model="g")
    assert usage(promptTokenCount=value, candidatesTokenCount=value) is None


def test_an_array_that_was_streamed_counts_what_its_last_element_does() -> None:
    """Without `alt=sse` a stream is one JSON array."""
    chunks = [
        {"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 50}},
        {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 4}, "modelVersion": "g"},
        {"usageMetadata": {"trafficType": "ON_DEMAND"}},
        5,
    ]

    assert GEMINI.read_usage(json.dumps(chunks).encode(), {}) == Usage(8, 4, model="g")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\x1f\x8b", b"[]", b"5", b"{}", b"[[[]]]", b'{"usageMetadata":null}',
        b'{"usageMetadata":5}', b'{"usageMetadata":{}}', b'[{"error":{"code":429}}]',
        b'{"usage":{"prompt_tokens":5,"completion_tokens":3}}', b'{"totalTokens":31}',
    ],
)  # fmt: skip
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    """Garbage, silence and other formats are None."""
    assert GEMINI.read_usage(body, {}) is None


@settings(max_examples=150, deadline=None)
@given(hostile_json, hostile_json)
def test_any_answer_is_read_without_an_error(report: Any, candidate: Any) -> None:
    """Reading an answer never raises."""
    for answer in (
        report,
        [report, candidate],
        {"usageMetadata": report, "candidates": [candidate]},
        {"candidates": [{"content": {"parts": [candidate]}, "groundingMetadata": report}]},
    ):
        GEMINI.read_usage(json.dumps(answer).encode(), {})


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (402, "RESOURCE_EXHAUSTED"),
        (403, "PERMISSION_DENIED"), (404, "NOT_FOUND"), (409, "ABORTED"),
        (413, "INVALID_ARGUMENT"), (422, "INVALID_ARGUMENT"), (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"),
    ],
)  # fmt: skip
def test_an_error_is_shaped_as_google_does(status: int, name: str) -> None:
    """`code`, `message` and `status` stand where the SDK reads them."""
    answer = GEMINI.error(Problem(status, "why", "Why."))

    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "WHY",
        "domain": "llm-budget-mw",
        "metadata": {},
    }
    assert json.loads(answer.body) == {
        "error": {"code": status, "message": "Why.", "status": name, "details": [info]}
    }
    assert (answer.media_type, answer.headers) == ("application/json", ())


def test_an_error_tells_limits_and_time_to_who_reads_them() -> None:
    """The policies are violations of a quota, the time is a `RetryInfo`."""
    answer = GEMINI.error(Problem(429, "rate_limited", "Why.", 34, ("daily",), "req-1"))

    error = json.loads(answer.body)["error"]
    found = {detail.pop("@type").rpartition(".")[2]: detail for detail in error["details"]}
    assert error["violated_policies"] == ["daily"]
    assert found["ErrorInfo"]["metadata"] == {"retry_after": "34"}
    assert found["QuotaFailure"] == {"violations": [{"subject": "daily", "description": "Why."}]}
    assert found["RetryInfo"] == {"retryDelay": "34s"}
    assert found["RequestInfo"] == {"requestId": "req-1"}


def test_a_spent_budget_names_no_time_to_retry() -> None:
    """Who obeys a `RetryInfo` would sleep for hours; who reads `metadata` still knows."""
    body = GEMINI.error(Problem(429, "budget_exceeded", '"\r\n\ud800', 3600)).body

    assert b"RetryInfo" not in body
    assert b'"retry_after":"3600"' in body
    assert body.isascii()
