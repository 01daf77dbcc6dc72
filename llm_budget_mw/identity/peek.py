"""What a credential says about itself, read before anything is verified.

It only selects: which configured issuer, which of that issuer's keys. Nothing here is
believed (RFC 8725 section 3.10), and `jku`, `x5u`, `jwk` and `x5c` are not even read: a key
never comes from the token it verifies.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple, cast

from llm_budget_mw.errors import AuthenticationError


class Peek(NamedTuple):
    """The unverified parts of a credential that select a key."""

    alg: str
    kid: str | None
    issuer: str


def peek(credential: str) -> Peek:
    """Read a credential of bounded size without believing it.

    Raises `AuthenticationError` if it is not a JWS in compact form over a JSON object: an
    encrypted token (five parts) is never opened nor inflated (RFC 8725 section 3.6).
    """
    match credential.split("."):
        case [first, second, _]:
            header, claims = _read_object(first), _read_object(second)
        case _:
            raise AuthenticationError("the credential is not a signed JWT")
    alg, kid, issuer = header.get("alg"), header.get("kid"), claims.get("iss")
    if not isinstance(alg, str) or not isinstance(kid, str | None):
        raise AuthenticationError("the credential has a malformed header")
    if not isinstance(issuer, str):
        raise AuthenticationError("the credential names no issuer")
    return Peek(alg, kid, issuer)


def _read_object(segment: str) -> dict[str, Any]:
    try:
        value = json.loads(base64.urlsafe_b64decode(segment + "=="))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AuthenticationError("the credential is not a signed JWT")
    return cast("dict[str, Any]", value)
