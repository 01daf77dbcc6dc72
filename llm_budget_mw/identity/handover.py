"""A principal on its way to a worker, signed: a queue is not a place to be believed."""

from __future__ import annotations

import time
from typing import Any

from llm_budget_mw.errors import AuthenticationError, ConfigurationError
from llm_budget_mw.types import Principal

_ALGORITHM = "HS256"
_AUDIENCE = "llm-budget-mw/handover"
"""Keeps a user's own credential, signed with the same secret, from passing for a handover."""
_LEAST_SECRET_BYTES = 32


def hand_over(principal: Principal, secret: str, *, valid_s: int = 86_400) -> str:
    """Return a principal as text to send along with a job, valid for so many seconds.

    Claims are left behind: workers need who pays, and what for is known to the job. Raises
    `ConfigurationError` for a secret of less than 32 bytes.
    """
    import jwt

    return jwt.encode(
        {
            "aud": _AUDIENCE,
            "exp": int(time.time()) + valid_s,
            "sub": principal.id,
            "tenant": principal.tenant,
            "tier": principal.tier,
            "urgent": principal.urgent,
            "scopes": sorted(principal.scopes),
        },
        _checked(secret),
        _ALGORITHM,
    )


def take_over(text: str, secret: str) -> Principal:
    """Return the principal a job was sent with.

    Raises `AuthenticationError` if the text was not signed with this secret, or has expired.
    """
    import jwt

    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            _checked(secret),
            [_ALGORITHM],
            audience=_AUDIENCE,
            options={"require": ["exp", "sub", "aud"]},
        )
    except jwt.InvalidTokenError as error:
        raise AuthenticationError(f"the principal of this job is not valid: {error}") from error
    return Principal(
        claims["sub"],
        tenant=claims.get("tenant"),
        tier=claims.get("tier"),
        urgent=claims.get("urgent") is True,
        scopes=frozenset(claims.get("scopes") or ()),
    )


def _checked(secret: str) -> str:
    if len(secret.encode()) < _LEAST_SECRET_BYTES:
        raise ConfigurationError(
            f"the secret of a handover has {len(secret.encode())} bytes: "
            f"use {_LEAST_SECRET_BYTES} or more random ones"
        )
    return secret
