"""Dialects are found by the name a route gives them."""

from __future__ import annotations

import pytest

from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.errors import ConfigurationError


def test_every_dialect_has_the_name_it_is_found_by() -> None:
    """The registry's keys are the dialects' own names."""
    assert list(DIALECTS) == ["openai_chat", "openai_compatible", "anthropic_messages", "custom"]
    assert all(dialect_for(name).name == name for name in DIALECTS)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    """The message says what was asked for and what would do."""
    with pytest.raises(ConfigurationError, match="none called 'opnai'; use one of openai_chat, "):
        dialect_for("opnai")
