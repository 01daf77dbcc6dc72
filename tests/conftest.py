"""What every test needs, whatever it tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A shared machine can stall for longer than any deadline that would say something.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for name in os.environ:
        if name.startswith("LLM_BUDGET_"):
            monkeypatch.delenv(name)
