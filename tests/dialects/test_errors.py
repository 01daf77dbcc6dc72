"""Refusals raise the right exception in the providers' own SDKs."""

from __future__ import annotations

import json

import anthropic
import httpx2
import openai
import pytest

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import ErrorAnswer, Problem


def client(answer: ErrorAnswer, status: int) -> httpx2.Client:
    headers = [("content-type", answer.media_type), *answer.headers]
    response = httpx2.Response(status, headers=headers, content=answer.body)
    return httpx2.Client(transport=httpx2.MockTransport(lambda request: response))


def ask_openai(problem: Problem) -> openai.APIStatusError:
    http = client(dialect_for("openai_chat").error(problem), problem.status)
    sdk = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
    with http, pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    return caught.value


def ask_anthropic(problem: Problem) -> anthropic.APIStatusError:
    http = client(dialect_for("anthropic_messages").error(problem), problem.status)
    sdk = anthropic.Anthropic(api_key="k", http_client=http, max_retries=0)
    with http, pytest.raises(anthropic.APIStatusError) as caught:
        sdk.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "kind", "raised"),
    [
        (400, "invalid_request", "invalid_request_error", openai.BadRequestError),
        (401, "invalid_token", "authentication_error", openai.AuthenticationError),
        (402, "payment", "insufficient_quota", openai.APIStatusError),
        (402, "budget_exceeded", "insufficient_quota", openai.APIStatusError),
        (403, "insufficient_scope", "permission_error", openai.PermissionDeniedError),
        (413, "request_exceeds_budget", "invalid_request_error", openai.APIStatusError),
        (429, "budget_exceeded", "insufficient_quota", openai.RateLimitError),
        (429, "rate_limited", "rate_limit_exceeded", openai.RateLimitError),
        (503, "store_down", "server_error", openai.InternalServerError),
    ],
)
def test_openai_raises_its_own_exception(
    status: int, code: str, kind: str, raised: type[openai.APIStatusError]
) -> None:
    """Class, code, type, message and request id are where OpenAI's SDK looks for them."""
    error = ask_openai(Problem(status, code, "Why.", request_id="req-1"))

    assert type(error) is raised
    assert (error.code, error.type, error.param) == (code, kind, None)
    assert "Why." in error.message
    assert error.request_id == "req-1"


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (402, "billing_error", anthropic.PaymentRequiredError),
        (403, "permission_error", anthropic.PermissionDeniedError),
        (413, "request_too_large", anthropic.RequestTooLargeError),
        (422, "invalid_request_error", anthropic.UnprocessableEntityError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (503, "overloaded_error", anthropic.ServiceUnavailableError),
    ],
)
def test_anthropic_raises_its_own_exception(
    status: int, kind: str, raised: type[anthropic.APIStatusError]
) -> None:
    """Class, type, error code, message and request id are where Anthropic's SDK looks."""
    error = ask_anthropic(Problem(status, "budget_exceeded", "Why.", request_id="req-1"))

    assert type(error) is raised
    assert (error.type, error.error_code) == (kind, "budget_exceeded")
    assert "Why." in str(error)
    assert error.request_id == "req-1"


@pytest.mark.parametrize("name", ["openai_chat", "anthropic_messages"])
def test_an_error_tells_limits_and_time_to_who_reads_them(name: str) -> None:
    """`details` has what no field of the provider's is for; absent things are absent."""
    full = dialect_for(name).error(Problem(429, "c", "m", 5, ("daily",)))
    bare = dialect_for(name).error(Problem(429, "c", "m"))

    details = json.loads(full.body)["error"]["details"]
    assert details == {"error_code": "c", "violated_policies": ["daily"], "retry_after": 5}
    assert json.loads(bare.body)["error"]["details"] == {"error_code": "c"}
    assert (json.loads(bare.body)["request_id"], bare.headers) == (None, ())


@pytest.mark.parametrize("name", ["openai_chat", "anthropic_messages", "custom"])
def test_any_text_makes_a_valid_error(name: str) -> None:
    """Quotes, line ends and half surrogate pairs cannot break the body."""
    text = '"\r\n\ud800\u2028'
    answer = dialect_for(name).error(Problem(400, "c", text))

    body = json.loads(answer.body)
    assert body.get("detail", body.get("error", {}).get("message")) == text
    assert answer.body.isascii()
