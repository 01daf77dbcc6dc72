"""The error body that the OpenAI and the Anthropic SDK both read (each its own fields)."""

from __future__ import annotations

import json
from typing import Any

from llm_budget_mw.dialects.protocol import ErrorAnswer, Problem

SPENT = "budget_exceeded"
"""Code of a budget that waiting a little does not refill."""


def envelope(problem: Problem, kind: str, id_header: str) -> ErrorAnswer:
    """Shape an error; `kind` is the provider's word for it.

    OpenAI's SDK reads `code`, `type` and `param`, Anthropic's `type` and
    `details.error_code`; both take the request id from a header of their own.
    """
    details: dict[str, Any] = {"error_code": problem.code}
    if problem.policies:
        details["violated_policies"] = problem.policies
    if problem.retry_after_s is not None:
        details["retry_after"] = problem.retry_after_s
    error = {
        "type": kind,
        "code": problem.code,
        "param": None,
        "message": problem.message,
        "details": details,
    }
    body = {"type": "error", "error": error, "request_id": problem.request_id or None}
    headers = ((id_header, problem.request_id),) if problem.request_id else ()
    return ErrorAnswer(to_bytes(body), headers)


def to_bytes(body: dict[str, Any]) -> bytes:
    """Serialise an error; escapes everything outside ASCII, so no text can break it."""
    return json.dumps(body, separators=(",", ":")).encode()
