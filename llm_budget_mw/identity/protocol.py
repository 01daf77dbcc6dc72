"""What the edges ask of identity: headers in, a principal out, or an error.

An application with its own login implements one of these two protocols; everything after
this point trusts the `Principal` and nothing else a client sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llm_budget_mw.types import Principal


class Authenticator(Protocol):
    """Knows who sent a request."""

    def authenticate(self, headers: Sequence[tuple[str, str]]) -> Principal:
        """Return the principal of a request.

        Header names are in lower case and duplicates are kept. Raises
        `errors.AuthenticationError`, with the HTTP status to answer in its `status`.
        """
        ...


class AsyncAuthenticator(Protocol):
    """Knows who sent a request, and may wait to find out."""

    async def authenticate(self, headers: Sequence[tuple[str, str]]) -> Principal:
        """Return the principal of a request; see `Authenticator.authenticate`."""
        ...
