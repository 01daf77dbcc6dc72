"""Tests of `llm_budget_mw.identity.handover`: who pays for a job, whatever the queue says."""

from __future__ import annotations

import time

import jwt
import pytest

from llm_budget_mw.errors import AuthenticationError, ConfigurationError
from llm_budget_mw.identity.handover import hand_over, take_over
from llm_budget_mw.types import Principal

SECRET = "s" * 32
ALICE = Principal("älice/1", "acme", "pro", urgent=True, scopes=frozenset({"b", "a"}))


def test_a_principal_arrives_as_it_was_sent() -> None:
    """With all that decides what it may use."""
    assert take_over(hand_over(ALICE, SECRET), SECRET) == ALICE
    assert take_over(hand_over(Principal("bob"), SECRET), SECRET) == Principal("bob")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "älice",
        hand_over(ALICE, "t" * 32),
        hand_over(ALICE, SECRET, valid_s=-1),
        hand_over(ALICE, SECRET)[:-2],
        jwt.encode({"sub": "root", "exp": int(time.time()) + 60}, SECRET, "HS256"),
        jwt.encode({"sub": "root", "aud": "llm-budget-mw/handover"}, SECRET, "HS256"),
        jwt.encode({"sub": "root", "aud": "llm-budget-mw/handover", "exp": 2**33}, "", "none"),
    ],
    ids=["empty", "plain", "foreign", "expired", "cut", "a credential", "for ever", "unsigned"],
)
def test_nobody_becomes_somebody_else(text: str) -> None:
    """Whoever can write to the queue cannot spend another's budget."""
    with pytest.raises(AuthenticationError, match="not valid"):
        take_over(text, SECRET)


def test_a_short_secret_is_refused() -> None:
    """It could be guessed from one message."""
    with pytest.raises(ConfigurationError, match="32 or more"):
        hand_over(ALICE, "secret")
