"""Keys and signatures: the one module that verifies with PyJWT.

A key is bound to the algorithms it may be used with when it is loaded, from the
configuration and its own type, never from a token (RFC 8725 sections 3.1 and 3.2). So a
public key cannot become an HMAC secret, whatever a header says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jwt
from cryptography.exceptions import UnsupportedAlgorithm

from llm_budget_mw.errors import AuthenticationError, ConfigurationError

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}
"""First letters of the algorithms of each key type; `oct` is missing on purpose."""

_PUBLIC_MEMBERS = ("kty", "n", "e", "crv", "x", "y")
_UNUSABLE = (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm)
_JWS = jwt.PyJWS()


class VerificationKey(NamedTuple):
    """A secret or public key, and the algorithms it may verify."""

    key: AllowedPublicKeys | bytes
    algorithms: tuple[str, ...]
    kid: str | None = None


class Verified(NamedTuple):
    """The two parts of a credential whose signature is valid."""

    header: dict[str, Any]
    payload: bytes


def load_key(text: str, algorithms: tuple[str, ...], option: str) -> VerificationKey:
    """Load a shared secret or a public key in PEM form; every algorithm must fit it.

    Raises `ConfigurationError`, which names `option`, the algorithm and the remedy, but
    not the key.
    """
    keys = [_load_for(name, text, option) for name in algorithms]
    if hasattr(keys[0], "private_bytes"):
        raise ConfigurationError(
            f"{option} holds a private key: configure the public key that belongs to it"
        )
    return VerificationKey(keys[0], algorithms)


def _load_for(name: str, text: str, option: str) -> Any:
    try:
        return _checked(name, jwt.get_algorithm_by_name(name).prepare_key(text))
    except _UNUSABLE as error:
        raise ConfigurationError(
            f"{option} does not fit algorithm {name!r} ({error}): give a secret of at least the "
            "hash's length for HS*, the public key in PEM form for the others"
        ) from error


def _checked(name: str, key: Any) -> Any:
    algorithm = jwt.get_algorithm_by_name(name)
    prepared = algorithm.prepare_key(key)
    if problem := algorithm.check_key_length(prepared):
        raise jwt.InvalidKeyError(problem)
    return prepared


def read_jwk(member: object, algorithms: Sequence[str]) -> VerificationKey | None:
    """Return the key of one member of a JWK set (RFC 7517), or None if it is not usable.

    Usable is a public signature key, long enough, of a type that one of `algorithms` has.
    """
    if not isinstance(member, dict):
        return None
    jwk = cast("dict[str, Any]", member)
    kid = jwk.get("kid")
    if not isinstance(kid, str | None) or not _is_public_signature_key(jwk):
        return None
    public = {name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk}
    fitting: list[str] = []
    key: Any = None
    for name in algorithms:
        if name[:2] in _FAMILIES[jwk["kty"]] and jwk.get("alg", name) == name:
            try:
                key = _checked(name, jwt.PyJWK(public, name).key)
            except _UNUSABLE:
                continue
            fitting.append(name)
    return VerificationKey(key, tuple(fitting), kid) if fitting else None


def _is_public_signature_key(jwk: Mapping[str, Any]) -> bool:
    kty, operations = jwk.get("kty"), jwk.get("key_ops", ["verify"])
    return (
        isinstance(kty, str)
        and kty in _FAMILIES
        and "d" not in jwk
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def verify(credential: str, key: VerificationKey) -> Verified:
    """Check the signature; raises `AuthenticationError` if it is not the key's."""
    try:
        parts = _JWS.decode_complete(
            credential,
            key.key,
            algorithms=key.algorithms,
            options={"verify_signature": True, "enforce_minimum_key_length": True},
        )
    except jwt.PyJWTError as error:
        raise AuthenticationError("the credential's signature is not valid") from error
    return Verified(parts["header"], parts["payload"])
