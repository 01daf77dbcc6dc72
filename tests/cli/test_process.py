"""`llm-budget` as a command of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from llm_budget_mw.cli import COMMANDS, main

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_budget_mw.cli", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_that_is_installed() -> None:
    """It is the one that is tested here."""
    [(name, value)] = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"].items()

    assert name == "llm-budget"
    assert EntryPoint(name, value, "console_scripts").load() is main


def test_a_process_prints_its_answer_and_nothing_else(tmp_path: Path) -> None:
    """It needs no option where the configuration has its usual name."""
    (tmp_path / "llm_budget.toml").write_text('[tiers.default]\nbudget = "$5/month"\n')
    done = run("check", "--json", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["tables"][0]["limits"][0]["amount"] == "5.00"


def test_a_process_ends_with_the_status(tmp_path: Path) -> None:
    """What is wrong stands on standard error, in one line."""
    done = run("check", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llm-budget: llm_budget.toml is not there")
    assert len(done.stderr.splitlines()) == 1


def test_every_command_is_documented() -> None:
    """The table of the operations page has each, and no other."""
    operations = (PYPROJECT.parent / "docs" / "operations.md").read_text()
    section = operations.partition("## Commands")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| (`.*?) \|", section)
    documented = {word for row in rows for word in re.findall(r"`([a-z-]+)", row)}

    assert documented == {command.name for command in COMMANDS}
