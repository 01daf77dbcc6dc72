"""What can be wrong with a deployment: facts are gathered in one place, checks only look at them."""

from __future__ import annotations

from llm_budget_mw.diagnosis.finding import Finding, Severity, worst

__all__ = ["Finding", "Severity", "worst"]
