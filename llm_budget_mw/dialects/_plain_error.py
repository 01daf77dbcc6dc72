"""Errors of the formats whose SDKs read a message and nothing else of the body."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects._envelope import to_bytes
from llm_budget_mw.dialects.protocol import Problem


def plain_error(problem: Problem, message: str, request_id: str) -> bytes:
    """Return the body; the two names are the format's own, what else is known stands beside."""
    body: dict[str, Any] = {message: problem.message, "code": problem.code}
    if problem.request_id:
        body[request_id] = problem.request_id
    if problem.policies:
        body["violated_policies"] = problem.policies
    if problem.retry_after_s is not None:
        body["retry_after"] = problem.retry_after_s
    return to_bytes(body)
