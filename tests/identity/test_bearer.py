from __future__ import annotations

import pytest

from llm_budget_mw.errors import AuthenticationError, ScopeError
from llm_budget_mw.identity import www_authenticate
from llm_budget_mw.identity.bearer import check_syntax, read_credential

NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEARER"])
def test_scheme_is_case_insensitive(scheme: str) -> None:
    """Any spelling of the scheme is understood, as RFC 9110 asks."""
    assert read_credential([("authorization", f"{scheme} a.b.c")], NONE) == "a.b.c"


@pytest.mark.parametrize("headers", [[], [("authorization", "Basic YTpi")], [("x-api-key", "a")]])
def test_missing_credential_has_no_code(headers: list[tuple[str, str]]) -> None:
    """A request without a credential we understand is a 401 without an `error` attribute."""
    with pytest.raises(AuthenticationError) as caught:
        read_credential(headers, NONE)

    assert (caught.value.status, caught.value.code) == (401, None)


def test_further_header_counts_only_if_configured() -> None:
    """An API key header carries the credential where it is configured, without a scheme."""
    assert read_credential([("x-api-key", " a.b.c ")], frozenset({"x-api-key"})) == "a.b.c"


@pytest.mark.parametrize(
    "second", [("authorization", "Bearer a"), ("authorization", "bearer b"), ("x-api-key", "a")]
)
def test_second_credential_is_malformed(second: tuple[str, str]) -> None:
    """Two credentials are a 400 even if they are equal."""
    with pytest.raises(AuthenticationError) as caught:
        read_credential([("authorization", "Bearer a"), second], frozenset({"x-api-key"}))

    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


def test_credential_that_is_not_ascii_is_malformed() -> None:
    """No character that could be encoded in two ways reaches the digest."""
    with pytest.raises(AuthenticationError) as caught:
        read_credential([("authorization", "Bearer \xe9\udc80")], NONE)

    assert caught.value.status == 400


@pytest.mark.parametrize("text", ["", "a b", "a,Bearer b", 'a"b', "a\x00b", "=", "a=b"])
def test_only_a_b64token_is_well_formed(text: str) -> None:
    """What RFC 6750 does not allow after the scheme is a 400."""
    with pytest.raises(AuthenticationError) as caught:
        check_syntax(text)

    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


def test_challenge_without_a_code_is_bare() -> None:
    """A client that sent nothing learns the scheme and nothing else."""
    assert www_authenticate(AuthenticationError("none", code=None)) == 'Bearer realm="api"'


def test_challenge_names_the_missing_scope() -> None:
    """The client learns which scope to ask for."""
    challenge = www_authenticate(ScopeError("lacks a scope", scope="llm:chat"))

    assert challenge == (
        'Bearer realm="api", error="insufficient_scope", '
        'error_description="lacks a scope", scope="llm:chat"'
    )


def test_challenge_cannot_be_broken_out_of() -> None:
    """Quotes, backslashes, line breaks and non-ASCII never reach the header."""
    challenge = www_authenticate(AuthenticationError('a"b\\c\r\nx: y\xe9'))

    assert challenge.endswith('error_description="a?b?c??x: y?"')
