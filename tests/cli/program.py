"""The command in this process, with a configuration of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_budget_mw.cli import main

TIERS = """
[tiers.default]
requests = "20/minute"
tokens = [{ limit = "90000/7 days", shadow = true }]
budget = ["$0.50/day", "$5/month"]
concurrency = 4

[tiers.closed]
budget = [{ limit = "$1/month", on_outage = "closed" }]

[tiers.open]

[[limits]]
of = "tenant"
only = ["acme"]
requests = [{ limit = "1000/2 hours", window = "fixed" }]
"""


class Program:
    """Runs commands and keeps what they print."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "budget.toml"
        self._capsys = capsys
        self.out = self.err = ""

    def configure(self, *parts: str) -> None:
        self.path.write_text("\n".join(parts))

    def __call__(self, *argv: str) -> int:
        status = main(["--config", str(self.path), *argv])
        self.out, self.err = self._capsys.readouterr()
        return status

    @property
    def data(self) -> Any:
        return json.loads(self.out)
