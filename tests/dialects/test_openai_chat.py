"""Chat Completions: what a request may cost is read, and the grant is written, exactly."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import Media, ModelCall

HEAD = RequestHead("POST", "/v1/chat/completions")
HELLO = [{"role": "user", "content": "hello"}]
OPENAI = OpenAIChat()
COMPATIBLE = OpenAIChat(name="openai_compatible", bound_field="max_tokens")

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = [
    "model", "messages", "max_tokens", "max_completion_tokens", "n", "best_of", "stream",
    "stream_options", "tools", "functions", "response_format", "service_tier", "models", "role",
    "content", "name", "type", "text", "image_url", "url", "file", "file_data", "input_audio",
]  # fmt: skip
hostile_json = st.recursive(
    any_json,
    lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner),
    max_leaves=12,
)


def read(body: Any = None, **fields: Any) -> ModelCall:
    body = {"model": "gpt-x", "messages": HELLO} | fields if body is None else body
    return OPENAI.read_request(HEAD, json.dumps(body).encode())


def written(dialect: OpenAIChat = OPENAI, output: int = 7, **fields: Any) -> dict[str, Any]:
    rewritten = dialect.write_grant(HEAD, read(**fields), "granted", output)
    body: dict[str, Any] = json.loads(rewritten.body)
    return body


def content(*parts: Any) -> ModelCall:
    return read(messages=[{"role": "user", "content": list(parts)}])


def test_a_plain_request_is_read() -> None:
    """Model, text and defaults are those of the body; one message costs 7 tokens of format."""
    call = read()

    assert (call.model, call.max_output, call.samplings, call.stream) == ("gpt-x", None, 1, False)
    assert (list(call.prompt.texts), call.prompt.overhead_tokens) == (["hello"], 7)
    assert (call.surcharges, call.service_tier) == (frozenset(), None)


def test_a_request_may_leave_the_model_to_the_tier() -> None:
    """No model, or null, is None: the grant names one."""
    assert read({"messages": HELLO}).model is None
    assert read(model=None).model is None


@pytest.mark.parametrize("first", [None, 1, 30])
@pytest.mark.parametrize("second", [None, 2, 20])
@pytest.mark.parametrize("third", [None, 10_000])
@pytest.mark.parametrize("fourth", [None, 3])
def test_the_bound_is_the_largest_of_all_its_names(
    first: int | None, second: int | None, third: int | None, fourth: int | None
) -> None:
    """A small bound under one name cannot hide a large one under another."""
    call = read(
        max_tokens=first,
        max_completion_tokens=second,
        max_output_tokens=third,
        maxOutputTokens=fourth,
    )

    given = [bound for bound in (first, second, third, fourth) if bound is not None]
    assert call.max_output == max(given, default=None)


@pytest.mark.parametrize(("n", "best_of", "samplings"), [(3, None, 3), (2, 5, 5), (None, 4, 4)])
def test_samplings_are_the_most_the_server_may_run(
    n: int | None, best_of: int | None, samplings: int
) -> None:
    """`best_of` answers are generated to return `n` of them."""
    assert read(n=n, best_of=best_of).samplings == samplings


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "5", [], {}, 2**31, 10**4000, 1e300])
def test_a_number_that_bounds_nothing_is_refused_by_name(field: str, value: Any) -> None:
    """Zero, negative, fractional, boolean, textual and huge numbers are a 400."""
    with pytest.raises(RequestError, match=f"^{field} must be an integer from 1 to") as error:
        read(**{field: value})

    assert error.value.status == 400


def test_more_samplings_than_openai_allows_are_refused() -> None:
    """`n` of a thousand million cannot multiply the reservation."""
    assert read(n=128).samplings == 128
    with pytest.raises(RequestError, match="n must be an integer from 1 to 128"):
        read(n=10**9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model must be a string"),
        ({"model": "m" * 257}, "model must be a string"),
        ({"model": 5}, "model must be a string"),
        ({"messages": None}, "messages must be an array with"),
        ({"messages": []}, "messages must be an array with"),
        ({"messages": "hi"}, "messages must be an array, not 'hi'"),
        ({"messages": [HELLO[0], 5]}, r"messages\[1\] must be an object, not 5"),
        ({"messages": [{"content": 5}]}, r"messages\[0\].content must be a string or an array"),
        ({"stream": "true"}, "stream must be true or false"),
        ({"stream_options": 5}, "stream_options must be an object"),
        ({"tools": {}}, "tools must be an array"),
        ({"functions": [1]}, r"functions\[0\] must be an object"),
        ({"service_tier": 1}, "service_tier must be a string"),
        ({"models": ["a", "b"]}, "models is not allowed here: name one model"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    """Each message says which field, what it must be, and what it was."""
    with pytest.raises(RequestError, match=f"^{message}"):
        read(**fields)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"a":' * 300,
        b'"\\ud800"',
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Garbage, other JSON and bombs of depth end as a 400."""
    with pytest.raises(RequestError, match=r"^The request body") as error:
        OPENAI.read_request(HEAD, body)

    assert error.value.status == 400


@settings(deadline=None)
@given(hostile_json | st.fixed_dictionaries({"messages": st.lists(hostile_json, max_size=3)}))
def test_any_json_is_read_or_refused(body: Any) -> None:
    """Only `RequestError` is raised, and what was read can be written."""
    try:
        call = read(body)
    except RequestError:
        return

    assert json.loads(OPENAI.write_grant(HEAD, call, "m", 1).body)["model"] == "m"


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Only `RequestError` is raised."""
    with contextlib.suppress(RequestError):
        OPENAI.read_request(HEAD, body)


def test_everything_a_model_reads_is_counted() -> None:
    """Names, unusual roles, tool calls and fields nobody knows are text too."""
    call = read(
        messages=[
            {"role": "user", "name": "bob", "content": "hi"},
            {"role": "oracle", "content": None, "tool_calls": [{"id": "c1"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        documents=["a page"],
    )

    assert list(call.prompt.texts) == [
        "bob", "hi", "oracle", '{"tool_calls":[{"id":"c1"}]}', "42", '{"tool_call_id":"c1"}',
        '["a page"]',
    ]  # fmt: skip
    assert call.prompt.overhead_tokens == 3 + 3 * 4 + 1


def test_tools_and_schemas_are_counted_as_json() -> None:
    """Definitions become text, and each tool and the schema add fixed tokens."""
    tool = {"type": "function", "function": {"name": "f"}}
    call = read(tools=[tool], functions=[{"name": "g"}], response_format={"type": "json_object"})

    assert list(call.prompt.texts)[1:] == [
        '[{"type":"function","function":{"name":"f"}}]',
        '[{"name":"g"}]',
        '{"type":"json_object"}',
    ]
    assert call.prompt.overhead_tokens == 7 + 64 + 2 * 12
    assert not call.surcharges


def test_settings_no_model_reads_are_not_counted() -> None:
    """A user id or a bias table is no input."""
    call = read(user="u" * 1000, metadata={"a": "b"}, logit_bias={"1": 2}, temperature=0.5)

    assert list(call.prompt.texts) == ["hello"]


def test_parts_of_content_become_text_and_media() -> None:
    """Images, audio and files are media, texts are texts, and unknown parts their JSON."""
    png = base64.b64encode(b"\x89PNG" + bytes(6000)).decode()
    call = content(
        {"type": "text", "text": "look"},
        "bare",
        {"type": "refusal", "refusal": "no"},
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{png}", "detail": "low"},
        },
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": "https://example.com/b.png"},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:a/b;base64,QUJDRA=="}},
        {"type": "file", "file": {"file_data": "QUJD"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "new", "new": {"x": "text"}},
        5,
    )

    assert list(call.prompt.texts) == [
        "look", "bare", "no", "a.pdf", '{"type":"new","new":{"x":"text"}}',
    ]  # fmt: skip
    image, *others = call.prompt.media
    assert (image.kind, image.size, image.detail) == ("image", 6004, "low")
    assert image.head == (b"\x89PNG" + bytes(6000))[:4098]
    assert others == [
        Media("image"),
        Media("image"),
        Media("audio", b"ABC", 3),
        Media("file", b"ABCD", 4),
        Media("file", b"ABC", 3),
        Media("file"),
    ]
    assert call.prompt.overhead_tokens == 7 + 12 * 2


def test_no_base64_of_an_unknown_part_becomes_text() -> None:
    """A megabyte of video in a part of a new type is one medium, not a million tokens."""
    video = "data:video/mp4;base64," + "A" * 1_000_000
    call = content({"type": "video_url", "video_url": {"url": video}}, {"data": "QUJD"})

    assert sum(map(len, call.prompt.texts)) < 100
    assert [medium.size for medium in call.prompt.media] == [750_000, 3]


def test_base64_in_lines_has_a_head() -> None:
    """Line breaks inside the part that is decoded leave the beginning readable."""
    lines = base64.encodebytes(b"\x89PNG" + bytes(6000)).decode()
    call = content({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{lines}"}})

    head = call.prompt.media[0].head
    assert head.startswith(b"\x89PNG")
    assert len(head) > 4000


@pytest.mark.parametrize("data", ["A!!!", "é" * 8, "AB CD\n", "data:no-comma", "", None, 5])
def test_media_that_is_no_base64_has_no_head(data: Any) -> None:
    """Garbage is a medium of unknown kind, never an error."""
    call = content({"type": "input_audio", "input_audio": {"data": data}})

    (medium,) = call.prompt.media
    assert medium.kind == "audio"
    assert len(medium.head) <= medium.size


def test_a_part_of_bottomless_depth_is_refused() -> None:
    """Looking through unknown parts ends at a fixed depth."""
    part: dict[str, Any] = {}
    for _ in range(70):
        part = {"inner": part}

    with pytest.raises(RequestError, match="nested deeper than 64"):
        content(part)


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"web_search_options": {}}, {"web_search"}),
        ({"search_parameters": {"mode": "on"}}, {"web_search"}),
        ({"plugins": [{"id": "web"}]}, {"web_search"}),
        ({"tools": [{"type": "browser_search"}, {"type": "custom"}]}, {"web_search"}),
        ({"tools": [{"type": "code_interpreter"}]}, {"code_execution"}),
        ({"tools": [{"type": "file_search"}, {"type": "mcp"}]}, {"file_search", "mcp"}),
        ({"tools": [{"type": "something_new"}]}, {"server_tool"}),
        ({"tools": [{"type": []}, {}]}, set[str]()),
        ({"plugins": [], "web_search_options": None}, set[str]()),
    ],
)
def test_hidden_input_is_named(fields: dict[str, Any], features: set[str]) -> None:
    """Every tool the provider runs by itself is a surcharge."""
    assert read(**fields).surcharges == features


def test_the_price_tier_is_read() -> None:
    """`service_tier` goes on to whoever knows prices."""
    assert read(service_tier="priority").service_tier == "priority"


@pytest.mark.parametrize(
    ("dialect", "sent", "expected"),
    [
        (OPENAI, {}, {"max_completion_tokens": 7}),
        (OPENAI, {"max_tokens": 9}, {"max_tokens": 7}),
        (OPENAI, {"max_completion_tokens": 9}, {"max_completion_tokens": 7}),
        (OPENAI, {"max_tokens": 9, "max_completion_tokens": None}, {"max_tokens": 7}),
        (OPENAI, {"max_tokens": 1, "max_completion_tokens": 9}, {"max_completion_tokens": 7}),
        (OPENAI, {"max_output_tokens": 9}, {"max_completion_tokens": 7}),
        (COMPATIBLE, {}, {"max_tokens": 7}),
        (COMPATIBLE, {"max_completion_tokens": 9}, {"max_tokens": 7}),
        (COMPATIBLE, {"max_tokens": 9, "maxOutputTokens": 9}, {"max_tokens": 7}),
    ],
)
def test_the_bound_is_written_under_one_name(
    dialect: OpenAIChat, sent: dict[str, Any], expected: dict[str, Any]
) -> None:
    """The upstream obeys the granted bound and sees no other."""
    body = written(dialect, **sent)

    assert {key: value for key, value in body.items() if "ax" in key} == expected
    assert body["model"] == "granted"


def test_nothing_else_is_changed() -> None:
    """Unknown fields, numbers, order and text outside ASCII go on as they were."""
    fields: dict[str, Any] = {
        "seed": 2**70,
        "x": {"b": 1, "a": [0.1, None, "é\u2028"]},
        "max_tokens": 9,
        "z": 1,
    }
    body = written(**fields)

    assert body == {"model": "granted", "messages": HELLO, **fields, "max_tokens": 7}
    assert list(body) == ["model", "messages", *fields]


def test_repeated_keys_reach_the_provider_as_they_were_read() -> None:
    """Of two bounds under one name the provider sees the one that was reserved."""
    body = b'{"model":"m","max_tokens":1,"messages":[{"content":"a"}],"max_tokens":9999}'
    call = OPENAI.read_request(HEAD, body)

    assert call.max_output == 9999
    assert OPENAI.write_grant(HEAD, call, "m", 9).body.count(b"max_tokens") == 1


def test_a_number_beyond_all_floats_still_makes_json() -> None:
    """1e999 is infinite, which JSON cannot say: the provider sees null."""
    call = OPENAI.read_request(HEAD, b'{"messages":[{"content":"a"}],"top_p":1e999}')

    assert b'"top_p":null' in OPENAI.write_grant(HEAD, call, "m", 9).body


def test_the_request_that_was_read_is_not_touched() -> None:
    """The grant is written into a copy: a call may be granted again."""
    call = read(stream=True, stream_options={"x": 1}, max_tokens=5)
    before = json.dumps(call.body)
    OPENAI.write_grant(HEAD, call, "other", 1)

    assert json.dumps(call.body) == before


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, None),
        ({"stream": False, "stream_options": {"a": 1}}, {"a": 1}),
        ({"stream": True}, {"include_usage": True}),
        ({"stream": True, "stream_options": None}, {"include_usage": True}),
        ({"stream": True, "stream_options": {"a": 1}}, {"a": 1, "include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": False}}, {"include_usage": True}),
    ],
)
def test_a_stream_is_asked_for_its_usage(
    fields: dict[str, Any], options: dict[str, Any] | None
) -> None:
    """`include_usage` is set for streams and only there; other options stay."""
    assert written(**fields).get("stream_options") == options


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5).map("x-".__add__), any_json, max_size=4))
def test_unknown_fields_survive_the_grant(extra: dict[str, Any]) -> None:
    """Whatever else is in the body is the same JSON afterwards."""
    body = {"model": "m", "messages": HELLO} | extra
    call = read(body)

    again = json.loads(OPENAI.write_grant(HEAD, call, "m", 3).body)
    assert again == json.loads(json.dumps(body)) | {"model": "m", "max_completion_tokens": 3}
