"""The application's own format: nothing is read, nothing is changed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.custom import Custom
from llm_budget_mw.dialects.protocol import Problem, RequestHead
from llm_budget_mw.types import ModelCall, Prompt

HEAD = RequestHead("POST", "/ask")


@settings(deadline=None)
@given(st.binary(max_size=50))
def test_any_body_is_a_call_without_model_and_goes_on_unchanged(body: bytes) -> None:
    """The body is not parsed; the configuration has the estimate."""
    call = Custom().read_request(HEAD, body)

    assert call == ModelCall(model=None, prompt=Prompt(), max_output=None)
    assert Custom().write_grant(HEAD, call, "m", 5).body == body


def test_answers_are_not_read() -> None:
    """Usage is what the handler reports."""
    call = Custom().read_request(HEAD, b"")
    reader = Custom().open_stream(call, {})

    assert Custom().read_usage(b'{"usage":{"prompt_tokens":1}}', {}) is None
    assert (reader.feed(b"data: [DONE]\n\n"), reader.close()) == (b"data: [DONE]\n\n", b"")
    assert (reader.usage, reader.complete, reader.text) == (None, False, "")


def test_a_refusal_is_a_problem_document() -> None:
    """Status, text, code, time and limits are where RFC 9457 and the draft want them."""
    problem = Problem(429, "budget_exceeded", "Used up.", 30211, ("daily", "monthly"), "req-1")
    answer = Custom().error(problem)

    assert answer.media_type == "application/problem+json"
    assert json.loads(answer.body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "detail": "Used up.",
        "code": "budget_exceeded",
        "violated-policies": ["daily", "monthly"],
        "retry_after": 30211,
        "request_id": "req-1",
    }


@pytest.mark.parametrize(
    ("status", "kind", "title"),
    [
        (400, "about:blank", "Bad Request"),
        (503, "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
         "Temporarily reduced capacity"),
        (599, "about:blank", "Error"),
    ],
)  # fmt: skip
def test_other_problems_have_the_title_of_their_status(status: int, kind: str, title: str) -> None:
    """A problem without a registered type is `about:blank`, and absent members are absent."""
    answer = Custom().error(Problem(status, "code", "Why."))

    assert json.loads(answer.body) == {
        "type": kind,
        "title": title,
        "status": status,
        "detail": "Why.",
        "code": "code",
    }
