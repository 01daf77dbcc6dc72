"""RFC 6750: where a credential stands in a request, and how a refusal is worded.

Two credentials in one request are an error and never a choice, because a proxy in front
may have looked at the other one (RFC 6750 section 2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_budget_mw.errors import AuthenticationError, ScopeError

_B64TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_UNQUOTABLE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")


def read_credential(headers: Sequence[tuple[str, str]], names: frozenset[str]) -> str:
    """Return the credential, unverified, from `authorization` or a header in `names`.

    Raises `AuthenticationError`: 401 without a code if there is none (RFC 6750 section
    3.1), 400 if there are several or one is not ASCII.
    """
    found: str | None = None
    for name, value in headers:
        if name == "authorization":
            # The scheme is case-insensitive: RFC 9110 section 11.1.
            scheme, _, credential = value.partition(" ")
            if scheme.lower() != "bearer":
                continue
        elif name in names:
            credential = value
        else:
            continue
        if found is not None:
            raise malformed("the request carries more than one credential")
        found = credential.strip(" ")
    if found is None:
        raise AuthenticationError("the request carries no credential", code=None)
    if not found.isascii():
        raise malformed("the credential is not ASCII")
    return found


def check_syntax(credential: str) -> None:
    """Raise a 400 unless the credential is a `b64token` of RFC 6750 section 2.1."""
    if not _B64TOKEN.fullmatch(credential):
        raise malformed("the credential is not a bearer token")


def malformed(description: str) -> AuthenticationError:
    """Return the error for a request that is wrong before its credential is looked at."""
    return AuthenticationError(description, code="invalid_request", status=400)


def www_authenticate(error: AuthenticationError) -> str:
    """Return the value of the `WWW-Authenticate` header that goes with an error."""
    parameters = {"realm": "api"}
    if error.code is not None:
        parameters |= {"error": error.code, "error_description": error.description}
    if isinstance(error, ScopeError):
        parameters["scope"] = error.scope
    # An application's own authenticator words its own errors: nothing may leave the quotes.
    return "Bearer " + ", ".join(
        f'{name}="{_UNQUOTABLE.sub("?", value)}"' for name, value in parameters.items()
    )
