from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.errors import AuthenticationError, ScopeError
from llm_budget_mw.identity.claims import (
    check_claims,
    check_typ,
    find,
    read_claims,
    to_principal,
)
from llm_budget_mw.types import Principal
from tests.identity.issuer import NOW, make_claims, make_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def principal_of(options: dict[str, Any], **claims: Any) -> Principal:
    return to_principal(make_claims(**claims), make_config(**options), qualify=False)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": NOW - 30},
        {"exp": str(NOW + 600)},
        {"exp": True},
        {"exp": math.nan},
        {"exp": math.inf},
        {"exp": 2**60},
        {"exp": 10**400},
        {"exp": -1},
        {"exp": [NOW + 600]},
        {"nbf": NOW + 31},
        {"nbf": math.nan},
        {"nbf": False},
        {"nbf": "soon"},
        {"iat": NOW + 31},
        {"iss": None},
        {"iss": "https://issuer.example/"},
        {"iss": ["https://issuer.example"]},
        {"aud": None},
        {"aud": "other"},
        {"aud": "llm-api-2"},
        {"aud": ["other"]},
        {"aud": []},
        {"aud": [["llm-api"], 1]},
        {"aud": {"llm-api": 1}},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": ["alice"]},
        {"sub": "a" * 257},
        {"sub": "a\nb"},
        {"sub": "a\x00"},
        {"sub": "\ud800"},
    ],
)
def test_claims_not_meant_for_us_now_are_refused(claims: dict[str, Any]) -> None:
    """Each of the registered claims can refuse a credential alone."""
    with pytest.raises(AuthenticationError) as caught:
        check_claims(make_claims(**claims), make_config(), NOW)

    assert (caught.value.status, caught.value.code) == (401, "invalid_token")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - 29},
        {"exp": NOW + 0.5},
        {"nbf": NOW + 30},
        {"iat": None},
        {"aud": ["other", "llm-api"]},
        {"sub": "a" * 256},
        {"sub": "José 日本 auth0|7"},
    ],
)
def test_claims_at_the_edge_of_what_is_allowed_pass(claims: dict[str, Any]) -> None:
    """Leeway, lists of audiences and every printable subject are accepted."""
    check_claims(make_claims(**claims), make_config(), NOW)


def test_any_of_several_audiences_is_enough() -> None:
    """An API with two names accepts credentials for either."""
    check_claims(make_claims(aud="b"), make_config(audience=("a", "b")), NOW)


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_expected_typ_is_compared_as_a_media_type(typ: str) -> None:
    """RFC 7515 lets `application/` be left out and RFC 9068 uses both spellings."""
    check_typ({"typ": typ}, "at+jwt")


@pytest.mark.parametrize("header", [{}, {"typ": "JWT"}, {"typ": None}, {"typ": ["at+jwt"]}])
def test_other_typ_is_refused(header: dict[str, Any]) -> None:
    """An ID token is no access token."""
    with pytest.raises(AuthenticationError):
        check_typ(header, "at+jwt")


def test_typ_is_not_looked_at_unless_configured() -> None:
    """Most issuers say `JWT`, which says nothing."""
    check_typ({"typ": 5}, None)


@pytest.mark.parametrize("payload", [b"", b"[]", b'"x"', b"{", b"\xff", b"[" * 100_000])
def test_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    """A signed payload may still be anything."""
    with pytest.raises(AuthenticationError):
        read_claims(payload)


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": "openid llm:chat"},
        {"scope": ["openid", "llm:chat"]},
        {"scp": "llm:chat"},
        {"scp": ["llm:chat", 5]},
        {"scope": "openid", "scp": ["llm:chat"]},
    ],
)
def test_required_scope_is_found_in_every_form(claims: dict[str, Any]) -> None:
    """Strings, lists and both claim names are read."""
    assert "llm:chat" in principal_of({"scope": "llm:chat"}, **claims).scopes


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"scope": ""},
        {"scope": "llm:chatx"},
        {"scope": "llm"},
        {"scope": "LLM:CHAT"},
        {"scope": ["openid llm:chat"]},
        {"scope": "openid\tllm:chat"},
        {"roles": "llm:chat"},
    ],
)
def test_scope_must_match_exactly(claims: dict[str, Any]) -> None:
    """Prefixes, other cases and other claims do not count."""
    with pytest.raises(ScopeError) as caught:
        principal_of({"scope": "llm:chat"}, **claims)

    assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")
    assert caught.value.scope == "llm:chat"


def test_scopes_of_an_unknown_form_are_refused() -> None:
    """An object is neither a string nor a list."""
    with pytest.raises(AuthenticationError) as caught:
        principal_of({}, scope={"llm:chat": True})

    assert caught.value.status == 401


def test_every_name_comes_from_its_configured_claim() -> None:
    """Principal, tenant and tier are read from dotted paths and from URL names alike."""
    options = {
        "principal_claim": "oid",
        "tenant_claim": "https://example.com/tenant",
        "tier_claim": "realm_access.plan",
    }
    claims = {"oid": "o1", "https://example.com/tenant": "acme", "realm_access": {"plan": "pro"}}

    principal = principal_of(options, **claims)

    assert (principal.id, principal.tenant, principal.tier) == ("o1", "acme", "pro")


def test_optional_names_may_be_missing() -> None:
    """A credential without a tenant or tier belongs to none."""
    principal = principal_of({"tenant_claim": "org", "tier_claim": "a.b"}, a="text")

    assert (principal.tenant, principal.tier, principal.urgent) == (None, None, False)


@pytest.mark.parametrize("option", ["principal_claim", "tenant_claim", "tier_claim"])
@pytest.mark.parametrize("value", [7, "", "x" * 257, "a\r\nb", ["acme"], {"a": 1}, False])
def test_malformed_name_is_refused(option: str, value: object) -> None:
    """No claim that becomes part of a key is anything but a short printable string."""
    with pytest.raises(AuthenticationError) as caught:
        principal_of({option: "name"}, name=value)

    assert caught.value.code == "invalid_token"


@pytest.mark.parametrize(
    ("value", "urgent"),
    [
        (True, True),
        ("true", True),
        (["other", "true"], True),
        (None, False),
        (False, False),
        (1, False),
        ("True", False),
        (["True", 1, []], False),
        ({"true": 1}, False),
    ],
)
def test_urgent_needs_a_configured_value(value: object, urgent: bool) -> None:
    """Only `true` itself or a listed string makes a principal urgent."""
    assert principal_of({"urgent_claim": "prio"}, prio=value).urgent is urgent


def test_qualified_id_carries_the_issuer() -> None:
    """The same subject of two issuers is two principals."""
    principal = to_principal(make_claims(), make_config(), qualify=True)

    assert principal.id == "https://issuer.example|alice"


def test_claims_of_a_principal_are_read_only() -> None:
    """A handler cannot change what other requests of the credential see."""
    with pytest.raises(TypeError):
        principal_of({}).claims["sub"] = "bob"  # type: ignore[index]


def test_whole_name_comes_before_the_path() -> None:
    """A dot in a claim's name is not always a path."""
    assert find({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


@given(st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "scope", "prio", "t"]), JSON))
def test_arbitrary_claims_only_ever_raise_our_error(claims: dict[str, Any]) -> None:
    """Whatever an issuer signs, the answer is a principal or an `AuthenticationError`."""
    config = make_config(tenant_claim="t.x", tier_claim="t", urgent_claim="prio", scope="a b")
    everything = read_claims(json.dumps(make_claims() | claims).encode())
    with contextlib.suppress(AuthenticationError):
        check_claims(everything, config, NOW)

        assert to_principal(everything, config, qualify=False).id.isprintable()
