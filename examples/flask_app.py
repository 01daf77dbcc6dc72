"""Budgets in Flask: one view in the provider's format, one in a format of our own.

export LLM_BUDGET_JWT_KEY=... OPENAI_API_KEY=...
gunicorn --chdir examples --threads 32 flask_app:app
"""

from __future__ import annotations

import os
from typing import Any

import httpx2
from flask import Flask, Response, request

from llm_budget_mw_flask import LLMBudget, current_budget

provider = httpx2.Client(
    base_url=os.environ.get("PROVIDER_URL", "https://api.openai.com"),
    headers={"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    timeout=600,
)

app = Flask(__name__)
app.config["LLM_BUDGET_CONFIG"] = "llm_budget.toml"
app.config.from_prefixed_env()
budget = LLMBudget(app)


@app.post("/v1/chat/completions")
def chat() -> Response:
    """Pass a call on; its body already says which model and how much output is granted."""
    call = provider.build_request(
        "POST",
        "/v1/chat/completions",
        content=request.get_data(),
        headers={"content-type": "application/json", "accept-encoding": "identity"},
    )
    answer = provider.send(call, stream=True)
    kind = answer.headers.get("content-type")
    response = Response(answer.iter_raw(), answer.status_code, content_type=kind)
    response.call_on_close(answer.close)
    return response


@app.post("/summaries")
@budget.guard(feature="summaries", model="gpt-4o-mini", input_tokens=4000, max_tokens=200)
def summarise() -> dict[str, Any]:
    """Call a model ourselves; the call draws on what the request has reserved."""
    messages = [
        {"role": "system", "content": "Summarise the text in two sentences."},
        {"role": "user", "content": request.get_json()["text"]},
    ]
    with current_budget.call(
        model=current_budget.model, messages=messages, max_tokens=current_budget.max_tokens
    ) as call:
        answer = provider.post("/v1/chat/completions", json=call.request)
        answer.raise_for_status()
        call.record(answer.json())
    content = answer.json()["choices"][0]["message"]["content"]
    spent = call.settlement.charges.cost_nano if call.settlement else 0
    return {"summary": content, "micro_dollars": spent // 1000}
