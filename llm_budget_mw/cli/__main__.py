"""`python -m llm_budget_mw.cli`."""

from __future__ import annotations

import sys

from llm_budget_mw.cli import main

if __name__ == "__main__":
    sys.exit(main())
