"""Budgets in FastAPI: one route in the provider's format, one in a format of our own.

export LLM_BUDGET_JWT_KEY=... OPENAI_API_KEY=...
uvicorn --app-dir examples fastapi_app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from llm_budget_mw import BudgetExceeded, BudgetMiddleware
from llm_budget_mw_fastapi import CurrentBudget, budget_responses

provider = httpx2.AsyncClient(
    base_url=os.environ.get("PROVIDER_URL", "https://api.openai.com"),
    headers={"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    timeout=600,
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    async with provider:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(BudgetMiddleware, config=Path(__file__).with_name("llm_budget.toml"))


@app.post("/v1/chat/completions", responses=budget_responses())
async def chat(request: Request) -> StreamingResponse:
    """Pass a call on; its body already says which model and how much output is granted."""
    call = provider.build_request(
        "POST",
        "/v1/chat/completions",
        content=await request.body(),
        headers={"content-type": "application/json", "accept-encoding": "identity"},
    )
    answer = await provider.send(call, stream=True)
    kind = answer.headers.get("content-type")
    return StreamingResponse(relay(answer), answer.status_code, media_type=kind)


async def relay(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


class Text(BaseModel):
    text: str


class Summary(BaseModel):
    summary: str
    micro_dollars: int


@app.post("/summaries", responses=budget_responses())
async def summarise(wanted: Text, budget: CurrentBudget) -> Summary:
    """Call a model ourselves; the call draws on what the request has reserved."""
    messages = [
        {"role": "system", "content": "Summarise the text in two sentences."},
        {"role": "user", "content": wanted.text},
    ]
    async with budget.call(
        model=budget.model, messages=messages, max_tokens=budget.max_tokens
    ) as call:
        answer = await provider.post("/v1/chat/completions", json=call.request)
        answer.raise_for_status()
        call.record(answer.json())
    content = answer.json()["choices"][0]["message"]["content"]
    spent = call.settlement.charges.cost_nano if call.settlement else 0
    return Summary(summary=content, micro_dollars=spent // 1000)


@app.exception_handler(BudgetExceeded)
async def refused(request: Request, error: BudgetExceeded) -> JSONResponse:
    """Answer for a call that needed more than the request had reserved, and was refused."""
    return JSONResponse({"detail": str(error)}, status_code=429)
