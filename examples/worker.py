"""Budgets without HTTP: a script that summarises each line of its input until its budget ends.

export LLM_BUDGET_JWT_KEY=... OPENAI_API_KEY=...
python examples/worker.py < reports.txt
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import httpx2

from llm_budget_mw import BudgetExceeded, Guard, Principal, load

WORKER = Principal("nightly-summaries", tier="batch")


def summarise(guard: Guard, provider: httpx2.Client, text: str) -> str:
    messages = [{"role": "user", "content": f"Summarise in one sentence: {text}"}]
    with guard.call(WORKER, model="gpt-4o-mini", messages=messages) as call:
        answer = provider.post("/v1/chat/completions", json=call.request)
        answer.raise_for_status()
        call.record(answer.json())
    return str(answer.json()["choices"][0]["message"]["content"])


def main() -> int:
    # Standard output is for the summaries.
    config = load(Path(__file__).with_name("llm_budget.toml"), events={"log": False})
    provider = httpx2.Client(
        base_url=os.environ.get("PROVIDER_URL", "https://api.openai.com"),
        headers={"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
        timeout=600,
    )
    with provider, closing(Guard.open(config)) as guard:
        try:
            for line in sys.stdin:
                print(summarise(guard, provider, line.strip()))
        except BudgetExceeded as refused:
            print(refused, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
