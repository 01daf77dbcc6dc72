"""A worker: it calls a model without any request, and within the same budgets.

The demo kills it while it waits for the answer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from openai import OpenAI
from openai.types.chat import ChatCompletion

from llm_budget_mw import Guard, Principal


def summarise(user: str, text: str) -> str | None:
    """Return a summary that `user` pays for; raises `BudgetExceeded` if that is not possible."""
    with guard.call(
        Principal(user, tier="one-at-a-time"),
        model="gpt-4o",
        messages=[{"role": "user", "content": text}],
        max_tokens=100,
        user=user,
    ) as call:
        answer = cast("ChatCompletion", provider.chat.completions.create(**call.request))
        call.record(answer)
    return answer.choices[0].message.content


if __name__ == "__main__":
    guard = Guard.open(Path(__file__).with_name("llm_budget.toml"))
    provider = OpenAI(max_retries=0)
    print(summarise(*sys.argv[1:]))
