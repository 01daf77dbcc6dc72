"""Celery jobs that call a model, each charged to whoever asked for it.

export LLM_BUDGET_JWT_KEY=... HANDOVER_SECRET=... OPENAI_API_KEY=...
export LLM_BUDGET_STORE_URL=redis://localhost:6379/0
celery -A celery_worker worker

A web application sends a job with the principal it has authenticated:
`summarise.delay(hand_over(current_budget().principal, SECRET), text)`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import openai
from celery import Celery
from celery.exceptions import Reject
from openai.types.chat import ChatCompletionMessageParam

from llm_budget_mw import BudgetExceeded, Guard, charge, take_over
from llm_budget_mw.clients import guarded

SECRET = os.environ["HANDOVER_SECRET"]
REDIS = os.environ.get("LLM_BUDGET_STORE_URL", "redis://localhost:6379/0")
app = Celery("celery_worker", broker=REDIS, backend=REDIS)


@functools.cache
def guard() -> Guard:
    # Opened by the first job: each of Celery's processes needs connections of its own.
    return Guard.open(Path(__file__).with_name("llm_budget.toml"))


@functools.cache
def client() -> openai.OpenAI:
    return openai.OpenAI(
        base_url=os.environ.get("PROVIDER_URL", "https://api.openai.com") + "/v1",
        http_client=guarded(openai.DefaultHttpxClient),
    )


@app.task(bind=True, max_retries=3)
def summarise(self: Any, who: str, text: str) -> str:
    question: ChatCompletionMessageParam = {
        "role": "user",
        "content": f"Summarise in one sentence: {text}",
    }
    try:
        with charge(guard(), take_over(who, SECRET), feature="summaries"):
            answer = client().chat.completions.create(model="gpt-4o-mini", messages=[question])
    except BudgetExceeded as refused:
        wait_ms = refused.refusal.retry_after_ms
        if wait_ms is None:  # it will never fit
            raise Reject(str(refused), requeue=False) from None
        raise self.retry(countdown=wait_ms / 1000) from None
    return str(answer.choices[0].message.content)
