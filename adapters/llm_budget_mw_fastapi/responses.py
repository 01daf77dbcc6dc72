"""What a guarded route may answer before its handler runs, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class BudgetErrorDetails(BaseModel):
    """What a program may want to know of an error."""

    error_code: str
    violated_policies: list[str] = []
    """Names of the limits that refused, the one that binds first."""
    retry_after: int | None = None
    """Seconds until the request could fit."""


class BudgetErrorContent(BaseModel):
    """An error, as the SDKs of OpenAI and Anthropic read it."""

    type: str
    code: str
    param: str | None = None
    message: str
    details: BudgetErrorDetails


class BudgetErrorAnswer(BaseModel):
    """The answer of a route in a provider's format."""

    type: Literal["error"] = "error"
    error: BudgetErrorContent
    request_id: str | None = None


class BudgetProblem(BaseModel):
    """The answer of a route in a format of one's own (dialect `custom`; RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    violated_policies: list[str] = Field(default=[], alias="violated-policies")
    """Names of the limits that refused, the one that binds first."""
    retry_after: int | None = None
    """Seconds until the request could fit."""
    request_id: str | None = None


_CHALLENGE = {"WWW-Authenticate": "What the credential lacks (RFC 6750)."}
_LIMITS = {
    "RateLimit": "What remains of each limit.",
    "RateLimit-Policy": "Each limit with its amount and window.",
}
_WAIT = {
    **_LIMITS,
    "Retry-After": "Seconds until the request could fit.",
    "x-should-retry": "`false` where waiting a little does not help.",
}
_ANSWERS: dict[int, tuple[str, dict[str, str]]] = {
    400: ("The request cannot be read, or cannot be bounded.", {}),
    401: ("There is no valid credential.", _CHALLENGE),
    402: ("A budget is used up, if the configuration answers that with 402.", _WAIT),
    403: ("The credential lacks a scope, or the model is not allowed.", _CHALLENGE),
    413: ("The request is larger than a whole limit, or than any body may be.", _LIMITS),
    429: ("A limit is used up, or held by calls in flight.", _WAIT),
    503: ("The limits cannot be checked at the moment.", {"Retry-After": _WAIT["Retry-After"]}),
}


def budget_responses() -> dict[int | str, dict[str, Any]]:
    """Return the responses to document: for `responses=` of a route, a router or the application.

    The statuses are those of a configuration that leaves `refusals` as it is, and 402.
    """
    return {status: _documented(*answer) for status, answer in _ANSWERS.items()}


def _documented(description: str, headers: dict[str, str]) -> dict[str, Any]:
    # FastAPI names one model for each response in the document; the other one is written out.
    problem = {"application/problem+json": {"schema": BudgetProblem.model_json_schema()}}
    documented = {
        name: {
            "description": text,
            "schema": {"type": "integer" if name == "Retry-After" else "string"},
        }
        for name, text in headers.items()
    }
    answer = {"description": description, "model": BudgetErrorAnswer, "content": problem}
    return {**answer, "headers": documented} if documented else answer
