"""The usage of whole answers, in every variant of OpenAI's format."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.types import Usage

GARBAGE = [True, "5", -1, 1e999, float("nan"), [], {}, None, 2**54]


def usage(**report: Any) -> Usage | None:
    return OpenAIChat().read_usage(json.dumps({"usage": report}).encode(), {})


def test_a_full_report_is_read() -> None:
    """Cached and reasoning tokens are parts of input and output, which already hold them."""
    answer = {
        "model": "gpt-x-2026",
        "service_tier": "flex",
        "usage": {
            "prompt_tokens": 1200,
            "completion_tokens": 350,
            "total_tokens": 1550,
            "prompt_tokens_details": {
                "cached_tokens": 1024, "cache_write_tokens": 60, "audio_tokens": 7,
            },
            "completion_tokens_details": {"reasoning_tokens": 300, "audio_tokens": 5},
        },
    }  # fmt: skip

    assert OpenAIChat().read_usage(json.dumps(answer).encode(), {}) == Usage(
        input_tokens=1200,
        output_tokens=350,
        cache_read_tokens=1024,
        cache_write_tokens=60,
        reasoning_tokens=300,
        input_audio_tokens=7,
        output_audio_tokens=5,
        model="gpt-x-2026",
        service_tier="flex",
    )


@pytest.mark.parametrize(
    ("report", "output"),
    [
        ({"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109}, 74),
        ({"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 40}, 12),
        ({"prompt_tokens": 35, "completion_tokens": 12}, 12),
        ({"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 20}, 12),
        ({"prompt_tokens": 35, "total_tokens": 40}, 5),
        ({"prompt_tokens": 35, "total_tokens": 35}, None),
        ({"completion_tokens": 12, "total_tokens": 40}, 12),
        ({"prompt_tokens": 35, "completion_tokens": 0, "total_tokens": 35}, 0),
    ],
)
def test_hidden_output_is_what_the_total_has_more(
    report: dict[str, Any], output: int | None
) -> None:
    """Output is the larger of what is called completion and total without prompt."""
    found = usage(**report)

    assert found is not None
    assert found.output_tokens == output


@pytest.mark.parametrize(
    "report",
    [
        {"prompt_tokens_details": {"cached_tokens": 8}},
        {"prompt_token_details": {"cached_tokens": 8}},
        {"cached_tokens": 8},
        {"num_cached_tokens": 8},
        {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 2},
        {"prompt_tokens_details": {"cached_tokens": 8}, "prompt_cache_hit_tokens": 8},
        {"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 8},
    ],
)
def test_cached_tokens_are_found_under_all_their_names(report: dict[str, Any]) -> None:
    """Each provider has its own name; the same number under two is counted once."""
    assert usage(prompt_tokens=10, **report) == Usage(10, None, cache_read_tokens=8)


def test_groq_reports_in_its_own_corner() -> None:
    """`x_groq.usage` counts where there is no other."""
    body = json.dumps({"x_groq": {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}})

    assert OpenAIChat().read_usage(body.encode(), {}) == Usage(1, 2)


def test_fractions_are_rounded_up() -> None:
    """Some report 28.0 tokens; a part of a token is one."""
    assert usage(prompt_tokens=28.0, completion_tokens=2.5) == Usage(28, 3)


@pytest.mark.parametrize("value", GARBAGE)
def test_a_count_that_is_no_number_of_tokens_is_unknown(value: Any) -> None:
    """Booleans, texts, negative, infinite and absurd numbers are None, never zero."""
    assert usage(prompt_tokens=value, completion_tokens=3) == Usage(None, 3)
    assert usage(prompt_tokens=3, completion_tokens=value) == Usage(3, None)
    assert usage(prompt_tokens=value, completion_tokens=value) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\x1f\x8b", b"[]", b"5", b"{}", b'{"usage":null}', b'{"usage":5}', b'{"usage":{}}'],
)
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    """Garbage and silence are both None."""
    assert OpenAIChat().read_usage(body, {}) is None


@pytest.mark.parametrize("model", ["", 5, "m" * 257, None])
def test_an_unusable_model_name_is_unknown(model: Any) -> None:
    """An empty, endless or wrong name is not passed on."""
    body = json.dumps({"model": model, "usage": {"prompt_tokens": 1}}).encode()

    assert OpenAIChat().read_usage(body, {}) == Usage(1, None)


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: json.dumps(text).encode()))
def test_any_answer_is_read_without_an_error(body: bytes) -> None:
    """Reading an answer never raises."""
    assert OpenAIChat().read_usage(body, {}) is None
