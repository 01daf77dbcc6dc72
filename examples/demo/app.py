"""An application that passes chats on to a provider, each user within a budget.

Run by itself it needs LLM_BUDGET_STORE_URL, LLM_BUDGET_JWT_KEY and OPENAI_API_KEY:

    uvicorn examples.demo.app:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from openai import APIStatusError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llm_budget_mw import BudgetMiddleware

app = FastAPI()
app.add_middleware(BudgetMiddleware, config=Path(__file__).with_name("llm_budget.toml"))
# A retry would be a second call, which nobody has admitted: that is for the caller to decide.
provider = AsyncOpenAI(max_retries=0)
Chunks = AsyncStream[ChatCompletionChunk]
Answer = ChatCompletion | Chunks


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Ask the provider; who asks, how much and of which model was decided before."""
    body = await request.json()
    answer = cast("Answer", await provider.chat.completions.create(**body))
    if isinstance(answer, AsyncStream):
        return StreamingResponse(events(answer), media_type="text/event-stream")
    return JSONResponse(answer.model_dump())


async def events(answer: Chunks) -> AsyncIterator[str]:
    """Pass a stream on, chunk by chunk; if the caller leaves, the provider is told."""
    async with answer:
        async for chunk in answer:
            yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
    yield "data: [DONE]\n\n"


@app.exception_handler(APIStatusError)
def refused_by_provider(request: Request, error: APIStatusError) -> Response:
    """Pass the provider's own refusal on: what it did not do is not charged."""
    return Response(error.response.content, error.status_code, media_type="application/json")
