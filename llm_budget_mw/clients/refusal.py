"""How an application learns of a refusal: by our own exception, whatever its SDK would make of it."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.clients.library import Library, joined

_STATUS = 429
_SDK = "x-stainless-lang"
"""A header of SDKs which retry, and wrap, what sending raises."""


class _Refused:
    """An answer that raises when it is asked whether it is a success.

    The SDKs of OpenAI and Anthropic ask that outside the block in which they catch any
    exception of their HTTP client as a lost connection.
    """

    refusal: Exception

    @property
    def is_success(self) -> bool:
        raise self.refusal


def refuse(library: Library, request: Any, error: Exception) -> Any:
    """Raise `error`, or return a response that will."""
    if _SDK not in request.headers:
        raise error
    response = joined(_Refused, library.response)(_STATUS, content=b"")
    response.refusal = error
    return response
