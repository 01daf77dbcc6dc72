"""The error body of Google's APIs (https://google.aip.dev/193)."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects._envelope import SPENT, to_bytes
from llm_budget_mw.dialects.protocol import ErrorAnswer, Problem

_TYPE = "type.googleapis.com/google.rpc."
_DOMAIN = "llm-budget-mw"
_STATUSES = {
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_SERVER_ERROR = 500


def google_error(problem: Problem) -> ErrorAnswer:
    """Shape a refusal as Google does; the problem's code is the `reason` of its `ErrorInfo`.

    A `RetryInfo` says when to try again, and is left out where a budget is spent: who obeys
    it would wait for hours.
    """
    default = "INTERNAL" if problem.status >= _SERVER_ERROR else "INVALID_ARGUMENT"
    error: dict[str, Any] = {
        "code": problem.status,
        "message": problem.message,
        "status": _STATUSES.get(problem.status, default),
        "details": _details(problem),
    }
    if problem.policies:
        error["violated_policies"] = problem.policies
    return ErrorAnswer(to_bytes({"error": error}))


def _details(problem: Problem) -> list[dict[str, Any]]:
    wait = problem.retry_after_s
    metadata = {} if wait is None else {"retry_after": str(wait)}
    reason = {"reason": problem.code.upper(), "domain": _DOMAIN, "metadata": metadata}
    details: list[dict[str, Any]] = [{"@type": f"{_TYPE}ErrorInfo", **reason}]
    if problem.policies:
        violations = [
            {"subject": name, "description": problem.message} for name in problem.policies
        ]
        details.append({"@type": f"{_TYPE}QuotaFailure", "violations": violations})
    if wait is not None and problem.code != SPENT:
        details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{wait}s"})
    if problem.request_id:
        details.append({"@type": f"{_TYPE}RequestInfo", "requestId": problem.request_id})
    return details
