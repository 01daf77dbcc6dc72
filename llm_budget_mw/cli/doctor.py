"""`llm-budget doctor`: what is wrong with a deployment, and what to do about it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from llm_budget_mw.cli.command import Answer, Command, no_arguments
from llm_budget_mw.config import Config
from llm_budget_mw.diagnosis import Finding, Severity, worst

_STATUS = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.DANGER: 2}


def run(config: Config, arguments: argparse.Namespace) -> Answer:
    """Answer with every finding, the worst first."""
    from llm_budget_mw.diagnosis.examine import examine
    from llm_budget_mw.pricing import Prices

    found = examine(config, Prices(config.prices), os.environ)
    ordered = sorted(found, key=lambda finding: -finding.severity)
    return Answer(as_text(ordered), as_data(ordered), status(ordered))


def status(findings: Sequence[Finding]) -> int:
    """Return the exit status: 1 for a warning, 2 for a danger."""
    return _STATUS[worst(findings)]


def as_text(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and one for its remedy."""
    return "\n".join(line for finding in findings for line in _lines(finding))


def as_data(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return an object for each finding."""
    return [
        {
            "check": finding.check,
            "severity": finding.severity.name.lower(),
            "seen": finding.seen,
            "remedy": finding.remedy,
        }
        for finding in findings
    ]


def _lines(finding: Finding) -> list[str]:
    lines = [f"{finding.severity.name.lower():8} {finding.check}: {finding.seen}"]
    return [*lines, f"{'':8} -> {finding.remedy}"] if finding.remedy else lines


COMMAND = Command(
    "doctor",
    "Look for what is wrong with a deployment: store, limits, prices, keys, processes.",
    no_arguments,
    run,
)
