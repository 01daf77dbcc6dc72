"""What both of Bedrock's APIs share: the model in the path, bounds under foreign names, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from llm_budget_mw.dialects._envelope import SPENT
from llm_budget_mw.dialects._json import MAX_LABEL, is_object
from llm_budget_mw.dialects._plain_error import plain_error
from llm_budget_mw.dialects.protocol import ErrorAnswer, Problem, RequestHead
from llm_budget_mw.errors import RequestError

_COLLECTION = "/model/"
_MODEL = re.compile(r"arn:[A-Za-z0-9_.:/-]+|[A-Za-z0-9_.:-]+")
_STORED_PROMPT = ":prompt/"

_BOUNDS = frozenset(
    {
        "bestof", "maxcompletiontokens", "maxgenlen", "maxlength", "maxnewtokens",
        "maxoutputtokens", "maxtokencount", "maxtokens", "maxtokenstosample", "n",
        "numgenerations", "numresults", "numreturnsequences",
    }
)  # fmt: skip
"""What bounds or multiplies output in some model's own format, in lower case, letters alone."""

_EXCEPTIONS = {
    401: "AccessDeniedException",
    402: "ServiceQuotaExceededException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}
_TOO_MANY = 429
_QUOTA_STATUS = 400
_SERVER_ERROR = 500

Place = tuple[str, ...]
"""Where a field stands: its name, or its name after that of the object it stands in."""


class Target(NamedTuple):
    """The path of a call: `{base}/model/{model}/{method}`."""

    base: str
    model: str
    """Decoded, whether the server has done it or not: an ARN holds slashes."""
    method: str

    def to(self, model: str) -> str | None:
        """Return the path for a model, decoded; None if that is this one."""
        if model == self.model:
            return None
        return f"{self.base}{_COLLECTION}{model}/{self.method}"

    def raw(self, model: str) -> str:
        """Return the path for a model as it goes over the wire, where an ARN is one segment."""
        return f"{quote(self.base)}{_COLLECTION}{quote(model, safe='')}/{self.method}"


def read_target(head: RequestHead, *methods: str) -> Target:
    """Read the path; raises `RequestError` if it is none of the methods, or of no usable model."""
    rest, _, method = head.path.rpartition("/")
    base, found, raw = rest.rpartition(_COLLECTION)
    if not found or method not in methods:
        ends = " or ".join(f"/{name}" for name in methods)
        raise RequestError(
            f"The path must end in /model/{{model}} and {ends}.", status=404, code="unknown_route"
        )
    model = unquote(raw)
    if len(model) > MAX_LABEL or not _MODEL.fullmatch(model):
        raise RequestError(f"The path must name a model id or ARN of up to {MAX_LABEL} characters.")
    if _STORED_PROMPT in model:
        raise RequestError("A stored prompt is not allowed here: it takes no output bound.")
    return Target(base, model, method)


def refuse_bounds(field: str, fields: dict[str, Any], own: frozenset[Place]) -> None:
    """Raise `RequestError` if output is bounded or multiplied at any place but one's own."""
    for place in _places(fields):
        name = re.sub("[^a-z]", "", place[-1].lower())
        if name in _BOUNDS and place not in own:
            shown = ".".join([field, *place] if field else place)
            raise RequestError(
                f"{shown} is not allowed here: the model called takes its output bound elsewhere."
            )


def _places(fields: dict[str, Any]) -> Iterator[Place]:
    for name, value in fields.items():
        if value is None:
            continue
        yield (name,)
        if is_object(value):
            yield from ((name, inner) for inner, item in value.items() if item is not None)


def aws_error(problem: Problem) -> ErrorAnswer:
    """Shape a refusal as AWS does: botocore takes the exception from a header."""
    default = (
        "InternalServerException" if problem.status >= _SERVER_ERROR else "ValidationException"
    )
    kind = _EXCEPTIONS.get(problem.status, default)
    if problem.code == SPENT:
        # Throttling is tried again by all SDKs, a quota that is used up by most of them not.
        kind = "ServiceQuotaExceededException"
    headers = [("x-amzn-errortype", kind)]
    if problem.request_id:
        headers.append(("x-amzn-requestid", problem.request_id))
    # botocore tries 429 again, whatever the exception; this one has 400 in AWS's own models.
    status = _QUOTA_STATUS if problem.code == SPENT and problem.status == _TOO_MANY else None
    body = plain_error(problem, "message", "request_id")
    return ErrorAnswer(body, tuple(headers), status=status)
