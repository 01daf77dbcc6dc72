from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.identity.peek import peek
from tests.identity.issuer import ISSUER, issue


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_selecting_parts_are_read() -> None:
    """Algorithm, key id and issuer are all that is looked at."""
    assert peek(issue(header={"kid": "k1"})) == ("RS256", "k1", ISSUER)


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({}, {"iss": "a"}),
        ({"alg": ["RS256"]}, {"iss": "a"}),
        ({"alg": "RS256", "kid": 1}, {"iss": "a"}),
        ({"alg": "RS256", "kid": {"a": 1}}, {"iss": "a"}),
        ({"alg": "RS256"}, {}),
        ({"alg": "RS256"}, {"iss": ["a"]}),
        ([], {"iss": "a"}),
        ({"alg": "RS256"}, "a.b.c"),
    ],
)
def test_parts_of_another_type_are_refused(header: object, claims: object) -> None:
    """Nothing that is not text can select a key or an issuer."""
    with pytest.raises(AuthenticationError) as caught:
        peek(f"{segment(header)}.{segment(claims)}.sig")

    assert (caught.value.status, caught.value.code) == (401, "invalid_token")


@pytest.mark.parametrize("credential", ["", "a", "a.b", "a.b.c.d", "a.b.c.d.e", "!.!.!", "a.a.a"])
def test_other_forms_are_refused(credential: str) -> None:
    """Opaque tokens and encrypted ones are not opened."""
    with pytest.raises(AuthenticationError):
        peek(credential)


def test_deeply_nested_json_is_refused() -> None:
    """Nesting that exhausts the parser's stack is an invalid token, not a crash."""
    bomb = base64.urlsafe_b64encode(b"[" * 9000).decode()

    with pytest.raises(AuthenticationError):
        peek(f"{bomb}.{bomb}.a")


@given(st.text(alphabet="eyJhbGc.é-_=", max_size=60))
def test_arbitrary_text_only_raises_our_error(credential: str) -> None:
    """Hypothesis finds no text that escapes as another exception."""
    with pytest.raises(AuthenticationError):
        peek(credential)
