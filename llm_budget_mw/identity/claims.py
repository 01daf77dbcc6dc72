"""Verified claims → principal, without I/O and without a clock of its own.

The checks are written out here, and not left to the JWT library, because time comes from
outside and because every claim that names a key in the store has to be bounded: RFC 7519
section 4.1, RFC 8725 sections 3.8 to 3.11, RFC 9068 section 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from llm_budget_mw.errors import AuthenticationError, ScopeError
from llm_budget_mw.types import Principal

if TYPE_CHECKING:
    from llm_budget_mw.config import JWTConfig

MAX_ID_LENGTH = 256
_LATEST = 2**40
"""The year 36,812: a number above this is not a time in seconds."""


def read_claims(payload: bytes) -> dict[str, Any]:
    """Parse the payload of a verified credential; raises `AuthenticationError`."""
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise AuthenticationError("the claims are not a JSON object")
    return cast("dict[str, Any]", claims)


def check_typ(header: Mapping[str, Any], expected: str | None) -> None:
    """Raise unless the header's `typ` is the expected one (RFC 9068 section 2.1)."""
    typ = header.get("typ")
    if expected is not None and (not isinstance(typ, str) or _media(typ) != _media(expected)):
        raise AuthenticationError("the credential is of another type than expected")


def _media(typ: str) -> str:
    # RFC 7515 section 4.1.9: a media type, whose "application/" may be left out.
    return typ.lower().removeprefix("application/")


def check_claims(claims: Mapping[str, Any], config: JWTConfig, now: float) -> None:
    """Raise `AuthenticationError` unless the claims are meant for us, and now.

    `now` is in seconds of the Unix epoch.
    """
    if claims.get("iss") != config.issuer:
        raise AuthenticationError("the credential is from another issuer")
    if not _audiences(claims.get("aud")) & _audiences(config.audience):
        raise AuthenticationError("the credential is for another audience")
    _check_id("sub", claims.get("sub"))
    if expires_at(claims) <= now - config.leeway_s:
        raise AuthenticationError("the credential has expired")
    for name in ("nbf", "iat"):
        if name in claims and _seconds(name, claims[name]) > now + config.leeway_s:
            raise AuthenticationError("the credential is not valid yet")


def expires_at(claims: Mapping[str, Any]) -> float:
    """Return `exp`, in seconds of the Unix epoch; raises `AuthenticationError`."""
    return _seconds("exp", claims.get("exp"))


def _seconds(name: str, value: object) -> float:
    # A bool is an int to Python. NaN compares false with everything: hence `not` below.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AuthenticationError(f"claim {name} is missing or not a number")
    if not 0 <= value <= _LATEST:
        raise AuthenticationError(f"claim {name} is not a time in seconds")
    return value


def _audiences(value: object) -> set[object]:
    if isinstance(value, list | tuple):
        return {item for item in cast("list[object]", value) if isinstance(item, str)}
    return {value} if isinstance(value, str) else set()


def to_principal(claims: Mapping[str, Any], config: JWTConfig, *, qualify: bool) -> Principal:
    """Build the principal; with `qualify` its id carries the issuer.

    `sub` is unique for one issuer only (RFC 7519 section 4.1.2). Raises
    `AuthenticationError`, or `ScopeError` if the required scope is missing.
    """
    scopes = _scopes(claims, config.scope_claims)
    if config.scope is not None and not scopes.issuperset(config.scope.split()):
        raise ScopeError("the credential lacks the required scope", scope=config.scope)
    subject = _check_id(config.principal_claim, find(claims, config.principal_claim))
    return Principal(
        id=f"{config.issuer}|{subject}" if qualify else subject,
        tenant=_optional_id(claims, config.tenant_claim),
        tier=_optional_id(claims, config.tier_claim),
        urgent=_is_urgent(claims, config),
        scopes=scopes,
        # Shared by all requests of one credential.
        claims=MappingProxyType(dict(claims)),
    )


def find(claims: Mapping[str, Any], path: str) -> Any:
    """Return the claim of this name or dotted path, None if there is none.

    A name that matches as a whole comes first, because names may be URLs
    (`https://example.com/tier`).
    """
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = cast("Mapping[str, Any]", value).get(name)
    return value


def _scopes(claims: Mapping[str, Any], paths: tuple[str, ...]) -> frozenset[str]:
    scopes: set[str] = set()
    for path in paths:
        value = find(claims, path)
        items = value.split(" ") if isinstance(value, str) else value or ()
        if not isinstance(items, list | tuple):
            raise AuthenticationError("the scopes are neither a string nor a list")
        scopes.update(item for item in cast("list[object]", items) if isinstance(item, str))
    return frozenset(scopes - {""})


def _is_urgent(claims: Mapping[str, Any], config: JWTConfig) -> bool:
    value = find(claims, config.urgent_claim) if config.urgent_claim else None
    if isinstance(value, list):
        return any(item in config.urgent_values for item in cast("list[object]", value))
    return value is True or value in config.urgent_values


def _optional_id(claims: Mapping[str, Any], path: str | None) -> str | None:
    value = None if path is None else find(claims, path)
    return None if path is None or value is None else _check_id(path, value)


def _check_id(name: str, value: object) -> str:
    # Not printable are control characters and lone surrogates, which no store can encode.
    if not isinstance(value, str) or not value:
        raise AuthenticationError(f"claim {name} is missing or not a string")
    if len(value) > MAX_ID_LENGTH or not value.isprintable():
        raise AuthenticationError(f"claim {name} is too long or has control characters")
    return value
