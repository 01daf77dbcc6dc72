from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.errors import AuthenticationError, ConfigurationError
from llm_budget_mw.identity.signatures import load_key, read_jwk, verify
from tests.identity.issuer import EC_KEY, RSA_KEY, ec_jwk, issue, pem, private_pem, rsa_jwk

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("signing", "alg", "text"),
    [
        (SECRET, "HS256", SECRET),
        (RSA_KEY, "RS256", pem(RSA_KEY)),
        (RSA_KEY, "PS256", pem(RSA_KEY)),
        (EC_KEY, "ES256", pem(EC_KEY)),
    ],
)
def test_static_key_verifies_what_it_signed(signing: Any, alg: str, text: str) -> None:
    """A secret or PEM key from the configuration verifies its own algorithm."""
    verified = verify(issue(signing, alg), load_key(text, (alg,), "jwt.key"))

    assert verified.header["alg"] == alg


def test_eddsa_is_supported() -> None:
    """Ed25519 keys work as PEM."""
    private = Ed25519PrivateKey.generate()

    verified = verify(issue(private, "EdDSA"), load_key(pem(private), ("EdDSA",), "jwt.key"))

    assert b"alice" in verified.payload


@pytest.mark.parametrize(
    ("text", "algorithms"),
    [
        ("short", ("HS256",)),
        ("", ("HS256",)),
        (SECRET, ("HS256", "HS512")),
        (pem(RSA_KEY), ("HS256",)),
        (SECRET, ("RS256",)),
        (SECRET, ("ES256",)),
        (SECRET, ("EdDSA",)),
        (pem(RSA_KEY), ("ES256",)),
        (pem(EC_KEY), ("RS256",)),
        (pem(EC_KEY), ("ES384",)),
        (private_pem(RSA_KEY), ("RS256",)),
        (private_pem(EC_KEY), ("ES256",)),
    ],
)
def test_key_that_does_not_fit_is_a_configuration_error(
    text: str, algorithms: tuple[str, ...]
) -> None:
    """A wrong key stops the program at start, and is not shown."""
    with pytest.raises(ConfigurationError, match=r"jwt\.key") as caught:
        load_key(text, algorithms, "jwt.key")

    assert SECRET not in str(caught.value)


def test_jwk_is_bound_to_the_algorithms_of_its_type() -> None:
    """A key takes from the allow-list only what its type can do."""
    key = read_jwk(rsa_jwk("a"), ("RS256", "ES256", "PS256", "EdDSA"))

    assert key is not None
    assert key.algorithms == ("RS256", "PS256")


def test_jwk_with_an_algorithm_is_bound_to_it() -> None:
    """RFC 7517 section 4.4: `alg` is the only use of the key."""
    key = read_jwk(rsa_jwk("a", alg="PS256"), ("RS256", "PS256"))

    assert key is not None
    assert key.algorithms == ("PS256",)


def test_key_verifies_no_other_algorithm() -> None:
    """The binding holds where the key itself could do more."""
    key = load_key(pem(RSA_KEY), ("RS256",), "jwt.key")

    with pytest.raises(AuthenticationError):
        verify(issue(alg="PS256"), key)


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
        {"kty": ["RSA"]},
        {},
        "text",
        None,
        rsa_jwk("a", use="enc"),
        rsa_jwk("a", key_ops=["encrypt"]),
        rsa_jwk("a", key_ops="verify"),
        rsa_jwk("a", alg="RSA-OAEP"),
        rsa_jwk("a", d="AQAB"),
        rsa_jwk("a", n=7),
        rsa_jwk("a", e="!"),
        rsa_jwk("a", e="AA"),
        rsa_jwk("a", n="AQAB"),
        rsa_jwk("a", n="_" * 170 + "8"),
        rsa_jwk(7),
        ec_jwk("a", x="AAAA"),
        ec_jwk("a", crv="P-384"),
        {"kty": "OKP", "crv": "X25519", "x": "AAAA"},
    ],
)
def test_unusable_jwk_is_skipped(jwk: object) -> None:
    """Secrets, private, weak, encryption and broken keys are left out of the set."""
    assert read_jwk(jwk, ("RS256", "ES256", "EdDSA", "HS256")) is None


@given(
    st.dictionaries(
        st.sampled_from(["kty", "n", "e", "crv", "x", "y", "alg", "use", "key_ops", "kid"]),
        st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "", "é", None, 1, [], {}])
        | st.text(max_size=50),
    )
)
def test_arbitrary_jwk_never_raises(jwk: dict[str, Any]) -> None:
    """A key server may publish anything."""
    key = read_jwk(jwk, ("RS256", "ES256", "EdDSA"))

    assert key is None or key.algorithms


@given(st.text(alphabet="abcABC012-_.=", max_size=80) | st.binary(max_size=40).map(bytes.hex))
def test_arbitrary_credential_only_raises_our_error(credential: str) -> None:
    """No garbage passes as signed or escapes as another exception."""
    with pytest.raises(AuthenticationError):
        verify(credential, load_key(SECRET, ("HS256",), "jwt.key"))
