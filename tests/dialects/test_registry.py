"""Dialects are found by the name a route gives them."""

from __future__ import annotations

import pytest

from llm_budget_mw import config
from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.errors import ConfigurationError


def test_every_dialect_has_the_name_it_is_found_by() -> None:
    """The registry's keys are the dialects' own names."""
    assert all(dialect_for(name).name == name for name in DIALECTS)


def test_a_route_may_name_every_dialect_there_is() -> None:
    """The configuration, which cannot look at the registry, lists the same names in its order."""
    assert tuple(DIALECTS) == config.DIALECTS


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    """The message says what was asked for and what would do."""
    with pytest.raises(ConfigurationError, match="none called 'opnai'; use one of openai_chat, "):
        dialect_for("opnai")
