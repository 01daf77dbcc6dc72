"""An issuer of credentials, with a key of its own."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

_RSA_BITS = 2048
_RSA_EXPONENT = 65537


class Issuer:
    """Signs credentials, and says how to configure an application that accepts them."""

    def __init__(
        self,
        algorithm: Literal["HS256", "RS256", "ES256"] = "HS256",
        *,
        issuer: str = "https://issuer.test",
        audience: str = "llm-budget-test",
    ) -> None:
        self.algorithm = algorithm
        self.issuer = issuer
        self.audience = audience
        self._signing_key, verifying_key = _new_keys(algorithm)
        self.key = verifying_key
        """What verifies: the secret of HS256, the public key of the others, in PEM."""

    def config(self, **options: Any) -> dict[str, Any]:
        """Return a `jwt` section that accepts this issuer; `options` are added to it."""
        return {
            "algorithms": [self.algorithm],
            "issuer": self.issuer,
            "audience": self.audience,
            "key": self.key,
            "tenant_claim": "tenant",
            "tier_claim": "tier",
            **options,
        }

    def token(
        self,
        sub: str,
        *,
        scope: str | None = None,
        tier: str | None = None,
        tenant: str | None = None,
        expires_in: float = 3600,
        **claims: Any,
    ) -> str:
        """Return a credential for `sub`, to be sent as `Authorization: Bearer ...`.

        `expires_in` is in seconds from now, below zero for one that has expired. `claims` are
        added; one that is None is left out, `sub` and the issuer's own included.
        """
        content = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": sub,
            "exp": int(time.time() + expires_in),
            "scope": scope,
            "tier": tier,
            "tenant": tenant,
            **claims,
        }
        present = {name: value for name, value in content.items() if value is not None}
        return jwt.encode(present, self._signing_key, self.algorithm)


def _new_keys(algorithm: str) -> tuple[str, str]:
    """Return a key that signs and the one that verifies."""
    if algorithm == "HS256":
        secret = secrets.token_hex(32)
        return secret, secret
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if algorithm == "RS256":
        private = rsa.generate_private_key(_RSA_EXPONENT, _RSA_BITS)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        raise ValueError(f"algorithm {algorithm!r} is not made here: HS256, RS256 or ES256")
    signing = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return signing.decode(), public.decode()
