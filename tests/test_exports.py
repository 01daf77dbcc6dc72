"""Tests of what the package offers."""

from __future__ import annotations

from types import ModuleType

import pytest

import llm_budget_mw
from llm_budget_mw import errors

PUBLIC = {
    name: value
    for name, value in vars(llm_budget_mw).items()
    if not name.startswith("_") and not isinstance(value, ModuleType)
}


def test_every_public_name_is_listed_and_every_listed_name_is_there() -> None:
    """`__all__` is the whole list, sorted."""
    assert sorted(PUBLIC) == llm_budget_mw.__all__


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_documented(name: str) -> None:
    """And comes from this package."""
    assert PUBLIC[name].__doc__
    assert PUBLIC[name].__module__.startswith("llm_budget_mw.")


def test_everything_raised_has_one_root() -> None:
    """One `except` is enough."""
    raised = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and value.__module__ == errors.__name__
    ]

    assert len(raised) == 8
    assert all(issubclass(error, llm_budget_mw.BudgetError) for error in raised)
    for error in raised:
        assert error.__name__ in (errors.__doc__ or "")
