"""The application's own requests: the configuration estimates, the handler reports usage."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import responses
from typing import Any

from llm_budget_mw.dialects._envelope import to_bytes
from llm_budget_mw.dialects._stream import PassThrough
from llm_budget_mw.dialects.protocol import (
    ErrorAnswer,
    Problem,
    RequestHead,
    Rewritten,
    StreamReader,
)
from llm_budget_mw.types import ModelCall, Prompt, Usage

_RAW = "raw"
"""Key under which the unread bytes wait for `write_grant`."""

_REGISTRY = "https://iana.org/assignments/http-problem-types#"
_TYPES = {
    429: (_REGISTRY + "quota-exceeded", "Quota exceeded"),
    503: (_REGISTRY + "temporary-reduced-capacity", "Temporarily reduced capacity"),
}
"""Problem types of draft-ietf-httpapi-ratelimit-headers; any other has none of its own."""


class Custom:
    """A body of which nothing is known; it is neither parsed nor changed."""

    name = "custom"
    streams_json = False

    def read_request(self, head: RequestHead, body: bytes) -> ModelCall:
        """Return a call without model and prompt; never raises."""
        return ModelCall(model=None, prompt=Prompt(), max_output=None, body={_RAW: body})

    def write_grant(self, head: RequestHead, call: ModelCall, model: str, output: int) -> Rewritten:
        """Return the body as it came: the handler reads the grant from the request's state."""
        return Rewritten(call.body.get(_RAW, b""))

    def read_usage(self, body: bytes, headers: Mapping[str, str]) -> Usage | None:
        """Unknown: the handler reports it."""
        return None

    def open_stream(self, call: ModelCall, headers: Mapping[str, str]) -> StreamReader:
        """Open a reader that only passes on."""
        return PassThrough()

    def error(self, problem: Problem) -> ErrorAnswer:
        """Shape a refusal as a problem document (RFC 9457)."""
        # RFC 9457 section 4.2.1: the title of about:blank is the phrase of the status.
        kind, title = _TYPES.get(
            problem.status, ("about:blank", responses.get(problem.status, "Error"))
        )
        body: dict[str, Any] = {
            "type": kind,
            "title": title,
            "status": problem.status,
            "detail": problem.message,
            "code": problem.code,
        }
        if problem.policies:
            body["violated-policies"] = problem.policies
        if problem.retry_after_s is not None:
            body["retry_after"] = problem.retry_after_s
        if problem.request_id:
            body["request_id"] = problem.request_id
        return ErrorAnswer(to_bytes(body), media_type="application/problem+json")
