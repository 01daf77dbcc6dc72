"""What forged, stolen and broken credentials meet; the sync and async faces share it all."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest

from llm_budget_mw.errors import AuthenticationError, ConfigurationError
from llm_budget_mw.identity import www_authenticate
from llm_budget_mw.identity.authenticators import AsyncJWTAuthenticator, JWTAuthenticator
from tests.identity.issuer import (
    EC_KEY,
    ISSUER,
    NOW,
    OTHER_RSA_KEY,
    RSA_KEY,
    ManualClock,
    bearer,
    issue,
    make_claims,
    make_config,
    pem,
    rsa_jwk,
)

INVALID = (401, "invalid_token")
MALFORMED = (400, "invalid_request")
OTHER = "https://other.example"


def refused(
    headers: list[tuple[str, str]], clock: ManualClock, *configs: Any
) -> tuple[int, str | None]:
    """Return status and code of the refusal, which shows nothing of the credential."""
    with pytest.raises(AuthenticationError) as caught:
        JWTAuthenticator(configs or [make_config()], clock=clock).authenticate(headers)
    error = caught.value
    shown = www_authenticate(error)
    assert not any(part in shown for _, value in headers for part in value.split(".") if part[20:])
    return error.status, error.code


def unsigned(header: dict[str, Any], signature: str = "") -> str:
    parts = [json.dumps(part).encode() for part in (header, make_claims())]
    return ".".join(
        [*(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts), signature]
    )


def hmac_with_public_key(alg: str) -> str:
    """Sign by hand: no library would use a public key as a secret."""
    signer = jwt.get_algorithm_by_name(alg)
    signing_input = unsigned({"alg": alg, "typ": "JWT"}).removesuffix(".")
    signature = signer.sign(signing_input.encode(), pem(RSA_KEY).encode())
    return f"{signing_input}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_valid_credential_names_its_principal(clock: ManualClock) -> None:
    """Claims become the principal that budgets are kept for."""
    config = make_config(tenant_claim="org", scope="llm:chat")
    headers = bearer(issue(org="acme", scope="llm:chat"))

    principal = JWTAuthenticator([config], clock=clock).authenticate(headers)

    assert (principal.id, principal.tenant) == ("alice", "acme")
    assert principal.claims["aud"] == "llm-api"


async def test_async_authenticator_decides_the_same(clock: ManualClock) -> None:
    """The asynchronous face accepts and refuses what the other does."""
    authenticator = AsyncJWTAuthenticator([make_config()], clock=clock)

    assert (await authenticator.authenticate(bearer(issue()))).id == "alice"
    with pytest.raises(AuthenticationError):
        await authenticator.authenticate([])


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("signature", ["", "AAAA"])
def test_unsigned_credential_is_refused(alg: str, signature: str, clock: ManualClock) -> None:
    """RFC 8725 section 3.2: no spelling of `none` is an algorithm."""
    assert refused(bearer(unsigned({"alg": alg}, signature)), clock) == INVALID


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_public_key_is_no_secret(alg: str, clock: ManualClock) -> None:
    """RFC 8725 section 2.1: a public key used as HMAC secret verifies nothing."""
    assert refused(bearer(hmac_with_public_key(alg)), clock) == INVALID


@pytest.mark.parametrize("alg", ["RS384", "RS512", "PS256"])
def test_other_algorithm_of_the_same_key_is_refused(alg: str, clock: ManualClock) -> None:
    """The allow-list holds even where the key would verify."""
    assert refused(bearer(issue(alg=alg)), clock) == INVALID


@pytest.mark.parametrize(
    "kid",
    ["../../../../dev/null", "/etc/passwd", "' OR '1'='1", "a\x00b", "x" * 8000, "http://evil/"],
)
def test_key_id_reaches_no_path_or_query(kid: str, clock: ManualClock) -> None:
    """RFC 8725 section 3.10: whatever `kid` says, a forged signature stays forged."""
    assert refused(bearer(issue(OTHER_RSA_KEY, header={"kid": kid})), clock) == INVALID


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": rsa_jwk("evil", OTHER_RSA_KEY)},
        {"jku": "http://127.0.0.1:1/jwks.json", "kid": "evil"},
        {"x5u": "http://127.0.0.1:1/cert.pem"},
        {"x5c": ["MIIB"]},
    ],
)
def test_key_in_the_header_is_ignored(header: dict[str, Any], clock: ManualClock) -> None:
    """A credential cannot bring or point to its own key."""
    assert refused(bearer(issue(OTHER_RSA_KEY, header=header)), clock) == INVALID


@pytest.mark.parametrize(
    "header", [{"crit": ["exp"]}, {"crit": []}, {"crit": "b64"}, {"b64": False, "crit": ["b64"]}]
)
def test_critical_extensions_are_not_skipped(header: dict[str, Any], clock: ManualClock) -> None:
    """RFC 7515 section 4.1.11: what must be understood and is not, refuses."""
    assert refused(bearer(unsigned({"alg": "RS256"} | header, "AAAA")), clock) == INVALID


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": None},
        {"iss": OTHER},
        {"iss": None},
        {"exp": NOW - 31},
        {"exp": None},
        {"nbf": NOW + 31},
        {"iat": NOW + 3600},
        {"sub": 42},
        {"sub": None},
        {"sub": "a\nb"},
    ],
)
def test_signed_claims_must_be_for_us_and_now(claims: dict[str, Any], clock: ManualClock) -> None:
    """A valid signature is not enough."""
    assert refused(bearer(issue(**claims)), clock) == INVALID


def test_missing_scope_is_forbidden(clock: ManualClock) -> None:
    """Who is known but not allowed gets a 403 that names the scope."""
    config = make_config(scope="llm:chat")

    assert refused(bearer(issue(scope="llm:chatx")), clock, config) == (403, "insufficient_scope")


def test_expected_typ_is_required(clock: ManualClock) -> None:
    """RFC 9068 section 4: with `typ` configured an ID token does not pass."""
    config = make_config(typ="at+jwt")
    good = bearer(issue(header={"typ": "at+jwt"}))

    assert refused(bearer(issue()), clock, config) == INVALID
    assert JWTAuthenticator([config], clock=clock).authenticate(good).id == "alice"


def test_signed_payload_must_be_an_object(clock: ManualClock) -> None:
    """A nested token as payload is not opened."""
    inner = jwt.PyJWS().encode(issue().encode(), RSA_KEY, algorithm="RS256")

    assert refused(bearer(inner), clock) == INVALID


@pytest.mark.parametrize(
    "credential",
    [
        "AAAA.BBBB.CCCC",
        "opaque",
        "...",
        "eyJhbGciOiJSU0EtT0FFUCIsInppcCI6IkRFRiJ9.AAAA.AAAA.AAAA.AAAA",
    ],
)
def test_garbage_is_invalid(credential: str, clock: ManualClock) -> None:
    """Opaque and encrypted tokens are a 401 like any other that does not verify."""
    assert refused(bearer(credential), clock) == INVALID


def test_tampered_credential_is_refused(clock: ManualClock) -> None:
    """Claims changed after signing do not verify."""
    header, _, signature = issue().split(".")
    _, claims, _ = issue(sub="admin").split(".")

    assert refused(bearer(f"{header}.{claims}.{signature}"), clock) == INVALID


@pytest.mark.parametrize("size", [16_385, 1_000_000])
def test_oversized_credential_is_malformed(size: int, clock: ManualClock) -> None:
    """A credential above the bound is not even hashed."""
    assert refused(bearer("a" * size), clock) == MALFORMED


def test_missing_credential_has_no_code(clock: ManualClock) -> None:
    """RFC 6750 section 3.1: no error code for a request without a credential."""
    assert refused([("host", "a")], clock) == (401, None)


@pytest.mark.parametrize(
    "extra", [("authorization", "Bearer x"), ("authorization", f"Bearer {issue()}")]
)
def test_duplicated_header_is_malformed(extra: tuple[str, str], clock: ManualClock) -> None:
    """Two credentials are refused before either is verified."""
    assert refused([*bearer(issue()), extra], clock) == MALFORMED


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "Bearer a b", "Bearer a,b", "Bearer é"])
def test_malformed_header_is_malformed(value: str, clock: ManualClock) -> None:
    """What is not a bearer credential at all is a 400."""
    assert refused([("authorization", value)], clock) == MALFORMED


def test_api_key_header_is_read_only_if_configured(clock: ManualClock) -> None:
    """Provider SDKs put the credential into `x-api-key`; the default ignores it."""
    headers = [("x-api-key", issue())]
    config = make_config(headers=("x-api-key",))

    assert refused(headers, clock) == (401, None)
    assert JWTAuthenticator([config], clock=clock).authenticate(headers).id == "alice"


def test_lower_case_scheme_is_accepted(clock: ManualClock) -> None:
    """RFC 9110 section 11.1: the scheme is case-insensitive."""
    headers = [("authorization", f"bearer {issue()}")]

    assert JWTAuthenticator([make_config()], clock=clock).authenticate(headers).id == "alice"


def test_credentials_with_a_long_equal_prefix_stay_apart(clock: ManualClock) -> None:
    """The cache tells two credentials apart that differ only near the end."""
    authenticator = JWTAuthenticator([make_config()], clock=clock)
    first, second = (issue(aud=["llm-api", "x" * 2000], exp=NOW + 60, sub=s) for s in ("a1", "a2"))
    assert first[:2500] == second[:2500]

    names = [authenticator.authenticate(bearer(text)).id for text in (first, second, first)]

    assert names == ["a1", "a2", "a1"]


def test_cached_credential_with_another_signature_is_verified(clock: ManualClock) -> None:
    """A credential that was accepted does not vouch for one with the same claims."""
    authenticator = JWTAuthenticator([make_config()], clock=clock)
    good = issue()
    authenticator.authenticate(bearer(good))

    with pytest.raises(AuthenticationError):
        authenticator.authenticate(bearer(good[:-4] + "AAAA"))


def test_cached_credential_is_not_verified_again(clock: ManualClock) -> None:
    """The second request with a credential gets the very same principal."""
    authenticator = JWTAuthenticator([make_config()], clock=clock)
    headers = bearer(issue())

    assert authenticator.authenticate(headers) is authenticator.authenticate(headers)


def test_cached_credential_expires_like_any_other(clock: ManualClock) -> None:
    """The cache never extends the life of a credential."""
    authenticator = JWTAuthenticator([make_config(leeway_s=0)], clock=clock)
    headers = bearer(issue(exp=NOW + 20))
    authenticator.authenticate(headers)
    clock.now += 20

    with pytest.raises(AuthenticationError, match="expired"):
        authenticator.authenticate(headers)


def test_refusal_is_not_remembered(clock: ManualClock) -> None:
    """A credential that becomes valid is accepted then."""
    authenticator = JWTAuthenticator([make_config()], clock=clock)
    headers = bearer(issue(nbf=NOW + 60))
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(headers)
    clock.now += 60

    assert authenticator.authenticate(headers).id == "alice"


def test_same_subject_of_two_issuers_is_two_principals(clock: ManualClock) -> None:
    """With several issuers the id carries the issuer."""
    configs = [make_config(), make_config(issuer=OTHER, key=pem(EC_KEY), algorithms=("ES256",))]
    authenticator = JWTAuthenticator(configs, clock=clock)

    names = {
        authenticator.authenticate(bearer(issue())).id,
        authenticator.authenticate(bearer(issue(EC_KEY, "ES256", iss=OTHER))).id,
    }

    assert names == {f"{ISSUER}|alice", f"{OTHER}|alice"}


def test_issuer_is_bound_to_its_own_keys(clock: ManualClock) -> None:
    """RFC 8725 section 3.8: one issuer cannot speak for another."""
    configs = [make_config(), make_config(issuer=OTHER, key=pem(OTHER_RSA_KEY))]

    assert refused(bearer(issue(iss=OTHER)), clock, *configs) == INVALID
    assert refused(bearer(issue(OTHER_RSA_KEY)), clock, *configs) == INVALID


def test_size_is_bounded_for_each_issuer(clock: ManualClock) -> None:
    """A generous issuer does not raise the bound of a strict one."""
    configs = [make_config(max_token_bytes=1024), make_config(issuer=OTHER)]

    assert refused(bearer(issue(padding="x" * 1024)), clock, *configs) == MALFORMED


def test_line_break_after_a_secret_is_no_part_of_it(tmp_path: Path, clock: ManualClock) -> None:
    """A secret written to a file by an editor is the secret itself."""
    path = tmp_path / "secret"
    path.write_text("s" * 32 + "\n")
    config = make_config(key_file=path, algorithms=("HS256",))

    credential = issue("s" * 32, "HS256")

    assert JWTAuthenticator([config], clock=clock).authenticate(bearer(credential)).id == "alice"


def test_key_file_is_read(tmp_path: Path, clock: ManualClock) -> None:
    """A public key may live in a file."""
    path = tmp_path / "key.pem"
    path.write_text(pem(RSA_KEY))
    authenticator = JWTAuthenticator([make_config(key_file=path)], clock=clock)

    assert authenticator.authenticate(bearer(issue())).id == "alice"


def test_unreadable_key_file_is_a_configuration_error(tmp_path: Path) -> None:
    """The message names the option and the file."""
    with pytest.raises(ConfigurationError, match=r"key_file.*missing\.pem"):
        JWTAuthenticator([make_config(key_file=tmp_path / "missing.pem")])


@pytest.mark.parametrize(
    ("issuers", "message"),
    [([], "empty"), ([ISSUER, ISSUER], "once"), ([ISSUER, "https://a|b"], "'|'")],
)
def test_ambiguous_issuers_are_a_configuration_error(issuers: list[str], message: str) -> None:
    """Issuers that could be mistaken for each other stop the program at start."""
    with pytest.raises(ConfigurationError, match=message.replace("|", r"\|")):
        JWTAuthenticator([make_config(issuer=issuer) for issuer in issuers])
